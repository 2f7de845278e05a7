"""Laws of Pareto fronts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.cascade.tests.gates.exhaustive_search import select_non_dominated
from unfold_cascade.gates.pareto import Front, add_fronts, find_pareto_points, thin_front

POINTS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=40)


def _front(points: list[tuple[int, int]]) -> Front:
    table = np.array(points, dtype=np.float64)
    best = find_pareto_points(table[:, 0], table[:, 1])
    cuts = np.arange(len(points), dtype=np.float64)[best, None, None] * np.ones((1, 1, 2))
    return Front(table[best, 0], table[best, 1], cuts)


@given(POINTS)
def test_pareto_points_are_undominated(points: list[tuple[int, int]]) -> None:
    """The front is the set of points that no other point beats in both loss and cost."""
    front = _front(points)
    expected = select_non_dominated([(float(a), float(b)) for a, b in points])
    assert list(zip(front.loss.tolist(), front.cost.tolist(), strict=True)) == expected


@given(POINTS)
def test_front_is_strictly_monotone(points: list[tuple[int, int]]) -> None:
    """Along a front the cost rises and the loss falls, both strictly."""
    front = _front(points)
    assert (np.diff(front.cost) > 0).all()
    assert (np.diff(front.loss) < 0).all()


@pytest.mark.parametrize("spread", [1e-300, 1.0, 1e12])
def test_prefilter_changes_nothing(spread: float) -> None:
    """The front of many points, with costs sorted through buckets, is that of a full sort."""
    rng = np.random.default_rng(3)
    cost = np.round(rng.random(40_000) ** 3, 3) * spread
    loss = np.round(rng.random(40_000), 3) - cost / spread
    order = np.lexsort((loss, cost))
    best = np.minimum.accumulate(loss[order])
    plain = order[np.flatnonzero(np.r_[True, loss[order][1:] < best[:-1]])]
    found = find_pareto_points(loss, cost)
    np.testing.assert_array_equal(loss[found], loss[plain])
    np.testing.assert_array_equal(cost[found], cost[plain])


@given(POINTS, POINTS, st.integers(1, 50))
def test_minkowski_is_the_front_of_all_sums(a: list[tuple[int, int]], b: list[tuple[int, int]], block: int) -> None:
    """The combined front is the front of every pair's sum, and each point is the sum of its named pair."""
    left, right = _front(a), _front(b)
    combined, pairs = add_fronts(left, right, 1000, block=block)
    sums = [
        (float(x + u), float(y + v))
        for x, y in zip(left.loss, left.cost, strict=True)
        for u, v in zip(right.loss, right.cost, strict=True)
    ]
    assert list(zip(combined.loss.tolist(), combined.cost.tolist(), strict=True)) == select_non_dominated(sums)
    np.testing.assert_array_equal(left.loss[pairs[:, 0]] + right.loss[pairs[:, 1]], combined.loss)
    np.testing.assert_array_equal(combined.cuts[:, 0], left.cuts[pairs[:, 0], 0])
    np.testing.assert_array_equal(combined.cuts[:, 1], right.cuts[pairs[:, 1], 0])


@given(POINTS, st.integers(2, 6))
def test_thinning_keeps_both_ends(points: list[tuple[int, int]], limit: int) -> None:
    """A thinned front has at most ``limit`` of its points, in order, and both ends."""
    front = _front(points)
    kept = thin_front(front, limit)
    assert kept.size <= limit
    assert (np.diff(kept) > 0).all()
    assert (kept[0], kept[-1]) == (0, len(front) - 1)


def test_thinning_to_one_point_is_an_error() -> None:
    """Both ends need two points."""
    with pytest.raises(ValueError, match="both ends"):
        thin_front(_front([(1, 1)]), 1)


@given(POINTS, st.integers(-1, 13))
def test_queries_read_the_table(points: list[tuple[int, int]], bound: int) -> None:
    """A query by loss gives the cheapest point within it, one by cost the most accurate."""
    front = _front(points)
    cheapest, best = front.cheapest_within(bound), front.best_within(bound)
    good, affordable = np.flatnonzero(front.loss <= bound), np.flatnonzero(front.cost <= bound)
    assert cheapest == (good[0] if good.size else None)
    assert best == (affordable[-1] if affordable.size else None)
