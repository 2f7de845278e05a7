"""Cuts on calibrated scores as cuts on the confidence: scores increase with it, so one a context says the same."""

from __future__ import annotations

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates.calibrated import Calibration


def find_raw_cuts(calibration: Calibration, context: IntArray, cut: float) -> FloatArray:
    """Return (c,) the least confidence whose score reaches ``cut`` in each of (c,) contexts.

    It is -inf where every confidence reaches it, inf where none does.
    """
    knots = _knots(calibration)
    grid = calibration(np.tile(knots, len(context)), np.repeat(context, len(knots))).reshape(len(context), -1) >= cut
    first = grid.argmax(axis=1)
    # below the lowest knot and above the highest the score is constant
    found = np.where(grid.any(axis=1), knots[first], np.inf)
    found[grid[:, 0]] = -np.inf
    between = np.isfinite(found)
    found[between] = _least(calibration, context[between], cut, knots[first[between] - 1], found[between])
    return found


def _least(calibration: Calibration, context: IntArray, cut: float, low: FloatArray, high: FloatArray) -> FloatArray:
    """Halve the spans from ``low``, which does not reach the cut, to ``high``, which does, until floats are next."""
    while (open_ := np.nextafter(low, high) < high).any():
        middle = low + (high - low) / 2
        reached = calibration(middle, context) >= cut
        low, high = np.where(open_ & ~reached, middle, low), np.where(open_ & reached, middle, high)
    return high


def _knots(calibration: Calibration) -> FloatArray:
    every = [calibration.pooled.x, *(curve.x for curve, _ in calibration.curves.values())]
    # a service that did not answer is a knot at -inf
    knots = np.unique(np.concatenate(every))
    finite: FloatArray = knots[np.isfinite(knots)]
    return finite if len(finite) else np.zeros(1)
