"""Which renderer writes the report, and where to."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from unfoldkit.cli import console
from unfoldkit.descriptors import Renderer, resolve
from unfoldkit.errors import Diagnostic, did_you_mean, printable, user_error
from unfoldkit.registry import Registry
from unfoldkit.render import builtin_renderers
from unfoldkit.report import Report
from unfoldkit.run_directory import encoded, write_atomically


def choose(registry: Registry, name: str | None, out: Path | None) -> Renderer:
    """Return the renderer that ``--format`` or the ending of ``--out`` asks for.

    Raises:
        UnfoldError: no such format or ending.
    """
    if out is not None and out.is_dir():
        raise user_error("--out needs a file; this is a folder", file=str(out), hint=f"--out {out / 'report.html'}")
    renderers = (*builtin_renderers(), *registry.renderers())
    if name is None and out is not None:
        found = [renderer for renderer in renderers if out.suffix.lower() in renderer.suffixes]
        endings = sorted(ending for renderer in renderers for ending in renderer.suffixes)
        hint = f"one of {' '.join(endings)}, or --format"
        return _first(found, f"--out {out}: the ending {out.suffix!r} names no format", hint)
    wanted = name or "text"
    found = [renderer for renderer in renderers if renderer.name == wanted]
    return _first(found, f"--format {wanted}: no such format", did_you_mean(wanted, [r.name for r in renderers]))


def spare(out: Path | None, *inputs: str | Path | None) -> None:
    """Refuse to write a report over a file that it is made from.

    Raises:
        UnfoldError: ``--out`` is one of them, by whatever name.
    """
    for path in inputs:
        if out is not None and path is not None and _is_same(out, path):
            raise user_error(
                "--out would write over what the report is made from", file=str(out), hint="take another name"
            )


def deliver(report: Report, renderer: Renderer, out: Path | None) -> None:
    """Render the report to stdout or to a file."""
    if renderer.name == "text" and out is None and (sys.stdout.isatty() or console.wants_colour(sys.stdout)):
        from unfoldkit.render.text import render

        width = min(shutil.get_terminal_size((120, 40)).columns, 140)
        console.write_report(render(report, width=width, colour=console.wants_colour(sys.stdout)))
        return
    content: str | bytes = resolve(renderer.render)(report)
    if out is None:
        console.write_report(content)
    else:
        write_atomically(out, encoded(content) if isinstance(content, str) else content)
        console.say(f"{report.verdict} · {printable(report.headline)}\nwrote {out}")


def mistakes(name: str, items: Iterable[Diagnostic]) -> str | None:
    """Return mistakes of a spec in a format that has a place for them; ``None`` in any other."""
    if name == "github":
        from unfoldkit.render.github import render_diagnostics as annotations

        return annotations(items)
    if name == "junit":
        from unfoldkit.render.junit import render_diagnostics as cases

        return cases(items)
    return None


def _is_same(out: Path, path: str | Path) -> bool:
    # not Path.is_file, which raises for a name that is too long
    there = os.path.isfile(out) and os.path.isfile(path)  # noqa: PTH113
    return there and out.samefile(path)


def _first(found: list[Renderer], message: str, hint: str) -> Renderer:
    if not found:
        raise user_error(message, hint=hint)
    return found[0]
