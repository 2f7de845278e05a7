"""How good the subnets are, with errors, and which of them are on the front. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfold_supernet.arrays import Floats, Ints

Z = 1.96
SURE = 0.95
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Quality:
    """Of one net on test examples: which are right; accuracy and how far its interval goes, in points; F1, recall."""

    right: Flags
    accuracy: float
    half: float
    macro_f1: float
    sensitivity: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two nets on the same examples: points, the paired standard error, and on how many each alone is right."""

    points: float
    error: float
    better: int
    worse: int

    @property
    def separable(self) -> bool:
        """Whether it is surely not zero, at 95 %: the exact test of McNemar, which holds for a few examples too."""
        from scipy.stats import binomtest

        apart = self.better + self.worse
        return apart > 0 and bool(binomtest(self.better, apart).pvalue < 1 - SURE)


def quality(answers: Ints, y: Ints, classes: int) -> Quality:
    """Return the quality of answers; the interval is Wilson's at 95 %, its longer side."""
    right = answers == y
    accuracy = float(right.mean())
    table = np.zeros((classes, classes))
    np.add.at(table, (y, answers), 1)
    true, asked, said = np.diag(table), table.sum(1), table.sum(0)
    there = asked > 0
    f1 = 2 * true[there] / (asked + said)[there]
    recall = tuple(float(value) for value in np.divide(true, asked, out=np.full(classes, np.nan), where=there))
    return Quality(right, accuracy * 100, _reach(accuracy, len(y)) * 100, float(f1.mean()) * 100, recall)


def _reach(share: float, count: int) -> float:
    """Return how far Wilson's interval goes from a share: not nothing where all of a few are right."""
    part = Z**2 / count
    middle, half = (share + part / 2) / (1 + part), math.sqrt(share * (1 - share) / count + part**2 / (4 * Z**2))
    return abs(middle - share) + Z * half / (1 + part)


def difference(one: Flags, other: Flags) -> Difference:
    """Return how much better ``one`` is, by examples answered by both."""
    apart = one.astype(np.float64) - other
    error = float(apart.std()) / math.sqrt(len(apart)) * 100
    return Difference(float(apart.mean()) * 100, error, int((one & ~other).sum()), int((other & ~one).sum()))


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
