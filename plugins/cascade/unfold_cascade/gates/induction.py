"""Gates by backward induction: each gate is a weighted classification, exact for intervals (section 1.6).

All models are logged on all rows, so what asking on is worth is known: for the last gate it is the loss of the last
model and its price, for a gate before it what the gates behind it make of the row. A gate that asks on within an
interval of scores is best where the sum of what is gained is largest: the largest sum of a run of bins.
"""

from __future__ import annotations

import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.gates.exact import compute_bin_edges


def induce_gates(
    score: FloatArray, loss: FloatArray, cost: FloatArray, lam: float, *, bins: int = 256, one_sided: bool = False
) -> FloatArray:
    """Return (G, 2) cuts: gate j stops a row iff ``score < lo`` or ``score >= hi``.

    Args:
        score: (n, G) score that gate j reads.
        loss: (n, K) loss of model j's answer, K = G + 1.
        cost: (K,) cost of asking model j once the row got there.
        lam: Price of one unit of cost, in units of loss.
        bins: Bins a gate at most.
        one_sided: Nothing is stopped from below: ``lo`` is minus infinity.
    """
    cuts = np.empty((score.shape[1], 2))
    value = loss[:, -1]
    for j in range(score.shape[1] - 1, -1, -1):
        on = lam * cost[j + 1] + value
        cuts[j] = find_best_interval(score[:, j], loss[:, j] - on, bins, one_sided=one_sided)
        asks = (score[:, j] >= cuts[j, 0]) & (score[:, j] < cuts[j, 1])
        value = np.where(asks, on, loss[:, j])
    return cuts


def find_best_interval(
    score: FloatArray, gain: FloatArray, bins: int, *, one_sided: bool = False
) -> tuple[float, float]:
    """Return the interval ``[lo, hi)`` of scores with the largest sum of gains; empty where no sum is above 0.

    ``one_sided`` intervals begin with the lowest score.
    """
    edges = compute_bin_edges(score, bins)
    place = np.searchsorted(edges[1:-1], score, side="right")
    sums = np.concatenate(([0.0], np.cumsum(np.bincount(place, gain, edges.size - 1))))
    least = np.zeros_like(sums) if one_sided else np.minimum.accumulate(sums)
    end = int(np.argmax(sums - least))
    if sums[end] <= least[end]:
        return float("-inf"), float("-inf")
    begin = int(np.flatnonzero(sums[: end + 1] == least[end])[0])
    return float(edges[begin]), float(edges[end])
