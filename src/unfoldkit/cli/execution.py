"""Execute a verb: load and validate the spec, call the plugin, store the run, render the report."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from unfoldkit import __version__
from unfoldkit.catalog.price_books import cache_folder, state_folder
from unfoldkit.cli import console, output
from unfoldkit.cli.interruption import name_leftovers
from unfoldkit.cli.live_report import publishing_reports
from unfoldkit.cli.plan_check import compare_plans, read_plan
from unfoldkit.cli.progress import report_compilation, show_progress
from unfoldkit.cli.request import Request
from unfoldkit.engines import Engine
from unfoldkit.errors import (
    ExitCode,
    UnfoldError,
    did_you_mean,
    escape_unprintable,
    explain_missing_packages,
    internal_error,
    user_error,
)
from unfoldkit.io.yaml12 import to_yaml
from unfoldkit.plugin_descriptors import REPORT_TO_AUTHORS, Kind, Renderer, RunFinished, find_distribution, resolve
from unfoldkit.registry import Registry, open_registry
from unfoldkit.report import Report, Verdict, to_data, validate_report
from unfoldkit.run_context import Options, Progress, Run, ignore_progress
from unfoldkit.run_directory import RunDir, encode_text
from unfoldkit.spec.base import Spec
from unfoldkit.spec.resolve import (
    ORIGIN,
    RUN_PLAN,
    RUN_SPEC,
    LoadedSpec,
    dump,
    load_spec,
    name_spec,
    spec_hash,
    stored_kind,
)

REPORT = "report.json"
CHECK = "check.json"
VALIDATION = "validation.json"
LIBRARIES = ("numpy", "scikit-learn", "xgboost")
"""Libraries with versions that a result may depend on."""


def perform(request: Request, stdin: str = "") -> ExitCode:
    """Execute ``profile``, ``train`` or ``plan`` and deliver its report.

    Raises:
        UnfoldError: The request, the spec or the environment is at fault, and the format cannot hold the mistakes.
    """
    registry = open_registry(builtin_only=request.builtin_only)
    renderer = output.select_renderer(registry, request.format, request.out)
    try:
        loaded = load_request(request, registry, stdin)
        if request.verb == "train":
            settings = (*request.settings, *_list_target_settings(request, loaded.kind, registry.kinds))
            request = replace(request, settings=settings, target=None)
        _protect_inputs(request, renderer, is_plan=bool(loaded.plan))
        report, code = execute(request, registry, loaded)
    except UnfoldError as error:
        page = output.render_mistakes(renderer.name, error.diagnostics)
        if page is None:
            raise
        if request.out is not None:
            _protect_inputs(request, renderer)
            # the result of an earlier run would let a CI server pass
            output.write_out(request.out, encode_text(page))
            raise
        console.write_report(page)
        return error.code
    output.deliver(report, output.select_renderer(registry, request.format, request.out, report.kind), request.out)
    notify_observers(registry, report, code)
    return code


def load_request(request: Request, registry: Registry, stdin: str = "") -> LoadedSpec:
    """Load and validate the spec of a request.

    Raises:
        UnfoldError: The spec or a setting is at fault.
    """
    loaded = load_spec(
        request.spec,
        registry.kinds,
        settings=request.settings,
        stdin=stdin,
        find_kind=registry.kind,
        list_settings=lambda kind: _list_target_settings(request, kind, registry.kinds),
    )
    return replace(loaded, command_words=_spell_spec(request))


def execute(request: Request, registry: Registry, loaded: LoadedSpec) -> tuple[Report, ExitCode]:
    """Call a verb, store its report in the run, and return it with its exit code.

    Raises:
        UnfoldError: The request, the spec or the environment is at fault.
    """
    function = verb_reference(loaded.kind, request.verb)
    _reject_ignored_options(request, loaded.kind, registry.kinds)
    if request.verb == "serve":
        compare_with_spec(loaded)
    if request.dry_run:
        report = _preview(request, loaded, function) if request.target else _report_dry_run(request, loaded)
    else:
        report = _run_and_store(request, loaded, function)
    return report, ExitCode.YES if report.verdict is Verdict.YES or request.exit_zero else ExitCode.NO


def _list_target_settings(request: Request, kind: Kind, kinds: Mapping[str, Kind]) -> tuple[str, ...]:
    """Return the setting of the spec that stands for the system which ``train --target`` names, if it names one.

    Raises:
        UnfoldError: The kind trains on this machine only.
    """
    if request.verb != "train" or request.target is None:
        return ()
    if kind.runs_on is None:
        capable = ", ".join(sorted(each.name for each in kinds.values() if each.runs_on))
        problem = f"kind {kind.name} trains on this machine only"
        raise user_error(f"--target {request.target}: {problem}", hint=f"kinds that do not: {capable}")
    return (f"{kind.runs_on}={request.target}",)


def reject_target(request: Request, kind: Kind) -> None:
    """Reject a system that the kind does not take charge of, or a trace beside it.

    Raises:
        UnfoldError: The request names such a system.
    """
    if request.target is None:
        return
    if request.target not in kind.targets:
        hint = did_you_mean(request.target, kind.targets) if kind.targets else f"unfold serve {request.spec} serves it"
        problem = "no such system" if kind.targets else f"kind {kind.name} takes charge of no deployment"
        raise user_error(f"--target {request.target}: {problem}", hint=hint)
    if request.replay is not None:
        raise user_error(f"--replay {request.replay}: no trace is sent to an existing deployment", hint="leave it out")


def verb_reference(kind: Kind, verb: str) -> str:
    """Return the reference to the implementation of a verb.

    Raises:
        UnfoldError: The kind does not have the verb.
    """
    reference: str | None = getattr(kind, verb)
    if reference is None:
        raise user_error(f"kind {kind.name} has no {verb}", hint=f"it has {', '.join(kind.verbs) or 'no verb'}")
    return reference


def run_folder(request: Request, loaded: LoadedSpec) -> Path:
    """Return the folder of the run: ``--run``, the run that the request names, or ``runs/NAME``."""
    return request.run or loaded.run or Path("runs") / loaded.spec.name


def build_run(request: Request, loaded: LoadedSpec, progress: Progress = ignore_progress) -> Run:
    """Build the context that a verb receives beside its spec."""
    if request.allow_code:
        # after installed packages, so that no file beside the spec shadows a library
        sys.path.append(str(loaded.base.resolve()))
    plan = read_plan_for(request.plan, loaded) if request.plan else dict(loaded.plan)
    options = Options(plan=plan, cache=str(cache_folder()), state=str(state_folder()))
    if request.replay:
        options["replay"] = str(request.replay)
    if request.data:
        options["data"] = str(request.data)
    if request.recalibrate:
        options["recalibrate"] = str(request.recalibrate)
    if request.on:
        options["on"] = request.on
    if request.target:
        options["target"] = request.target
    if request.dry_run:
        options["dry_run"] = True
    if request.data or request.recalibrate:
        options["plan"] = _read_stored_plan(run_folder(request, loaded))
    return Run(
        directory=RunDir(run_folder(request, loaded)),
        engine=select_engine(request),
        seed=request.seed,
        base=loaded.base,
        log=console.open_log(verbose=request.verbose),
        options=options,
        allow_code=request.allow_code,
        progress=progress,
        name_leftovers=name_leftovers,
    )


def _read_stored_plan(folder: Path) -> Mapping[str, Any]:
    """Read the plan of a run.

    Raises:
        UnfoldError: The run stores none.
    """
    if not (folder / RUN_PLAN).is_file():
        raise user_error("the run has no plan", file=str(folder), hint="unfold train SPEC makes one")
    return read_plan(folder / RUN_PLAN)


def read_plan_for(path: Path, loaded: LoadedSpec) -> Mapping[str, Any]:
    """Read a plan for the kind of a spec.

    Raises:
        UnfoldError: The file is not a plan, or one of another kind.
    """
    plan = read_plan(path)
    spec = plan.get("spec")
    kind = spec.get("kind", loaded.kind.name) if isinstance(spec, Mapping) else loaded.kind.name
    if kind != loaded.kind.name:
        raise user_error(f"a plan of kind {kind}; the spec is of kind {loaded.kind.name}", file=str(path))
    return plan


def select_engine(request: Request) -> Engine:
    """Return the engine that ``--engine`` names.

    Raises:
        UnfoldError: No engine has the name, or ``--ray-address`` has no effect.
    """
    from unfoldkit.engines.local import LocalEngine, available_cores
    from unfoldkit.engines.ray import RayEngine

    if request.engine == "local":
        if request.ray_address is not None:
            message = f"--ray-address {request.ray_address} has no effect with --engine local"
            raise user_error(message, hint="add --engine ray")
        return LocalEngine(request.jobs or available_cores())
    if request.engine == "ray":
        return RayEngine(request.ray_address)
    raise user_error(f"--engine {request.engine}: no such engine", hint=did_you_mean(request.engine, ["local", "ray"]))


def check_run_kind(run: Run, kind: Kind) -> None:
    """Refuse a folder that holds a run of another kind, which would lose its spec, report and plan.

    Raises:
        UnfoldError: The folder holds such a run.
    """
    stored = stored_kind(run.directory.path)
    if stored not in (None, kind.name):
        message = f"the folder holds a run of kind {stored}; the spec is of kind {kind.name}"
        raise user_error(message, file=str(run.directory.path), hint="another name in the spec, or --run DIR")


def store_spec(run: Run, spec: Spec) -> None:
    """Store the resolved spec in the run, and the folder that its relative paths start from."""
    folder = run.directory.path.resolve()
    origin = {"base": os.path.relpath(run.base.resolve(), folder)}
    run.directory.write(ORIGIN, (json.dumps(origin) + "\n").encode())
    run.directory.write(RUN_SPEC, to_yaml(dump(spec)).encode())


def collect_versions(verb: str) -> Mapping[str, str]:
    """Return the versions that a result may depend on, including that of the verb's plugin."""
    import importlib.metadata
    import platform

    # those of an extra may be absent
    installed = [name for name in LIBRARIES if list(importlib.metadata.distributions(name=name))]
    libraries = {name: importlib.metadata.version(name) for name in installed}
    plugin = find_distribution(verb)
    plugin_version = {plugin.name: plugin.version} if plugin else {}
    return {"unfoldkit": __version__, "python": platform.python_version(), **libraries} | plugin_version


