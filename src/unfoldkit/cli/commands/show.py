"""``unfold plugins`` and ``unfold report``: show installed plugins and the reports of finished runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unfoldkit.cli import console, output, plugin_registry
from unfoldkit.cli.execution import REPORT
from unfoldkit.errors import ExitCode, shorten, user_error
from unfoldkit.registry import Registry
from unfoldkit.report import Verdict, from_data, validate_report
from unfoldkit.run_directory import MANIFEST, RunDir
from unfoldkit.safe_io.files import parse_object


def list_plugins(form: str = "text") -> ExitCode:
    """Print every plugin with its kinds, distribution and status."""
    registry = plugin_registry.open_registry()
    rows = [_row(registry, index) for index in range(len(registry.plugins))]
    if form == "json":
        console.write_report(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    elif form == "text":
        console.write_report("".join(_format(row) for row in rows))
    else:
        raise user_error(f"--format {form}: plugins prints text or json")
    for name, owners in registry.duplicates.items():
        console.print_message(f'several plugins offer the kind "{name}": {" and ".join(map(str, owners))}')
    return ExitCode.YES


def show_report(folder: Path, form: str | None, out: Path | None, *, exit_zero: bool = False) -> ExitCode:
    """Render the report of a finished run again; the exit code is that of its verdict.

    Raises:
        UnfoldError: The folder holds no run, or its report is damaged.
    """
    if not folder.is_dir():
        raise user_error("no such run", file=str(folder), hint="a run is a folder such as runs/digits")
    if not (folder / MANIFEST).is_file():
        raise user_error("the folder holds no run", file=str(folder), hint=_list_runs(folder))
    output.refuse_overwrite(out, folder / REPORT)
    with RunDir(folder).decoding(REPORT, "a report") as data:
        report = from_data(parse_object(data))
        for problem in validate_report(report, report.kind, report.verb):
            raise ValueError(problem)
    output.deliver(report, output.select_renderer(plugin_registry.open_registry(), form, out), out)
    return ExitCode.YES if report.verdict is Verdict.YES or exit_zero else ExitCode.NO


def _list_runs(folder: Path) -> str:
    names = [path.parent.name for path in sorted(folder.glob(f"*/{MANIFEST}"), key=lambda path: path.parent)]
    return f"runs in it: {shorten(', '.join(names), 200)}" if names else "a run is a folder such as runs/digits"


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


def _format(row: dict[str, Any]) -> str:
    source = f"{row['distribution']} {row['version']}".strip()
    head = f"{row['name']:<12} {row['status']:<9} {source}"
    lines = [f"{head:<46} {row['error']}".rstrip()]
    lines += [f"  {kind['name']:<10} {', '.join(kind['verbs']):<30} {kind['summary']}" for kind in row["kinds"]]
    return "\n".join(lines) + "\n"
