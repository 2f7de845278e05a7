"""Replica counts in time that keep to the quotas of hardware over all stages, and the fluid queue that raises them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.problem.pipeline import Pipeline, Plan
from unfoldkit.jit import compiled

Counts = NDArray[np.int64]
Rates = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Limits:
    """``group`` is the number of the quota that each stage of a plan is under (-1: none), ``most`` the quotas.

    ``planned`` replicas of each stage are within the quotas, and no stage is given fewer if it wants them.
    """

    group: Counts
    most: Counts
    planned: Counts

    def shared(self, wanted: Sequence[int]) -> tuple[int, ...]:
        """Return what each stage gets of what it wants: what was planned, the rest where the smallest share is."""
        return tuple(int(count) for count in self.held(np.array([wanted], dtype=np.int64))[0])

    def held(self, wanted: Counts) -> Counts:
        """Return what each stage gets, shape (seconds, stages)."""
        result = np.ascontiguousarray(wanted).copy()
        if self.most.size:
            _hold(result, self.group, self.most, self.planned)
        return result


@dataclass(frozen=True, slots=True)
class Fluid:
    """A fluid queue of each stage: items a second that come and that one replica serves, shapes (seconds, stages).

    ``start`` replicas are there at first; an order serves ``steps`` seconds later, and a stage gets ``most``.
    """

    came: Rates
    mu: Rates
    start: Counts
    steps: int
    most: int

    def raised(self, wanted: Counts, limits: Limits) -> Counts:
        """Return targets, within the limits, that empty the queues two seconds after an order serves."""
        result = np.ascontiguousarray(wanted).copy()
        own = (np.ascontiguousarray(self.mu), self.start, self.steps, self.most)
        _raise(result, self.came, *own, limits.group, limits.most, limits.planned)
        return result


def limits(pipeline: Pipeline, plan: Plan) -> Limits:
    """Return the quotas that the stages of a plan, or the first stages of one, are under."""
    names = [option.hardware for option in pipeline.options(plan)]
    places = {name: index for index, (name, _) in enumerate(pipeline.quotas)}
    group = np.array([places.get(name, -1) for name in names], dtype=np.int64)
    planned = np.array([choice.replicas for choice in plan], dtype=np.int64)
    return Limits(group, np.array([most for _, most in pipeline.quotas], dtype=np.int64), planned)


def units(pipeline: Pipeline, plan: Plan) -> int | None:
    """Return how often one replica of each stage fits into the quotas; ``None`` if there is none on its hardware."""
    found = limits(pipeline, plan)
    stages = np.bincount(found.group[found.group >= 0], minlength=found.most.size)
    return min((int(most // count) for most, count in zip(found.most, stages, strict=True) if count), default=None)


@compiled
def _share(row: Counts, group: Counts, most: Counts, planned: Counts) -> None:
    for number in range(most.size):
        wanted = np.where(group == number, row, 0)
        if wanted.sum() <= most[number]:
            continue
        left = most[number]
        for stage in range(row.size):
            if group[stage] == number:
                row[stage] = min(row[stage], planned[stage])
                left -= row[stage]
        while left > 0:
            least, at = math.inf, -1
            for stage in range(row.size):
                if group[stage] == number and row[stage] < wanted[stage] and row[stage] / wanted[stage] < least:
                    least, at = row[stage] / wanted[stage], stage
            row[at] += 1
            left -= 1


@compiled
def _hold(counts: Counts, group: Counts, most: Counts, planned: Counts) -> None:
    for tick in range(counts.shape[0]):
        _share(counts[tick], group, most, planned)


@compiled
def _raise(
    targets: Counts,
    came: Rates,
    mu: Rates,
    start: Counts,
    steps: int,
    cap: int,
    group: Counts,
    most: Counts,
    planned: Counts,
) -> None:
    ticks, stages = targets.shape
    given = np.empty((ticks + steps + 1, stages), dtype=np.int64)
    given[:] = start
    backlog = np.zeros(stages)
    for tick in range(ticks):
        for stage in range(stages):
            rate, work = came[tick, stage], mu[tick, stage]
            backlog[stage] = max(0.0, backlog[stage] + rate - given[tick, stage] * work)
            ahead = backlog[stage] + steps * (rate - given[tick, stage] * work) if backlog[stage] > work else 0.0
            if ahead > work * targets[tick, stage]:
                need = math.ceil(ahead / (2.0 * work) + rate / work)
                targets[tick, stage] = min(cap, max(targets[tick, stage], need))
        _share(targets[tick], group, most, planned)
        given[tick + steps] = targets[tick]
