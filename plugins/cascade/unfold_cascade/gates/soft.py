"""Learnt gates: soft gates (logistic in the confidence, trained by gradient) and backward induction, as hard cuts.

``g_j = sigmoid(a_j * q_j + b_j)`` is the probability that a row passes gate j. With ``V_K = loss_K`` and
``V_j = (1 - g_j) * loss_j + g_j * (lam * c_{j+1} + V_{j+1})``, the expected loss plus ``lam`` times the expected cost
is the mean of ``V_1`` (and the first call). Its derivative by ``g_j`` is the probability to reach j times
``lam * c_{j+1} + V_{j+1} - loss_j``.

Backward induction takes each gate as a weighted classification, solved exactly for intervals. Every model is evaluated
on every row, so the value of deferring is known: for the last gate the loss and price of the last model, for an earlier
gate the value under the gates behind it. The best interval is the run of bins with the largest sum of gains.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.gates.chains import Tables
from unfold_cascade.gates.exact_search import compute_bin_edges

RESTARTS = 8
SHARPENING = 10.0
LearntGates = Literal["soft", "induction"]
COST_WEIGHTS = (0.03, 0.1, 0.3, 1.0)
"""Weights of cost to learn gates for, relative to the most expensive call of a chain."""
MAX_ROWS = 5000


@dataclass(frozen=True, slots=True)
class SoftGates:
    """The (G,) slopes ``a`` and offsets ``b`` of the gates, and the expected loss plus weighted cost."""

    a: FloatArray
    b: FloatArray
    value: float

    def spans(self) -> FloatArray:
        """Harden the gates: (G, 2) intervals ``[lo, hi)`` of confidences that are more likely to pass than to exit."""
        with np.errstate(divide="ignore", invalid="ignore"):
            turn = np.where(self.a == 0.0, np.where(self.b >= 0.0, np.inf, -np.inf), -self.b / self.a)
        is_rising = self.a > 0.0
        return np.stack((np.where(is_rising, turn, -np.inf), np.where(is_rising, np.inf, turn)), axis=1)


def learn_gates(score: FloatArray, loss: FloatArray, cost: FloatArray, lam: float, seed: int) -> SoftGates:
    """Learn soft gates: the best of eight L-BFGS runs, each continued with sharper gates.

    Args:
        score: (n, G) confidence that gate j reads.
        loss: (n, K) loss of model j's prediction, K = G + 1.
        cost: (K,) marginal cost of model j.
        lam: Weight of cost, in units of loss per unit of cost.
        seed: Of the starting points.
    """
    from scipy.optimize import minimize

    generator = np.random.default_rng([seed, 0x50F7])
    gates = score.shape[1]
    best = SoftGates(np.zeros(gates), np.zeros(gates), np.inf)
    for _ in range(RESTARTS if gates else 1):
        start = generator.normal(0.0, 4.0, 2 * gates)
        for sharpening in (1.0, SHARPENING):
            result = minimize(expected_value, start * sharpening, (score, loss, cost, lam), method="L-BFGS-B", jac=True)
            start = result.x
            if result.fun < best.value:
                best = SoftGates(result.x[:gates], result.x[gates:], float(result.fun))
    return best


def expected_value(
    parameters: FloatArray, score: FloatArray, loss: FloatArray, cost: FloatArray, lam: float
) -> tuple[float, FloatArray]:
    """Compute the expected loss plus weighted cost of gates with ``parameters`` (a, b), and its (2G,) gradient."""
    a, b = np.split(parameters, 2)
    g = 1.0 / (1.0 + np.exp(-np.clip(score * a + b, -40.0, 40.0)))
    values, deferred = [loss[:, -1]], [np.empty(0)]
    for j in range(score.shape[1] - 1, -1, -1):
        deferred.insert(0, lam * cost[j + 1] + values[0])
        values.insert(0, (1.0 - g[:, j]) * loss[:, j] + g[:, j] * deferred[0])
    reach = np.cumprod(np.concatenate((np.ones((len(g), 1)), g[:, :-1]), axis=1), axis=1)[:, : g.shape[1]]
    slopes = [reach[:, j] * (deferred[j] - loss[:, j]) * g[:, j] * (1.0 - g[:, j]) for j in range(score.shape[1])]
    by_a = [float((slope * score[:, j]).mean()) for j, slope in enumerate(slopes)]
    gradient = np.array([*by_a, *(float(slope.mean()) for slope in slopes)])
    return float(values[0].mean()) + lam * float(cost[0]), gradient


def learn_cuts(tables: Tables, kinds: Iterable[LearntGates]) -> Iterator[FloatArray]:
    """Yield (G, 2) one-sided cuts of one chain, for several weights of cost; none for a single model.

    Gates of cases without time let confident rows exit: a gate that would let the other rows exit always defers.

    Args:
        tables: Score (n, G), loss (n, K) and cost (n, K) or (K,) of the chain, K = G + 1.
        kinds: How gates are learnt.
    """
    score, loss, cost = tables
    step = max(len(score) // MAX_ROWS, 1)
    score, loss, cost = score[::step], loss[::step], np.broadcast_to(cost, loss.shape)[::step]
    score, mean_cost = _fill_missing_scores(score), cost.mean(axis=0)
    for weight, kind in product(COST_WEIGHTS if score.shape[1] else (), kinds):
        lam = weight / max(float(mean_cost.max()), 1e-300)
        if kind == "soft":
            cuts = learn_gates(score, loss, mean_cost, lam, 0).spans()
        else:
            cuts = induce_gates(score, loss, mean_cost, lam, one_sided=True)
        yield np.stack((np.full(len(cuts), -np.inf), cuts[:, 1]), axis=1)


def _fill_missing_scores(score: FloatArray) -> FloatArray:
    """Replace missing scores (-inf) by one below all others, for gradients."""
    is_present = np.isfinite(score)
    low = np.min(score, axis=0, initial=np.inf, where=is_present)
    high = np.max(score, axis=0, initial=-np.inf, where=is_present)
    with np.errstate(invalid="ignore"):
        filler = np.where(np.isfinite(low), low - np.maximum(high - low, 1.0), 0.0)
    return np.where(is_present, score, filler)


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
