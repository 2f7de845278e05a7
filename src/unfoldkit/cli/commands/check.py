"""`unfold check`: every mistake of many files, one line each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from unfoldkit.cli import console, output, plugin_registry
from unfoldkit.cli.commands.run import surroundings
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
from unfoldkit.registry import Registry
from unfoldkit.spec.resolve import Loaded, load

FORMATS = ("text", "json", "github", "junit")


def check(
    files: Sequence[str],
    form: str = "text",
    *,
    settings: Sequence[str] = (),
    builtin_only: bool = False,
    stdin: str = "",
    data: bool = False,
) -> ExitCode:
    """Validate ``files`` with ``settings``, and with ``data`` what they name; print what is wrong on stdout.

    Returns:
        0 if all are valid, 2 otherwise.
    """
    if form not in FORMATS:
        raise user_error(f"--format {form}: no such format of check", hint=did_you_mean(form, FORMATS))
    registry = plugin_registry.registry(builtin_only=builtin_only)
    found = {file: mistakes(registry, file, stdin, settings=settings, data=data) for file in files}
    everything = [item for items in found.values() for item in items]
    console.write_report(_rendered(everything, form))
    console.say(_summary(found))
    return ExitCode.USAGE if everything else ExitCode.YES


def mistakes(
    registry: Registry, file: str, stdin: str = "", *, settings: Sequence[str] = (), data: bool = False
) -> list[Diagnostic]:
    """Return what is wrong with one file, and with ``data`` with what it names; nothing if it is valid."""
    try:
        loaded = load(file, registry.kinds, settings=settings, stdin=stdin, find_kind=registry.kind)
        if data:
            _open(loaded, file)
    except UnfoldError as error:
        return [with_default_file(item, _shown(file)) for item in error.diagnostics]
    return []


def _open(loaded: Loaded, file: str) -> None:
    """Open what a spec names.

    Raises:
        UnfoldError: what is wrong with it, all at once.
    """
    if loaded.kind.opens is None:
        console.say(f"{_shown(file)}: checked without its data: kind {loaded.kind.name} opens none")
        return
    with loaded.telling():
        run = surroundings(Request("plan", file), loaded)
        if found := list(resolve(loaded.kind.opens, extra=loaded.kind.extra)(loaded.spec, run)):
            raise UnfoldError(*found)


def _rendered(items: Sequence[Diagnostic], form: str) -> str:
    if form == "json":
        return json.dumps([asdict(item) for item in items], indent=2, ensure_ascii=False) + "\n"
    page = output.mistakes(form, items)
    return page if page is not None else "".join(f"{item}\n" for item in items)


def _summary(found: dict[str, list[Diagnostic]]) -> str:
    bad = {file: items for file, items in found.items() if items}
    if not bad:
        return f"{len(found)} valid" if len(found) > 1 else f"{_shown(next(iter(found)))} is valid"
    count = sum(len(items) for items in bad.values())
    where = _shown(next(iter(bad))) if len(bad) == 1 else f"{len(bad)} of {len(found)} files"
    return f"{count} mistake{'s' if count > 1 else ''} in {where}"


def _shown(file: str) -> str:
    return "<stdin>" if file == "-" else escape_unprintable(file)
