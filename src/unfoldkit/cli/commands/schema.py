"""`unfold schema [KIND]`."""

from __future__ import annotations

import json
from pathlib import Path

from unfoldkit.cli import console, plugin_registry
from unfoldkit.descriptors import Kind, resolve
from unfoldkit.errors import ExitCode
from unfoldkit.run_directory import write_atomically
from unfoldkit.spec.base import Spec
from unfoldkit.spec.schema import joint_schema, json_schema


def schema(kind: str | None, out: Path | None = None) -> ExitCode:
    """Print the JSON Schema of one kind, or of all."""
    registry = plugin_registry.registry()
    if kind is None:
        data = joint_schema({name: _model(item) for name, item in registry.kinds.items()})
    else:
        data = json_schema(_model(registry.kind(kind)), f"unfold {kind}")
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    if out is None:
        console.write_report(text)
    else:
        write_atomically(out, text.encode())
    return ExitCode.YES


def _model(kind: Kind) -> type[Spec]:
    model: type[Spec] = resolve(kind.spec, extra=kind.extra)
    return model
