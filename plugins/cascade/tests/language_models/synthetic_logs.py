"""Logs of two or three models with known true correctness given the confidence."""

from __future__ import annotations

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.language_models.planning.call_log import CallLog


def make_log(rng: np.random.Generator, rows: int, *, lift: float = 0.1, unit: IntArray | None = None) -> CallLog:
    """Draw a log of a calibrated cheap model and a more accurate expensive one; mostly both are correct together."""
    p = rng.beta(4, 1.2, rows)
    luck, fresh_luck = rng.random(rows), rng.random(rows)
    small = luck < p
    large = np.where(rng.random(rows) < 0.85, luck, fresh_luck) < np.clip(p + lift, 0, 0.99)
    return CallLog(
        models=("small", "large"),
        is_correct=np.column_stack([small, large]),
        confidence=np.column_stack([np.log(p), np.log(np.clip(p + lift, 0, 0.99))]),
        cost=np.column_stack([rng.lognormal(0, 0.3, rows), 10 * rng.lognormal(0, 0.3, rows)]) / 1000,
        confidence_cost=np.zeros((rows, 2)),
        latency_ms=np.column_stack([rng.lognormal(5, 0.3, rows), rng.lognormal(6, 0.3, rows)]),
        unit=np.arange(rows) if unit is None else unit,
    )


def true_loss(rng: np.random.Generator, cut: float, lift: float = 0.1, rows: int = 400_000) -> float:
    """Compute the loss of trusting the small model from P(correct) = ``cut``, in expectation."""
    p: FloatArray = rng.beta(4, 1.2, rows)
    return float(np.where(p >= cut, np.clip(p + lift, 0, 0.99) - p, 0.0).mean())