def notify_observers(registry: Registry, report: Report, code: ExitCode) -> None:
    """Notify the plugins that observe runs that a verb has finished."""
    event = RunFinished(report.kind, report.verb, report.name, int(code), to_data(report))
    registry.notify(event, console.print_message)


@contextmanager
def noting_stop(run: RunDir) -> Iterator[None]:
    """Note on what a stop raises in the block whether the same command resumes or starts again.

    A verb resumes if it has stored something in its run that it can use again, or notes what it has stored elsewhere.
    """
    before = _list_results(run)
    try:
        yield
    except BaseException as error:
        stored = getattr(error, "__notes__", [])[-1:]
        if not stored and _list_results(run) == before:
            stored, action = [f"nothing was stored in {escape_unprintable(str(run.path))}"], "starts again"
        else:
            action = "resumes where it was"
        words = escape_unprintable(shlex.join(["unfold", *sys.argv[1:]]))
        error.add_note("; ".join([*stored, f"the same command {action}: {words}"]))
        raise


def _list_results(run: RunDir) -> dict[str, Any]:
    """Return the entries of what a verb has stored; empty if they cannot be read."""
    with suppress(UnfoldError):
        return {name: entry for name, entry in run.files().items() if name not in (RUN_SPEC, ORIGIN)}
    return {}


