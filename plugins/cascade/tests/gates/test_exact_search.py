"""Laws of the exact search."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.cascade.tests.gates.exhaustive_search import list_points, run_cascade, select_non_dominated
from unfold_cascade._types import FloatArray
from unfold_cascade.gates.exact_search import (
    compute_bin_edges,
    compute_outcomes,
    evaluate_cuts,
    route_rows,
    search_exact_front,
)
from unfold_cascade.gates.pareto import Front

Tables = tuple[FloatArray, FloatArray, FloatArray]


@st.composite
def tables(draw: st.DrawFn, models: tuple[int, ...] = (2, 3), rows: int = 7, levels: int = 5) -> Tables:
    """Draw scores with many ties, losses and per-row costs; sixteenths keep every sum exact."""
    k, n = draw(st.sampled_from(models)), draw(st.integers(1, rows))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    score = rng.integers(0, levels, (n, k - 1)) / levels
    loss = rng.integers(0, 17, (n, k)) / 16 if draw(st.booleans()) else rng.integers(0, 2, (n, k)) * 1.0
    return score, loss, rng.integers(0, 33, (n, k)) / 16


def _assert_same(front: Front, points: list[tuple[float, float]]) -> None:
    found = np.stack((front.loss, front.cost), axis=1)
    np.testing.assert_allclose(found, np.array(select_non_dominated(points)), atol=1e-12)


def _brute(table: Tables, *, two_sided: bool) -> list[tuple[float, float]]:
    score, loss, cost = (part.tolist() for part in table)
    rows = len(loss)
    points = list_points(score, loss, cost, two_sided=two_sided)
    return [(round(a * rows * 16) / 16 / rows, round(b * rows * 16) / 16 / rows) for a, b in points]


@given(tables())
def test_exact_equals_brute_force(table: Tables) -> None:
    """For two and three models, ties included, the front is that of every vector of cuts."""
    _assert_same(search_exact_front(*table), _brute(table, two_sided=False))


@given(tables(rows=5, levels=4))
@settings(max_examples=40)
def test_two_sided_equals_brute_force(table: Tables) -> None:
    """With intervals instead of cuts the front is that of every vector of intervals."""
    _assert_same(search_exact_front(*table, two_sided=True), _brute(table, two_sided=True))


@given(tables(models=(1, 4, 5), rows=4, levels=3))
@settings(max_examples=25)
def test_one_four_and_five_models_equal_brute_force(table: Tables) -> None:
    """The same histograms serve one model, four and five."""
    _assert_same(search_exact_front(*table), _brute(table, two_sided=False))


@given(tables(models=(1, 2, 3, 4, 5), rows=30, levels=20), st.booleans(), st.sampled_from([None, 3]))
@settings(max_examples=60)
def test_cuts_reproduce_their_point(table: Tables, two_sided: bool, bins: int | None) -> None:
    """Evaluating the cuts of a front point gives that point's loss and cost."""
    front = search_exact_front(*table, bins=bins, two_sided=two_sided)
    for loss, cost, cuts in zip(front.loss, front.cost, front.cuts, strict=True):
        assert evaluate_cuts(*table, cuts) == pytest.approx((loss, cost), abs=1e-12)


def test_cuts_reproduce_their_point_on_many_rows() -> None:
    """Sums over tens of thousands of rows lose no more than 1e-12."""
    rng = np.random.default_rng(0)
    score, loss = rng.random((50_000, 2)), rng.random((50_000, 3))
    price = np.array([0.02, 25.0, 41.0])
    front = search_exact_front(score, loss, price)
    for point in range(0, len(front), 50):
        found = evaluate_cuts(score, loss, price, front.cuts[point])
        assert found == pytest.approx((front.loss[point], front.cost[point]), abs=1e-12)


@given(tables(rows=30, levels=20), st.booleans())
def test_front_is_strictly_monotone(table: Tables, two_sided: bool) -> None:
    """Along the front the cost rises and the loss falls, both strictly."""
    front = search_exact_front(*table, bins=4, two_sided=two_sided)
    assert (np.diff(front.cost) > 0).all()
    assert (np.diff(front.loss) < 0).all()


