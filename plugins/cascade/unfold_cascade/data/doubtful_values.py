"""Doubtful columns of a table: codes such as -9 or 999 for missing values, temperatures in two units, row numbers."""

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


@dataclass(frozen=True, slots=True)
class Doubt:
    """A column with values that may be no measurements: a code, or degrees Fahrenheit where ``code`` is ``None``.

    ``share`` is the share of these values, and ``is_counter`` whether the column numbers the rows instead.
    """

    column: str
    code: float | None
    share: float
    is_counter: bool = False


def find_doubts(columns: Mapping[str, FloatArray]) -> tuple[Doubt, ...]:
    """Find the doubtful columns of a table; ``columns`` are (n,) values by name, NaN where missing."""
    return tuple(doubt for name, values in columns.items() for doubt in _find_in_column(name, values))


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
    for code, count in zip(*np.unique(finite[is_code], return_counts=True), strict=True):
        is_far = code < low - (high - low) or code > high + (high - low) or code < 0.0 <= low
        if is_far and count >= max(MIN_ROWS, MIN_SHARE * len(finite)):
            yield Doubt(name, float(code), count / len(finite))
    share = _measure_fahrenheit(finite)
    if share is not None:
        yield Doubt(name, None, share)


def _measure_fahrenheit(values: FloatArray) -> float | None:
    """Measure the share of degrees Fahrenheit among temperatures of both units; ``None`` if they are not that."""
    cool, warm = (values[(values >= low) & (values <= high)] for low, high in (CELSIUS, FAHRENHEIT))
    if len(cool) + len(warm) < (1.0 - MIN_UNIT_SHARE) * len(values) or min(len(cool), len(warm)) < MIN_ROWS:
        return None
    is_same = abs(1.8 * float(np.median(cool)) + 32.0 - float(np.median(warm))) <= MAX_DEGREES_APART
    share = len(warm) / (len(cool) + len(warm))
    return share if is_same and MIN_UNIT_SHARE <= share <= 1.0 - MIN_UNIT_SHARE else None
