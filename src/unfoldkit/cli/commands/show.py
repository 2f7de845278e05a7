"""`unfold plugins` and `unfold report`: what is there already, shown again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unfoldkit.cli import console, output
from unfoldkit.cli import plugin_registry as loading
from unfoldkit.cli.commands.run import REPORT
from unfoldkit.errors import ExitCode, shorten, user_error
from unfoldkit.registry import Registry
from unfoldkit.report import Verdict, flaws, from_data
from unfoldkit.run_directory import MANIFEST, RunDir
from unfoldkit.safe_io.files import parse_object


def plugins(form: str = "text") -> ExitCode:
    """Print every plugin with its kinds, distribution and status."""
    registry = loading.registry()
    rows = [_row(registry, name) for name in range(len(registry.plugins))]
    if form == "json":
        console.write_report(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    elif form == "text":
        console.write_report("".join(_line(row) for row in rows))
    else:
        raise user_error(f"--format {form}: plugins prints text or json")
    for name, owners in registry.duplicates.items():
        console.say(f'two plugins offer the kind "{name}": {" and ".join(map(str, owners))}')
    return ExitCode.YES


def report(folder: Path, form: str | None, out: Path | None, *, exit_zero: bool = False) -> ExitCode:
    """Render the report of a finished run again; the exit code is that of its verdict."""
    if not folder.is_dir():
        raise user_error("no such run", file=str(folder), hint="a run is a folder such as runs/digits")
    if not (folder / MANIFEST).is_file():
        raise user_error("a folder that holds no run", file=str(folder), hint=_runs_in(folder))
    output.spare(out, folder / REPORT)
    with RunDir(folder).decoding(REPORT, "a report") as data:
        found = from_data(parse_object(data))
        if any(flaws(found, found.kind, found.verb)):
            raise ValueError(next(flaws(found, found.kind, found.verb)))
    output.deliver(found, output.choose(loading.registry(), form, out), out)
    return ExitCode.YES if found.verdict is Verdict.YES or exit_zero else ExitCode.NO


def _runs_in(folder: Path) -> str:
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    return (
        f"runs in it: {shorten(', '.join(path.name for path in found), 200)}" if found else "one is such as runs/digits"
    )


def _row(registry: Registry, index: int) -> dict[str, Any]:
    plugin = registry.plugins[index]
    kinds = [registry.kinds[name] for name in plugin.kinds if name in registry.kinds]
    return {
        "name": plugin.name,
        "status": plugin.status,
        "kinds": [{"name": kind.name, "summary": kind.summary, "verbs": list(kind.verbs)} for kind in kinds],
        "distribution": plugin.distribution,
        "version": plugin.version,
        "module": plugin.module,
        "hooks": list(plugin.hooks),
        "error": plugin.error,
    }


def _line(row: dict[str, Any]) -> str:
    source = f"{row['distribution']} {row['version']}".strip()
    head = f"{row['name']:<12} {row['status']:<9} {source}"
    lines = [f"{head:<46} {row['error']}".rstrip()]
    lines += [f"  {kind['name']:<10} {', '.join(kind['verbs']):<30} {kind['summary']}" for kind in row["kinds"]]
    return "\n".join(lines) + "\n"
