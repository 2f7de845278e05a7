"""What a cascade may lose, of all cases and of those of one label, and which points of a front keep all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.planner import certificate
from unfold_cascade.planner.certificate import Rule

GRID = 1000
MOST = (GRID - 1) / GRID
Relaxation = tuple[tuple[str, float], ...]
"""Losses, by label (empty: of all cases), that have to be allowed together."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A loss that is ``allowed``, and (m, n) differences of m points to the monolith, on tuning and certifying units.

    ``label`` is the one whose cases alone are meant, empty for all of them. Differences are shares of the ``largest``
    loss of a case, so that they are in [-1, 1].
    """

    label: str
    allowed: float
    tune: FloatArray
    certify: FloatArray
    largest: float = 1.0

    @property
    def epsilon(self) -> float:
        """The loss that is allowed, as a share of the largest."""
        return self.allowed / self.largest

    @property
    def units(self) -> int:
        """How many independent draws certify it."""
        return int(self.certify.shape[1])


def certified(cost: FloatArray, promises: Sequence[Promise], delta: float) -> list[tuple[int, Rule]]:
    """Return the points that passed, each with the test of the first promise; order and tests are the tuning units'.

    With probability 1 - delta every point that passed keeps every promise. A point is tested by the largest of its
    p-values: if it breaks one promise, that one's p-value alone is rarely so small (intersection-union test, Berger
    1982), so their number asks for no correction.

    Args:
        cost: (m,) costs of the points.
        promises: at least one.
        delta: chance of a false certificate.
    """
    rules = [[certificate.choose_rule(d, one.epsilon, one.units) for d in one.tune] for one in promises]
    hopes = np.array([_largest(promises, rules, point, certify=False) for point in range(len(cost))])
    order = np.lexsort((-cost, hopes)).tolist()
    passed = certificate.in_a_row((_largest(promises, rules, point, certify=True) for point in order), delta)
    return [(point, rules[0][point]) for point in order[:passed]]


def _largest(promises: Sequence[Promise], rules: Sequence[Sequence[Rule]], point: int, *, certify: bool) -> float:
    """Return the largest p-value of one point."""
    return max(
        certificate.p_value((one.certify if certify else one.tune)[point], one.epsilon, own[point])
        for one, own in zip(promises, rules, strict=True)
    )


def relaxations(cost: FloatArray, promises: Sequence[Promise], delta: float) -> tuple[Relaxation, ...]:
    """Return the smallest losses, in tenths of a point, that let some point pass: each alone, or if none does, all."""
    alone = [(one.label, _least(cost, promises, (place,), delta)) for place, one in enumerate(promises)]
    helping = tuple(((label, least),) for label, least in alone if least is not None)
    if helping:
        return helping
    least = _least(cost, promises, range(len(promises)), delta) or MOST
    return (tuple((one.label, max(least, one.allowed)) for one in promises),)


def _least(cost: FloatArray, promises: Sequence[Promise], places: Sequence[int], delta: float) -> float | None:
    """Return the smallest loss that, allowed in some places, lets some point pass; ``None`` if none does."""
    low, high = int(min(promises[place].allowed for place in places) * GRID), GRID - 1

    def passes(tenths: int) -> bool:
        wide = [
            replace(one, allowed=max(one.allowed, tenths / GRID)) if place in places else one
            for place, one in enumerate(promises)
        ]
        return bool(certified(cost, wide, delta))

    if not passes(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high / GRID
