"""How good the subnets are, with errors, and which of them are on the front. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfold_supernet.arrays import Floats, Ints

Z = 1.96
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Quality:
    """Of one net on test examples: which it answers right, accuracy and half of its interval, in points; F1, recall."""

    right: Flags
    accuracy: float
    half: float
    macro_f1: float
    sensitivity: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two nets on the same examples: points, and the paired standard error."""

    points: float
    error: float

    @property
    def separable(self) -> bool:
        """Whether it is surely not zero, at 95 %."""
        return abs(self.points) > Z * self.error


def quality(answers: Ints, y: Ints, classes: int) -> Quality:
    """Return the quality of answers; the interval is the normal one at 95 %."""
    right = answers == y
    accuracy = float(right.mean())
    table = np.zeros((classes, classes))
    np.add.at(table, (y, answers), 1)
    true, asked, said = np.diag(table), table.sum(1), table.sum(0)
    there = asked > 0
    f1 = 2 * true[there] / (asked + said)[there]
    recall = tuple(float(value) for value in np.divide(true, asked, out=np.full(classes, np.nan), where=there))
    half = Z * math.sqrt(accuracy * (1 - accuracy) / len(y))
    return Quality(right, accuracy * 100, half * 100, float(f1.mean()) * 100, recall)


def difference(one: Flags, other: Flags) -> Difference:
    """Return how much better ``one`` is, by examples answered by both."""
    apart = one.astype(np.float64) - other
    return Difference(float(apart.mean()) * 100, float(apart.std()) / math.sqrt(len(apart)) * 100)


def separable(costs: Sequence[float], found: Sequence[Quality]) -> list[int]:
    """Return the places of the front, cheapest first: each surely more accurate than the one before it."""
    order = sorted(range(len(found)), key=lambda place: (costs[place], -found[place].accuracy))
    kept = order[:1]
    for place in order[1:]:
        apart = difference(found[place].right, found[kept[-1]].right)
        if apart.points > 0 and apart.separable:
            kept.append(place)
    return kept


def percentiles(seconds: Floats) -> tuple[float, float]:
    """Return the median and the 99th percentile."""
    return float(np.median(seconds)), float(np.quantile(seconds, 0.99))
