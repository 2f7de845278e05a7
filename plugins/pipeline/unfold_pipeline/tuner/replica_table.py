"""What to run at every rate: the cheapest replicas and largest batches on a plan's hardware, by its simulator.

A small plan needs much slack and a large one little, and long batches pay only where many queries come: neither does a
count in proportion to the rate know.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.planner.bounds import least
from unfold_pipeline.planner.planner import judge_of
from unfold_pipeline.problem.pipeline import Pipeline, Plan
from unfold_pipeline.problem.sample import Sample, part
from unfoldkit.arrivals.envelope import LONGEST_S

Rates = NDArray[np.float64]
Counts = NDArray[np.int64]
FACTORS = tuple(float(item) for item in np.geomspace(0.25, 4.0, 65))
STRIDE = 4
FEW = 100
"""Queries of which one may be late: fewer say nothing of a percentile."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """Replicas and largest batches, a row for each factor, that meet the limit if the sample comes so much faster."""

    factors: tuple[float, ...]
    counts: tuple[tuple[int, ...], ...]
    batches: tuple[tuple[int, ...], ...]

    def at(self, factor: float) -> tuple[int, ...]:
        """Return the counts for a rate factor; beyond the ladder its last step grows in proportion."""
        return tuple(int(count) for count in self.rows(np.array([factor]))[0])

    def rows(self, factors: Rates) -> Counts:
        """Return the counts for each of many rate factors, shape (factors, stages)."""
        counts = np.array(self.counts, dtype=np.int64)[self._places(factors)]
        beyond = factors > self.factors[-1] + 1e-9
        counts[beyond] = np.ceil(counts[beyond] * factors[beyond, None] / self.factors[-1]).astype(np.int64)
        return counts

    def sizes(self, factors: Rates) -> Counts:
        """Return the largest batches for each of many rate factors, shape (factors, stages)."""
        return np.array(self.batches, dtype=np.int64)[self._places(factors)]

    def _places(self, factors: Rates) -> Counts:
        places: Counts = np.minimum(np.searchsorted(self.factors, factors - 1e-9), len(self.factors) - 1)
        return places


def ladder(pipeline: Pipeline, plan: Plan, samples: Sequence[Sample], limit: float, most: int) -> Ladder:
    """Return the ladder of a plan, with at most ``most`` replicas a stage.

    Rows keep ``limit`` s on all ``samples``, and in the busiest minute of each in which a hundred queries come.
    """
    # traffic may stay at a rate that the sample had for so short a time that all of it could be late
    busy = [item for sample in samples if FEW <= (item := busiest(sample)).size < sample.size]
    yard = Yard(replace(pipeline, quotas=()), plan, (*samples, *busy), limit, most)
    rough = [yard.rough(factor) for factor in FACTORS[::STRIDE]]
    rows = [
        yard.best(yard.judge(factor), factor, found, rough)
        for factor, found in zip(FACTORS[::STRIDE], rough, strict=True)
    ]
    fine: list[Plan] = []
    for place, (low, high) in enumerate(itertools.pairwise(rows)):
        between = FACTORS[place * STRIDE + 1 : (place + 1) * STRIDE]
        # where both ends need the same, so does what lies between
        fine += [low, *(low if low == high else yard.between(factor, low, high) for factor in between)]
    return _rising([*fine, rows[-1]])


@dataclass(frozen=True, slots=True)
class Yard:
    """Where the rows are found: a plan without quotas, its samples, the limit in s, the most replicas of a stage."""

    pipeline: Pipeline
    plan: Plan
    samples: tuple[Sample, ...]
    limit: float
    most: int

    def judge(self, factor: float) -> Judge:
        """Return the judge of the samples that come ``factor`` times as fast."""
        return judge_of(self.pipeline, [_quickened(sample, factor) for sample in self.samples], self.limit)

    def rough(self, factor: float) -> Plan:
        """Return the least replicas, with the batches of the plan or others of single stages."""
        judge = self.judge(factor)
        return _swapped(judge, self.least(judge, factor))

    def least(self, judge: Judge, factor: float) -> Plan:
        """Widen the plan in proportion until it is in time, then take replicas away."""

        def wide(tenths: int) -> Plan:
            return tuple(replace(c, replicas=max(1, math.ceil(c.replicas * factor * tenths / 10))) for c in self.plan)

        tenths = min(least(lambda item: judge.meets(wide(item)), 10), 10 * self.most)
        thin = _thinned(judge, wide(tenths))
        return tuple(replace(choice, replicas=min(self.most, choice.replicas)) for choice in thin)

    def between(self, factor: float, low: Plan, high: Plan) -> Plan:
        """Return the row between two others."""
        judge = self.judge(factor)
        found = _thinned(judge, high) if judge.meets(high) else self.least(judge, factor)
        return self.best(judge, factor, found, (low, high))

    def best(self, judge: Judge, factor: float, found: Plan, others: Sequence[Plan]) -> Plan:
        """Return the cheapest of a plan and what it is with the batches of others; of equals what carries most."""
        good = [found]
        for batches in dict.fromkeys(tuple(choice.batch for choice in plan) for plan in others):
            other = tuple(replace(choice, batch=size) for choice, size in zip(found, batches, strict=True))
            if other != found and judge.meets(other):
                good.append(_thinned(judge, other))
        cost = min(map(self.pipeline.cost, good)) + 1e-9
        good = [plan for plan in good if self.pipeline.cost(plan) <= cost]
        return self._even(good[0] if len(good) == 1 else max(good, key=lambda plan: self._room(plan, factor)), factor)

    def _room(self, plan: Plan, factor: float) -> float:
        """Return the largest factor, near enough, up to which a plan that does at ``factor`` keeps the limit."""
        low, high = factor, 2 * factor
        for _ in range(4):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.judge(middle).meets(plan) else (low, middle)
        return low

    def _even(self, plan: Plan, factor: float) -> Plan:
        """Let no stage run full before the one that costs most, where more replicas cost less than they carry.

        One that carries a surge as high as the ladder is not full.
        """
        surge = FACTORS[-1] * factor * max(sample.rate for sample in self.samples)
        dear = max(range(len(plan)), key=lambda index: self.pipeline.price(index, plan[index]))
        while (tight := min(range(len(plan)), key=lambda index: self._carries(index, plan))) != dear:
            more = replace(plan[tight], replicas=plan[tight].replicas + 1)
            other = (*plan[:tight], more, *plan[tight + 1 :])
            gain = min(self._carries(index, other) for index in range(len(plan))) / self._carries(tight, plan)
            dearer = self.pipeline.cost(other) / self.pipeline.cost(plan)
            if gain <= dearer or more.replicas > self.most or self._carries(tight, plan) >= surge:
                break
            plan = other
        return plan

    def _carries(self, index: int, plan: Plan) -> float:
        """Return the queries a second that full batches of a stage carry."""
        choice = plan[index]
        option = self.pipeline.stages[index].options[choice.option]
        share = max(sample.share(index) for sample in self.samples)
        return choice.replicas * option.throughput(choice.batch) / max(share, 1e-12)


def busiest(sample: Sample) -> Sample:
    """Return the queries of the longest window of the envelope at the time when most came."""
    ends = np.searchsorted(sample.arrivals, sample.arrivals + LONGEST_S)
    low = int(np.argmax(ends - np.arange(sample.size)))
    return part(sample, low, int(ends[low]))


def _quickened(sample: Sample, factor: float) -> Sample:
    visits = tuple(replace(item, origin=item.origin / factor) for item in sample.visits)
    return replace(sample, arrivals=sample.arrivals / factor, visits=visits)


def _swapped(judge: Judge, plan: Plan) -> Plan:
    """Change the batch of one stage after the other where fewer replicas, of any, then do."""
    best = plan
    for index, choice in enumerate(plan):
        for batch in judge.pipeline.stages[index].options[choice.option].batches:
            other = (*best[:index], replace(best[index], batch=batch), *best[index + 1 :])
            if batch != best[index].batch and judge.meets(other):
                best = min(best, _thinned(judge, other), key=judge.pipeline.cost)
    return best


def _thinned(judge: Judge, plan: Plan) -> Plan:
    """Take away replicas that are not needed, at the dearest stages first."""
    for index in sorted(range(len(plan)), key=lambda index: -judge.pipeline.price(index, plan[index])):
        while plan[index].replicas > 1:
            fewer = replace(plan[index], replicas=plan[index].replicas - 1)
            less = (*plan[:index], fewer, *plan[index + 1 :])
            if not judge.meets(less):
                break
            plan = less
    return plan


def _rising(rows: Sequence[Plan]) -> Ladder:
    """Return the ladder whose rows have at least the counts of those below."""
    counts = np.maximum.accumulate([[choice.replicas for choice in row] for row in rows], axis=0)
    batches = tuple(tuple(choice.batch for choice in row) for row in rows)
    return Ladder(FACTORS, tuple(tuple(row) for row in counts.tolist()), batches)
