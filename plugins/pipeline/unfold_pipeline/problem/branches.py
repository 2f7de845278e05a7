"""Planned and measured fractions of the queries that pass conditions: a plan cannot know the values they test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from unfold_pipeline.problem.pipeline import Pipeline

MIN_ITEMS = 100
"""No fraction of fewer items is judged."""
SIGMAS = 3.0
"""A difference of fewer standard errors of the binomial distribution may be chance."""
MIN_RELATIVE = 0.1
"""A difference of less than a tenth is within what plans are made for."""


@dataclass(frozen=True, slots=True)
class MeasuredBranch:
    """A stage behind a condition.

    Attributes:
        stage: Its name.
        planned: Its items per item of the stages before it, in the plan's sample.
        measured: The same as served.
        items: Items that the stages before it have served.
    """

    stage: str
    planned: float
    measured: float
    items: float

    @property
    def deviates(self) -> bool:
        """Whether the difference matters, and is no chance."""
        difference, variance = abs(self.measured - self.planned), max(0.0, self.planned * (1 - self.planned))
        is_chance = difference <= SIGMAS * math.sqrt(variance / max(self.items, 1.0))
        return self.items >= MIN_ITEMS and difference > MIN_RELATIVE * self.planned and not is_chance


def measure_branches(
    pipeline: Pipeline, planned: Sequence[float], served: Sequence[float]
) -> tuple[MeasuredBranch, ...]:
    """Return the stages behind conditions, as far as the stages before them have served a query.

    Args:
        pipeline: The stages; one with a ``fan_out`` is left out, as its items are no queries.
        planned: Items of each stage per query.
        served: Items that each stage has served.
    """
    branches = []
    for index, stage in enumerate(pipeline.stages):
        parents = [edge.parent for edge in stage.parents]
        items = float(sum(served[parent] for parent in parents))
        expected = sum(planned[parent] for parent in parents)
        if stage.fan_out == 1 and any(edge.condition for edge in stage.parents) and items and expected:
            branches.append(MeasuredBranch(stage.name, planned[index] / expected, served[index] / items, items))
    return tuple(branches)
