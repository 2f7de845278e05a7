"""Times as they stand in logs and tables, and the units that names of columns give."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from unfoldkit.arrivals.readers.dates import MONTHS, is_slashed, written

Times = NDArray[np.float64]
Number = TypeVar("Number", float, NDArray[np.float64])
COLUMNS = (
    *("arrival_s", "arrival", "arrival_time", "time_s", "timestamp", "time", "ts", "datetime", "date"),
    *("second", "seconds", "minute", "minutes", "hour", "hours"),
    *("start_time", "starttime", "start_timestamp", "start_time_unix", "started_at", "day", "days"),
    *("arrived_at", "received_at", "requested_at", "submitted_at", "created_at", "submit_time", "event_time"),
    *("time_iso8601", "time_local", "start", "realtime_timestamp"),
)
"""Names of columns of arrival times, in any case and with a unit or without, the likeliest first."""
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")
YEARLESS = 63_072_000.0
"""1972 stands for the year where a log writes none: it has every day, and no log is so old."""
_EPOCHS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
_NUMBERS = {name: f"{place:02}" for place, name in enumerate(MONTHS, 1)}
_SERVER = r"(\d{2})/([A-Za-z]{3})/(\d{4}):(\d{2}:\d{2}:\d{2})(\.\d+)?(?: ([+-]\d{4}))?"
_CLF = re.compile(rf"\[{_SERVER}\]")
_CLF_CELL = re.compile(rf"\[?{_SERVER}\]?")
# behind the blank, a zone has minutes: what else begins with a sign there is a number
_DATE = (
    r"(\d{4})[-/](\d{2})[-/](\d{2})[T \t](\d{2}:\d{2})(?::(\d{2})([.,]\d+)?)?(?!\d)"
    r"(?:\s*(Z|[+-]\d{2}:?\d{2}(?!\d))|([+-]\d{2})(?![\d:]))?"
)
_SYSLOG = rf"\b({'|'.join(MONTHS)}) ([ \d]\d) (\d{{2}}:\d{{2}}:\d{{2}})(\.\d+)?(?: (\d{{4}})\])?"
# digits without a fraction are a time only where a line begins: elsewhere they may be any number
_KAFKA = "(?:Create|LogAppend)Time:"
_EPOCH = rf"(?<![\w.-])(1\d{{9}}\.\d{{3,9}})(?![\w.])|^(?:{_KAFKA}|[^\w-]{{0,3}})(1\d{{9}}(?:\d{{3}}){{0,3}})(?![\w.])"
_DATED = re.compile(_DATE)
_ANY = re.compile(f"{_DATE}|{_SYSLOG}|{_EPOCH}")
# lines of AWS load balancers hold when the answer went out, and further on when the request came
_BALANCER = re.compile(r'(?:https?|h2|grpcs?|wss?) \d{4}-.*? \d+ (\d{4}-\d{2}-\d{2}T[\d:.]+Z) "')
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_UNIT = re.compile(
    r"(?:^|[\s_.(\[/-]+)(?:(s|secs?|seconds?)|(ms|msecs?|millis?|milliseconds?)|([uµμ]s|usecs?|micros?|microseconds?)"
    r"|(ns|nsecs?|nanos?|nanoseconds?)|(minutes?)|(hours?)|(days?))[)\]]?$"
)
_SECONDS = (1.0, 1e-3, 1e-6, 1e-9, 60.0, 3600.0, 86400.0)
_APART = re.compile(r"[\s-]+")


def unit(name: str) -> tuple[str, float | None]:
    """Return the name of a column without its unit, in small letters, and the unit in s, ``None`` if it has none."""
    plain = _APART.sub("_", _CAMEL.sub("_", name.strip().lstrip("@_"))).lower()
    # no name of a column is so long; the search would take the square of its length
    found = _UNIT.search(plain) if len(plain) <= 1000 else None
    if found is None or found.lastindex is None:
        return plain, None
    return plain[: found.start()], _SECONDS[found.lastindex - 1]


def in_seconds(value: Number, seconds: float) -> Number:
    """Return what counts units of so many seconds in seconds; parts of a second are divided, which rounds once."""
    return value * seconds if seconds >= 1 else value / round(1 / seconds)


def present(times: Times) -> Times:
    """Return times of the present in seconds: as such they would lie thousands of years ahead."""
    first = float(times[0]) if times.size else 0.0
    return times / next((each for least, each in _EPOCHS if first >= least), 1.0)


def each_present(times: Times) -> Times:
    """Return times of the present in seconds, each by its own size, as lines of one log may count in several units."""
    for least, parts in _EPOCHS:
        times = np.where(times >= least, times / parts, times)
    return times


def alone(text: str) -> bool:
    """Return whether a text is a number or a date and nothing else."""
    return bool(NUMBER.fullmatch(text) or _DATED.fullmatch(text) or is_slashed(text) or written(text) is not None)


def dated(text: str) -> float | None:
    """Return a date and time of a cell, with or without seconds and zone (UTC), in s since 1970; ``None`` if none."""
    if served := _CLF_CELL.fullmatch(text.strip()):
        return _logged(served)
    found = _DATED.search(text)
    return _date(found) if found else written(text.strip())


def in_line(text: str) -> float | None:
    """Return the time of a line of a log; ``None`` if it has none.

    That of the common log format goes before any other, which may be part of what was asked for; of others the first.
    Times since 1970 keep their unit, see :func:`present`.
    """
    found = _CLF.search(text)
    if found:
        return _logged(found)
    begun = _BALANCER.match(text)
    found = _ANY.search(begun[1] if begun else text)
    if found is None:
        return None
    if found[9]:
        return _instant(found[13] or "1972", _NUMBERS[found[9]], found[10].replace(" ", "0"), found[11], found[12])
    return _date(found) if found[1] else float(found[14] or found[15])


def _logged(found: re.Match[str]) -> float | None:
    day, month, year, clock, part, zone = found.groups()
    return _instant(year, _NUMBERS.get(month, "?"), day, clock, part, zone)


def _date(found: re.Match[str]) -> float | None:
    year, month, day, minute, second, part, zone, hours = found.groups()[:8]
    return _instant(year, month, day, f"{minute}:{second or '00'}", part, zone or hours)


def _instant(year: str, month: str, day: str, clock: str, part: str | None, zone: str | None = None) -> float | None:
    try:
        whole = datetime.fromisoformat(f"{year}-{month}-{day}T{clock}{zone or '+00:00'}").timestamp()
    except ValueError:
        return None
    # fractions of seven digits are usual in cloud traces, and datetime takes six
    return whole + float(part.replace(",", ".")) if part else whole
