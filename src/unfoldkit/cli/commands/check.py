"""``unfold check``: every mistake of many files, one line each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from unfoldkit.cli import console, output
from unfoldkit.cli.execution import build_run, compare_with_spec
from unfoldkit.cli.progress import show_progress
from unfoldkit.cli.request import Request
from unfoldkit.errors import (
    Diagnostic,
    ExitCode,
    UnfoldError,
    did_you_mean,
    escape_unprintable,
    user_error,
    with_default_file,
)
from unfoldkit.format import format_count
from unfoldkit.io.yaml12 import to_yaml
from unfoldkit.plugin_descriptors import Renderer, resolve
from unfoldkit.registry import Registry, open_registry
from unfoldkit.render.formatting import escape_controls
from unfoldkit.report import Report, Verdict
from unfoldkit.spec.resolve import LoadedSpec, load_spec

FORMATS = ("text", "json", "github", "junit")


def check(
    files: Sequence[str],
    form: str | None = None,
    *,
    out: Path | None = None,
    settings: Sequence[str] = (),
    builtin_only: bool = False,
    stdin: str = "",
    data: bool = False,
    verify: bool = False,
    allow_code: bool = False,
) -> ExitCode:
    """Validate specs and plans, and print their mistakes on stdout.

    Args:
        files: The files; ``-`` is stdin.
        form: One of ``FORMATS``; with ``verify`` that of a report.
        out: With ``verify``, the file of the report; its suffix selects the format.
        settings: ``KEY=VALUE`` changes of every spec.
        builtin_only: Load the built-in plugins only.
        stdin: The text of stdin.
        data: Also check the files that specs name.
        verify: Also search the specs for violations. A counterexample is printed on stdout as a spec, the report on
            stderr or in ``out``. A report in another format than text is printed on stdout, without the spec.
        allow_code: Code that a spec names may run in the search.

    Returns:
        0 if all files are valid, 2 if one is not, and 1 if a search finds a violation or is incomplete.
    """
    registry = open_registry(builtin_only=builtin_only)
    renderer = _select_renderer(registry, form, out, files) if verify else None
    if form is not None and form not in FORMATS and renderer is None:
        raise user_error(f"--format {form}: no such format of check", hint=_suggest_format(registry, form))
    if out is not None and renderer is None:
        raise user_error("--out holds the report of a search", key="--out", hint="add --verify")
    by_file = {file: find_mistakes(registry, file, stdin, settings=settings, data=data) for file in files}
    mistakes = [item for items in by_file.values() for item in items]
    if mistakes or renderer is None or renderer.name == "text":
        # a report on stdout stands alone
        console.write_report(_render(mistakes, form or "text"))
    console.print_message(_summarize(by_file))
    if mistakes or renderer is None:
        return ExitCode.USAGE if mistakes else ExitCode.YES
    verdicts = []
    for file in files:
        report = _verify(registry, file, stdin, settings=settings, allow_code=allow_code)
        _deliver(report, renderer, out)
        verdicts.append(report.verdict is Verdict.YES)
    return ExitCode.YES if all(verdicts) else ExitCode.NO


def _select_renderer(registry: Registry, form: str | None, out: Path | None, files: Sequence[str]) -> Renderer:
    """Return the renderer of the report of a search.

    Raises:
        UnfoldError: There is none, or several reports would go to one file or document.
    """
    renderer = output.select_renderer(registry, form, out)
    if renderer.name == "plan":
        raise user_error("--format plan: a search has no plan", hint="text, json, md or html")
    if len(files) > 1 and (out is not None or renderer.name != "text"):
        option = f"--out {out}" if out is not None else f"--format {renderer.name}"
        raise user_error(f"{option} takes one spec", hint="verify each spec by itself")
    output.refuse_overwrite(out, *files)
    return renderer


def _suggest_format(registry: Registry, form: str) -> str:
    if any(renderer.name == form for renderer in output.list_renderers(registry)):
        return "add --verify: it is a format of reports"
    return did_you_mean(form, FORMATS)


def _deliver(report: Report, renderer: Renderer, out: Path | None) -> None:
    """Write a report; a counterexample goes to stdout as a spec, unless the report itself does in another format."""
    if out is not None:
        output.deliver(report, renderer, out)
    elif renderer.name != "text":
        output.deliver(report, renderer, None)
        return
    else:
        # rich, which it needs, takes longer to import than a spec to check
        from unfoldkit.render.text import render

        text = render(report)
        if report.decision is None:
            console.write_report(text)
        else:
            console.print_message(text)
    if report.decision is not None:
        header = f"# {escape_unprintable(report.headline)}\n"
        console.write_report(header + to_yaml(report.decision["counterexample"]))


def _verify(registry: Registry, file: str, stdin: str, *, settings: Sequence[str], allow_code: bool) -> Report:
    """Search a valid spec for violations.

    Raises:
        UnfoldError: The kind has no such search, or it failed.
    """
    loaded = load_spec(file, registry.kinds, settings=settings, stdin=stdin, find_kind=registry.kind)
    if loaded.kind.verifies is None:
        raise user_error(f"kind {loaded.kind.name} has nothing to verify", file=_display_name(file))
    with loaded.locate_errors(), show_progress(f"verify {loaded.spec.name}") as progress:
        run = build_run(Request(verb="plan", spec=file, allow_code=allow_code), loaded, progress)
        with console.keeping_stdout():
            report: Report = resolve(loaded.kind.verifies, extra=loaded.kind.extra)(loaded.spec, run)
    return report


def find_mistakes(
    registry: Registry, file: str, stdin: str = "", *, settings: Sequence[str] = (), data: bool = False
) -> list[Diagnostic]:
    """Return the mistakes of one file, and with ``data`` those of the files that it names."""
    try:
        loaded = load_spec(file, registry.kinds, settings=settings, stdin=stdin, find_kind=registry.kind)
        compare_with_spec(loaded)
        if data:
            _check_inputs(loaded, file)
    except UnfoldError as error:
        return [with_default_file(item, _display_name(file)) for item in error.diagnostics]
    return []


def _check_inputs(loaded: LoadedSpec, file: str) -> None:
    """Check the files that a spec names.

    Raises:
        UnfoldError: All mistakes at once.
    """
    if loaded.kind.opens is None:
        message = f"{_display_name(file)}: checked without its data: kind {loaded.kind.name} has no check of files"
        console.print_message(message)
        return
    with loaded.locate_errors():
        run = build_run(Request(verb="plan", spec=file), loaded)
        if mistakes := list(resolve(loaded.kind.opens, extra=loaded.kind.extra)(loaded.spec, run)):
            raise UnfoldError(*mistakes)


def _render(mistakes: Sequence[Diagnostic], form: str) -> str:
    if form == "json":
        return escape_controls(json.dumps([asdict(item) for item in mistakes], indent=2, ensure_ascii=False)) + "\n"
    page = output.render_mistakes(form, mistakes)
    return page if page is not None else "".join(f"{item}\n" for item in mistakes)


def _summarize(by_file: dict[str, list[Diagnostic]]) -> str:
    invalid = {file: items for file, items in by_file.items() if items}
    if not invalid:
        return f"{len(by_file)} valid" if len(by_file) > 1 else f"{_display_name(next(iter(by_file)))} is valid"
    count = sum(len(items) for items in invalid.values())
    is_single = len(invalid) == 1
    where = _display_name(next(iter(invalid))) if is_single else f"{len(invalid)} of {len(by_file)} files"
    return f"{format_count(count, 'mistake')} in {where}"


def _display_name(file: str) -> str:
    return "<stdin>" if file == "-" else escape_unprintable(file)
