"""Pareto fronts of cascades: the policies that no other dominates in loss and cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import FloatArray, IntArray

BUCKETS = 16384
"""Buckets of cost among which dominated points are dropped before the rest is sorted."""


@dataclass(frozen=True, slots=True)
class Front:
    """Undominated policies, by ascending cost and strictly descending loss.

    A row exits at gate j iff ``score < lo`` or ``score >= hi``. A one-sided gate has ``lo = -inf``; then all rows
    exit for ``hi = -inf`` and none for ``hi = +inf``. Finite cuts are observed scores.

    Attributes:
        loss: (m,) mean loss per row.
        cost: (m,) mean cost per row, in the unit of the prices.
        cuts: (m, G, 2) pairs ``(lo, hi)``, one per gate: every model but the last has one.
    """

    loss: FloatArray
    cost: FloatArray
    cuts: FloatArray

    def __len__(self) -> int:
        """Return the number of points."""
        return self.loss.size

    def cheapest_within(self, loss: float) -> int | None:
        """Find the cheapest point with a loss of at most ``loss``; ``None`` if there is none."""
        point = int(np.searchsorted(-self.loss, -loss))
        return point if point < self.loss.size else None

    def best_within(self, cost: float) -> int | None:
        """Find the point of least loss with a cost of at most ``cost``; ``None`` if there is none."""
        point = int(np.searchsorted(self.cost, cost, side="right")) - 1
        return point if point >= 0 else None

    def take(self, indices: IntArray) -> Front:
        """Return the front of some of its points; ``indices`` ascend."""
        return Front(self.loss[indices], self.cost[indices], self.cuts[indices])


def find_pareto_points(loss: FloatArray, cost: FloatArray) -> IntArray:
    """Find the undominated points, by ascending cost and strictly descending loss.

    Of equal points the first is kept.

    Args:
        loss: (p,) finite losses.
        cost: (p,) finite costs.

    Returns:
        (m,) indices into the points.
    """
    candidates = _drop_dominated_buckets(loss, cost)
    order = candidates[np.lexsort((loss[candidates], cost[candidates]))]
    ranked = loss[order]
    improves = ranked[1:] < np.minimum.accumulate(ranked)[:-1]
    best: IntArray = order[np.concatenate((np.ones(min(order.size, 1), dtype=np.bool_), improves))]
    return best


def _drop_dominated_buckets(loss: FloatArray, cost: FloatArray) -> IntArray:
    """Drop points that a point of a cheaper bucket dominates, which leaves few to sort among a million."""
    if loss.size < BUCKETS:
        return np.arange(loss.size)
    width = max((cost.max() - cost.min()) / (BUCKETS - 1), np.finfo(np.float64).tiny)
    bucket = np.minimum((cost - cost.min()) / width, BUCKETS - 1).astype(np.int64)
    best = np.full(BUCKETS + 1, np.inf)
    np.minimum.at(best, bucket + 1, loss)
    return np.flatnonzero(loss < np.minimum.accumulate(best)[bucket])


def thin_front(front: Front, limit: int) -> IntArray:
    """Select at most ``limit`` points of a front, evenly along it, with both ends.

    Args:
        front: The front; distance along it is the sum of relative steps in loss and cost.
        limit: Maximum number of points, at least 2.

    Returns:
        (k,) ascending indices, k <= limit.

    Raises:
        ValueError: ``limit`` is below 2.
    """
    if limit < 2:
        raise ValueError(f"a front keeps both ends, so limit must be at least 2, not {limit}")
    if len(front) <= limit:
        return np.arange(len(front))
    distance = _relative_distance(front.cost) + _relative_distance(-front.loss)
    points = np.searchsorted(distance, np.linspace(0.0, distance[-1], limit))
    selected: IntArray = np.unique([*np.minimum(points[:-1], len(front) - 1), len(front) - 1])
    return selected


def _relative_distance(values: FloatArray) -> FloatArray:
    span: FloatArray = values - values[0]
    distance: FloatArray = span / span[-1]
    return distance


def add_fronts(a: Front, b: Front, limit: int, *, block: int = 1 << 20) -> tuple[Front, IntArray]:
    """Add two fronts with losses and costs that add up (Minkowski sum).

    Every pair is considered, so the sum is exact before it is thinned.

    Args:
        a: (ma) points with Ga gates.
        b: (mb) points with Gb gates.
        limit: Maximum number of points, at least 2; both ends are among them.
        block: Pairs in memory at once.

    Returns:
        The front, with (m, Ga + Gb, 2) cuts, and the (m, 2) points of ``a`` and ``b`` that make up each point.
    """
    pairs = np.empty((0, 2), dtype=np.int64)
    step = max(block // len(b), 1)
    for start in range(0, len(a), step):
        rows = np.arange(start, min(start + step, len(a)))
        block_pairs = np.stack((np.repeat(rows, len(b)), np.tile(np.arange(len(b)), rows.size)), axis=1)
        pairs = np.concatenate((pairs, block_pairs))
        i, j = pairs.T
        pairs = pairs[find_pareto_points(a.loss[i] + b.loss[j], a.cost[i] + b.cost[j])]
    front = _pair_points(a, b, pairs)
    selected = thin_front(front, limit)
    return front.take(selected), pairs[selected]


def _pair_points(a: Front, b: Front, pairs: IntArray) -> Front:
    i, j = pairs.T
    cuts = np.concatenate((a.cuts[i], b.cuts[j]), axis=1)
    return Front(a.loss[i] + b.loss[j], a.cost[i] + b.cost[j], cuts)
