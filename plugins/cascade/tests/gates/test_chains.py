"""Laws of the search over chains."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.cascade.tests.gates.exhaustive_search import list_points, select_non_dominated
from unfold_cascade._types import FloatArray
from unfold_cascade.gates.chains import list_chains, search_all_chains, search_chains, select_chain_tables
from unfold_cascade.gates.exact_search import evaluate_cuts

Tables = tuple[FloatArray, FloatArray, FloatArray]


@st.composite
def tables(draw: st.DrawFn) -> Tables:
    m, n = draw(st.sampled_from((2, 3))), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    score, loss = rng.integers(0, 4, (n, m)) / 4, rng.integers(0, 2, (n, m)) * 1.0
    return score, loss, rng.integers(1, 33, m) / 16


@given(tables())
@settings(max_examples=40)
def test_all_orders_equal_brute_force(table: Tables) -> None:
    """The merged front is the front of every vector of cuts of every ordered subset."""
    score, loss, price = table
    points = []
    for chain in list_chains(price, order="all", max_models=3):
        part = select_chain_tables(score, loss, np.tile(price, (len(loss), 1)), chain)
        points += [(round(a, 12), round(b, 12)) for a, b in list_points(*(t.tolist() for t in part))]
    found = search_all_chains(score, loss, price, order="all").front
    np.testing.assert_allclose(
        np.stack((found.loss, found.cost), 1), np.array(select_non_dominated(points)), atol=1e-11
    )


@given(tables(), st.sampled_from(["sorted", "all"]))
def test_each_point_knows_its_policy(table: Tables, order: str) -> None:
    """The chain and cuts of a point give its loss and cost."""
    score, loss, price = table
    found = search_all_chains(score, loss, price, order=order)  # type: ignore[arg-type]
    for point in range(len(found.front)):
        chain, cuts = found.policy(point)
        assert cuts.shape == (len(chain) - 1, 2)
        figures = evaluate_cuts(*select_chain_tables(score, loss, price, chain), cuts)
        assert figures == pytest.approx((found.front.loss[point], found.front.cost[point]), abs=1e-12)


def test_chains_are_ordered_subsets() -> None:
    """Four models give 40 chains of up to three in any order, and 14 by ascending price."""
    price = np.array([60.0, 41.0, 25.0, 0.02])
    everything, ascending = (list_chains(price, order=o, max_models=3) for o in ("all", "sorted"))  # type: ignore[arg-type]
    assert len(set(everything)) == 4 + 12 + 24
    assert len(set(ascending)) == 4 + 6 + 4
    assert all((np.diff(price[list(chain)]) > 0).all() for chain in ascending)
    assert set(ascending) <= set(everything)


def test_a_feature_is_paid_once() -> None:
    """Tables of the caller's own may price a model by what its chain has bought already."""
    loss = np.array([[1.0, 0.0], [0.0, 1.0]])
    score = np.array([[0.1, 0.9], [0.9, 0.1]])

    def shared(chain: tuple[int, ...]) -> Tables:
        price = np.array([4.0] + [0.0] * (len(chain) - 1))
        return score[:, list(chain[:-1])], loss[:, list(chain)], price

    found = search_chains([(0,), (1,), (0, 1)], shared)
    assert found.policy(0)[0] == (0, 1)
    assert (found.front.loss.tolist(), found.front.cost.tolist()) == ([0.0], [4.0])
