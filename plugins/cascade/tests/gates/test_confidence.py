"""Laws of the confidence functions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfold_cascade.gates.confidence import entropy, margin, max_probability
from unfold_cascade.gates.exact_search import search_exact_front

FUNCTIONS = (max_probability, margin, entropy)


@given(st.lists(st.integers(0, 64), min_size=2, max_size=12), st.integers(0, 2**32 - 1))
def test_binary_functions_give_identical_cascades(sixty_fourths: list[int], seed: int) -> None:
    """In the binary case all three functions order rows alike, so their fronts have the same points."""
    p = np.array(sixty_fourths) / 64
    loss = np.random.default_rng(seed).integers(0, 2, (p.size, 2)).astype(np.float64)
    fronts = [search_exact_front(f(np.stack((p, 1 - p), 1))[:, None], loss, np.array([1.0, 3.0])) for f in FUNCTIONS]
    for other in fronts[1:]:
        np.testing.assert_array_equal(other.loss, fronts[0].loss)
        np.testing.assert_array_equal(other.cost, fronts[0].cost)


@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any), min_size=1, max_size=8))
def test_confidence_stays_in_the_unit_interval(counts: list[list[int]]) -> None:
    """Every function maps class probabilities to [0, 1]."""
    table = np.array(counts, dtype=np.float64)
    p = table / table.sum(axis=1, keepdims=True)
    for function in FUNCTIONS:
        q = function(p)
        assert q.shape == (len(p),)
        assert ((q >= 0) & (q <= 1)).all()


def test_certain_and_uniform_rows_are_the_extremes() -> None:
    """A sure row has confidence one; a uniform row has none by margin and entropy, 1/C by probability."""
    p = np.array([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(max_probability(p), [1, 1 / 3])
    np.testing.assert_allclose(margin(p), [1, 0])
    np.testing.assert_allclose(entropy(p), [1, 0], atol=1e-12)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_one_class_is_refused(function: object) -> None:
    """One column of probabilities says nothing, and is an error."""
    with pytest.raises(ValueError, match="C >= 2"):
        function(np.ones((3, 1)))  # type: ignore[operator]
