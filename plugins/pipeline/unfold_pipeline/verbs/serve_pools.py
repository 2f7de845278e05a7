"""The verb ``serve`` for two pools: prompts go to prefill engines, then requests to decode engines, or a trace does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from unfold_pipeline.engine.endpoint.balancer import EngineBalancer
from unfold_pipeline.engine.endpoint.client import Endpoint, EndpointError, EndpointLimits
from unfold_pipeline.engine.endpoint.prefill import PrefillPool
from unfold_pipeline.engine.endpoint.replay import replay_requests
from unfold_pipeline.engine.planner.disaggregation import PoolConfig, evaluate_pools
from unfold_pipeline.engine.planner.problem import EngineProblem, measure_latencies
from unfold_pipeline.report.engines import sentences
from unfold_pipeline.report.engines.measured import build_measured_engine_report
from unfold_pipeline.report.engines.plan import add_left_out
from unfold_pipeline.report.engines.pools import parse_pool_decision
from unfold_pipeline.verbs.plan_pools import find_pools
from unfoldkit.api import Report, Run, Service, user_error

QUEUED_PER_SLOT = 4
"""Requests that may wait for each slot of the decode engines; more are rejected at once."""


def choose_pools(problem: EngineProblem, run: Run) -> PoolConfig:
    """Return the saved pools, or the cheapest.

    Raises:
        UnfoldError: No pools meet the targets.
    """
    saved = run.saved_decision
    if saved:
        return parse_pool_decision(saved, problem)
    pools = find_pools(problem, run.progress)
    outcome = None if pools is None else pools.choose(problem).outcome
    if outcome is None:
        message = "no pools of prefill and decode engines meet the targets"
        raise user_error(message, key="slo", hint="unfold plan SPEC shows engines that do both")
    return outcome.config


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningPools:
    """The engines that run.

    Attributes:
        prefill: The prefill engines.
        decode: The decode engines.
        balancer: Distributes requests to the decode engines.
        key: The key of the spec that names them.
    """

    prefill: PrefillPool
    decode: tuple[Endpoint, ...]
    balancer: EngineBalancer
    key: str

    def resize(self, planned: PoolConfig) -> PoolConfig:
        """Return the pools of a plan with as many engines as run."""
        return PoolConfig(
            prefill=replace(planned.prefill, replicas=len(self.prefill.endpoints)),
            decode=replace(planned.decode, replicas=len(self.decode)),
        )


def replay_on_pools(
    live: EngineProblem, running: RunningPools, planned: PoolConfig, progress: Callable[[str, int, int], None]
) -> Report:
    """Send the requests of a problem to running pools, and report them next to the estimate.

    Raises:
        UnfoldError: An engine does not respond.
    """
    sending = replay_requests(
        running.decode, running.balancer, live.requests, EndpointLimits(), progress, prefill=running.prefill
    )
    try:
        replayed = asyncio.run(sending)
    except EndpointError as error:
        raise user_error(error.message, key=running.key, hint=error.hint) from error
    config = running.resize(planned)
    report = build_measured_engine_report(live, config.decode, replayed, config.decode.replicas, pools=config)
    return add_left_out(report, live)


def route_to_pools(problem: EngineProblem, running: RunningPools, planned: PoolConfig) -> Service:
    """Route requests to running pools."""
    # this module loads the HTTP stack, which a replay does not need
    from unfold_pipeline.serving.engine_router import (
        COMPLETION_PATHS,
        MAX_BODY_BYTES,
        EngineRouterApp,
        build_estimate,
        build_router_metrics,
    )

    assert problem.disaggregation is not None  # noqa: S101 - the pools were planned or parsed
    config = running.resize(planned)
    outcome = evaluate_pools(problem, problem.disaggregation, config)
    estimate = build_estimate(measure_latencies(problem.requests, outcome.run, problem.settings.front_s))
    prefill, decode = running.prefill, running.decode
    metrics = build_router_metrics(running.balancer, estimate, prefill.balancer)
    prefill.on_attempt = lambda index, status: metrics.prefills.labels(str(index + 1), status).inc()
    max_in_flight = QUEUED_PER_SLOT * config.decode.max_seqs * len(decode)
    app = EngineRouterApp(decode, running.balancer, metrics, estimate, EndpointLimits(), max_in_flight, prefill=prefill)
    counts = [(pools.prefill.replicas, pools.decode.replicas) for pools in (config, planned)]
    return Service(
        problem.name,
        app,
        paths=(*COMPLETION_PATHS, "/v1/models", "/health", "/status", "/metrics"),
        body_bytes=MAX_BODY_BYTES,
        lines=(("engines", sentences.describe_pool_routing(*counts)),),
        registry=metrics.registry,
    )
