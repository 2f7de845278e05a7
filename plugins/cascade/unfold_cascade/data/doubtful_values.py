"""Doubtful columns of a table: codes such as -9 or 999 for missing values, two units in one column, row numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import FloatArray

_REPDIGITS = np.array([float(str(digit) * length) for digit in (7, 8, 9) for length in range(2, 7)])
CODES = np.concatenate(([-1.0, -7.0, -8.0, -9.0], _REPDIGITS, -_REPDIGITS))
"""Numbers that mark missing values in surveys, exports of statistical packages, and records of devices."""
SAMPLE = 500
MIN_SHARE = 0.005
MIN_ROWS = 5
MIN_DISTINCT = 10
"""Fewer different measurements are categories, of which -1 or 99 may be one."""
TAIL = 0.002
"""Share of the values at either end that may be errors."""
CELSIUS, FAHRENHEIT = (30.0, 45.0), (86.0, 113.0)
MIN_UNIT_SHARE = 0.02
MAX_DEGREES_APART = 3.0
MIN_COUNTED_ROWS = 50
DEGREES = "°C and °F"
FRACTIONS = "fractions and percentages"
UNIT_RATIOS: Mapping[str, float] = {
    "kg and lb": 2.2046,
    "inches and cm": 2.54,
    "mmol/L and mg/dL of calcium": 4.008,
    "kPa and mmHg": 7.5006,
    "mmol/L and mg/dL of lactate": 9.008,
    "g/dL and g/L": 10.0,
    "mmol/L and mg/dL of glucose": 18.016,
    "mmol/L and mg/dL of cholesterol": 38.67,
    "mg/dL and µmol/L of creatinine": 88.42,
    FRACTIONS: 100.0,
    "thousands and single cells": 1000.0,
}
"""Units of one quantity in hospitals, and how many of the second make one of the first."""
RATIO_TOLERANCE = 0.11
"""Difference of logarithms up to which two medians are a ratio apart; patients of two laboratories differ, too."""
MIN_SEPARATION = 3.5
"""Standard deviations, of logarithms, between the values in two units."""
MAX_SHAPE_DISTANCE = 0.15
"""Largest distance of the distribution functions of the values in two units, each around its median."""
MAX_SORTED = 20_000
MAX_ZEROS = 0.1
"""Share of zeros up to which they may mark missing values; of more, zero is often a measurement, as of cigarettes."""
MIN_LOW = 0.3
"""Lowest measurement, as a share of the median, of quantities that are never 0 in a living patient."""
MIN_LOW_STEPS = 10
"""Lowest measurement in steps of the column's resolution; a rounded one of fewer steps may be 0."""
MAX_ISOLATED_SHARE = 0.01
MIN_SIDE = 20
MIN_TIMES_AS_FAR = 3.0
MAX_FALSE_NOTES = 2e-4
"""Share of columns with a tail as heavy as that of Pareto or Cauchy in which the largest value counts as isolated."""
SD_PER_IQR = 0.7413


@dataclass(frozen=True, slots=True)
class Doubt:
    """A column with values that may be no measurements: a code, or a second unit where ``code`` is ``None``.

    ``share`` is the share of these values, ``is_counter`` whether the column numbers the rows instead, and ``units``
    the two units; the second one has the ``share``. If ``is_isolated``, these values are errors rather than codes, and
    ``code`` is the farthest.
    """

    column: str
    code: float | None
    share: float
    is_counter: bool = False
    units: str = DEGREES
    is_isolated: bool = False


def find_doubts(columns: Mapping[str, FloatArray]) -> tuple[Doubt, ...]:
    """Find the doubtful columns of a table, single errors last.

    Args:
        columns: (n,) values by name, NaN where missing.
    """
    doubts = (doubt for name, values in columns.items() for doubt in _find_in_column(name, values))
    return tuple(sorted(doubts, key=lambda doubt: doubt.is_isolated))


