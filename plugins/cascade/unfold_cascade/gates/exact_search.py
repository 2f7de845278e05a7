"""Exact joint search of all cuts of a cascade, by cumulative histograms, and the direct evaluation of given cuts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates.pareto import Front, find_pareto_points

MAX_MODELS = 5
MAX_TABLE = 1 << 18
"""Policies in a table when the number of bins is not given."""


def search_exact_front(
    score: FloatArray, loss: FloatArray, cost: FloatArray, *, bins: int | None = None, two_sided: bool = False
) -> Front:
    """Search the complete Pareto front over all vectors of cuts.

    A row that passes gate j changes the loss by ``loss[i, j+1] - loss[i, j]`` and the cost by ``cost[i, j+1]``.
    A (j+1)-dimensional histogram over the bins of the scores up to j sums both; its cumulative sums are the
    changes under every vector of cuts, and their total over gates is the loss and cost of every policy. The
    result is exact over bins with observed scores as edges; with all distinct scores as edges it is exact.

    Args:
        score: (n, G) score that gate j reads, 0 <= G <= 4; minus infinity where there is none, so that only a
            gate at which all rows exit ends there.
        loss: (n, K) loss of model j's prediction, K = G + 1.
        cost: (n, K) or (K,) marginal cost of model j.
        bins: Maximum number of bins per gate, by quantiles. ``None`` takes all distinct scores for one gate; for
            several gates as many as fit a table of 2^18 policies.
        two_sided: Search intervals ``[lo, hi)`` instead of one cut per gate; needs coarser bins.

    Returns:
        The front; losses and costs are means per row.

    Raises:
        ValueError: Shapes do not match, there is no row, or a value is not finite.
    """
    score, loss, cost = check_tables(score, loss, cost)
    sizes = _share_bins([np.unique(column).size for column in score.T], bins, two_sided=two_sided)
    edges = [compute_bin_edges(column, size) for column, size in zip(score.T, sizes, strict=True)]
    spans = [_list_spans(edge.size - 1, two_sided=two_sided) for edge in edges]
    losses, costs = _tabulate_policies(score, loss, cost, edges, spans)
    best = find_pareto_points(losses.ravel(), costs.ravel())
    return Front(losses.ravel()[best], costs.ravel()[best], _decode_cuts(best, edges, spans))


def check_tables(score: FloatArray, loss: FloatArray, cost: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Convert the three tables to float64; a score is -inf where a model gave none.

    Raises:
        ValueError: Shapes do not match, there is no row, or a value is not finite.
    """
    score, loss, cost = (np.asarray(table, dtype=np.float64) for table in (score, loss, cost))
    if loss.ndim != 2 or not loss.size or not 1 <= loss.shape[1] <= MAX_MODELS:
        raise ValueError(f"loss must be (n, K) with n >= 1 and K from 1 to {MAX_MODELS}, not {loss.shape}")
    if score.shape != (loss.shape[0], loss.shape[1] - 1):
        raise ValueError(f"score must be (n, K - 1) beside loss {loss.shape}, not {score.shape}")
    if cost.shape not in (loss.shape, loss.shape[1:]):
        raise ValueError(f"cost must be (n, K) or (K,) beside loss {loss.shape}, not {cost.shape}")
    if not all(np.isfinite(table).all() for table in (score[score != -np.inf], loss, cost)):
        raise ValueError("score, loss and cost must be finite, a score at most minus infinity")
    return score, loss, cost


def compute_bin_edges(score: FloatArray, bins: int) -> FloatArray:
    """Compute the edges of at most ``bins`` bins of equal size, between distinct scores only.

    Args:
        score: (n,) scores, finite or minus infinity.
        bins: Maximum number; if there are no more distinct scores, each has its own bin.

    Returns:
        (B + 1,) ascending: -inf, observed scores, +inf. Bin b holds the scores of
        ``edge[b] <= s < edge[b+1]``.
    """
    distinct = np.unique(score)
    if distinct.size > bins:
        ranks = (np.arange(1, bins) * score.size) // bins
        distinct = np.concatenate((distinct[:1], np.sort(score)[ranks]))
    inner = np.unique(distinct)[1:]
    return np.concatenate(([-np.inf], inner, [np.inf]))


def _share_bins(distinct: Sequence[int], bins: int | None, *, two_sided: bool) -> list[int]:
    """Divide a table of policies among the gates; gates with few scores leave more bins for the others."""
    if bins is not None:
        return [min(bins, count) for count in distinct]
    if len(distinct) == 1 and not two_sided:
        return list(distinct)
    capacity, counts = float(MAX_TABLE), dict[int, int]()
    order = sorted(range(len(distinct)), key=distinct.__getitem__)
    for remaining, gate in zip(range(len(order), 0, -1), order, strict=True):
        counts[gate] = min(distinct[gate], _max_bins(capacity ** (1 / remaining), two_sided=two_sided))
        capacity /= _count_policies(counts[gate], two_sided=two_sided)
    return [counts[gate] for gate in range(len(distinct))]


