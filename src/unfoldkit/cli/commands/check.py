"""``unfold check``: every mistake of many files, one line each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from unfoldkit.cli import console, output
from unfoldkit.cli.execution import build_run
from unfoldkit.cli.progress import show_progress
from unfoldkit.cli.request import Request
from unfoldkit.descriptors import resolve
from unfoldkit.errors import (
    Diagnostic,
    ExitCode,
    UnfoldError,
    did_you_mean,
    escape_unprintable,
    user_error,
    with_default_file,
)
from unfoldkit.io.yaml12 import to_yaml
from unfoldkit.registry import Registry, open_registry
from unfoldkit.report import Verdict
from unfoldkit.spec.resolve import LoadedSpec, load_spec

FORMATS = ("text", "json", "github", "junit")


def check(
    files: Sequence[str],
    form: str = "text",
    *,
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
        form: One of ``FORMATS``.
        settings: ``KEY=VALUE`` changes of every spec.
        builtin_only: Load the built-in plugins only.
        stdin: The text of stdin.
        data: Also check the files that specs name.
        verify: Also search the specs for violations. A counterexample is printed on stdout as a spec, the report on
            stderr; without one the report is printed on stdout.
        allow_code: Code that a spec names may run in the search.

    Returns:
        0 if all files are valid, 2 if one is not, and 1 if a search finds a violation or is incomplete.
    """
    if form not in FORMATS:
        raise user_error(f"--format {form}: no such format of check", hint=did_you_mean(form, FORMATS))
    registry = open_registry(builtin_only=builtin_only)
    by_file = {file: find_mistakes(registry, file, stdin, settings=settings, data=data) for file in files}
    mistakes = [item for items in by_file.values() for item in items]
    console.write_report(_render(mistakes, form))
    console.print_message(_summarize(by_file))
    if mistakes or not verify:
        return ExitCode.USAGE if mistakes else ExitCode.YES
    verdicts = [_verify(registry, file, stdin, settings=settings, allow_code=allow_code) for file in files]
    return ExitCode.YES if all(verdicts) else ExitCode.NO


def _verify(registry: Registry, file: str, stdin: str, *, settings: Sequence[str], allow_code: bool) -> bool:
    """Search a valid spec for violations and print the result; return whether there is none.

    Raises:
        UnfoldError: The kind has no such search, or it failed.
    """
    loaded = load_spec(file, registry.kinds, settings=settings, stdin=stdin, find_kind=registry.kind)
    if loaded.kind.verifies is None:
        raise user_error(f"kind {loaded.kind.name} has nothing to verify", file=_display_name(file))
    with loaded.locate_errors(), show_progress(f"verify {loaded.spec.name}") as progress:
        run = build_run(Request(verb="plan", spec=file, allow_code=allow_code), loaded, progress)
        report = resolve(loaded.kind.verifies, extra=loaded.kind.extra)(loaded.spec, run)
    # rich, which it needs, takes longer to import than a spec to check
    from unfoldkit.render.text import render

    text = render(report)
    if report.decision is None:
        console.write_report(text)
    else:
        console.print_message(text)
        header = f"# {escape_unprintable(report.headline)}\n"
        console.write_report(header + to_yaml(report.decision["counterexample"]))
    return report.verdict is Verdict.YES


def find_mistakes(
    registry: Registry, file: str, stdin: str = "", *, settings: Sequence[str] = (), data: bool = False
) -> list[Diagnostic]:
    """Return the mistakes of one file, and with ``data`` those of the files that it names."""
    try:
        loaded = load_spec(file, registry.kinds, settings=settings, stdin=stdin, find_kind=registry.kind)
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
        return json.dumps([asdict(item) for item in mistakes], indent=2, ensure_ascii=False) + "\n"
    page = output.render_mistakes(form, mistakes)
    return page if page is not None else "".join(f"{item}\n" for item in mistakes)


def _summarize(by_file: dict[str, list[Diagnostic]]) -> str:
    invalid = {file: items for file, items in by_file.items() if items}
    if not invalid:
        return f"{len(by_file)} valid" if len(by_file) > 1 else f"{_display_name(next(iter(by_file)))} is valid"
    count = sum(len(items) for items in invalid.values())
    is_single = len(invalid) == 1
    where = _display_name(next(iter(invalid))) if is_single else f"{len(invalid)} of {len(by_file)} files"
    return f"{count} mistake{'s' if count > 1 else ''} in {where}"


def _display_name(file: str) -> str:
    return "<stdin>" if file == "-" else escape_unprintable(file)
