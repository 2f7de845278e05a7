"""The verb ``serve``: the plan as running replicas, behind the Open Inference Protocol or under a replayed trace."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from unfold_pipeline.estimator.replica_schedule import ScalingState
from unfold_pipeline.estimator.slo import build_slo_checker
from unfold_pipeline.planner.confident_plan import find_confident_plan
from unfold_pipeline.planner.planner import NoPlan
from unfold_pipeline.problem.build import build_live_sample, build_problem, locate_served_model, resolve_stages
from unfold_pipeline.problem.latency_profile import store_activation
from unfold_pipeline.problem.problem import compute_wait_bound
from unfold_pipeline.problem.quotas import build_quota_limits
from unfold_pipeline.problem.sample import Sample
from unfold_pipeline.replay.load_generator import MeasuredTrace, replay_trace
from unfold_pipeline.replay.prediction import ReplaySetup, measure_cpu_fractions
from unfold_pipeline.report.measured_replay import build_measured_report
from unfold_pipeline.report.plan_file import parse_saved_plan
from unfold_pipeline.report.sentences import describe_core_shortage, describe_no_plan, describe_other_hardware
from unfold_pipeline.runtime.deployment import Deployment, build_deployment
from unfold_pipeline.runtime.live_tuner import LiveTuner
from unfold_pipeline.runtime.models.flow_resolution import reads_request
from unfold_pipeline.runtime.stage import read_clock
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.schema.stages import FromRun
from unfold_pipeline.tuner.calibration import build_live_rule
from unfold_pipeline.tuner.envelope_rule import build_scaling_context
from unfold_pipeline.verbs.serve_engine import serve_engine
from unfold_pipeline.verbs.serve_target import serve_target
from unfoldkit.api import Report, Run, Service, UnfoldError, user_error
from unfoldkit.engines.local import available_cores


def serve(spec: PipelineSpec, run: Run) -> Service | Report:
    """Return the service; with ``--replay``, the report of a trace that was replayed on the replicas.

    With ``--target``, the service scales a deployment that exists already.

    Raises:
        UnfoldError: A stage has no model, or no plan meets the SLO.
    """
    if target := run.options.get("target"):
        return serve_target(spec, run, target)
    if spec.engine_stage is not None:
        return serve_engine(spec, run)
    trace = run.options.get("replay")
    if isinstance(spec.stages, FromRun) and not trace:
        message = "the gates of a cascade route its queries; a pipeline would route them at random"
        hint = f"unfold serve {spec.stages.run}, or --replay TRACE to measure"
        raise user_error(message, key="stages.from", hint=hint)
    deployment = prepare_deployment(spec, run)
    _warn_of_unlimited_scaling(deployment, run)
    _warn_of_few_cores(deployment, run)
    _warn_of_other_hardware(deployment, run)
    _warn_of_assumed_width(deployment, run)
    if not trace:
        return _build_service(deployment, run)
    live = build_live_sample(spec, deployment.problem, Path(trace), run)
    measured = asyncio.run(_measure_trace(deployment, live, run))
    setup = replace(
        build_replay_setup(deployment, live, run, measured.timeline),
        measured_cpu=measure_cpu_fractions(measured.batches),
    )
    problem = deployment.problem
    return build_measured_report(problem.name, setup, measured, problem.slo_s, deployment.planned_state)


def prepare_deployment(spec: PipelineSpec, run: Run) -> Deployment:
    """Return the plan of the file that was named, or a new one, with the models of its stages.

    Raises:
        UnfoldError: A stage has no model, or no plan meets the SLO.
    """
    resolved = resolve_stages(spec, run)
    problem = build_problem(resolved, run)
    plan = parse_saved_plan(run.options.get("plan"), problem.pipeline)
    if plan is None:
        checker = build_slo_checker(problem.pipeline, problem.samples, problem.slo_s, problem.spares)
        result = find_confident_plan(checker, problem, run.progress)
        if isinstance(result, NoPlan):
            raise _report_no_plan(problem.slo_s, result)
        plan = result.solution.plan
    names = [stage.name for stage in problem.pipeline.stages]
    return build_deployment(problem, plan, {name: locate_served_model(name, resolved, run) for name in names})


def build_replay_setup(
    deployment: Deployment, sample: Sample, run: Run, observed: Sequence[tuple[float, ScalingState]] = ()
) -> ReplaySetup:
    """Return what was replayed, for its prediction; ``observed`` are the replicas that served from each time on."""
    problem = deployment.problem
    return ReplaySetup(
        pipeline=problem.pipeline,
        plan=deployment.plan,
        sample=sample,
        deadlines_s=deployment.queueing_deadlines_s,
        sheds=problem.sheds,
        is_pinned=problem.placement.is_pinned,
        is_local=run.engine.name == "local",
        profiles=problem.latency_sources.profiles,
        seed=problem.seed,
        observed=observed,
    )


def build_live_tuner(deployment: Deployment) -> LiveTuner | None:
    """Return the rule of the spec, in charge of running replicas; ``None`` if their number is fixed."""
    problem = deployment.problem
    if problem.tuner_policy == "fixed":
        return None
    context = build_scaling_context(problem.pipeline, deployment.plan, problem.samples, problem.slo_s, problem.spares)
    rule = build_live_rule(problem.tuner_policy, context, problem.tuner.admit_plan(deployment.plan))
    limits = build_quota_limits(problem.pipeline, deployment.plan)
    # what the spec states is not replaced by what is measured
    delay_s = math.inf if problem.tuner.delay_source == "spec" else problem.tuner.delay_s
    return LiveTuner(rule=rule, limits=limits, set_delay=rule.set_delay, delay_s=delay_s)


def _build_service(deployment: Deployment, run: Run) -> Service:
    # these modules load the HTTP stack, which a replay does not need
    from unfold_pipeline.serving.app import build_app, list_paths
    from unfold_pipeline.serving.dashboard import (
        ServiceRecord,
        build_chart_source,
        build_latency_buckets,
        build_watch,
        describe_planned_service,
    )
    from unfold_pipeline.serving.inference import ServiceSettings

    problem, runtime = deployment.problem, deployment.build_runtime(run.engine)
    planned = describe_planned_service(
        build_slo_checker(problem.pipeline, problem.samples, problem.slo_s, problem.spares), deployment.plan
    )
    record = ServiceRecord(read_clock(), build_latency_buckets(planned.slo_s))
    settings = ServiceSettings(
        problem.seed,
        build_live_tuner(deployment),
        planned,
        problem.sheds,
        lambda seconds: _store_activation(seconds, run),
    )
    app = build_app(problem.name, problem.pipeline, runtime, deployment.rows.shape[1], settings, record)
    requests = app.gateway.metrics.requests
    posts, gates, max_bytes = app.app.answers, app.app.gates, app.app.body_bytes
    paths, registry = list_paths(problem.name), app.app.metrics.registry
    return Service(
        problem.name,
        app,
        paths,
        posts,
        max_bytes,
        watch=build_watch(problem.name, runtime, record, planned, requests),
        charts=build_chart_source(problem.name, runtime, record, planned, requests),
        gates=gates,
        registry=registry,
        endpoints=app.app.endpoints,
    )


def _store_activation(seconds: Mapping[str, float], run: Run) -> None:
    """Keep measured activation times for the next plan; a run folder that cannot be written ends no service."""
    try:
        store_activation(seconds, run)
    except UnfoldError as error:
        run.log.warning("the activation time is not stored: %s", error)


async def _measure_trace(deployment: Deployment, live: Sample, run: Run) -> MeasuredTrace:
    problem, runtime = deployment.problem, deployment.build_runtime(run.engine)
    tuner = build_live_tuner(deployment)
    try:
        await runtime.start()
        deadline_s = problem.slo_s if problem.sheds else math.inf
        return await replay_trace(
            runtime,
            problem.pipeline,
            live,
            deployment.rows,
            tuner,
            run.progress,
            deadline_s,
            compute_wait_bound(problem.slo_s),
        )
    finally:
        names = [stage.name for stage in problem.pipeline.stages]
        _store_activation(dict(zip(names, runtime.activation_times(), strict=True)), run)
        await runtime.stop()


def _warn_of_unlimited_scaling(deployment: Deployment, run: Run) -> None:
    """Warn that the scaling rule may start more processes than this machine has cores, if no quota limits it."""
    problem, cores = deployment.problem, available_cores()
    limited = {name for name, _ in problem.pipeline.quotas}
    hardware = [option.hardware for option in problem.pipeline.chosen_options(deployment.plan)]
    unlimited = [name for name in hardware if name not in limited]
    is_scaled = run.engine.name == "local" and problem.tuner_policy != "fixed"
    if unlimited and is_scaled and problem.tuner.max_replicas > cores:
        message = "hardware.%s: no quota; the scaling rule may start %d replicas of a stage, on %d cores"
        run.log.warning(message, unlimited[0], problem.tuner.max_replicas, cores)


def _warn_of_few_cores(deployment: Deployment, run: Run) -> None:
    """Warn that the replicas of the plan share the cores of this machine, which slows them down."""
    profiles, cores = deployment.problem.latency_sources.profiles, available_cores()
    timings = [profiles.get(stage.name) for stage in deployment.problem.pipeline.stages]
    fractions = [profile[0].cpu if profile else 1.0 for profile in timings]
    busy = sum(config.replicas * cpu for config, cpu in zip(deployment.plan, fractions, strict=True))
    if run.engine.name == "local" and busy > cores:
        run.log.warning("%s", describe_core_shortage(busy, cores))


def _warn_of_other_hardware(deployment: Deployment, run: Run) -> None:
    """Warn of stages that are served on other hardware than planned: replicas start where the engine has room."""
    problem = deployment.problem
    machine, pipeline = problem.latency_sources.machine, problem.pipeline
    place = f"this machine ({machine} in the spec)" if run.engine.name == "local" else "any node of the Ray cluster"
    for stage, option in zip(pipeline.stages, pipeline.chosen_options(deployment.plan), strict=True):
        if option.hardware != machine:
            run.log.warning("stages.%s: %s", stage.name, describe_other_hardware(option.hardware, place))


def _warn_of_assumed_width(deployment: Deployment, run: Run) -> None:
    """Warn that queries have as many numbers as the digits data set, if no model and no key says how many."""
    readers = [
        (stage.name, source)
        for stage, source in zip(deployment.problem.pipeline.stages, deployment.sources, strict=True)
        if reads_request(stage)
    ]
    if all(source.code and source.features is None and not source.rows_file for _, source in readers):
        message = "stages.%s.model: queries have %d numbers, as in the digits data set; features states how many"
        run.log.warning(message, readers[0][0], deployment.rows.shape[1])


def _report_no_plan(slo_s: float, result: NoPlan) -> UnfoldError:
    if not result.is_search_complete:
        return user_error("no plan found within search.limit", key="search.limit", hint="raise it")
    return user_error(describe_no_plan(slo_s, is_proven=True), hint="unfold plan SPEC explains it")