def _max_bins(policies: float, *, two_sided: bool) -> int:
    return max(int(math.sqrt(2 * policies) if two_sided else policies) - 1, 2)


def _count_policies(bins: int, *, two_sided: bool) -> int:
    return bins * (bins + 1) // 2 + 1 if two_sided else bins + 1


def _list_spans(bins: int, *, two_sided: bool) -> IntArray:
    """List the (P, 2) ranges of bins that pass a gate: one-sided [0, b), two-sided [a, b), the first empty."""
    if not two_sided:
        return np.stack((np.zeros(bins + 1, dtype=np.int64), np.arange(bins + 1)), axis=1)
    low, high = np.triu_indices(bins + 1, 1)
    return np.concatenate((np.zeros((1, 2), dtype=np.int64), np.stack((low, high), axis=1)))


def _tabulate_policies(
    score: FloatArray, loss: FloatArray, cost: FloatArray, edges: list[FloatArray], spans: list[IntArray]
) -> tuple[FloatArray, FloatArray]:
    shape, rows = tuple(len(span) for span in spans), len(loss)
    losses = np.full(shape, loss[:, 0].sum())
    costs = np.full(shape, np.broadcast_to(cost[..., 0], rows).sum())
    cell, bins = np.zeros(rows, dtype=np.int64), tuple[int, ...]()
    for gate, edge in enumerate(edges):
        bins += (edge.size - 1,)
        cell = cell * bins[-1] + np.searchsorted(edge[1:-1], score[:, gate], side="right")
        broadcast = (*shape[: gate + 1], *(1,) * (len(edges) - gate - 1))
        losses += _sum_passing(cell, loss[:, gate + 1] - loss[:, gate], bins, spans).reshape(broadcast)
        costs += _sum_passing(cell, cost[..., gate + 1], bins, spans).reshape(broadcast)
    return losses / rows, costs / rows


def _sum_passing(cell: IntArray, value: FloatArray, bins: tuple[int, ...], spans: list[IntArray]) -> FloatArray:
    """Sum a value over the rows that pass the gate, under every policy; a common price is multiplied by counts."""
    histogram = np.bincount(cell, value if value.ndim else None, math.prod(bins)).astype(np.float64)
    table = _sum_ranges(histogram.reshape(bins), spans)
    return table if value.ndim else table * value


def _sum_ranges(histogram: FloatArray, spans: list[IntArray]) -> FloatArray:
    """Sum a histogram over the range of bins of every policy, axis by axis."""
    table = histogram
    for axis in range(histogram.ndim):
        table = np.cumsum(np.insert(table, 0, 0.0, axis=axis), axis=axis)
        low, high = spans[axis].T
        if low.any():  # one-sided ranges are the cumulative sums themselves
            table = np.take(table, high, axis=axis) - np.take(table, low, axis=axis)
    return table


def _decode_cuts(best: IntArray, edges: list[FloatArray], spans: list[IntArray]) -> FloatArray:
    cuts = np.empty((best.size, len(edges), 2))
    index = best
    for gate in reversed(range(len(edges))):
        index, span = np.divmod(index, len(spans[gate]))
        low, high = spans[gate][span].T
        cuts[:, gate, 0], cuts[:, gate, 1] = edges[gate][low], edges[gate][high]
    return cuts


def route_rows(score: FloatArray, cuts: FloatArray) -> IntArray:
    """Find the model at which each row exits.

    Args:
        score: (n, G) score that gate j reads.
        cuts: (G, 2) pairs ``(lo, hi)``; rows exit at gate j iff ``score < lo`` or ``score >= hi``.

    Returns:
        (n,) index of the model, from 0 to G.
    """
    is_exit = (score < cuts[:, 0]) | (score >= cuts[:, 1])
    final = np.ones((score.shape[0], 1), dtype=np.bool_)
    exits: IntArray = np.argmax(np.concatenate((is_exit, final), axis=1), axis=1)
    return exits


def compute_outcomes(
    score: FloatArray, loss: FloatArray, cost: FloatArray, cuts: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Compute the loss and the cost of each row.

    Args:
        score: (n, G) score that gate j reads.
        loss: (n, K) loss of model j's prediction, K = G + 1.
        cost: (n, K) or (K,) marginal cost of model j.
        cuts: (G, 2) pairs ``(lo, hi)``.

    Returns:
        (n,) losses and (n,) costs; a row pays for every model up to its exit.
    """
    exits = route_rows(score, cuts)[:, np.newaxis]
    path_cost = np.cumsum(np.broadcast_to(cost, loss.shape), axis=1)
    return np.take_along_axis(loss, exits, 1)[:, 0], np.take_along_axis(path_cost, exits, 1)[:, 0]


def evaluate_cuts(score: FloatArray, loss: FloatArray, cost: FloatArray, cuts: FloatArray) -> tuple[float, float]:
    """Compute the mean loss and the mean cost of a row; arguments as for ``compute_outcomes``."""
    losses, costs = compute_outcomes(score, loss, cost, cuts)
    return float(losses.mean()), float(costs.mean())
