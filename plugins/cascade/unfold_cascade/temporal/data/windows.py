"""Features of a column's own past: the value carried forward, its age, and statistics over a window of hours."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from unfold_cascade._types import Float32, FloatArray, IntArray
from unfoldkit.jit import compiled

TOLERANCE_H = 1e-6
"""Times on the edge of a window belong to it: a third of an hour has no exact form, and differences are rounded."""
LARGEST_VALUE = 1e30
"""Beyond it, changes over a window and sums of a linear model may leave single precision."""
STATISTICS = ("mean", "min", "max", "change", "spread")


def carry_forward(values: Float32, hour: FloatArray, starts: IntArray, carry_h: float) -> tuple[Float32, Float32]:
    """Carry measurements forward within their entity for at most ``carry_h`` hours.

    Args:
        values: (n,) one column, NaN where it was not measured.
        hour: (n,) hours.
        starts: (P+1,) first rows of the entities.
        carry_h: Maximum age of a value; a value measured in the same hour has age 0.

    Returns:
        (n,) values and (n,) ages in hours; both NaN where no value is recent enough.
    """
    row = np.where(np.isnan(values), -1, np.arange(len(values)))
    latest = np.maximum.accumulate(row)
    entity_start = np.repeat(starts[:-1], np.diff(starts))
    measured = latest >= entity_start
    age = np.where(measured, hour - hour[np.maximum(latest, 0)], np.nan)
    with np.errstate(invalid="ignore"):
        valid = measured & (age <= carry_h + TOLERANCE_H)
    value = np.where(valid, values[np.maximum(latest, 0)], np.nan)
    return value.astype(np.float32), np.where(valid, age, np.nan).astype(np.float32)


def compute_window_statistics(
    values: Float32, hour: FloatArray, starts: IntArray, window_h: float
) -> dict[str, Float32]:
    """Compute statistics of the measurements in the ``window_h`` hours up to each hour; NaN where there are none.

    ``change`` is the last value of the window minus its first, ``spread`` the standard deviation. Each is (n,).
    """
    statistics = _compile_kernel()(values.astype(np.float32), hour, starts, window_h)
    return {name: statistics[:, column] for column, name in enumerate(STATISTICS)}


@cache
def _compile_kernel() -> Any:
    return compiled(window_kernel)


def window_kernel(values: Float32, hour: FloatArray, starts: IntArray, window_h: float) -> Float32:
    """Compute (n, 5) mean, min, max, change and spread; numba compiles this same function."""
    out = np.full((len(values), 5), np.nan, dtype=np.float32)
    for entity in range(len(starts) - 1):
        low = starts[entity]
        for row in range(starts[entity], starts[entity + 1]):
            while hour[row] - hour[low] > window_h + TOLERANCE_H:
                low += 1
            count, total, squares, lowest, highest, oldest, newest = 0, 0.0, 0.0, np.inf, -np.inf, 0.0, 0.0
            for past in range(low, row + 1):
                value = np.float64(values[past])
                if not np.isnan(value):
                    oldest = value if count == 0 else oldest
                    count, total, squares, newest = count + 1, total + value, squares + value * value, value
                    lowest, highest = min(lowest, value), max(highest, value)
            if count > 0:
                mean = total / count
                out[row, 0], out[row, 1], out[row, 2], out[row, 3] = mean, lowest, highest, newest - oldest
                out[row, 4] = np.sqrt(max(squares / count - mean * mean, 0.0))
    return out
