"""What a stage needs at the very least, whatever the others do: bounds for the search, and what they prove."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from unfold_pipeline.estimator.estimator import SLACK, Estimator
from unfold_pipeline.estimator.remaining_work import rest
from unfold_pipeline.problem.pipeline import Depth, Pipeline, depths, needed
from unfoldkit.queueing import kernel
from unfoldkit.queueing.stage import Goal, Server, serve

MOST = 1 << 14
Key = tuple[int, int, int, float]
Pass = tuple[int, int, int, int, int]
Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Least replica counts of single stages over all samples, remembered.

    *Alone*: the stage is fed with the raw arrivals and must finish each item within what the other stages that it must
    and will visit leave of the limit (``budget``: of the limit without what is above).
    It is sharp, but not proven: batches that leave a stage together can be served better than raw arrivals. *Fluid*: a
    fluid server of the same throughput drops as few queries as any schedule can, so its count is proven.
    """

    pipeline: Pipeline
    estimators: tuple[Estimator, ...]
    sharp: dict[Key, int] = field(default_factory=dict)
    proven: dict[Key, int] = field(default_factory=dict)
    passed: dict[Pass, Span] = field(default_factory=dict)

    def alone(self, index: int, option: int, batch: int, budget: float) -> int:
        """Return the least replicas of a stage alone within ``budget`` seconds, or ``MOST`` if none will do."""
        key = (index, option, batch, round(budget, 9))
        if key not in self.sharp:
            self.sharp[key] = self._each(key, lambda number: self._alone(number, key))
        return self.sharp[key]

    def fluid(self, index: int, option: int, batch: int, budget: float) -> int:
        """Return a proven lower bound on the replicas of a stage with batches up to ``batch``."""
        key = (index, option, batch, round(budget, 9))
        if key not in self.proven:
            self.proven[key] = self._each(key, lambda number: _fluid(self.estimators[number], key))
        return self.proven[key]

    def depth(self, seconds: Sequence[float]) -> Depth:
        """Return the unavoidable seconds around each stage, if stage ``i`` takes at least ``seconds[i]``."""
        return depths(self.pipeline, seconds)

    def proven_cost(self, limit: float) -> float:
        """Return $ an hour below which no plan can meet the limit."""
        depth = self.depth([min(item.quickest for item in stage.options) for stage in self.pipeline.stages])
        total = 0.0
        for index, stage in enumerate(self.pipeline.stages):
            budget = limit - depth.above[index] - depth.below[index] + SLACK
            total += min(
                option.price * self.fluid(index, place, option.latency.size - 1, budget)
                for place, option in enumerate(stage.options)
            )
        return total

    def carrying(self, index: int, option: int, batch: int, budget: float) -> int:
        """Return the replicas that other bounds are never below: all but the queries that may be late are served."""
        rate = self.pipeline.stages[index].options[option].best_throughput(batch)
        return max(_carrying(estimator, index, rate, budget) for estimator in self.estimators)

    def _each(self, key: Key, bound: Callable[[int], int]) -> int:
        index, place, _, budget = key
        late = self.pipeline.stages[index].options[place].quickest > budget
        # so few queries may come to a stage that all of them may be late
        if late and any(_queries(item, index) > item.allowed for item in self.estimators):
            return MOST
        return max(bound(number) for number in range(len(self.estimators)))

    def _alone(self, number: int, key: Key) -> int:
        index, place, batch, budget = key
        estimator = self.estimators[number]
        stage = estimator.pipeline.stages[index]
        visits = estimator.sample.visits[index]
        if visits.owner.size == 0:
            return 1
        after = rest(estimator, index, index + 1)
        if visits.single and np.count_nonzero(after > budget - stage.options[place].quickest) > estimator.allowed:
            return MOST

        def enough(replicas: int) -> bool:
            return not visits.single or self._keeps((number, index, place, batch, replicas), budget)

        load = estimator.sample.rate * estimator.sample.share(index)
        return least(enough, needed(load, stage.options[place].best_throughput(batch)) if visits.single else 1)

    def _keeps(self, key: Pass, budget: float) -> bool:
        """Whether a stage alone keeps a budget; what is known of others is remembered, so that few are simulated."""
        failed, kept = self.passed.get(key, (-math.inf, math.inf))
        if failed < budget < kept:
            tail = _tail(self.estimators[key[0]], key, budget)
            failed, kept = (budget, kept) if tail is None else (math.nextafter(tail, -math.inf), tail)
            self.passed[key] = failed, kept
        return budget >= kept


def _tail(estimator: Estimator, key: Pass, budget: float) -> float | None:
    """Return the least budget in s that a stage alone keeps, or ``None`` if that is above ``budget``."""
    _, index, place, batch, replicas = key
    stage, visits = estimator.pipeline.stages[index], estimator.sample.visits[index]
    due = visits.origin - rest(estimator, index, index + 1)
    order = np.arange(visits.owner.size, dtype=np.int32)
    server = Server(stage.options[place].latency[: batch + 1], replicas, stage.wait)
    flow = serve(visits.origin, order, server, Goal(due, budget, estimator.allowed))
    estimator.memory.passes += 1
    estimator.memory.items += flow.times.size
    if not flow.ok:
        return None
    rank = flow.times.size - 1 - estimator.allowed
    return float(np.partition(flow.times - due[flow.items], rank)[rank]) if rank >= 0 else -math.inf


def _queries(estimator: Estimator, index: int) -> int:
    owner = estimator.sample.visits[index].owner
    return int(np.count_nonzero(np.diff(owner, prepend=-1)))


def _carrying(estimator: Estimator, index: int, rate: float, budget: float) -> int:
    visits = estimator.sample.visits[index]
    if not visits.single or visits.owner.size <= estimator.allowed:
        return 1
    seconds = float(visits.origin[-1] - visits.origin[0]) + budget
    return needed((visits.owner.size - estimator.allowed) / seconds, rate) if seconds > 0 else 1


def _fluid(estimator: Estimator, key: Key) -> int:
    index, place, batch, budget = key
    visits = estimator.sample.visits[index]
    if not visits.single:
        return 1
    rate = estimator.pipeline.stages[index].options[place].best_throughput(batch)

    def enough(replicas: int) -> bool:
        return kernel.fluid_drops(visits.origin, 1 / (replicas * rate), budget) <= estimator.allowed

    return least(enough, 1)


def least(enough: Callable[[int], bool], start: int = 1) -> int:
    """Return the least count that is enough, by doubling and bisection from ``start``; ``MOST`` if none is found."""
    low, high = 0, max(1, start)
    while not enough(high):
        low, high = high, high * 2
        if high > MOST:
            return MOST
    if low == 0 and high > 1 and not enough(high - 1):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
