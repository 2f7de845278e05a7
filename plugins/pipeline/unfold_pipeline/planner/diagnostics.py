"""Why a plan is as it is: where the time goes, what was refused, how sure the percentile is, what one loss would do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.estimator.estimator import Estimator, inputs
from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.problem.pipeline import Plan
from unfoldkit.queueing import kernel

Times = NDArray[np.float64]
BLOCKS = 10
WIDER = 2.262 / 1.960 * (10 / 9) ** 0.5
"""Student's quantile over the normal one, and the spread that is lost, where there are but ten blocks."""
DRAWS = 200


@dataclass(frozen=True, slots=True)
class StageTime:
    """Where the time of a stage goes, in seconds: percentile and mean of the stay, and what of it is not service.

    ``waiting`` is the mean stay beyond that of a query served at once and alone; ``load`` the share of the capacity
    with full batches that the mean rate takes; ``path`` the share of the slowest queries that wait for this stage most.
    """

    tail: float
    mean: float
    waiting: float
    load: float
    path: float


@dataclass(frozen=True, slots=True)
class Refused:
    """The plan with one replica less at a stage, and by how many seconds it misses the limit."""

    stage: int
    saving: float
    tail: float


def stage_times(judge: Judge, plan: Plan) -> list[StageTime]:
    """Return the times of each stage on the sample whose percentile is the largest."""
    estimator = judge.estimators[judge.worst(plan)]
    ready, done = _stays(estimator, plan)
    slow = _slowest(done, estimator)
    path = _paths(judge, ready, done, slow)
    result = []
    for index, choice in enumerate(plan):
        option = judge.pipeline.stages[index].options[choice.option]
        here = done[index] > -np.inf
        stay = done[index][here] - ready[index][here] if here.any() else np.zeros(1)
        load = judge.load(index) / (choice.replicas * option.throughput(choice.batch))
        waiting = max(0.0, float(stay.mean()) - float(option.latency[1]))
        result.append(StageTime(float(np.quantile(stay, 0.99)), float(stay.mean()), waiting, load, path[index]))
    return result


def refusals(judge: Judge, plan: Plan) -> list[Refused]:
    """Return the plans with one replica less, largest saving first; where the plan is optimal, each is late."""
    found = [
        Refused(index, judge.pipeline.price(index, replace(choice, replicas=1)), judge.tail(_less(plan, index)))
        for index, choice in enumerate(plan)
        if choice.replicas > 1
    ]
    return sorted(found, key=lambda item: (-item.saving, item.stage))


def losses(judge: Judge, plan: Plan) -> list[float | None]:
    """Return the percentile in seconds when each stage has lost one replica; ``None`` where it was the only one."""
    return [judge.tail(_less(plan, index)) if c.replicas > 1 else None for index, c in enumerate(plan)]


def interval(estimator: Estimator, plan: Plan, rng: np.random.Generator) -> tuple[float, float]:
    """Return a 95 % interval of the percentile in seconds, by drawing ten blocks of neighbours again and again.

    Queries that follow each other wait in the same queue, so single queries must not be drawn, and shorter blocks would
    be alike. Of bursts that the sample lacks it cannot know: where it is short or the load high it is too narrow still.
    """
    seconds = estimator.latencies(plan)
    blocks = np.array_split(seconds, min(BLOCKS, seconds.size))
    draws = [
        np.quantile(
            np.concatenate([blocks[i] for i in rng.integers(0, len(blocks), len(blocks))]), estimator.percentile
        )
        for _ in range(DRAWS)
    ]
    middle = estimator.tail(plan)
    low, high = middle + (np.quantile(draws, [0.025, 0.975]) - middle) * WIDER
    return max(float(low), float(seconds.min())), float(high)


def _less(plan: Plan, index: int) -> Plan:
    return tuple(replace(c, replicas=c.replicas - 1) if place == index else c for place, c in enumerate(plan))


def _stays(estimator: Estimator, plan: Plan) -> tuple[list[Times], list[Times]]:
    """Return, a stage, when each query could first be served there and when its last item left (-inf: never there)."""
    ready, done = [], []
    sample = estimator.sample
    for index, visits in enumerate(sample.visits):
        parents = {e.parent: estimator.sure(e.parent, plan) for e in estimator.pipeline.stages[index].parents}
        came, left = np.full(sample.size, -np.inf), np.full(sample.size, -np.inf)
        times, items = inputs(sample, index, parents)
        kernel.latest(times, items, times.size, visits.owner, came)
        flow = estimator.sure(index, plan)
        kernel.latest(flow.times, flow.items, flow.times.size, visits.owner, left)
        ready.append(came)
        done.append(left)
    return ready, done


def _slowest(done: list[Times], estimator: Estimator) -> NDArray[np.int64]:
    total = np.max(done, axis=0) - estimator.sample.arrivals
    return np.argsort(-total, kind="stable")[: max(1, estimator.allowed)]


def _paths(judge: Judge, ready: list[Times], done: list[Times], slow: NDArray[np.int64]) -> list[float]:
    """Return the share of slow queries for which each stage takes most of the time on the path that was waited for."""
    ends = np.array([left[slow] for left in done])
    begins = np.array([came[slow] for came in ready])
    stays = np.subtract(ends, begins, out=np.zeros_like(ends), where=np.isfinite(ends))
    on = ends == ends.max(axis=0)
    for index in range(len(done) - 1, -1, -1):
        for parent in _waited_for(judge, index, ends):
            on[parent[0]] |= on[index] & parent[1]
    winner = np.argmax(np.where(on, stays, -1.0), axis=0)
    return [float((winner == index).mean()) for index in range(len(done))]


def _waited_for(judge: Judge, index: int, ends: Times) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    parents = [edge.parent for edge in judge.pipeline.stages[index].parents]
    if parents:
        last = ends[parents].max(axis=0)
        for parent in parents:
            yield parent, (ends[parent] == last) & np.isfinite(last)
