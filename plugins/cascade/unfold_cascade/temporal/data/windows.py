"""What a column says about its own past: last value, its age, and statistics over a window of hours."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from unfold_cascade._types import Float32, FloatArray, IntArray
from unfoldkit.jit import compiled

STATISTICS = ("mean", "min", "max", "change", "spread")


def carried(values: Float32, hour: FloatArray, starts: IntArray, valid_h: float) -> tuple[Float32, Float32]:
    """Return (n,) the last value measured within ``valid_h`` hours, and (n,) its age in hours; NaN where none is.

    Args:
        values: (n,) one column, NaN where it was not measured.
        hour: (n,) hours.
        starts: (P+1,) first rows of the entities.
        valid_h: how long a value is good for, the hour itself included at age 0.
    """
    place = np.where(np.isnan(values), -1, np.arange(len(values)))
    last = np.maximum.accumulate(place)
    first = np.repeat(starts[:-1], np.diff(starts))
    known = last >= first
    age = np.where(known, hour - hour[np.maximum(last, 0)], np.nan)
    with np.errstate(invalid="ignore"):
        good = known & (age <= valid_h)
    value = np.where(good, values[np.maximum(last, 0)], np.nan)
    return value.astype(np.float32), np.where(good, age, np.nan).astype(np.float32)


def statistics(values: Float32, hour: FloatArray, starts: IntArray, window_h: float) -> dict[str, Float32]:
    """Return statistics of what was measured in the ``window_h`` hours up to each hour, NaN where nothing was.

    ``change`` is the last value minus the first of the window, ``spread`` the standard deviation.
    """
    found = _compiled()(values.astype(np.float32), hour, starts, window_h)
    return {name: found[:, place] for place, name in enumerate(STATISTICS)}


@cache
def _compiled() -> Any:
    return compiled(window_kernel)


def window_kernel(values: Float32, hour: FloatArray, starts: IntArray, window_h: float) -> Float32:
    """Return (n, 5) mean, min, max, change and spread; the plain form of the compiled kernel."""
    out = np.full((len(values), 5), np.nan, dtype=np.float32)
    for entity in range(len(starts) - 1):
        low = starts[entity]
        for row in range(starts[entity], starts[entity + 1]):
            while hour[row] - hour[low] > window_h:
                low += 1
            count, total, squares, least, most, first, last = 0, 0.0, 0.0, np.inf, -np.inf, 0.0, 0.0
            for past in range(low, row + 1):
                value = np.float64(values[past])
                if not np.isnan(value):
                    first = value if count == 0 else first
                    count, total, squares, last = count + 1, total + value, squares + value * value, value
                    least, most = min(least, value), max(most, value)
            if count > 0:
                mean = total / count
                out[row, 0], out[row, 1], out[row, 2], out[row, 3] = mean, least, most, last - first
                out[row, 4] = np.sqrt(max(squares / count - mean * mean, 0.0))
    return out
