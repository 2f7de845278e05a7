"""Columns that a new site holds in another unit than the run, such as °F in place of °C."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.data.doubtful_values import (
    CELSIUS,
    DEGREES,
    FAHRENHEIT,
    FRACTIONS,
    MAX_DEGREES_APART,
    MIN_SEPARATION,
    RATIO_TOLERANCE,
    SD_PER_IQR,
    UNIT_RATIOS,
)

MIN_VALUES = 20
QUARTERS = (0.25, 0.5, 0.75)
Quartiles = Mapping[str, Sequence[float]]
"""Quartiles of columns by name."""


@dataclass(frozen=True, slots=True)
class ChangedUnit:
    """A column, its median in the run and in the new data, and the two units that explain the difference."""

    column: str
    before: float
    now: float
    units: str


def measure_quartiles(columns: Mapping[str, FloatArray]) -> dict[str, tuple[float, ...]]:
    """Measure the quartiles of columns of (n,) values; columns with few of them are left out."""
    finite = {name: values[np.isfinite(values)] for name, values in columns.items()}
    return {
        name: tuple(map(float, np.quantile(values, QUARTERS)))
        for name, values in finite.items()
        if len(values) >= MIN_VALUES
    }


def find_changed_units(before: Quartiles, now: Quartiles) -> Iterator[ChangedUnit]:
    """Yield the columns with values as far from those of the run as two units of one quantity are."""
    for column in filter(now.__contains__, before):
        if units := _explain_change(before[column], now[column]):
            yield ChangedUnit(column, before[column][1], now[column][1], units)


def _explain_change(before: Sequence[float], now: Sequence[float]) -> str:
    """Name the two units of quartiles that do not overlap; empty if no units explain them."""
    low, high = sorted((before, now), key=lambda quartiles: quartiles[1])
    is_body_temperature = CELSIUS[0] <= low[0] <= low[2] <= CELSIUS[1]
    if is_body_temperature and FAHRENHEIT[0] <= high[0] <= high[2] <= FAHRENHEIT[1]:
        return DEGREES if abs(1.8 * low[1] + 32.0 - high[1]) <= MAX_DEGREES_APART else ""
    if min(low[0], high[0]) <= 0.0:
        return ""
    apart = float(np.log(high[1] / low[1]))
    spread = SD_PER_IQR * max(float(np.log(quartiles[2] / quartiles[0])) for quartiles in (low, high))
    names = [name for name in UNIT_RATIOS if name != FRACTIONS or low[2] <= 1.0]
    units = min(names, key=lambda name: abs(apart - np.log(UNIT_RATIOS[name])))
    is_ratio = abs(apart - np.log(UNIT_RATIOS[units])) <= RATIO_TOLERANCE
    return units if is_ratio and apart >= MIN_SEPARATION * spread else ""
