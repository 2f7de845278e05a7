"""Dates as spreadsheets and load generators write them: with the day or month first, in words, or in digits alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - times without a zone are UTC everywhere here
_CLOCK = r"(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,](\d+))?)?(?:\s*([AaPp])\.?[Mm]\.?)?"
_SLASHED = re.compile(rf"(\d{{1,2}})/(\d{{1,2}})/(\d{{4}}),?\s+{_CLOCK}")
_DOTTED = re.compile(rf"(\d{{1,2}})\.(\d{{1,2}})\.(\d{{4}}),?\s+{_CLOCK}")
_ALONE = re.compile(_CLOCK)
_DIGITS = re.compile(r"(20\d{2})(\d{2})(\d{2})T?(\d{2})(\d{2})?(\d{2})?Z?")
_KIBANA = re.compile(rf"([A-Z][a-z]{{2}}) (\d{{1,2}}), (\d{{4}}) @ {_CLOCK}")
_DAY = re.compile(r"\d{4}([-/])\d{2}\1\d{2}|\d{8}|(\d{1,2}[/.]){2}\d{4}")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MAIL = re.compile(r"(?:[A-Z][a-z]{2}, )?\d{1,2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}(?::\d{2})? (?:GMT|UTC|[+-]\d{4})")


_CENTURY = (36_526.0, 73_051.0)
_DAYS_TO_1970 = 25_569.0
_DATES = ("date", "datetime")


def serial(times: Times, name: str = "") -> Times:
    """Return days as spreadsheets count them in s since 1970; other numbers stay.

    They are days of this century in a column of dates, or in any other if as seconds all would lie within one. Written
    with five digits behind the point, as they are shown, they tell whole seconds; others are right to a millisecond.
    """
    if not times.size or times.min() < _CENTURY[0] or times.max() >= _CENTURY[1]:
        return times
    if name.lower() not in _DATES and (times.size < 2 or np.ptp(times) >= 1):
        return times
    seconds = (times - _DAYS_TO_1970) * 86400.0
    whole = np.round(seconds)
    coarse = np.abs(seconds - whole).max() < 1e-3 or np.allclose(times, np.round(times, 5), rtol=0, atol=1e-9)
    return whole if coarse else np.round(seconds, 3)


def is_serial_like(times: Times) -> bool:
    """Return whether numbers may be days of this century taken for seconds: under a minute after the tenth hour."""
    low, high = _CENTURY
    return bool(low <= times[0] < high and times[-1] - times[0] < 60 and (times % 1).any())


def is_slashed(text: str) -> bool:
    """Return whether a text is a date between slashes, of which the day or the month may be first."""
    return _SLASHED.fullmatch(text) is not None


def slashed(texts: Sequence[str]) -> Times | int:
    """Return dates between slashes in s since 1970, or the place of the first text that is none.

    The day is first where no month could be, else the month; where both could be, what gives the shorter span.
    """
    found = [_SLASHED.fullmatch(text) for text in texts]
    ways = [
        [_seconds(match, *places) if match else None for match in found]
        for places in ((3, 1, 2), (3, 2, 1))  # the month first is how most spreadsheets write
    ]
    whole = [np.array(way, np.float64) for way in ways if None not in way]
    if whole:
        return min(whole, key=np.ptp)
    return max(way.index(None) for way in ways)


def written(text: str) -> float | None:
    """Return any other date, or a time of day alone, in s since 1970 or midnight; ``None`` if it is none."""
    if found := _DOTTED.fullmatch(text):
        return _seconds(found, 3, 2, 1)
    if found := _KIBANA.fullmatch(text):
        return _worded(found)
    if found := _DIGITS.fullmatch(text):
        return _moment(*(int(part or 0) for part in found.groups()))
    if found := _ALONE.fullmatch(text):
        return _clock(*found.groups())
    try:
        return parsedate_to_datetime(text).timestamp() if _MAIL.fullmatch(text) else None
    except ValueError:
        return None


def in_digits(text: str) -> bool:
    """Return whether digits are a date to the hour, minute or second: as seconds since 1970 they would lie ahead."""
    return text.isdecimal() and len(text) in (10, 12, 14) and text >= "2000" and written(text) is not None


def is_day(name: str, text: str) -> bool:
    """Return whether eight digits in a column of dates are a day: as seconds, days would lie a second apart."""
    return name.lower() in _DATES and text.isdecimal() and len(text) == 8 and written(f"{text}T00") is not None


def clocked(day: str, clock: str) -> str:
    """Return a day and the time of day, or the hour, that stands beside it as one text."""
    if not re.fullmatch(r"[01]?\d|2[0-3]", clock):
        return day if ":" in day else f"{day} {clock}"
    if not _DAY.fullmatch(day):
        return day
    return f"{day}T{clock:>02}" if day.isdecimal() else f"{day} {clock:>02}:00"


def _seconds(found: re.Match[str], year: int, month: int, day: int) -> float | None:
    clock = _clock(*found.groups()[3:])
    date = _moment(int(found[year]), int(found[month]), int(found[day]))
    return None if clock is None or date is None else date + clock


def _worded(found: re.Match[str]) -> float | None:
    clock = _clock(*found.groups()[3:])
    month = MONTHS.index(found[1]) + 1 if found[1] in MONTHS else 0
    date = _moment(int(found[3]), month, int(found[2]))
    return None if clock is None or date is None else date + clock


def _moment(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> float | None:
    try:
        return (datetime(year, month, day, hour, minute, second) - _EPOCH) / timedelta(seconds=1)  # noqa: DTZ001
    except ValueError:
        return None


def _clock(hour: str, minute: str, second: str | None, part: str | None, half: str | None) -> float | None:
    """Return the seconds since midnight; with AM or PM 12 is the first hour of a half."""
    hours, most = int(hour), 12 if half else 23
    if hours > most or int(minute) > 59 or int(second or 0) > 60 or (half and not hours):
        return None
    hours = hours % 12 + (12 if half in {"p", "P"} else 0) if half else hours
    return hours * 3600.0 + int(minute) * 60 + float(f"{second or 0}.{part or 0}")
