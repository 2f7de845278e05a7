"""``unfold init`` and ``unfold schema``: a commented spec to start from, and JSON Schemas for editors."""

from __future__ import annotations

import json
import shlex
from importlib.resources import files
from pathlib import Path

from unfoldkit.cli import console, output
from unfoldkit.errors import ExitCode, escape_unprintable, user_error
from unfoldkit.plugin_descriptors import Kind, resolve
from unfoldkit.registry import open_registry
from unfoldkit.run_directory import write_atomically
from unfoldkit.spec.base import Spec
from unfoldkit.spec.schema import build_joint_schema, build_schema


def write_starter(kind: str | None, out: Path | None = None, example: str | None = None) -> ExitCode:
    """Print an example of a kind, the first by default, or write it to a new file.

    Raises:
        UnfoldError: The kind or the example is missing or unknown, or the file exists.
    """
    registry = open_registry()
    if kind is None:
        raise user_error("which kind?", hint=f"one of: {', '.join(sorted(registry.kinds))}")
    text = starter_text(registry.kind(kind), example)
    if out is None:
        console.write_report(text)
        return ExitCode.YES
    if out.exists():
        raise user_error("the file exists; nothing was changed", file=str(out))
    write_atomically(out, text.encode())
    console.print_written(out)
    console.print_message(f"next: unfold check {escape_unprintable(shlex.quote(str(out)))}")
    return ExitCode.YES


def starter_text(kind: Kind, example: str | None = None) -> str:
    """Return the smallest example of a kind, or the named one, with a line that names its schema for editors.

    Raises:
        UnfoldError: The kind has no example, or not exactly one has the name or a part of it.
    """
    texts = read_examples(kind)
    if example is not None:
        names = [name.removesuffix(".yaml") for name in texts]
        matches = [name for name in names if name == example] or [name for name in names if example in name]
        if len(matches) != 1:
            raise user_error(f"no example {example!r}", hint=f"one of: {', '.join(names)}" if names else "")
        texts = {matches[0]: texts[f"{matches[0]}.yaml"]}
    if not texts:
        raise user_error(f"kind {kind.name} has no example", hint=f"unfold schema {kind.name} shows its keys")
    schema = f"{kind.name}.schema.json"
    modeline = f"# yaml-language-server: $schema={schema}\n# (unfold schema {kind.name} -o {schema} writes that file)\n"
    return modeline + next(iter(texts.values()))


def read_examples(kind: Kind) -> dict[str, str]:
    """Return the texts of a kind's examples by file name, sorted."""
    if kind.examples is None:
        return {}
    package, _, folder = kind.examples.partition(":")
    entries = [entry for entry in files(package).joinpath(folder).iterdir() if entry.name.endswith(".yaml")]
    return {entry.name: entry.read_text(encoding="utf-8") for entry in sorted(entries, key=lambda entry: entry.name)}


def write_schema(kind: str | None, out: Path | None = None) -> ExitCode:
    """Print the JSON Schema of one kind or of all, or write it to a file."""
    registry = open_registry()
    if kind is None:
        data = build_joint_schema({name: _spec_model(item) for name, item in registry.kinds.items()})
    else:
        data = build_schema(_spec_model(registry.kind(kind)), f"unfold {kind}")
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    if out is None:
        console.write_report(text)
    else:
        output.write_out(out, text.encode())
    return ExitCode.YES


def _spec_model(kind: Kind) -> type[Spec]:
    model: type[Spec] = resolve(kind.spec, extra=kind.extra)
    return model