def _find_in_column(name: str, values: FloatArray) -> Iterator[Doubt]:
    finite = values[np.isfinite(values)]
    if len(finite) >= MIN_COUNTED_ROWS and (np.diff(finite) > 0).all() and (finite == np.floor(finite)).all():
        yield Doubt(name, None, 1.0, is_counter=True)
        return
    is_code = np.isin(finite, CODES)
    usual = finite[~is_code]
    if len(np.unique(usual[:: len(usual) // SAMPLE + 1])) < MIN_DISTINCT:
        return
    low, high = np.quantile(usual, (TAIL, 1.0 - TAIL))
    codes = []
    for code, count in zip(*np.unique(finite[is_code], return_counts=True), strict=True):
        is_far = code < low - (high - low) or code > high + (high - low) or code < 0.0 <= low
        if is_far and count >= max(MIN_ROWS, MIN_SHARE * len(finite)):
            codes.append(code)
            yield Doubt(name, float(code), count / len(finite))
    zeros = _measure_zeros(finite[~np.isin(finite, codes)])
    if zeros:
        codes.append(0.0)
        yield Doubt(name, 0.0, zeros)
    share = _measure_fahrenheit(finite)
    if share is not None:
        yield Doubt(name, None, share)
    elif (mixture := _find_units(usual)) is not None:
        units, share = mixture
        yield Doubt(name, None, share, units=units)
    else:
        yield from _find_isolated(name, finite[~np.isin(finite, codes)])


def _measure_zeros(values: FloatArray) -> float:
    """Measure the share of zeros that mark missing values, such as a heart rate of 0; 0 if they do not.

    Of a few zeros this is plain only where no other value is low.
    """
    is_zero = values == 0.0
    share = float(is_zero.mean())
    if not 0.0 < share <= MAX_ZEROS:
        return 0.0
    others = values[~is_zero]
    are_many = is_zero.sum() >= MIN_ROWS and share >= MIN_SHARE
    low, median = np.quantile(others, (TAIL if are_many else 0.0, 0.5))
    step = float(np.diff(np.unique(others)).min())
    is_never_zero = low >= max(MIN_LOW * median, MIN_LOW_STEPS * step) and float(others.min()) > 0.0
    return share if is_never_zero else 0.0


def _find_isolated(name: str, values: FloatArray) -> Iterator[Doubt]:
    """Find a few values on either side which are far from all others, such as an age of 300.

    Where the distances to the median have a tail of Pareto, the logarithm of the largest of m exceeds that of the next
    one by c times the spread of the logarithms with a probability of about (m / 2)^-c.
    """
    centred = values - np.median(values)
    most = int(MAX_ISOLATED_SHARE * len(values)) + 1
    for sign in (-1.0, 1.0):
        distances = np.sort(sign * centred[sign * centred > 0.0])
        if len(distances) < MIN_SIDE + most:
            continue
        ratios = np.log(distances[-most:] / distances[-most - 1 : -1])
        first = int(ratios.argmax()) - most
        spread = np.log(distances[first - 1] / np.median(distances[:first]))
        if ratios.max() >= max(
            np.log(MIN_TIMES_AS_FAR), spread * np.log(MAX_FALSE_NOTES) / np.log(2.0 / len(distances))
        ):
            farthest = values[(sign * centred).argmax()]
            yield Doubt(name, float(farthest), -first / len(values), is_isolated=True)


def _measure_fahrenheit(values: FloatArray) -> float | None:
    """Measure the share of degrees Fahrenheit among temperatures of both units; ``None`` if they are not that."""
    cool, warm = (values[(values >= low) & (values <= high)] for low, high in (CELSIUS, FAHRENHEIT))
    if len(cool) + len(warm) < (1.0 - MIN_UNIT_SHARE) * len(values) or min(len(cool), len(warm)) < MIN_ROWS:
        return None
    is_same = abs(1.8 * float(np.median(cool)) + 32.0 - float(np.median(warm))) <= MAX_DEGREES_APART
    share = len(warm) / (len(cool) + len(warm))
    return share if is_same and MIN_UNIT_SHARE <= share <= 1.0 - MIN_UNIT_SHARE else None


def _find_units(values: FloatArray) -> tuple[str, float] | None:
    """Find two units of one quantity, and the share of the second; ``None`` if the values are not that.

    In logarithms, values in two units are two equal distributions apart by the ratio of the units.
    """
    positive = values[values > 0.0]
    if len(positive) < (1.0 - MIN_UNIT_SHARE) * len(values):
        return None
    logs = np.sort(np.log(positive[:: len(positive) // MAX_SORTED + 1]))
    low, high = np.split(logs, [_split_modes(logs)])
    if min(len(low), len(high)) < max(MIN_UNIT_SHARE * len(logs), MIN_DISTINCT):
        return None
    quartiles = [np.quantile(part, (0.25, 0.5, 0.75)) for part in (low, high)]
    spread = SD_PER_IQR * max(float(upper - lower) for lower, _, upper in quartiles)
    apart = float(quartiles[1][1] - quartiles[0][1])
    if apart < MIN_SEPARATION * spread:
        return None
    units = min(UNIT_RATIOS, key=lambda name: abs(apart - np.log(UNIT_RATIOS[name])))
    if abs(apart - np.log(UNIT_RATIOS[units])) > RATIO_TOLERANCE:
        return None
    from scipy.stats import ks_2samp

    distance = ks_2samp(low - quartiles[0][1], high - quartiles[1][1]).statistic
    return (units, len(high) / len(logs)) if distance <= MAX_SHAPE_DISTANCE else None


def _split_modes(ordered: FloatArray) -> int:
    """Split ascending values into two parts with the least variance within them (Otsu 1979); return the first size."""
    sizes, sums = np.arange(1, len(ordered)), np.cumsum(ordered)
    between = (sums[:-1] / sizes - (sums[-1] - sums[:-1]) / (len(ordered) - sizes)) ** 2
    return int(np.argmax(sizes * (len(ordered) - sizes) * between)) + 1
