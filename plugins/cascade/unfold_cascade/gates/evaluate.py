"""Evaluate the cuts of a chain: the exit, loss and cost of each row."""

from __future__ import annotations

import numpy as np

from unfold_cascade._types import FloatArray, IntArray


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
