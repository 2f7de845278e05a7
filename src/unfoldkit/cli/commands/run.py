"""Load, validate, call the verb, store, render, exit code: what every verb has in common."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unfoldkit import __version__
from unfoldkit.cli import console, jit_progress, output, plugin_registry
from unfoldkit.cli.commands.catalog import cache_folder
from unfoldkit.cli.plan_check import compare, read_plan
from unfoldkit.cli.request import Request
from unfoldkit.descriptors import TELL, Kind, Renderer, RunFinished, resolve, shipped_by
from unfoldkit.engines.base import Engine
from unfoldkit.errors import ExitCode, UnfoldError, did_you_mean, internal_error, user_error
from unfoldkit.io.yaml12 import to_yaml
from unfoldkit.registry import Registry
from unfoldkit.report import Report, Verdict, flaws, to_data
from unfoldkit.run_context import Options, Run
from unfoldkit.run_directory import RunDir, encoded, write_atomically
from unfoldkit.spec.base import Spec
from unfoldkit.spec.resolve import ORIGIN, RUN_PLAN, RUN_SPEC, Loaded, dump, kept_kind, load, spec_hash

REPORT = "report.json"
CHECK = "check.json"


def perform(request: Request, stdin: str = "") -> ExitCode:
    """Carry out ``profile``, ``train`` or ``plan`` and deliver its report.

    Raises:
        UnfoldError: the request, the spec or the surroundings are at fault, and the format has no place for it.
    """
    registry = plugin_registry.registry(builtin_only=request.builtin_only)
    renderer = output.choose(registry, request.format, request.out)
    try:
        loaded = opened(request, registry, stdin)
        _inputs_spared(request, renderer, loaded)
        report, code = carried_out(request, registry, loaded)
    except UnfoldError as error:
        page = output.mistakes(renderer.name, error.diagnostics)
        if page is None:
            raise
        if request.out is not None:
            # a result of the run before would tell a CI server that all is well
            write_atomically(request.out, encoded(page))
            raise
        console.write_report(page)
        return error.code
    output.deliver(report, renderer, request.out)
    tell(registry, report, code)
    return code


def opened(request: Request, registry: Registry, stdin: str = "") -> Loaded:
    """Return the validated spec of a request.

    Raises:
        UnfoldError: the spec or a setting is at fault.
    """
    return load(request.spec, registry.kinds, settings=request.settings, stdin=stdin, find_kind=registry.kind)


def carried_out(request: Request, registry: Registry, loaded: Loaded) -> tuple[Report, ExitCode]:
    """Return the report of a verb, kept in its run, and the exit code that it means.

    Raises:
        UnfoldError: the request, the spec or the surroundings are at fault.
    """
    function = verb_of(loaded.kind, request.verb)
    _heeded(request, loaded.kind, registry.kinds)
    report = _rehearsal(request, loaded) if request.dry_run else _stored(request, loaded, function)
    return report, ExitCode.YES if report.verdict is Verdict.YES or request.exit_zero else ExitCode.NO


def verb_of(kind: Kind, verb: str) -> str:
    """Return the reference of a kind's verb.

    Raises:
        UnfoldError: the kind does not have it; the message says what it has.
    """
    reference: str | None = getattr(kind, verb)
    if reference is None:
        raise user_error(f"kind {kind.name} has no {verb}", hint=f"it has {', '.join(kind.verbs) or 'no verb'}")
    return reference


def _inputs_spared(request: Request, renderer: Renderer, loaded: Loaded) -> None:
    # a plan may take the place of the plan that it was made from
    spec = None if loaded.plan and renderer.name == "plan" else request.spec
    output.spare(request.out, spec, request.plan, request.replay)


def _heeded(request: Request, kind: Kind, kinds: Mapping[str, Kind]) -> None:
    """Refuse an option that the verb of this kind would pass over in silence."""
    for flag, given, what, able in (
        ("--replay", request.replay, "plays no trace", [one.name for one in kinds.values() if one.replay]),
        ("--plan", request.plan, "carries out no plan", [one.name for one in kinds.values() if one.carries]),
    ):
        if given is not None and kind.name not in able:
            raise user_error(
                f"{flag} {given}: kind {kind.name} {what}", hint=f"kinds that do: {', '.join(sorted(able))}"
            )


def run_folder(request: Request, loaded: Loaded) -> Path:
    """Return the folder of the run: ``--run``, the run that was named, or ``runs/NAME``."""
    return request.run or loaded.run or Path("runs") / loaded.spec.name


def surroundings(request: Request, loaded: Loaded, progress: Any = None) -> Run:
    """Return what the verb is given beside its spec."""
    if request.allow_code:
        # behind what is installed, so that no file beside the spec takes the place of a library
        sys.path.append(str(loaded.base.resolve()))
    plan = plan_for(request.plan, loaded) if request.plan else dict(loaded.plan)
    options = Options(plan=plan, cache=str(cache_folder()))
    if request.replay:
        options["replay"] = str(request.replay)
    return Run(
        directory=RunDir(run_folder(request, loaded)),
        engine=engine_of(request),
        seed=request.seed,
        base=loaded.base,
        log=console.logger(verbose=request.verbose),
        options=options,
        allow_code=request.allow_code,
        **({"progress": progress} if progress else {}),
    )


def plan_for(path: Path, loaded: Loaded) -> Mapping[str, Any]:
    """Return the plan of a file.

    Raises:
        UnfoldError: the file holds none, or one of another kind than the spec.
    """
    plan = read_plan(path)
    spec = plan.get("spec")
    kind = spec.get("kind", loaded.kind.name) if isinstance(spec, Mapping) else loaded.kind.name
    if kind != loaded.kind.name:
        raise user_error(f"a plan of kind {kind}; the spec is of kind {loaded.kind.name}", file=str(path))
    return plan


def engine_of(request: Request) -> Engine:
    """Return the engine that ``--engine`` names."""
    from unfoldkit.engines.local import LocalEngine, available_cores
    from unfoldkit.engines.ray import RayEngine

    if request.engine == "local":
        if request.ray_address is not None:
            raise user_error(f"--ray-address {request.ray_address}: nothing would run there", hint="add --engine ray")
        return LocalEngine(request.jobs or available_cores())
    if request.engine == "ray":
        return RayEngine(request.ray_address)
    raise user_error(f"--engine {request.engine}: no such engine", hint=did_you_mean(request.engine, ["local", "ray"]))


def of_its_kind(run: Run, kind: Kind) -> None:
    """Refuse a folder that holds a run of another kind: its spec, report and plan would be lost.

    Raises:
        UnfoldError: it does.
    """
    kept = kept_kind(run.directory.path)
    if kept not in (None, kind.name):
        message = f"the folder holds a run of kind {kept}; the spec is of kind {kind.name}"
        raise user_error(message, file=str(run.directory.path), hint="another name in the spec, or --run DIR")


def store_spec(run: Run, spec: Spec) -> None:
    """Keep the resolved spec in the run, and where its relative paths start."""
    folder = run.directory.path.resolve()
    origin = {"base": os.path.relpath(run.base.resolve(), folder)}
    run.directory.write(ORIGIN, (json.dumps(origin) + "\n").encode())
    run.directory.write(RUN_SPEC, to_yaml(dump(spec)).encode())


def _stored(request: Request, loaded: Loaded, function: str) -> Report:
    baseline = plan_for(request.check, loaded) if request.check else None
    with console.progress_bars() as progress:
        run = surroundings(request, loaded, progress)
        if baseline is not None:
            run = replace(run, options={**run.options, "baseline_plan": baseline})
        with run.directory.locked():
            of_its_kind(run, loaded.kind)
            if baseline is None:
                store_spec(run, loaded.spec)
            began = run.clock()
            with loaded.telling():
                verb = resolve(function, extra=loaded.kind.extra)
                with jit_progress.shown(progress):
                    report = _accepted(verb(loaded.spec, run), request, loaded.kind)
            report = _with_provenance(report, loaded, run, run.clock() - began)
            report = replace(report, next=_named(report.next, request))
            if baseline is None:
                _keep(run.directory, report)
                return report
            # what the run holds stays that of the plan that was made, whatever the check says of other data
            report = compare(report, baseline, str(request.check))
            run.directory.write(CHECK, _as_json(report))
    return report


def _accepted(found: Any, request: Request, kind: Kind) -> Report:
    """Return what a verb returned, if it is a report that can be kept and shown.

    Raises:
        UnfoldError: it is not, which is the plugin's fault (exit code 3).
    """
    wrong = list(flaws(found, kind.name, request.verb))
    if wrong:
        message = f"{getattr(kind, request.verb)} returned no sound report: {'; '.join(wrong)}"
        raise internal_error(message, hint=TELL)
    report: Report = found
    return report


def _as_json(report: Report) -> bytes:
    return encoded(json.dumps(to_data(report), indent=1, ensure_ascii=False) + "\n")


def _named(command: str, request: Request) -> str:
    """Return the next command with the spec as it was called, its settings and its run, where it says SPEC."""
    words = [request.spec, *(word for one in request.settings for word in ("--set", one))]
    if request.run is not None and "--run" not in command:
        words += ["--run", str(request.run)]
    return command if request.spec == "-" else re.sub(r"\bSPEC\b", lambda _: shlex.join(words), command)


def _keep(directory: RunDir, report: Report) -> None:
    directory.write(REPORT, _as_json(report))
    if report.decision is not None:
        from unfoldkit.render.plan import render

        directory.write(RUN_PLAN, encoded(render(report)))


def _with_provenance(report: Report, loaded: Loaded, run: Run, seconds: float) -> Report:
    facts: dict[str, Any] = {
        "seed": run.seed,
        "spec_sha256": spec_hash(loaded.spec),
        "inputs": {},
        "versions": versions(getattr(loaded.kind, report.verb)),
        **report.provenance,
    }
    if report.decision is not None:
        facts["spec"] = dump(loaded.spec)
    return replace(report, provenance=facts | {"timed": {"seconds": round(seconds, 3)}})


def versions(verb: str) -> Mapping[str, str]:
    """Return the versions that a result may depend on, that of the verb's plugin among them."""
    import importlib.metadata
    import platform

    wanted = ("numpy", "scikit-learn", "xgboost")
    found = {name: importlib.metadata.version(name) for name in wanted}
    plugin = shipped_by(verb)
    own = {plugin.name: plugin.version} if plugin else {}
    return {"unfoldkit": __version__, "python": platform.python_version(), **found} | own


def _rehearsal(request: Request, loaded: Loaded) -> Report:
    if request.check:
        raise user_error(
            f"--check {request.check}: nothing is planned with --dry-run that could be compared", hint="leave it out"
        )
    if request.plan:
        plan_for(request.plan, loaded)
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


def tell(registry: Registry, report: Report, code: ExitCode) -> None:
    """Tell the plugins that watch that a verb has finished."""
    event = RunFinished(report.kind, report.verb, report.name, int(code), to_data(report))
    registry.tell(event, console.say)
