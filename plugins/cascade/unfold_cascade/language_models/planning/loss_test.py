"""Tests that a route loses at most epsilon against the reference: which one, and what it needs.

A difference is the loss of the route minus that of the reference on one independent unit, in [-1, 1]. The exact test
needs differences of -1, 0 and 1. A unit with several requests has a mean between them, which is rounded up: the rounded
mean is never smaller, so a bound on it bounds the loss.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.planner.certificate import binomial_p_value, count_discordant
from unfold_cascade.planner.paired_test import MAX_CASES, exact_paired_p_value

LossTest = Literal["exact", "betting", "binomial"]
WAGERS = 24
MAX_ROWS_NEEDED = 100_000
CHEAP = 0.97
"""A plan above this share of the reference's cost counts as no saving when needed rows are estimated."""


def choose_test(tune: FloatArray, epsilon: float, units: int, delta: float) -> LossTest:
    """Choose the test on tuning rows alone: the exact one if it is expected to pass, else that of the least p-value.

    Where next to nothing is made worse, the binomial test needs fewer units; elsewhere it ignores what is made better.

    Args:
        tune: (k,) differences of the tuning units.
        epsilon: The loss to exclude.
        units: Number of certifying units.
        delta: The p-value that passes.
    """
    worse, better = expected_counts(tune, units)
    expected: dict[LossTest, float] = {"binomial": binomial_p_value(worse, units, epsilon)}
    if units <= MAX_CASES:
        expected["exact"] = exact_paired_p_value(worse, better, units, epsilon)
        if expected["exact"] <= 0.5 * delta and is_ternary(tune):
            return "exact"
    if not is_ternary(tune) or units > MAX_CASES:
        expected["betting"] = betting_p_value(np.resize(tune, units), epsilon)
    return min(expected, key=lambda test: (expected[test], test != "exact"))


def loss_p_value(d: FloatArray, epsilon: float, test: LossTest) -> float:
    """Compute the p-value of ``E[d] > epsilon``.

    Args:
        d: (n,) differences of independent units, in [-1, 1].
        epsilon: The loss to exclude, in [0, 1).
        test: The test, chosen without d.
    """
    if test == "betting" or (test == "exact" and d.size > MAX_CASES):
        return betting_p_value(d, epsilon)
    worse, better = count_discordant(d)
    if test == "binomial":
        return binomial_p_value(worse, d.size, epsilon)
    return exact_paired_p_value(worse, better, d.size, epsilon)


def betting_p_value(d: FloatArray, epsilon: float) -> float:
    """Compute the p-value of a mixture of wagers, which needs no tuning rows.

    The wealth ``mean_g prod(1 + g (epsilon - d_i))`` has expectation at most 1 if ``E[d] >= epsilon``, so one over it
    is a p-value by Markov's inequality (Waudby-Smith and Ramdas 2024, Estimating means of bounded random variables by
    betting, JRSS B 86).
    """
    largest = 1.0 / (1.0 - epsilon)
    wagers = largest * np.geomspace(0.005, 0.95, WAGERS)
    value, count = np.unique(d, return_counts=True)
    log_wealth = np.log1p(wagers[:, None] * (epsilon - value)) @ count
    peak = float(log_wealth.max())
    return float(min(1.0, math.exp(-peak) / np.exp(log_wealth - peak).mean())) if peak > 0 else 1.0


def is_ternary(d: FloatArray) -> bool:
    """Whether every difference is -1, 0 or 1."""
    return bool(np.isin(d, (-1.0, 0.0, 1.0)).all())


def expected_counts(tune: FloatArray, units: int) -> tuple[int, int]:
    """Scale the counts of tuning units to so many units, to the unfavourable side."""
    worse, better = count_discordant(tune)
    up = math.ceil(units * worse / tune.size)
    return up, min(math.floor(units * better / tune.size), units - up)


def mean_per_unit(d: FloatArray, unit: IntArray) -> FloatArray:
    """Average (n,) values over the requests of each unit, by ascending number of the unit."""
    _, index, size = np.unique(unit, return_inverse=True, return_counts=True)
    means: FloatArray = np.bincount(index, d) / size
    return means


def late_p_value(late: int, n: int, share: float) -> float:
    """Compute the p-value of "more than ``share`` of requests are late" from counts."""
    return binomial_p_value(late, n, share) if late < n else 1.0
