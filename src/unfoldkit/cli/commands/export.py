"""``unfold export``: what a run serves, as one file for other servers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unfoldkit.cli import console, output
from unfoldkit.cli.commands.serve import find_plan
from unfoldkit.cli.execution import build_run, check_run_kind, load_request
from unfoldkit.cli.progress import show_progress
from unfoldkit.cli.request import Request
from unfoldkit.errors import ExitCode, escape_unprintable, explain_missing_packages, user_error
from unfoldkit.plugin_descriptors import resolve
from unfoldkit.registry import open_registry
from unfoldkit.run_context import Run
from unfoldkit.spec.resolve import LoadedSpec

FORMATS = ("onnx",)


def export(request: Request, form: str, out: Path | None) -> ExitCode:
    """Write what a run serves to a file.

    Args:
        request: The call; its spec is a trained run.
        form: The format of the file.
        out: The file; by default the name of the spec with the suffix of the format.

    Raises:
        UnfoldError: The kind has no such format, the run has no plan, or its answer has no form in it.
    """
    if form not in FORMATS:
        raise user_error(f"--format {form}: no such format", hint=f"one of {', '.join(FORMATS)}")
    registry = open_registry(builtin_only=request.builtin_only)
    loaded = load_request(request, registry)
    if loaded.kind.export is None:
        able = [kind.name for kind in registry.kinds.values() if kind.export]
        raise user_error(f"kind {loaded.kind.name} has no export", hint=f"kinds with one: {', '.join(able) or 'none'}")
    path = out or Path(f"{loaded.spec.name}.{form}")
    output.refuse_overwrite(path, request.spec)
    with show_progress(f"export {loaded.spec.name}") as progress:
        data = _build_export(build_run(request, loaded, progress), loaded)
    output.write_out(path, data)
    console.print_message(f"wrote {escape_unprintable(str(path))}, {len(data):,} bytes")
    return ExitCode.YES


def _build_export(run: Run, loaded: LoadedSpec) -> bytes:
    with run.directory.locked():
        check_run_kind(run, loaded.kind)
        run = replace(run, options={**run.options, "plan": find_plan(run, loaded)})
        with loaded.locate_errors(), explain_missing_packages(loaded.kind.extra):
            data: bytes = resolve(str(loaded.kind.export), extra=loaded.kind.extra)(loaded.spec, run)
    return data
