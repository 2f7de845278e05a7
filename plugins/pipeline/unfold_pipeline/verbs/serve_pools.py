"""The verb ``serve`` for two pools: prompts go to prefill engines, then requests to decode engines, or a trace does."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

from unfold_pipeline.engine.build import build_replay_requests, find_engine
from unfold_pipeline.engine.endpoint.balancer import EngineBalancer
from unfold_pipeline.engine.endpoint.client import Endpoint, EndpointError, EndpointLimits
from unfold_pipeline.engine.endpoint.prefill import PrefillPool
from unfold_pipeline.engine.endpoint.replay import replay_requests
from unfold_pipeline.engine.planner.disaggregation import PoolConfig, evaluate_pools
from unfold_pipeline.engine.planner.problem import EngineProblem, measure_latencies
from unfold_pipeline.report.engines import sentences
from unfold_pipeline.report.engines.measured import build_measured_engine_report
from unfold_pipeline.report.engines.plan import add_left_out
from unfold_pipeline.report.engines.pools import is_pool_decision, parse_pool_decision
from unfold_pipeline.schema.engine import EngineSpec
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs.plan_pools import find_pools
from unfold_pipeline.verbs.profile_engine import read_key
from unfoldkit.api import Report, Run, Service, user_error

QUEUED_PER_SLOT = 4
"""Requests that may wait for each slot of the decode engines; more are rejected at once."""


def has_running_pools(engine: EngineSpec, run: Run) -> bool:
    """Return whether a service is of two pools: the spec names their engines, and no plan of another kind is saved."""
    saved = (run.options.get("plan") or {}).get("decision")
    return bool(engine.disaggregated and engine.disaggregated.decode_urls) and (not saved or is_pool_decision(saved))


def choose_pools(problem: EngineProblem, run: Run) -> PoolConfig:
    """Return the saved pools, or the cheapest.

    Raises:
        UnfoldError: no pools meet the targets.
    """
    saved = (run.options.get("plan") or {}).get("decision")
    if saved:
        return parse_pool_decision(saved, problem)
    pools = find_pools(problem, run.progress)
    outcome = None if pools is None else pools.choose(problem).outcome
    if outcome is None:
        message = "no pools of prefill and decode engines meet the targets"
        raise user_error(message, key="slo", hint="unfold plan SPEC shows engines that do both")
    return outcome.config


def serve_pools(spec: PipelineSpec, problem: EngineProblem, run: Run) -> Service | Report:
    """Route to the running pools of a spec; with ``--replay``, report a trace on them next to the estimate.

    Raises:
        UnfoldError: no pools meet the targets, or an engine does not respond.
    """
    stage, engine = find_engine(spec)
    planned = choose_pools(problem, run)
    running = _RunningPools.from_spec(engine, stage, planned)
    trace = run.options.get("replay")
    if not trace:
        return _build_service(problem, running, planned)
    live = replace(problem, requests=build_replay_requests(spec, problem, planned.decode, Path(trace), run))
    sending = replay_requests(
        running.decode, running.balancer, live.requests, EndpointLimits(), run.progress, prefill=running.prefill
    )
    try:
        replayed = asyncio.run(sending)
    except EndpointError as error:
        key = f"stages.{stage}.engine.disaggregated"
        raise user_error(error.message, key=key, hint=error.hint) from error
    config = running.config
    report = build_measured_engine_report(live, config.decode, replayed, config.decode.replicas, pools=config)
    return add_left_out(report, live)


@dataclass(frozen=True, slots=True, kw_only=True)
class _RunningPools:
    """The engines that run.

    Attributes:
        config: of the plan, with as many engines as run.
        prefill: the prefill engines.
        decode: the decode engines.
        balancer: distributes requests to the decode engines.
    """

    config: PoolConfig
    prefill: PrefillPool
    decode: tuple[Endpoint, ...]
    balancer: EngineBalancer

    @staticmethod
    def from_spec(engine: EngineSpec, stage: str, planned: PoolConfig) -> _RunningPools:
        """Return the pools that a spec names.

        Raises:
            UnfoldError: the variable with the key is not set.
        """
        pools = engine.disaggregated
        assert pools is not None  # noqa: S101 - callers have checked
        api_key, name = read_key(engine, stage), engine.model.name or ""
        prefill, decode = (
            tuple(Endpoint(url=url, model=name, key=api_key) for url in urls)
            for urls in (pools.prefill_urls, pools.decode_urls)
        )
        return _RunningPools(
            config=PoolConfig(
                prefill=replace(planned.prefill, replicas=len(prefill)),
                decode=replace(planned.decode, replicas=len(decode)),
            ),
            prefill=PrefillPool(prefill, EngineBalancer(pools.prefill_urls, engine.routing), EndpointLimits()),
            decode=decode,
            balancer=EngineBalancer(pools.decode_urls, engine.routing),
        )


def _build_service(problem: EngineProblem, running: _RunningPools, planned: PoolConfig) -> Service:
    # this module loads the HTTP stack, which a replay does not need
    from unfold_pipeline.serving.engine_router import (
        COMPLETION_PATHS,
        MAX_BODY_BYTES,
        EngineRouterApp,
        build_estimate,
        build_router_metrics,
    )

    assert problem.disaggregation is not None  # noqa: S101 - the pools were planned or parsed
    outcome = evaluate_pools(problem, problem.disaggregation, running.config)
    estimate = build_estimate(measure_latencies(problem.requests, outcome.run, problem.settings.front_s))
    prefill, decode = running.prefill, running.decode
    metrics = build_router_metrics(running.balancer, estimate, prefill.balancer)
    prefill.on_attempt = lambda index, status: metrics.prefills.labels(str(index + 1), status).inc()
    max_in_flight = QUEUED_PER_SLOT * running.config.decode.max_seqs * len(decode)
    app = EngineRouterApp(decode, running.balancer, metrics, estimate, EndpointLimits(), max_in_flight, prefill=prefill)
    counts = [(config.prefill.replicas, config.decode.replicas) for config in (running.config, planned)]
    return Service(
        problem.name,
        app,
        paths=(*COMPLETION_PATHS, "/v1/models", "/health", "/status", "/metrics"),
        body_bytes=MAX_BODY_BYTES,
        lines=(("engines", sentences.describe_pool_routing(*counts)),),
        registry=metrics.registry,
    )
