"""The exact paired test: against enumeration, at its limit, and where it must refuse."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfold_cascade.language_models.planning.loss_test import betting_p_value, loss_p_value
from unfold_cascade.planner.certificate import smallest_certifiable
from unfold_cascade.planner.paired_test import (
    BETA,
    exact_paired_p_value,
    smallest_excluded_loss,
    tail_probabilities,
    upper_proportion,
)


@pytest.mark.parametrize(("discordance", "epsilon"), [(0.4, 0.1), (0.1, 0.1), (1.0, 0.0), (0.3, -0.2)])
def test_tails_equal_enumeration(discordance: float, epsilon: float) -> None:
    """The inverted transform gives the probabilities of all sequences of five differences."""
    up, down = (discordance + epsilon) / 2, (discordance - epsilon) / 2
    weight = {1: up, -1: down, 0: 1 - discordance}
    for total in range(-5, 6):
        sequences = (d for d in itertools.product(weight, repeat=5) if sum(d) <= total)
        expected = sum(math.prod(weight[each] for each in d) for d in sequences)
        (tail,) = tail_probabilities(total, 5, np.array([discordance]), epsilon)
        assert tail == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("test", ["exact", "betting", "binomial"])
@pytest.mark.parametrize(("n", "epsilon", "discordance"), [(300, 0.02, 0.06), (600, 0.01, 0.15), (150, 0.03, 0.03)])
def test_a_loss_at_the_limit_passes_at_most_as_often_as_delta(
    test: str, n: int, epsilon: float, discordance: float
) -> None:
    """Every test keeps its level where the loss equals the limit exactly."""
    rng = np.random.default_rng(5)
    up, down = (discordance + epsilon) / 2, (discordance - epsilon) / 2
    draws = rng.choice([1.0, -1.0, 0.0], size=(800, n), p=[up, down, 1 - up - down])
    passed = np.mean([loss_p_value(d, epsilon, test) <= 0.05 for d in draws])  # type: ignore[arg-type]
    assert passed <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 800)


@given(st.integers(1, 400), st.integers(0, 40), st.integers(0, 40), st.floats(0.001, 0.2))
def test_p_values_are_monotone(n: int, worse: int, better: int, epsilon: float) -> None:
    """A larger limit, or one case made better instead of equal, never raises the p-value by more than rounding."""
    worse, better = min(worse, n), min(better, max(n - worse - 1, 0))
    if worse + better + 1 > n:
        return
    p = exact_paired_p_value(worse, better, n, epsilon)
    assert BETA <= p <= 1.0
    assert exact_paired_p_value(worse, better, n, epsilon + 0.05) <= p + 1e-6
    assert exact_paired_p_value(worse + 1, better, n, epsilon) >= p - 2e-3


def test_the_bound_without_discordance_is_close_to_the_binomial_one() -> None:
    """With no case made worse the bound is within a third of 1 - delta^(1/n), the best that any test can do."""
    for n in (100, 600, 1500):
        bound, least = smallest_excluded_loss(0, 0, n, 0.05), smallest_certifiable(n, 0.05)
        assert least <= bound <= 1.5 * least


def test_mixture_of_wagers_is_a_p_value_of_fractions() -> None:
    """Means of clusters, at the limit, pass at most as often as delta."""
    rng = np.random.default_rng(3)
    draws = [rng.choice([1.0, 0.5, -0.5, 0.0], size=500, p=[0.02, 0.04, 0.04, 0.9]) for _ in range(600)]
    assert np.mean([betting_p_value(d, 0.02) <= 0.05 for d in draws]) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


def test_upper_proportion_is_clopper_pearson() -> None:
    """None of n: the bound solves (1 - u)^n = alpha."""
    assert upper_proportion(0, 100, 0.002) == pytest.approx(1 - 0.002 ** (1 / 100), rel=1e-6)
    assert upper_proportion(7, 7, 0.002) == 1.0


def test_impossible_counts_are_rejected() -> None:
    """More discordant cases than cases is an error, not a probability."""
    with pytest.raises(ValueError, match="impossible"):
        exact_paired_p_value(5, 6, 10, 0.02)