@given(tables(rows=30, levels=20))
def test_more_freedom_is_never_worse(table: Tables) -> None:
    """Two-sided gates and finer bins dominate one-sided gates and coarser nested bins."""
    coarse, fine = search_exact_front(*table, bins=1), search_exact_front(*table, bins=20)
    both = search_exact_front(*table, bins=20, two_sided=True)
    for worse, better in ((coarse, fine), (fine, both)):
        for loss, cost in zip(worse.loss, worse.cost, strict=True):
            point = better.best_within(cost + 1e-12)
            assert point is not None
            assert better.loss[point] <= loss + 1e-12


@given(tables(rows=30, levels=20))
def test_one_price_is_a_column_of_equal_prices(table: Tables) -> None:
    """Prices as (K,) and as (n, K) give the same front."""
    score, loss, cost = table
    flat, spread = (
        search_exact_front(score, loss, cost[0]),
        search_exact_front(score, loss, np.tile(cost[0], (len(loss), 1))),
    )
    np.testing.assert_allclose(flat.cost, spread.cost, atol=1e-12)
    np.testing.assert_allclose(flat.loss, spread.loss, atol=1e-12)


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=30), st.integers(1, 8))
def test_edges_are_observed_scores(values: list[int], bins: int) -> None:
    """Inner edges are distinct observed scores above the least, at most ``bins - 1`` of them."""
    edges = compute_bin_edges(np.array(values, dtype=np.float64), bins)
    assert set(edges[1:-1]) <= set(values) - {min(values)}
    assert edges.size - 1 <= max(bins, 1)
    assert (np.diff(edges) > 0).all()


@given(tables(models=(2, 3, 4), rows=20, levels=6), st.integers(0, 2**32 - 1))
def test_routing_equals_the_reference_implementation(table: Tables, seed: int) -> None:
    """Vectorized routing does what asking model after model does, for any cuts."""
    score, loss, cost = table
    edges = np.array([-np.inf, *np.unique(score), np.inf])
    cuts = np.sort(np.random.default_rng(seed).choice(edges, (score.shape[1], 2)), axis=1)
    plain = run_cascade(score.tolist(), loss.tolist(), cost.tolist(), [tuple(cut) for cut in cuts.tolist()])
    assert evaluate_cuts(score, loss, cost, cuts) == pytest.approx(plain, abs=1e-12)


def test_extreme_cuts_exit_always_or_never() -> None:
    """``hi = -inf`` stops every row, ``hi = +inf`` none, and a score equal to ``hi`` stops."""
    score = np.array([[0.0], [0.5], [1.0]])
    always, never, tie = (np.array([[-np.inf, hi]]) for hi in (-np.inf, np.inf, 0.5))
    assert route_rows(score, always).tolist() == [0, 0, 0]
    assert route_rows(score, never).tolist() == [1, 1, 1]
    assert route_rows(score, tie).tolist() == [1, 0, 0]


def test_a_row_pays_for_every_model_up_to_its_exit() -> None:
    """Costs add up along the way; the loss is that of the model that answers."""
    losses, costs = compute_outcomes(
        np.array([[0.9], [0.1]]),
        np.array([[0.2, 0.0], [1.0, 0.3]]),
        np.array([1.0, 5.0]),
        np.array([[-np.inf, 0.5]]),
    )
    assert (losses.tolist(), costs.tolist()) == ([0.2, 0.3], [1.0, 6.0])


@pytest.mark.parametrize(
    ("score", "loss", "cost", "says"),
    [
        (np.zeros((3, 1)), np.zeros((3, 3)), np.zeros(3), "score must be"),
        (np.zeros((3, 2)), np.zeros((3, 3)), np.zeros(2), "cost must be"),
        (np.zeros((3, 5)), np.zeros((3, 6)), np.zeros(6), "K from 1 to 5"),
        (np.zeros((0, 1)), np.zeros((0, 2)), np.zeros(2), "n >= 1"),
        (np.full((3, 1), np.nan), np.zeros((3, 2)), np.zeros(2), "finite"),
    ],
)
def test_mismatched_tables_are_rejected(score: FloatArray, loss: FloatArray, cost: FloatArray, says: str) -> None:
    """Shapes that do not agree, empty tables and values that are not finite are errors."""
    with pytest.raises(ValueError, match=says):
        search_exact_front(score, loss, cost)