def _protect_inputs(request: Request, renderer: Renderer, *, is_plan: bool = False) -> None:
    # a plan may replace the plan that it was made from
    spec = None if is_plan and renderer.name == "plan" else request.spec
    output.refuse_overwrite(request.out, spec, request.plan, request.replay, request.data, request.recalibrate)


def _reject_ignored_options(request: Request, kind: Kind, kinds: Mapping[str, Kind]) -> None:
    """Reject an option that the verb of this kind would silently ignore."""
    reject_target(request, kind)
    for flag, value, problem, capable in (
        ("--replay", request.replay, "replays no trace", [each.name for each in kinds.values() if each.replay]),
        ("--plan", request.plan, "executes no plan", [each.name for each in kinds.values() if each.carries]),
        (
            "--on",
            request.on,
            "measures on this machine only",
            [each.name for each in kinds.values() if each.selects_node],
        ),
        (
            "--recalibrate",
            request.recalibrate,
            "refits no plan",
            [each.name for each in kinds.values() if each.recalibrates],
        ),
    ):
        if value is not None and kind.name not in capable:
            hint = f"kinds that do: {', '.join(sorted(capable))}"
            raise user_error(f"{flag} {value}: kind {kind.name} {problem}", hint=hint)


def _preview(request: Request, loaded: LoadedSpec, function: str) -> Report:
    """Call ``serve`` for the report of what it would change in an existing deployment; store nothing."""
    run = build_run(request, loaded)
    with loaded.locate_errors(), explain_missing_packages(loaded.kind.extra):
        report = _validate(resolve(function, extra=loaded.kind.extra)(loaded.spec, run), request, loaded.kind)
    return replace(report, provenance={"seed": run.seed, "spec_sha256": spec_hash(loaded.spec), **report.provenance})


