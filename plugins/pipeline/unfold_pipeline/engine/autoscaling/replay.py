"""A trace under a scaling rule: the simulator in slices, engines that start, drain and stop, and what they cost."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.engine.autoscaling.fleet import ACTIVE, OFF, Fleet
from unfold_pipeline.engine.autoscaling.rules import (
    TICK_S,
    Observation,
    ScalingRule,
    TokenEnvelope,
    build_envelope_rule,
    count_trace_tokens,
)
from unfold_pipeline.engine.planner.problem import EngineProblem, Latencies, measure_latencies, percentile
from unfold_pipeline.engine.planner.search import (
    COST_TOLERANCE,
    EngineConfig,
    build_limits,
    find_cheapest_engines,
)
from unfold_pipeline.engine.simulation.cluster import EngineCluster

SLOTS = 60
MARGINS = (1.15, 1.4)
HOLD_STARTS = (1.0, 3.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscaledRun:
    """A trace under a scaling rule.

    Attributes:
        name: of the rule.
        latencies: of all requests.
        attainment: fraction of the requests that meets every target.
        usd_per_hour: mean price over the trace, from order to stop of each engine.
        time_s: (ticks,) moments.
        engines: (ticks,) engines that take requests.
        paid: (ticks,) engines that are paid.
    """

    name: str
    latencies: Latencies
    attainment: float
    usd_per_hour: float
    time_s: FloatArray
    engines: CountArray
    paid: CountArray


def replay_rule(
    name: str, problem: EngineProblem, config: EngineConfig, rule: ScalingRule, *, max_replicas: int
) -> AutoscaledRun:
    """Replay the requests of a problem under a rule, from the engines of a plan on.

    Args:
        name: of the rule.
        problem: engines, targets and the requests to replay.
        config: the plan.
        rule: how many engines it wants.
        max_replicas: engines that may exist at a time.
    """
    option, requests = problem.options[config.option], problem.requests
    slots = max(max_replicas, config.replicas)
    cluster = EngineCluster(
        requests,
        build_limits(problem, option, config.budget, config.max_seqs),
        option.times,
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
    latencies = measure_latencies(requests, cluster.result(), problem.settings.front_s, problem.surroundings)
    return AutoscaledRun(
        name=name,
        latencies=latencies,
        attainment=compute_attainment(problem, latencies),
        usd_per_hour=float(np.mean([option.cost(int(count)) for count in paid])),
        time_s=moments,
        engines=engines,
        paid=paid,
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
    plan_cost = problem.options[config.option].cost(config.replicas)
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


def compute_attainment(problem: EngineProblem, latencies: Latencies) -> float:
    """Return the fraction of the requests that meets every target."""
    meets = (latencies.ttft_s <= problem.targets.ttft_s) & (latencies.latency_s <= problem.targets.latency_s)
    several = problem.requests.output_tokens > 1
    meets[several] &= latencies.tpot_s <= problem.targets.tpot_s
    return float(meets.mean())


def compute_hindsight_cost(problem: EngineProblem, config: EngineConfig, slot_s: float) -> float | None:
    """Return the mean price with perfect knowledge, by the least engines of the plan's kind in each slot.

    Each slot meets the targets on its requests alone, with engines that are ready in time and stop at once. That is
    stricter than a percentile over the whole trace. ``None`` where no number of engines does in a slot.
    """
    option, requests = problem.options[config.option], problem.requests
    end_s = float(requests.arrival_s[-1])
    count = max(1, min(SLOTS, round(end_s / slot_s)))
    borders = np.linspace(0.0, math.nextafter(end_s, math.inf), count + 1)
    total = 0.0
    settings = replace(problem.settings, budgets=(config.budget,), max_seqs=(config.max_seqs,))
    for begin, end in itertools.pairwise(np.searchsorted(requests.arrival_s, borders)):
        if begin < end:
            part = requests.select_range(int(begin), int(end))
            slot = replace(problem, requests=part, options=(option,), settings=settings)
            solution = find_cheapest_engines(slot)
            if solution.config is None:
                return None
            total += option.cost(solution.config.replicas)
    return total / count
