"""Dates in tables of tasks: day and month between slashes, and digits that are a date rather than seconds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from unfoldkit._types import FloatArray

_CLOCK = r"(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,](\d+))?)?(?:\s*([AaPp])\.?[Mm]\.?)?"
_SLASHED = re.compile(rf"(\d{{1,2}})/(\d{{1,2}})/(\d{{4}}),?\s+{_CLOCK}")
_DIGIT_FORMATS = {10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}


def is_slashed_date(text: str) -> bool:
    """Whether a text is a date between slashes, with the day or the month first."""
    return _SLASHED.fullmatch(text) is not None


def parse_slashed_dates(texts: Sequence[str]) -> FloatArray | int:
    """Parse dates between slashes to s since 1970; if one is invalid, return its index instead.

    All dates of a column have one order: month first unless a number above 12 rules it out. If both orders are
    possible, the one with the shorter time span applies.
    """
    matches = [_SLASHED.fullmatch(text) for text in texts]
    readings = [
        [_to_seconds(match, *groups) if match else None for match in matches]
        for groups in ((3, 1, 2), (3, 2, 1))  # most spreadsheets write the month first
    ]
    complete = [np.array(reading, np.float64) for reading in readings if None not in reading]
    if complete:
        return min(complete, key=np.ptp)
    return max(reading.index(None) for reading in readings)


def is_digit_date(text: str) -> bool:
    """Whether digits are a date to the hour, minute or second, from 2000 on."""
    form = _DIGIT_FORMATS.get(len(text)) if text.isdecimal() and text >= "2000" else None
    if form is None:
        return False
    try:
        return datetime.strptime(text, form).year < 2100  # noqa: DTZ007 - only its year is used
    except ValueError:
        return False


def _to_seconds(match: re.Match[str], year: int, month: int, day: int) -> float | None:
    clock_s = _clock_seconds(*match.groups()[3:])
    try:
        date = datetime(int(match[year]), int(match[month]), int(match[day]), tzinfo=UTC)
    except ValueError:
        return None
    return None if clock_s is None else date.timestamp() + clock_s


def _clock_seconds(hour: str, minute: str, second: str | None, fraction: str | None, half: str | None) -> float | None:
    """Return the seconds since midnight; with AM or PM, 12 is the first hour of its half."""
    hours, max_hours = int(hour), 12 if half else 23
    if hours > max_hours or int(minute) > 59 or int(second or 0) > 60 or (half and not hours):
        return None
    hours = hours % 12 + (12 if half in {"p", "P"} else 0) if half else hours
    return hours * 3600.0 + int(minute) * 60 + float(f"{second or 0}.{fraction or 0}")
