"""Soft gates: a logistic in the confidence of each model, learnt by gradient, then hardened (section 1.6).

``g_j = sigmoid(a_j * q_j + b_j)`` is the chance that a row asks on after model j. With ``V_K = loss_K`` and
``V_j = (1 - g_j) * loss_j + g_j * (lam * c_{j+1} + V_{j+1})`` the expected loss plus ``lam`` times the expected cost is
the mean of ``V_1`` (and the first call), and its derivative by ``g_j`` is the chance to arrive at j times
``lam * c_{j+1} + V_{j+1} - loss_j``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.gates.chains import Tables
from unfold_cascade.gates.evaluate import evaluate
from unfold_cascade.gates.exact import exact_front
from unfold_cascade.gates.induction import induce_gates

RESTARTS = 8
SHARPER = 10.0
LearntGates = Literal["soft", "induction"]
LAMBDAS = (0.03, 0.1, 0.3, 1.0)
ROWS = 5000


@dataclass(frozen=True, slots=True)
class SoftGates:
    """The (G,) slopes and offsets of the gates, and the expected loss plus priced cost that they reach."""

    a: FloatArray
    b: FloatArray
    value: float

    def spans(self) -> FloatArray:
        """Return (G, 2) the confidences ``[lo, hi)`` that ask on when each gate decides for the likelier of its two."""
        with np.errstate(divide="ignore", invalid="ignore"):
            turn = np.where(self.a == 0.0, np.where(self.b >= 0.0, np.inf, -np.inf), -self.b / self.a)
        rising = self.a > 0.0
        return np.stack((np.where(rising, turn, -np.inf), np.where(rising, np.inf, turn)), axis=1)


def learn_gates(score: FloatArray, loss: FloatArray, cost: FloatArray, lam: float, seed: int) -> SoftGates:
    """Return the best of eight L-BFGS runs, each followed by one with sharper gates.

    Args:
        score: (n, G) confidence that gate j reads.
        loss: (n, K) loss of model j's answer, K = G + 1.
        cost: (K,) cost of asking model j once the row got there.
        lam: Price of one unit of cost, in units of loss.
        seed: Of the starting points.
    """
    from scipy.optimize import minimize

    generator = np.random.default_rng([seed, 0x50F7])
    best = SoftGates(np.zeros(score.shape[1]), np.zeros(score.shape[1]), np.inf)
    for _ in range(RESTARTS if score.shape[1] else 1):
        start = generator.normal(0.0, 4.0, 2 * score.shape[1])
        for sharper in (1.0, SHARPER):
            done = minimize(expected, start * sharper, (score, loss, cost, lam), method="L-BFGS-B", jac=True)
            start = done.x
            if done.fun < best.value:
                best = SoftGates(done.x[: score.shape[1]], done.x[score.shape[1] :], float(done.fun))
    return best


def expected(
    at: FloatArray, score: FloatArray, loss: FloatArray, cost: FloatArray, lam: float
) -> tuple[float, FloatArray]:
    """Return the expected loss plus priced cost of gates ``at`` = (a, b), and its (2G,) gradient."""
    a, b = np.split(at, 2)
    g = 1.0 / (1.0 + np.exp(-np.clip(score * a + b, -40.0, 40.0)))
    values, on = [loss[:, -1]], [np.empty(0)]
    for j in range(score.shape[1] - 1, -1, -1):
        on.insert(0, lam * cost[j + 1] + values[0])
        values.insert(0, (1.0 - g[:, j]) * loss[:, j] + g[:, j] * on[0])
    arrive = np.cumprod(np.concatenate((np.ones((len(g), 1)), g[:, :-1]), axis=1), axis=1)[:, : g.shape[1]]
    slopes = [arrive[:, j] * (on[j] - loss[:, j]) * g[:, j] * (1.0 - g[:, j]) for j in range(score.shape[1])]
    by_a = [float((slope * score[:, j]).mean()) for j, slope in enumerate(slopes)]
    gradient = np.array([*by_a, *(float(slope.mean()) for slope in slopes)])
    return float(values[0].mean()) + lam * float(cost[0]), gradient


def soft_or_exact(score: FloatArray, loss: FloatArray, cost: FloatArray, lam: float, seed: int) -> FloatArray:
    """Return the (G, 2) cuts of the hardened soft gates, or of the exact search where these are better on the rows.

    The cuts say which scores stop, as in ``gates.front``: below ``lo``, or from ``hi`` on.
    """
    soft = learn_gates(score, loss, cost, lam, seed).spans()
    front = exact_front(score, loss, cost)
    exact = front.cuts[int(np.argmin(front.loss + lam * front.cost))]
    worth = [_priced(score, loss, cost, cuts, lam) for cuts in (soft, exact)]
    return soft if worth[0] < worth[1] else exact


def _priced(score: FloatArray, loss: FloatArray, cost: FloatArray, cuts: FloatArray, lam: float) -> float:
    lost, paid = evaluate(score, loss, cost, cuts)
    return lost + lam * paid


def learnt_cuts(tables: Tables, kinds: Iterable[LearntGates]) -> Iterator[FloatArray]:
    """Yield (G, 2) cuts of one chain: soft gates, hardened, or backward induction; nothing for a single model.

    Each price of cost is a share of what answering wrongly costs, against the dearest call of the chain. A gate of
    cases without time stops the confident, so a gate that would stop the others asks on always.

    Args:
        tables: score (n, G), loss (n, K) and cost (n, K) or (K,) of the chain, K = G + 1.
        kinds: how gates are learnt.
    """
    score, loss, cost = (table[:: max(len(tables[0]) // ROWS, 1)] for table in _rowwise(tables))
    score, mean = _heard(score), cost.mean(axis=0)
    for lam, kind in product(LAMBDAS if score.shape[1] else (), kinds):
        priced = lam / max(float(mean.max()), 1e-300)
        found = learn_gates(score, loss, mean, priced, 0).spans() if kind == "soft" else None
        yield _one_sided(induce_gates(score, loss, mean, priced, one_sided=True) if found is None else found)


def _rowwise(tables: Tables) -> Tables:
    score, loss, cost = tables
    return score, loss, np.broadcast_to(cost, loss.shape)


def _heard(score: FloatArray) -> FloatArray:
    """Return scores that a gradient can work on: in the place of none, one below all."""
    known = np.isfinite(score)
    low = np.min(score, axis=0, initial=np.inf, where=known)
    high = np.max(score, axis=0, initial=-np.inf, where=known)
    with np.errstate(invalid="ignore"):
        below = np.where(np.isfinite(low), low - np.maximum(high - low, 1.0), 0.0)
    return np.where(known, score, below)


def _one_sided(cuts: FloatArray) -> FloatArray:
    """Return the cuts with nothing stopped from below."""
    never = np.full(len(cuts), -np.inf)
    return np.stack((never, cuts[:, 1]), axis=1)
