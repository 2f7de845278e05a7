"""Pareto fronts of cascades: the points that no other policy beats in both loss and cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Front:
    """Policies that are not dominated, by ascending cost and strictly descending loss.

    Gate j stops a row iff ``score < lo`` or ``score >= hi``. A one-sided gate has ``lo = -inf``; then
    ``hi = -inf`` always stops and ``hi = +inf`` never does. A finite cut is a score that was observed.

    Attributes:
        loss: (m,) mean loss per row.
        cost: (m,) mean cost per row, in the unit of the prices given.
        cuts: (m, G, 2) pairs ``(lo, hi)``, one for each gate: every model but the last has one.
    """

    loss: FloatArray
    cost: FloatArray
    cuts: FloatArray

    def __len__(self) -> int:
        """Return the number of points."""
        return self.loss.size

    def cheapest_within(self, loss: float) -> int | None:
        """Return the index of the cheapest point whose loss is at most ``loss``, or None."""
        first = int(np.searchsorted(-self.loss, -loss))
        return first if first < self.loss.size else None

    def best_within(self, cost: float) -> int | None:
        """Return the index of the most accurate point whose cost is at most ``cost``, or None."""
        last = int(np.searchsorted(self.cost, cost, side="right")) - 1
        return last if last >= 0 else None

    def take(self, indices: IntArray) -> Front:
        """Return the front of these points alone; ``indices`` ascend."""
        return Front(self.loss[indices], self.cost[indices], self.cuts[indices])


def find_pareto_points(loss: FloatArray, cost: FloatArray) -> IntArray:
    """Return the points that no other beats, by ascending cost and strictly descending loss.

    Of equal points the first is kept. Takes about 15 ms for a million points.

    Args:
        loss: (p,) finite losses.
        cost: (p,) finite costs.

    Returns:
        (m,) indices into the points.
    """
    alive = _not_beaten_by_cheaper_bucket(loss, cost)
    order = alive[np.lexsort((loss[alive], cost[alive]))]
    ranked = loss[order]
    improves = ranked[1:] < np.minimum.accumulate(ranked)[:-1]
    best: IntArray = order[np.concatenate((np.ones(min(order.size, 1), dtype=np.bool_), improves))]
    return best


def _not_beaten_by_cheaper_bucket(loss: FloatArray, cost: FloatArray, buckets: int = 16384) -> IntArray:
    if loss.size < buckets:
        return np.arange(loss.size)
    width = max((cost.max() - cost.min()) / (buckets - 1), np.finfo(np.float64).tiny)
    bucket = np.minimum((cost - cost.min()) / width, buckets - 1).astype(np.int64)
    best = np.full(buckets + 1, np.inf)
    np.minimum.at(best, bucket + 1, loss)
    return np.flatnonzero(loss < np.minimum.accumulate(best)[bucket])


def thin_front(front: Front, limit: int) -> IntArray:
    """Choose at most ``limit`` points of a front, evenly along it, and both ends.

    Args:
        front: The front; its length along the way is the sum of its relative steps in loss and cost.
        limit: Points to keep, at least 2.

    Returns:
        (k,) ascending indices, k <= limit.

    Raises:
        ValueError: ``limit`` is below 2.
    """
    if limit < 2:
        raise ValueError(f"a front keeps both ends, so limit must be at least 2, not {limit}")
    if len(front) <= limit:
        return np.arange(len(front))
    way = _way(front.cost) + _way(-front.loss)
    chosen = np.searchsorted(way, np.linspace(0.0, way[-1], limit))
    kept: IntArray = np.unique([*np.minimum(chosen[:-1], len(front) - 1), len(front) - 1])
    return kept


def _way(values: FloatArray) -> FloatArray:
    span: FloatArray = values - values[0]
    way: FloatArray = span / span[-1]
    return way


def add_fronts(a: Front, b: Front, limit: int, *, block: int = 1 << 20) -> tuple[Front, IntArray]:
    """Combine two fronts whose losses and costs add up (section 1.5, "combine stages").

    Every pair is looked at, so the combined front is exact; only then is it thinned.

    Args:
        a: (ma) points with Ga gates.
        b: (mb) points with Gb gates.
        limit: Points to keep, at least 2, both ends among them.
        block: Pairs held in memory at once.

    Returns:
        The front, with (m, Ga + Gb, 2) cuts, and the (m, 2) indices into ``a`` and ``b`` behind each point.
    """
    pairs = np.empty((0, 2), dtype=np.int64)
    step = max(block // len(b), 1)
    for start in range(0, len(a), step):
        rows = np.arange(start, min(start + step, len(a)))
        fresh = np.stack((np.repeat(rows, len(b)), np.tile(np.arange(len(b)), rows.size)), axis=1)
        pairs = np.concatenate((pairs, fresh))
        i, j = pairs.T
        pairs = pairs[find_pareto_points(a.loss[i] + b.loss[j], a.cost[i] + b.cost[j])]
    front = _paired(a, b, pairs)
    kept = thin_front(front, limit)
    return front.take(kept), pairs[kept]


def _paired(a: Front, b: Front, pairs: IntArray) -> Front:
    i, j = pairs.T
    cuts = np.concatenate((a.cuts[i], b.cuts[j]), axis=1)
    return Front(a.loss[i] + b.loss[j], a.cost[i] + b.cost[j], cuts)
