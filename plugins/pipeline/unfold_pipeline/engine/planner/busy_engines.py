"""Step times of engines that share a machine: they depend on how many of them are busy, which depends on them.

A mean-field estimate: simulate, count the engines that are busy while one is, slow the steps down by the measured
factor for that many, and simulate again. Slower steps keep engines busy for longer, so the counts rise towards a fixed
point. [design]
"""

from __future__ import annotations

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.engine.planner.problem import EngineOption, EngineProblem
from unfold_pipeline.engine.simulation.cluster import EngineRun, Routing, simulate
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits, StepTimes

ROUNDS = 8
SETTLED = 0.02
"""Change of the busy engines below which their steps count as settled."""


def estimate_step_times(problem: EngineProblem, option: EngineOption, limits: EngineLimits, engines: int) -> StepTimes:
    """Return the step times of some engines under the requests of a problem.

    Args:
        problem: The requests, and how they are distributed.
        option: The engines, with the contention that was measured; without one, their steps are those of one alone.
        limits: Arguments of every engine.
        engines: How many take requests.
    """
    contention, times, busy = option.contention, option.times, 1.0
    if contention is None or engines == 1:
        return times
    for _ in range(ROUNDS):
        run = simulate(problem.requests, limits, times, engines=engines, routing=problem.settings.routing)
        before, busy = busy, count_busy_engines(run, engines, problem.settings.routing)
        times = contention.slow_down(option.times, busy)
        if abs(busy - before) < SETTLED:
            break
    return times


def count_busy_engines(run: EngineRun, engines: int, routing: Routing) -> float:
    """Return the mean number of engines with a request, over the time of those engines: at least 1.

    Requests in turn are known to be at one engine each. Of others, as many engines are busy as requests are there.
    """
    begins, ends = run.arrival_s, run.last_token_s
    if routing == "round_robin":
        spans = [_merge(begins[index::engines], ends[index::engines]) for index in range(min(engines, begins.size))]
        begins, ends = (np.concatenate(edges) for edges in zip(*spans, strict=True))
    moments = np.concatenate([begins, ends])
    changes = np.concatenate([np.ones(begins.size), -np.ones(ends.size)])
    order = np.argsort(moments, kind="stable")
    lengths_s = np.diff(moments[order])
    counts = np.minimum(np.cumsum(changes[order])[:-1], engines)
    busy_s = float((counts * lengths_s).sum())
    return max(1.0, float((counts**2 * lengths_s).sum()) / busy_s) if busy_s > 0 else 1.0


def _merge(begins: FloatArray, ends: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the times in which at least one of some spans lasts; spans begin in order."""
    latest = np.maximum.accumulate(ends)
    is_first = np.r_[True, begins[1:] > latest[:-1]]
    return begins[is_first], latest[np.r_[is_first[1:], True]]
