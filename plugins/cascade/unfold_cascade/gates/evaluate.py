"""What a cascade with given cuts does: where each row stops, what it loses and what it costs."""

from __future__ import annotations

import numpy as np

from unfold_cascade._types import FloatArray, IntArray


def route_rows(score: FloatArray, cuts: FloatArray) -> IntArray:
    """Return the model that answers each row.

    Args:
        score: (n, G) score that gate j reads.
        cuts: (G, 2) pairs ``(lo, hi)``; gate j stops iff ``score < lo`` or ``score >= hi``.

    Returns:
        (n,) index of the model that answers, from 0 to G.
    """
    stops = (score < cuts[:, 0]) | (score >= cuts[:, 1])
    always = np.ones((score.shape[0], 1), dtype=np.bool_)
    first: IntArray = np.argmax(np.concatenate((stops, always), axis=1), axis=1)
    return first


def compute_outcomes(
    score: FloatArray, loss: FloatArray, cost: FloatArray, cuts: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return what each row loses and costs.

    Args:
        score: (n, G) score that gate j reads.
        loss: (n, K) loss of model j's answer, K = G + 1.
        cost: (n, K) or (K,) cost of asking model j once the row got there.
        cuts: (G, 2) pairs ``(lo, hi)``.

    Returns:
        (n,) losses and (n,) costs; a row pays for every model up to the one that answers.
    """
    answered = route_rows(score, cuts)[:, np.newaxis]
    paid = np.cumsum(np.broadcast_to(cost, loss.shape), axis=1)
    return np.take_along_axis(loss, answered, 1)[:, 0], np.take_along_axis(paid, answered, 1)[:, 0]


def evaluate_cuts(score: FloatArray, loss: FloatArray, cost: FloatArray, cuts: FloatArray) -> tuple[float, float]:
    """Return the mean loss and the mean cost of a row; arguments as for ``compute_outcomes``."""
    losses, costs = compute_outcomes(score, loss, cost, cuts)
    return float(losses.mean()), float(costs.mean())
