"""What a stage needs at the very least, whatever the others do: bounds for the search, and what they prove."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from unfold_pipeline.estimator import SLACK, Estimator
from unfold_pipeline.graph import Depth, Pipeline, depths, needed
from unfold_pipeline.joint import rest
from unfoldkit.queueing import kernel
from unfoldkit.queueing.stage import Goal, Server, serve

MOST = 1 << 14
Key = tuple[int, int, int, float]


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

    def alone(self, index: int, option: int, batch: int, budget: float) -> int:
        """Return the least replicas of a stage alone within ``budget`` seconds, or ``MOST`` if none will do."""
        key = (index, option, batch, round(budget, 9))
        if key not in self.sharp:
            self.sharp[key] = self._each(_alone, key)
        return self.sharp[key]

    def fluid(self, index: int, option: int, batch: int, budget: float) -> int:
        """Return a proven lower bound on the replicas of a stage with batches up to ``batch``."""
        key = (index, option, batch, round(budget, 9))
        if key not in self.proven:
            self.proven[key] = self._each(_fluid, key)
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

    def _each(self, bound: Callable[[Estimator, Key], int], key: Key) -> int:
        index, place, _, budget = key
        late = self.pipeline.stages[index].options[place].quickest > budget
        # so few queries may come to a stage that all of them may be late
        if late and any(_queries(item, index) > item.allowed for item in self.estimators):
            return MOST
        return max(bound(estimator, key) for estimator in self.estimators)


def _queries(estimator: Estimator, index: int) -> int:
    owner = estimator.sample.visits[index].owner
    return int(np.count_nonzero(np.diff(owner, prepend=-1)))


def _alone(estimator: Estimator, key: Key) -> int:
    index, place, batch, budget = key
    stage = estimator.pipeline.stages[index]
    visits = estimator.sample.visits[index]
    if visits.owner.size == 0:
        return 1
    latency = stage.options[place].latency[: batch + 1]
    after = rest(estimator, index, index + 1)
    if visits.single and np.count_nonzero(after > budget - stage.options[place].quickest) > estimator.allowed:
        return MOST
    due = visits.origin - after
    goal = Goal(due, budget if visits.single else math.inf, estimator.allowed)
    order = np.arange(visits.owner.size, dtype=np.int32)

    def enough(replicas: int) -> bool:
        flow = serve(visits.origin, order, Server(latency, replicas, stage.wait), goal)
        estimator.memory.passes += 1
        estimator.memory.items += flow.times.size
        return flow.ok

    load = estimator.sample.rate * estimator.sample.share(index)
    return least(enough, needed(load, stage.options[place].best_throughput(batch)) if visits.single else 1)


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
