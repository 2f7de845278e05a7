"""Exact joint search of all cuts of a cascade by cumulative histograms (section 1.5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates.pareto import Front, find_pareto_points

MAX_MODELS = 5
TABLE = 1 << 18


def search_exact_front(
    score: FloatArray, loss: FloatArray, cost: FloatArray, *, bins: int | None = None, two_sided: bool = False
) -> Front:
    """Return the whole Pareto front over all vectors of cuts.

    A row that reaches gate j and does not stop there changes the loss by ``loss[i, j+1] - loss[i, j]`` and
    the cost by ``cost[i, j+1]``. Both are summed in a (j+1)-dimensional histogram over the bins of the scores
    up to j; its cumulative sums give these changes for every vector of cuts at once, and their total over the
    gates is the loss and cost of every policy. Exact over the given bins, whose edges are observed scores:
    with all distinct scores as edges it is exact without reservation.

    Args:
        score: (n, G) score that gate j reads, 0 <= G <= 4; minus infinity where it has none, so that only a gate
            that stops all stops there.
        loss: (n, K) loss of model j's answer, K = G + 1.
        cost: (n, K) or (K,) cost of asking model j once the row got there.
        bins: Bins per gate at most, by quantiles; None takes all distinct scores for one gate, and as many as
            fit a table of a quarter of a million policies for several (all of them where they are few).
        two_sided: Search intervals ``[lo, hi)`` instead of one cut a gate; needs coarser bins.

    Returns:
        The front; its losses and costs are means per row.

    Raises:
        ValueError: Shapes do not agree, there is no row, or a value is not finite.
    """
    score, loss, cost = check_tables(score, loss, cost)
    sizes = _bin_counts([np.unique(column).size for column in score.T], bins, two_sided=two_sided)
    edges = [compute_bin_edges(column, size) for column, size in zip(score.T, sizes, strict=True)]
    spans = [_spans(edge.size - 1, two_sided=two_sided) for edge in edges]
    losses, costs = _tables(score, loss, cost, edges, spans)
    best = find_pareto_points(losses.ravel(), costs.ravel())
    return Front(losses.ravel()[best], costs.ravel()[best], _cuts(best, edges, spans))


def check_tables(score: FloatArray, loss: FloatArray, cost: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the three tables as float64; a score may be -inf, where a model gave none.

    Raises:
        ValueError: Shapes do not agree, there is no row, or a value is not finite.
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
    """Return the edges of at most ``bins`` bins of equal share, cut between distinct scores only.

    Args:
        score: (n,) scores, finite or minus infinity.
        bins: Bins at most; where there are no more distinct scores, each gets its own.

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


def _bin_counts(distinct: Sequence[int], bins: int | None, *, two_sided: bool) -> list[int]:
    """Share a table of policies among the gates; a gate with few scores leaves room to the others."""
    if bins is not None:
        return [min(bins, count) for count in distinct]
    if len(distinct) == 1 and not two_sided:
        return list(distinct)
    room, counts = float(TABLE), dict[int, int]()
    order = sorted(range(len(distinct)), key=distinct.__getitem__)
    for left, gate in zip(range(len(order), 0, -1), order, strict=True):
        counts[gate] = min(distinct[gate], _most_bins(room ** (1 / left), two_sided=two_sided))
        room /= _policies(counts[gate], two_sided=two_sided)
    return [counts[gate] for gate in range(len(distinct))]


def _most_bins(policies: float, *, two_sided: bool) -> int:
    return max(int(math.sqrt(2 * policies) if two_sided else policies) - 1, 2)


def _policies(bins: int, *, two_sided: bool) -> int:
    return bins * (bins + 1) // 2 + 1 if two_sided else bins + 1


def _spans(bins: int, *, two_sided: bool) -> IntArray:
    """Return the (P, 2) ranges of bins that ask on: one-sided [0, b), two-sided [a, b), the first empty."""
    if not two_sided:
        return np.stack((np.zeros(bins + 1, dtype=np.int64), np.arange(bins + 1)), axis=1)
    low, high = np.triu_indices(bins + 1, 1)
    return np.concatenate((np.zeros((1, 2), dtype=np.int64), np.stack((low, high), axis=1)))


def _tables(
    score: FloatArray, loss: FloatArray, cost: FloatArray, edges: list[FloatArray], spans: list[IntArray]
) -> tuple[FloatArray, FloatArray]:
    shape, rows = tuple(len(span) for span in spans), len(loss)
    losses = np.full(shape, loss[:, 0].sum())
    costs = np.full(shape, np.broadcast_to(cost[..., 0], rows).sum())
    cell, bins = np.zeros(rows, dtype=np.int64), tuple[int, ...]()
    for gate, edge in enumerate(edges):
        bins += (edge.size - 1,)
        cell = cell * bins[-1] + np.searchsorted(edge[1:-1], score[:, gate], side="right")
        spread = (*shape[: gate + 1], *(1,) * (len(edges) - gate - 1))
        losses += _change(cell, loss[:, gate + 1] - loss[:, gate], bins, spans).reshape(spread)
        costs += _change(cell, cost[..., gate + 1], bins, spans).reshape(spread)
    return losses / rows, costs / rows


def _change(cell: IntArray, value: FloatArray, bins: tuple[int, ...], spans: list[IntArray]) -> FloatArray:
    """Sum a value of the rows that ask on, under every policy; one price for all is counted, exactly."""
    histogram = np.bincount(cell, value if value.ndim else None, math.prod(bins)).astype(np.float64)
    table = _asked_on(histogram.reshape(bins), spans)
    return table if value.ndim else table * value


def _asked_on(histogram: FloatArray, spans: list[IntArray]) -> FloatArray:
    """Sum a histogram over the range of bins of every policy, axis by axis."""
    table = histogram
    for axis in range(histogram.ndim):
        table = np.cumsum(np.insert(table, 0, 0.0, axis=axis), axis=axis)
        low, high = spans[axis].T
        if low.any():  # one-sided ranges are the cumulative sums themselves
            table = np.take(table, high, axis=axis) - np.take(table, low, axis=axis)
    return table


def _cuts(best: IntArray, edges: list[FloatArray], spans: list[IntArray]) -> FloatArray:
    cuts = np.empty((best.size, len(edges), 2))
    rest = best
    for gate in reversed(range(len(edges))):
        rest, chosen = np.divmod(rest, len(spans[gate]))
        low, high = spans[gate][chosen].T
        cuts[:, gate, 0], cuts[:, gate, 1] = edges[gate][low], edges[gate][high]
    return cuts
