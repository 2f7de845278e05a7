"""Select the renderer of a report, and write the report to stdout or a file."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from unfoldkit.cli import console
from unfoldkit.errors import Diagnostic, did_you_mean, escape_unprintable, user_error
from unfoldkit.plugin_descriptors import Renderer, resolve
from unfoldkit.registry import Registry
from unfoldkit.render import builtin_renderers
from unfoldkit.report import Report, Verdict
from unfoldkit.run_directory import encode_text, find_run, write_atomically
from unfoldkit.safe_io.files import read_bytes

MAX_WIDTH = 140


def list_renderers(registry: Registry) -> tuple[Renderer, ...]:
    """List the built-in renderers, then those of plugins."""
    return (*builtin_renderers(), *registry.renderers())


def select_renderer(registry: Registry, name: str | None, out: Path | None, kind: str = "") -> Renderer:
    """Return the renderer that ``--format`` or the suffix of ``--out`` selects, for reports of a kind if it is known.

    Raises:
        UnfoldError: No renderer has the name or the suffix.
    """
    if out is not None and out.is_dir():
        raise user_error("--out needs a file; this is a folder", file=str(out), hint=f"--out {out / 'report.html'}")
    # two kinds may have a format of one name; that of another kind states what it needs
    renderers = sorted(list_renderers(registry), key=lambda renderer: renderer.kind not in ("", kind))
    if name is None and out is not None:
        matches = [renderer for renderer in renderers if out.suffix.lower() in renderer.suffixes]
        suffixes = sorted(suffix for renderer in renderers for suffix in renderer.suffixes)
        hint = f"one of {' '.join(suffixes)}, or --format"
        return _first_match(matches, f"--out {out}: no format has the suffix {out.suffix!r}", hint)
    name = name or "text"
    matches = [renderer for renderer in renderers if renderer.name == name]
    names = sorted({renderer.name for renderer in renderers})
    hint = did_you_mean(name, names) or f"one of {', '.join(names)}"
    return _first_match(matches, f"--format {name}: no such format", hint)


def refuse_overwrite(out: Path | None, *inputs: str | Path | None) -> None:
    """Refuse to write a report over a file that it is made from.

    Raises:
        UnfoldError: ``--out`` is one of the inputs, under whatever name.
    """
    for path in inputs:
        if out is not None and path is not None and _is_same_file(out, path):
            message = "--out would overwrite an input of the report"
            raise user_error(message, file=str(out), hint="choose another name")


def write_out(out: Path, data: bytes) -> None:
    """Write the file of ``--out``, unless a run needs what is there.

    Raises:
        UnfoldError: The file belongs to a run and holds something else, or it cannot be written.
    """
    run = find_run(out)
    if run is not None and not (out.is_file() and read_bytes(out) == data):
        message = f"--out would overwrite a file of the run {run}"
        raise user_error(message, file=str(out), hint="choose another name")
    write_atomically(out, data)


def deliver(report: Report, renderer: Renderer, out: Path | None) -> None:
    """Render the report to stdout or to a file."""
    if renderer.name == "text" and out is None and (sys.stdout.isatty() or console.use_colour(sys.stdout)):
        from unfoldkit.render.text import render

        width = min(shutil.get_terminal_size((120, 40)).columns, MAX_WIDTH)
        console.write_report(render(report, width=width, colour=console.use_colour(sys.stdout)))
        return
    if renderer.name == "plan" and report.verdict is Verdict.NO and report.decision is None:
        # the answer is that there is none: its reasons are what the user needs
        reasons = "".join(f"{escape_unprintable(f'{name}: {text}')}\n" for name, text in report.lines)
        verdict = f"{report.verdict} · {escape_unprintable(report.headline)}"
        console.print_message(f"{reasons}{verdict}\nwrote no plan, as there is none")
        return
    content: str | bytes = resolve(renderer.render)(report)
    if out is None:
        console.write_report(content)
    else:
        write_out(out, encode_text(content) if isinstance(content, str) else content)
        console.print_message(f"{report.answer} · {escape_unprintable(report.headline)}")
        console.print_written(out)


def render_mistakes(name: str, items: Iterable[Diagnostic]) -> str | None:
    """Render mistakes of a spec in a format that can hold them; ``None`` for any other format."""
    if name == "github":
        from unfoldkit.render.github import render_diagnostics as render_annotations

        return render_annotations(items)
    if name == "junit":
        from unfoldkit.render.junit import render_diagnostics as render_cases

        return render_cases(items)
    return None


def _is_same_file(out: Path, path: str | Path) -> bool:
    # not Path.is_file, which raises for a name that is too long
    both_exist = os.path.isfile(out) and os.path.isfile(path)  # noqa: PTH113
    return both_exist and out.samefile(path)


def _first_match(matches: list[Renderer], message: str, hint: str) -> Renderer:
    if not matches:
        raise user_error(message, hint=hint)
    return matches[0]
