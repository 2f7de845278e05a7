"""Replicas of a kind of hardware, of which there are so many over all stages that run on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from unfold_pipeline.graph import Pipeline, Plan


@dataclass(frozen=True, slots=True)
class Quota:
    """At most ``most`` replicas over the stages with these numbers."""

    most: int
    stages: tuple[int, ...]


def quotas_of(pipeline: Pipeline, plan: Plan) -> tuple[Quota, ...]:
    """Return the quotas of the hardware that a plan uses."""
    names = [stage.options[choice.option].hardware for stage, choice in zip(pipeline.stages, plan, strict=True)]
    return tuple(
        Quota(most, tuple(index for index, name in enumerate(names) if name == hardware))
        for hardware, most in pipeline.quotas
    )


def kept(wanted: Sequence[int], plan: Plan, quotas: Sequence[Quota]) -> tuple[int, ...]:
    """Return what each stage is given of what it wants: what it was planned to have, the rest in proportion."""
    result = list(wanted)
    for quota in quotas:
        own = [result[index] for index in quota.stages]
        least = [min(count, plan[index].replicas) for count, index in zip(own, quota.stages, strict=True)]
        for index, count in zip(quota.stages, _divided(own, least, quota.most), strict=True):
            result[index] = count
    return tuple(result)


def _divided(wanted: Sequence[int], least: Sequence[int], most: int) -> list[int]:
    """Divide ``most`` so that each has its least and the same share of what it wants beyond, by largest remainders."""
    if sum(wanted) <= most:
        return list(wanted)
    left, missing = max(0, most - sum(least)), sum(wanted) - sum(least)
    exact = [(want - low) * left / missing if missing else 0.0 for want, low in zip(wanted, least, strict=True)]
    given = [low + math.floor(more) for low, more in zip(least, exact, strict=True)]
    order = sorted(range(len(given)), key=lambda index: math.floor(exact[index]) - exact[index])
    for index in order[: left - sum(map(math.floor, exact))]:
        given[index] += 1
    return given
