"""A trace under a scaling rule: the simulator in slices, engines that start, drain and stop, and what they cost."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.engine.autoscaling.autoscalers import TICK_S, Observation, ScalingRule
from unfold_pipeline.engine.autoscaling.fleet import ACTIVE, OFF, Fleet
from unfold_pipeline.engine.autoscaling.hindsight import find_met_requests
from unfold_pipeline.engine.autoscaling.token_envelope import TokenEnvelope, build_envelope_rule, count_trace_tokens
from unfold_pipeline.engine.planner.busy_engines import estimate_step_times
from unfold_pipeline.engine.planner.problem import EngineProblem, Latencies, measure_latencies, percentile
from unfold_pipeline.engine.planner.search import (
    COST_TOLERANCE,
    EngineConfig,
    build_limits,
)
from unfold_pipeline.engine.simulation.cluster import EngineCluster

MARGINS = (1.15, 1.4)
HOLD_STARTS = (1.0, 3.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscaledRun:
    """A trace under a scaling rule.

    Attributes:
        name: Of the rule.
        latencies: Of all requests.
        attainment: Fraction of the requests that meets every target.
        usd_per_hour: Mean price over the trace, from order to stop of each engine, with the stages around them.
        time_s: (ticks,) moments.
        engines: (ticks,) engines that take requests.
        paid: (ticks,) engines that are paid.
        misses: Requests that miss a target.
        hit_share: Fraction of the prompt tokens that the prefix caches held.
    """

    name: str
    latencies: Latencies
    attainment: float
    usd_per_hour: float
    time_s: FloatArray
    engines: CountArray
    paid: CountArray
    misses: int
    hit_share: float

    @property
    def engine_hours(self) -> float:
        """Hours of engines, from order to stop, over the trace."""
        return float(self.paid.sum()) * TICK_S / 3600


def replay_rule(
    name: str, problem: EngineProblem, config: EngineConfig, rule: ScalingRule, *, max_replicas: int
) -> AutoscaledRun:
    """Replay the requests of a problem under a rule, from the engines of a plan on.

    Args:
        name: Of the rule.
        problem: Engines, targets and the requests to replay.
        config: The plan.
        rule: How many engines it wants.
        max_replicas: Engines that may exist at a time.
    """
    option, requests = problem.options[config.option], problem.requests
    slots = max(max_replicas, config.replicas)
    limits = build_limits(problem, option, config.budget, config.max_seqs)
    cluster = EngineCluster(
        requests,
        limits,
        estimate_step_times(problem, option, limits, config.replicas),
        engines=slots,
        routing=problem.settings.routing,
    )
    fleet = Fleet(slots, config.replicas, problem.settings.start_s)
    end_s = float(requests.arrival_s[-1])
    moments = np.arange(0.0, end_s + TICK_S, TICK_S)
    engines, paid = np.zeros(moments.size, dtype=np.int64), np.zeros(moments.size, dtype=np.int64)
    for index, moment in enumerate(moments):
        cluster.active[:] = fleet.states == ACTIVE
        arrived = int(np.searchsorted(requests.arrival_s, moment, side="right"))
        cluster.route(arrived)
        cluster.advance(math.nextafter(float(moment), math.inf))
        load = cluster.load()
        fleet.update(float(moment), load.unfinished)
        seen = Observation(now_s=float(moment), arrived=arrived, load=load, replicas=fleet.count_ordered())
        fleet.scale(min(rule(seen), slots), float(moment), load.unfinished)
        engines[index], paid[index] = (fleet.states == ACTIVE).sum(), (fleet.states != OFF).sum()
    cluster.advance(math.inf)
    outcome = cluster.result()
    latencies = measure_latencies(requests, outcome, problem.settings.front_s, problem.surroundings)
    met = find_met_requests(problem, latencies)
    return AutoscaledRun(
        name=name,
        latencies=latencies,
        attainment=float(met.mean()),
        usd_per_hour=float(np.mean([problem.cost(config.option, int(count)) for count in paid])),
        time_s=moments,
        engines=engines,
        paid=paid,
        misses=int((~met).sum()),
        hit_share=outcome.hit_tokens / float(requests.input_tokens.sum()),
    )


def calibrate_envelope_rule(
    problem: EngineProblem, config: EngineConfig, envelope: TokenEnvelope, *, max_replicas: int
) -> tuple[float, float] | None:
    """Return margin and hold of the cheapest envelope rule that meets the targets on the traffic of the plan.

    ``None`` if every one misses or costs more than the plan: the plan's engines are then kept.
    """
    choices = []
    for margin, hold_starts in itertools.product(MARGINS, HOLD_STARTS):
        hold_s = hold_starts * problem.settings.start_s
        rule = build_envelope_rule(envelope, count_trace_tokens(problem.requests), hold_s=hold_s, margin=margin)
        run = replay_rule("", problem, config, rule, max_replicas=max_replicas)
        if meets_targets(problem, run.latencies):
            choices.append((run.usd_per_hour, -run.attainment, margin, hold_s))
    plan_cost = problem.cost(config.option, config.replicas)
    if not choices or min(choices)[0] >= plan_cost - COST_TOLERANCE:
        return None
    _, _, margin, hold_s = min(choices)
    return margin, hold_s


def meets_targets(problem: EngineProblem, latencies: Latencies) -> bool:
    """Return whether the p99 of every measure meets its target."""
    targets, tail = problem.targets, problem.settings.tail
    pairs = (
        (latencies.ttft_s, targets.ttft_s),
        (latencies.tpot_s, targets.tpot_s),
        (latencies.latency_s, targets.latency_s),
    )
    return all(percentile(values, 0.99, tail) <= target for values, target in pairs)
