"""``unfold plugins`` and ``unfold report``: show installed plugins and the reports of runs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unfoldkit.cli import console, output
from unfoldkit.cli.comparison import Side, compare_reports
from unfoldkit.cli.execution import REPORT
from unfoldkit.cli.live_report import read_live_report
from unfoldkit.cli.plan_check import read_plan
from unfoldkit.errors import ExitCode, shorten, user_error
from unfoldkit.registry import Registry, open_registry
from unfoldkit.report import Report, Verdict, from_data, validate_report
from unfoldkit.run_directory import MANIFEST, RunDir, encode_text, write_atomically
from unfoldkit.safe_io.files import parse_object

FOLLOW_EVERY_S = 2.0


def list_plugins(form: str = "text") -> ExitCode:
    """Print every plugin with its kinds, distribution and status."""
    registry = open_registry()
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


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """What ``unfold report`` shows: a run or a plan, or two of them, in a format, to a file or in a browser."""

    path: Path
    other: Path | None = None
    form: str | None = None
    out: Path | None = None
    open_page: bool = False


def show_report(request: ReportRequest, *, exit_zero: bool = False) -> ExitCode:
    """Render the report of a run, or the differences of two; the exit code is that of the verdict.

    While a verb runs there, the report is that of what it has done so far, and ``--open`` follows it to its end.

    Raises:
        UnfoldError: A path holds neither a run nor a plan, a report is damaged, or no browser can be opened.
    """
    page = _select_page(request) if request.open_page else None
    inputs = [path / REPORT if path.is_dir() else path for path in (request.path, request.other) if path is not None]
    output.refuse_overwrite(page or request.out, *inputs)
    report = read_report(request.path)
    if request.other is not None:
        report = compare_reports(Side(str(request.path), report), Side(str(request.other), read_report(request.other)))
    form = "html" if page else request.form
    out = page or request.out
    output.deliver(report, output.select_renderer(open_registry(), form, out, report.kind), out)
    if page is not None:
        _open_browser(page)
        if report.status == "running":
            report = _follow(request.path, page)
    return ExitCode.YES if report.verdict is Verdict.YES or exit_zero else ExitCode.NO


def read_report(path: Path) -> Report:
    """Read the report of a run, or what a plan holds of one.

    Raises:
        UnfoldError: The path holds neither, or what it holds is damaged.
    """
    if path.is_file():
        plan = read_plan(path)
        facts = {key: value for key, value in plan.items() if key not in ("schema", "kind", "name", "decision")}
        return Report(
            kind=str(plan.get("kind")), verb="plan", name=str(plan.get("name")), verdict=Verdict.YES, headline="",
            decision=plan["decision"], provenance=facts,
        )  # fmt: skip
    if not path.is_dir():
        raise user_error("no such run", file=str(path), hint="a run is a folder such as runs/digits")
    if not (path / MANIFEST).is_file():
        raise user_error("the folder holds no run", file=str(path), hint=_list_runs(path))
    live = read_live_report(path)
    if live is not None:
        return live
    run = RunDir(path)
    if not run.has(REPORT):
        message = "the run has no report: a verb still works on it, or was stopped"
        raise user_error(message, file=str(path), hint="wait, or run that verb again, which continues what it stored")
    with run.decoding(REPORT, "a report") as data:
        report = from_data(parse_object(data))
        for problem in validate_report(report, report.kind, report.verb):
            raise ValueError(problem)
    return report


def _select_page(request: ReportRequest) -> Path:
    """Return where the page to open is written.

    Raises:
        UnfoldError: The machine has no display, or another format is wanted.
    """
    if request.form not in (None, "html"):
        raise user_error(f"--format {request.form}: --open shows a page", hint="leave one of them out")
    if request.out is not None and request.out.suffix.lower() not in (".html", ".htm"):
        raise user_error(f"--out {request.out}: --open shows a page", hint="a name that ends in .html")
    if not has_display():
        raise user_error("--open: there is no display to open a browser on", hint="--out report.html writes the page")
    name = "comparison.html" if request.other else "report.html"
    folder = request.path if request.path.is_dir() else request.path.parent
    return request.out or folder / name


def has_display(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> bool:
    """Whether a browser with windows can be opened."""
    if platform in ("darwin", "win32"):
        return True
    return any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


def _follow(path: Path, page: Path) -> Report:
    """Rewrite the page until the verb that runs in a folder ends, and return its report."""
    from unfoldkit.render.html import render

    stored = b""
    while True:
        report = read_report(path)
        content = encode_text(render(report))
        if content != stored:
            write_atomically(page, content)
            stored = content
        if report.status != "running":
            return report
        time.sleep(FOLLOW_EVERY_S)


def _open_browser(page: Path) -> None:
    import webbrowser

    if not webbrowser.open(page.resolve().as_uri()):
        raise user_error("no browser could be opened", file=str(page), hint="open this file in a browser")


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
