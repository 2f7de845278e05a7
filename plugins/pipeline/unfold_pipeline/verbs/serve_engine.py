"""The verb ``serve`` for LLM engines: route requests to running ones, or replay a trace on them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from unfold_pipeline.engine.build import (
    build_engine_problem,
    build_engine_stages,
    build_local_settings,
    build_replay_requests,
    find_engine,
)
from unfold_pipeline.engine.endpoint.balancer import EngineBalancer
from unfold_pipeline.engine.endpoint.client import Endpoint, EndpointError, EndpointLimits
from unfold_pipeline.engine.endpoint.prefill import PrefillPool
from unfold_pipeline.engine.endpoint.replay import ReplayedRequests, replay_requests
from unfold_pipeline.engine.planner.analysis import scale_to_end
from unfold_pipeline.engine.planner.problem import EngineProblem, measure_latencies
from unfold_pipeline.engine.planner.search import EngineConfig, evaluate, find_cheapest_engines
from unfold_pipeline.planner.surrounding_stages import attach_stages
from unfold_pipeline.problem.build import locate_served_model
from unfold_pipeline.report.engines import sentences
from unfold_pipeline.report.engines.measured import AttachStages, LocalFacts, build_measured_engine_report
from unfold_pipeline.report.engines.plan import add_left_out, parse_engine_decision
from unfold_pipeline.report.engines.pools import is_pool_decision
from unfold_pipeline.runtime.engines.engine_pool import count_engines_over_time
from unfold_pipeline.runtime.engines.local_engines import LocalEngines, build_local_engines
from unfold_pipeline.runtime.engines.surrounding_stages import StagesAround
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs.profile_engine import read_key
from unfold_pipeline.verbs.serve_pools import (
    QUEUED_PER_SLOT,
    RunningPools,
    choose_pools,
    replay_on_pools,
    route_to_pools,
)
from unfold_pipeline.verbs.serve_surrounding_stages import PlannedPipeline, build_running_stages, choose_pipeline
from unfoldkit.api import Report, Run, Service, user_error


def serve_engine(spec: PipelineSpec, run: Run) -> Service | Report:
    """Route to the running engines of a spec; with ``--replay``, report a trace on them next to the estimate.

    Raises:
        UnfoldError: The spec names no engine, there is no plan, or an engine does not respond.
    """
    stage, engine = find_engine(spec)
    key = f"stages.{stage}.engine.urls"
    saved = run.saved_decision
    names_pools = bool(engine.disaggregated and engine.disaggregated.decode_urls)
    is_pooled = names_pools and (not saved or is_pool_decision(saved))
    if not is_pooled and not engine.endpoints and engine.local is None:
        _reject_other_pools(run, f"stages.{stage}.engine.disaggregated")
        hint = (
            "urls: [http://127.0.0.1:8080], or local: {} for llama.cpp; unfold plan SPEC --format vllm starts engines"
        )
        raise user_error("no running engine to route to", key=key, hint=hint)
    problem = build_engine_problem(spec, run)
    if is_pooled:
        return _serve_pools(spec, problem, run)
    case = _choose_case(spec, problem, run)
    config = case.config
    if engine.local is not None:
        return _serve_local_engines(spec, case, run)
    api_key = read_key(engine, stage)
    endpoints = tuple(Endpoint(url=url, model=engine.model.name or "", key=api_key) for url in engine.endpoints)
    balancer = EngineBalancer(engine.endpoints, problem.settings.routing)
    trace = run.options.get("replay")
    if not trace:
        return _build_service(case, endpoints, balancer, None)
    live = replace(problem, requests=build_replay_requests(spec, problem, config, Path(trace), run))

    async def replay() -> ReplayedRequests:
        async with case.running_stages():
            return await replay_requests(
                endpoints, balancer, live.requests, EndpointLimits(), run.progress, around=case.around
            )

    try:
        replayed = asyncio.run(replay())
    except EndpointError as error:
        raise user_error(error.message, key=key, hint=error.hint) from error
    report = build_measured_engine_report(live, config, replayed, len(endpoints), attach=case.attach)
    return add_left_out(report, live)


def _serve_pools(spec: PipelineSpec, problem: EngineProblem, run: Run) -> Service | Report:
    """Route to the running pools of a spec; with ``--replay``, report a trace on them next to the estimate.

    Raises:
        UnfoldError: No pools meet the targets, or an engine does not respond.
    """
    stage, engine = find_engine(spec)
    pools = engine.disaggregated
    assert pools is not None  # noqa: S101 - the caller has checked
    planned = choose_pools(problem, run)
    api_key, name = read_key(engine, stage), engine.model.name or ""
    prefill, decode = (
        tuple(Endpoint(url=url, model=name, key=api_key) for url in urls)
        for urls in (pools.prefill_urls, pools.decode_urls)
    )
    running = RunningPools(
        prefill=PrefillPool(prefill, EngineBalancer(pools.prefill_urls, engine.routing), EndpointLimits()),
        decode=decode,
        balancer=EngineBalancer(pools.decode_urls, engine.routing),
        key=f"stages.{stage}.engine.disaggregated",
    )
    trace = run.options.get("replay")
    if not trace:
        return route_to_pools(problem, running, planned)
    live = replace(problem, requests=build_replay_requests(spec, problem, planned.decode, Path(trace), run))
    return replay_on_pools(live, running, planned, run.progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ServedCase:
    """What is served: engines, and the running stages around them.

    Attributes:
        problem: The engines, with the requests as they arrive at the pipeline.
        config: The engines of the plan.
        planned: The stages with their plans; ``None`` if there are none.
        around: Their replicas.
    """

    problem: EngineProblem
    config: EngineConfig
    planned: PlannedPipeline | None = None
    around: StagesAround | None = None

    @property
    def attach(self) -> AttachStages | None:
        """Puts the stages into a problem."""
        planned = self.planned
        if planned is None:
            return None
        return partial(attach_stages, stages=planned.stages, plans=planned.plans)

    def running_stages(self) -> AbstractAsyncContextManager[None]:
        """Return a context in which the stages run."""
        return nullcontext() if self.around is None else self.around.running()


def _choose_case(spec: PipelineSpec, problem: EngineProblem, run: Run) -> _ServedCase:
    """Return the saved plan, or a new one, with the models of its stages.

    Raises:
        UnfoldError: A stage has no model, or nothing meets the targets.
    """
    stages = build_engine_stages(spec, run)
    if stages is None:
        return _ServedCase(problem=problem, config=choose_engine(problem, run))
    planned = choose_pipeline(problem, stages, run.saved_decision, run)
    if planned is None:
        raise user_error("no choice of engines meets the targets", key="slo", hint="unfold plan SPEC explains it")
    sources = {name: locate_served_model(name, spec, run) for name in planned.list_stages()}
    around = build_running_stages(planned, sources, run.seed)
    return _ServedCase(problem=problem, config=planned.config, planned=planned, around=around)


def _serve_local_engines(spec: PipelineSpec, case: _ServedCase, run: Run) -> Service | Report:
    """Route to processes that are started here; with ``--replay``, send a trace to them and end them.

    Raises:
        UnfoldError: An engine does not start or respond.
    """
    problem, config = case.problem, case.config
    engines = build_local_engines(build_local_settings(spec, run), problem, config, run)
    pool = engines.pool
    trace = run.options.get("replay")
    if not trace:
        return _build_service(case, pool.endpoints, pool.balancer, engines)
    live = replace(problem, requests=build_replay_requests(spec, problem, config, Path(trace), run))

    async def replay() -> ReplayedRequests:
        async with case.running_stages(), engines.running():
            return await replay_requests(
                pool.endpoints,
                pool.balancer,
                live.requests,
                EndpointLimits(),
                run.progress,
                engines.log,
                case.around,
            )

    try:
        replayed = asyncio.run(replay())
    except EndpointError as error:
        raise user_error(error.message, key=f"stages.{problem.stage}.engine.local", hint=error.hint) from error
    active = count_engines_over_time(pool.changes, replayed.start_s)
    facts = LocalFacts(
        count_engines=active,
        max_engines=len(pool.endpoints),
        start_s=pool.start_s,
        replaced=pool.replaced,
        is_scaled=engines.is_scaled,
    )
    report = build_measured_engine_report(live, config, replayed, len(pool.endpoints), facts, case.attach)
    return add_left_out(report, live)


def _build_service(
    case: _ServedCase,
    endpoints: Sequence[Endpoint],
    balancer: EngineBalancer,
    local: LocalEngines | None,
) -> Service:
    # this module loads the HTTP stack, which a replay does not need
    from unfold_pipeline.serving.engine_router import (
        COMPLETION_PATHS,
        MAX_BODY_BYTES,
        EngineRouterApp,
        build_estimate,
        build_router_metrics,
    )

    problem, config = case.problem, case.config
    if case.attach is not None:
        problem = case.attach(problem)
    running = config if local is not None else replace(config, replicas=len(endpoints))
    outcome = evaluate(problem, running, complete=True)
    latencies = measure_latencies(problem.requests, outcome.run, problem.settings.front_s, problem.surroundings)
    estimate = build_estimate(latencies)
    metrics = build_router_metrics(balancer, estimate)
    max_in_flight = QUEUED_PER_SLOT * config.max_seqs * len(endpoints)
    app = EngineRouterApp(endpoints, balancer, metrics, estimate, EndpointLimits(), max_in_flight)
    app.stages = case.around
    routing = sentences.describe_routing(len(endpoints), config.replicas, balancer.routing)
    lines: tuple[tuple[str, str], ...] = (("engines", routing),)
    if local is not None:
        app.running, app.log, app.list_states = local.running, local.log, local.pool.list_states
        lines = (("engines", sentences.describe_local_service(config.replicas, len(endpoints), balancer.routing)),)
    if case.around is not None:
        lines += (("stages", sentences.describe_running_stages(case.around.names, case.around.rows.shape[1])),)
    return Service(
        problem.name,
        app,
        paths=(*COMPLETION_PATHS, "/v1/models", "/health", "/status", "/metrics"),
        body_bytes=MAX_BODY_BYTES,
        lines=lines,
        registry=metrics.registry,
    )


def _reject_other_pools(run: Run, key: str) -> None:
    """Reject a saved plan of two pools where the spec names no engines of pools.

    Raises:
        UnfoldError: The saved plan has two pools.
    """
    if is_pool_decision(run.saved_decision):
        hint = "prefill_urls: [URL], decode_urls: [URL]; unfold plan SPEC --format vllm starts them"
        raise user_error("the plan has two pools, and the spec names no engines of them", key=key, hint=hint)


def choose_engine(problem: EngineProblem, run: Run) -> EngineConfig:
    """Return the saved plan, or a new one.

    Raises:
        UnfoldError: No choice of engines meets the targets.
    """
    saved = run.saved_decision
    _reject_other_pools(run, f"stages.{problem.stage}.engine.disaggregated")
    if saved:
        return parse_engine_decision(saved, problem)
    planned = problem if problem.confidence is None else scale_to_end(problem, high=True)
    config = find_cheapest_engines(planned, run.progress).config
    if config is None:
        raise user_error("no choice of engines meets the targets", key="slo", hint="unfold plan SPEC explains it")
    return config
