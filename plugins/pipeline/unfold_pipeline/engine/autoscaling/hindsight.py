"""Perfect knowledge as a bound on scaling rules: the cheapest engines over a trace that miss no more requests.

The trace is cut into slots. In each, every number of engines is simulated on the requests of the slot alone, with
engines that are ready in time, begin idle, and cost nothing after it. A knapsack over the slots then gives the least
price at which the misses of all slots stay within those of a rule. A schedule that changes at the borders of the slots
can do better only by luck of the router: another distribution of the same requests to the engines.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from unfold_pipeline._types import BoolArray, CountArray, FloatArray
from unfold_pipeline.engine.planner.problem import EngineProblem, Latencies, measure_latencies
from unfold_pipeline.engine.planner.search import EngineConfig, evaluate, explain_refusals, find_cheapest_engines

MAX_SLOTS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotMisses:
    """What each number of engines misses in each slot of a trace.

    Attributes:
        seconds: (slots,) length of each slot.
        misses: (slots, engines + 1) requests that miss a target; a slot without requests needs no engine.
        usd_per_hour: (engines + 1,) price of each number of engines, with the stages around them.
        requests: Requests of the trace.
    """

    seconds: FloatArray
    misses: CountArray
    usd_per_hour: FloatArray
    requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hindsight:
    """The cheapest schedule with perfect knowledge: mean price, and hours of engines over the trace."""

    usd_per_hour: float
    engine_hours: float


def find_met_requests(problem: EngineProblem, latencies: Latencies) -> BoolArray:
    """Return which requests meet every target; a request that was not completed meets none."""
    meets = (latencies.ttft_s <= problem.targets.ttft_s) & (latencies.latency_s <= problem.targets.latency_s)
    several = problem.requests.output_tokens > 1
    meets[several] &= latencies.tpot_s <= problem.targets.tpot_s
    return meets


def simulate_slots(problem: EngineProblem, config: EngineConfig, slot_s: float, max_replicas: int) -> SlotMisses:
    """Simulate every number of engines of a plan's kind in each slot.

    Args:
        problem: With the requests to replay.
        config: The kind of engine and its limits.
        slot_s: Length of a slot; longer ones where they would be more than sixty.
        max_replicas: The most engines.
    """
    requests, option = problem.requests, problem.options[config.option]
    end_s = float(requests.arrival_s[-1])
    count = max(1, min(MAX_SLOTS, round(end_s / slot_s)))
    borders = np.linspace(0.0, math.nextafter(end_s, math.inf), count + 1)
    misses = np.zeros((count, max_replicas + 1), dtype=np.int64)
    for slot, (begin, end) in enumerate(itertools.pairwise(np.searchsorted(requests.arrival_s, borders))):
        if begin == end:
            continue
        misses[slot, 0] = end - begin
        part = problem.select_range(int(begin), int(end))
        for replicas in range(1, max_replicas + 1):
            outcome = evaluate(part, replace(config, replicas=replicas), complete=True)
            latencies = measure_latencies(part.requests, outcome.run, part.settings.front_s, part.surroundings)
            misses[slot, replicas] = int((~find_met_requests(part, latencies)).sum())
            if not misses[slot, replicas]:
                break  # more engines miss no less than nothing
    return SlotMisses(
        seconds=np.diff(borders),
        misses=misses,
        usd_per_hour=problem.around_usd_per_hour + np.array([option.cost(count) for count in range(max_replicas + 1)]),
        requests=len(requests),
    )


def find_cheapest_schedule(slots: SlotMisses, allowed_misses: int) -> Hindsight | None:
    """Return the cheapest engines of each slot that miss at most some requests in all; ``None`` if none do.

    The schedule is a knapsack with one choice a slot, solved exactly over the number of misses.
    """
    usd = np.full(allowed_misses + 1, np.inf)
    hours = np.zeros(allowed_misses + 1)
    usd[0] = 0.0
    for seconds, misses in zip(slots.seconds, slots.misses, strict=True):
        next_usd, next_hours = np.full_like(usd, np.inf), np.zeros_like(hours)
        for replicas, (missed, price) in enumerate(zip(misses.tolist(), slots.usd_per_hour.tolist(), strict=True)):
            if missed > allowed_misses:
                continue
            reachable = usd[: usd.size - missed] + price * seconds
            cheaper = reachable < next_usd[missed:]
            next_usd[missed:] = np.where(cheaper, reachable, next_usd[missed:])
            more = hours[: hours.size - missed] + replicas * seconds / 3600
            next_hours[missed:] = np.where(cheaper, more, next_hours[missed:])
            if not missed:
                break  # more engines cost more
        usd, hours = next_usd, next_hours
    best = int(np.argmin(usd))
    if math.isinf(usd[best]):
        return None
    return Hindsight(usd_per_hour=float(usd[best] / slots.seconds.sum()), engine_hours=float(hours[best]))


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedPeak:
    """The fewest engines of a plan's kind that meet the targets on a whole trace, or why none do.

    Attributes:
        replicas: Engines; ``None`` if no number of them meets the targets.
        most: The most engines that were simulated without meeting them; 0 if a single request misses a target.
        obstacle: The target that is missed, ``ttft``, ``tpot`` or ``latency``.
        value_s: Its value.
    """

    replicas: int | None
    most: int = 0
    obstacle: str = ""
    value_s: float = 0.0


def find_fixed_peak(problem: EngineProblem, config: EngineConfig) -> FixedPeak:
    """Return the fewest engines of a plan's kind that meet the targets on the whole trace."""
    settings = replace(problem.settings, budgets=(config.budget,), max_seqs=(config.max_seqs,))
    case = replace(problem, options=(problem.options[config.option],), settings=settings)
    solution = find_cheapest_engines(case)
    if solution.config is not None:
        return FixedPeak(replicas=solution.config.replicas)
    for refusal in explain_refusals(case, solution).refusals:
        most = refusal.config.replicas
        return FixedPeak(replicas=None, most=most, obstacle=refusal.obstacle, value_s=refusal.value_s)
    ((bound,),) = solution.bounds
    return FixedPeak(replicas=None, obstacle=bound.obstacle, value_s=bound.value_s)
