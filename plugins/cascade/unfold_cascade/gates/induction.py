"""Gates by backward induction: each gate is a weighted classification, solved exactly for intervals.

Every model is evaluated on every row, so the value of deferring is known: for the last gate the loss and price of the
last model, for an earlier gate the value under the gates behind it. The best interval of deferred scores is the run of
bins with the largest sum of gains (maximum subarray).
"""

from __future__ import annotations

import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.gates.exact import compute_bin_edges


def induce_gates(
    score: FloatArray, loss: FloatArray, cost: FloatArray, lam: float, *, bins: int = 256, one_sided: bool = False
) -> FloatArray:
    """Compute (G, 2) cuts: rows exit at gate j iff ``score < lo`` or ``score >= hi``.

    Args:
        score: (n, G) score that gate j reads.
        loss: (n, K) loss of model j's prediction, K = G + 1.
        cost: (K,) marginal cost of model j.
        lam: Weight of cost, in units of loss per unit of cost.
        bins: Maximum number of bins per gate.
        one_sided: Defer all scores below ``hi``: ``lo`` is minus infinity.
    """
    cuts = np.empty((score.shape[1], 2))
    value = loss[:, -1]
    for j in range(score.shape[1] - 1, -1, -1):
        deferred = lam * cost[j + 1] + value
        cuts[j] = find_best_interval(score[:, j], loss[:, j] - deferred, bins, one_sided=one_sided)
        is_deferred = (score[:, j] >= cuts[j, 0]) & (score[:, j] < cuts[j, 1])
        value = np.where(is_deferred, deferred, loss[:, j])
    return cuts


def find_best_interval(
    score: FloatArray, gain: FloatArray, bins: int, *, one_sided: bool = False
) -> tuple[float, float]:
    """Find the interval ``[lo, hi)`` of scores with the largest sum of gains; empty if no sum is positive.

    ``one_sided`` intervals start at the lowest score.
    """
    edges = compute_bin_edges(score, bins)
    bin_number = np.searchsorted(edges[1:-1], score, side="right")
    sums = np.concatenate(([0.0], np.cumsum(np.bincount(bin_number, gain, edges.size - 1))))
    minimum = np.zeros_like(sums) if one_sided else np.minimum.accumulate(sums)
    end = int(np.argmax(sums - minimum))
    if sums[end] <= minimum[end]:
        return float("-inf"), float("-inf")
    begin = int(np.flatnonzero(sums[: end + 1] == minimum[end])[0])
    return float(edges[begin]), float(edges[end])
