"""Cuts on calibrated scores, converted to cuts on the raw confidence: one per context, as scores are monotonic."""

from __future__ import annotations

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates.calibrated import Calibration


def find_raw_cuts(calibration: Calibration, context: IntArray, cut: float) -> FloatArray:
    """Find the (c,) smallest confidence whose score reaches ``cut`` in each of (c,) contexts.

    It is -inf where every confidence reaches the cut, inf where none does.
    """
    knots = _list_knots(calibration)
    grid = calibration(np.tile(knots, len(context)), np.repeat(context, len(knots))).reshape(len(context), -1) >= cut
    reached = grid.argmax(axis=1)
    # the score is constant below the lowest knot and above the highest
    cuts = np.where(grid.any(axis=1), knots[reached], np.inf)
    cuts[grid[:, 0]] = -np.inf
    is_inner = np.isfinite(cuts)
    cuts[is_inner] = _bisect(calibration, context[is_inner], cut, knots[reached[is_inner] - 1], cuts[is_inner])
    return cuts


def _bisect(calibration: Calibration, context: IntArray, cut: float, low: FloatArray, high: FloatArray) -> FloatArray:
    """Bisect between ``low``, which does not reach the cut, and ``high``, which does, to adjacent floats."""
    while (is_open := np.nextafter(low, high) < high).any():
        middle = low + (high - low) / 2
        reached = calibration(middle, context) >= cut
        low, high = np.where(is_open & ~reached, middle, low), np.where(is_open & reached, middle, high)
    return high


def _list_knots(calibration: Calibration) -> FloatArray:
    arrays = [calibration.pooled.x, *(curve.x for curve, _ in calibration.curves.values())]
    # calls without an answer make a knot at -inf
    knots = np.unique(np.concatenate(arrays))
    finite: FloatArray = knots[np.isfinite(knots)]
    return finite if len(finite) else np.zeros(1)
