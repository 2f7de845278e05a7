"""Calibration curves as plain data, to be kept in the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from unfold_cascade.gates.calibrated import Calibration, Curve


def to_data(calibration: Calibration) -> dict[str, Any]:
    """Return the curves of one gate as JSON-able data."""
    by_context = {str(context): [*_knots(curve), weight] for context, (curve, weight) in calibration.curves.items()}
    return {"pooled": _knots(calibration.pooled), "by_context": by_context}


def from_data(data: Mapping[str, Any]) -> Calibration:
    """Return the curves that ``to_data`` wrote."""
    curves = {int(context): (_curve(x, y), float(weight)) for context, (x, y, weight) in data["by_context"].items()}
    return Calibration(_curve(*data["pooled"]), curves)


def _knots(curve: Curve) -> list[list[float]]:
    return [curve.x.tolist(), curve.y.tolist()]


def _curve(x: list[float], y: list[float]) -> Curve:
    return Curve(np.array(x), np.array(y))