def compare_with_spec(loaded: LoadedSpec) -> None:
    """Refuse a plan that was edited so that it does not fit its spec.

    Raises:
        UnfoldError: All mistakes at once, with the lines of the plan.
    """
    if loaded.kind.compares is None or not loaded.plan:
        return
    decision = loaded.plan.get("decision")
    with loaded.locate_errors():
        if not isinstance(decision, Mapping) or not decision:
            raise user_error("the plan decides nothing", key="decision", hint="plan again")
        if mistakes := list(resolve(loaded.kind.compares, extra=loaded.kind.extra)(loaded.spec, decision)):
            raise UnfoldError(*mistakes)


def _report_dry_run(request: Request, loaded: LoadedSpec) -> Report:
    if request.check:
        message = f"--check {request.check}: --dry-run plans nothing to compare"
        raise user_error(message, hint="leave one of them out")
    if request.plan:
        read_plan_for(request.plan, loaded)
    folder = run_folder(request, loaded)
    return Report(
        kind=loaded.kind.name,
        verb=request.verb,
        name=loaded.spec.name,
        verdict=Verdict.YES,
        headline=f"the spec is valid; {request.verb} would write to {folder} · nothing was run",
        lines=(
            ("engine", request.engine),
            ("seed", str(request.seed)),
            ("spec", spec_hash(loaded.spec)[:12]),
        ),
        provenance={"seed": request.seed, "spec_sha256": spec_hash(loaded.spec), "spec": dump(loaded.spec)},
    )


def _run_and_store(request: Request, loaded: LoadedSpec, function: str) -> Report:
    baseline = read_plan_for(request.check, loaded) if request.check else None
    with show_progress(f"{request.verb} {loaded.spec.name}") as progress:
        run = build_run(request, loaded, progress)
        if baseline is not None:
            run = replace(run, options={**run.options, "baseline_plan": baseline})
        directory = run.directory
        with directory.locked(), noting_stop(directory), publishing_reports(directory, progress) as publish:
            check_run_kind(run, loaded.kind)
            run = replace(run, publish=publish)
            if baseline is None and request.verb != "validate":
                store_spec(run, loaded.spec)
            start_s = run.clock()
            with loaded.locate_errors(), explain_missing_packages(loaded.kind.extra):
                verb = resolve(function, extra=loaded.kind.extra)
                with report_compilation(progress), console.keeping_stdout():
                    report = _validate(verb(loaded.spec, run), request, loaded.kind)
            report = _add_provenance(report, loaded, run, run.clock() - start_s)
            report = replace(report, next=_complete_command(report.next, request))
            if request.verb == "validate":
                # the run keeps the report of its plan
                run.directory.write(VALIDATION, _to_json(report))
                return report
            if baseline is None:
                _store_report(run.directory, report)
                return report
            # the run keeps the report of the plan that was made, whatever the check finds for other data
            report = compare_plans(report, baseline, str(request.check))
            run.directory.write(CHECK, _to_json(report))
    return report


def _validate(result: Any, request: Request, kind: Kind) -> Report:
    """Return what a verb returned if it is a valid report.

    Raises:
        UnfoldError: It is not, which is the plugin's fault (exit code 3).
    """
    problems = list(validate_report(result, kind.name, request.verb))
    if problems:
        message = f"{getattr(kind, request.verb)} returned an invalid report: {'; '.join(problems)}"
        raise internal_error(message, hint=REPORT_TO_AUTHORS)
    report: Report = result
    return report


def _complete_command(command: str, request: Request) -> str:
    """Replace SPEC in the next command by the spec of this call with its settings and its run."""
    return name_spec(command, _spell_spec(request, with_run="--run" not in command))


def _spell_spec(request: Request, *, with_run: bool = True) -> str:
    """Return the words that name the spec of a call in another one; stdin has none."""
    if request.spec == "-":
        return "SPEC"
    words = [request.spec, *(word for setting in request.settings for word in ("--set", setting))]
    if request.run is not None and with_run:
        words += ["--run", str(request.run)]
    return shlex.join(words)


def _store_report(directory: RunDir, report: Report) -> None:
    directory.write(REPORT, _to_json(report))
    if report.decision is not None:
        from unfoldkit.render.plan import render

        directory.write(RUN_PLAN, encode_text(render(report)))


def _to_json(report: Report) -> bytes:
    return encode_text(json.dumps(to_data(report), indent=1, ensure_ascii=False) + "\n")


def _add_provenance(report: Report, loaded: LoadedSpec, run: Run, seconds: float) -> Report:
    facts: dict[str, Any] = {
        "seed": run.seed,
        "spec_sha256": spec_hash(loaded.spec),
        "inputs": {},
        "versions": collect_versions(getattr(loaded.kind, report.verb)),
        **report.provenance,
    }
    if report.decision is not None:
        facts["spec"] = dump(loaded.spec)
    return replace(report, provenance=facts | {"timed": {"seconds": round(seconds, 3)}})
