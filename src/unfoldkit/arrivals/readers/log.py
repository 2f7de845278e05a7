"""Read the times of arrivals from logs: one request a line, in the order in which they came or ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from unfoldkit.arrivals.readers.k6 import is_aside
from unfoldkit.arrivals.readers.timestamps import (
    COLUMNS,
    NUMBER,
    YEARLESS,
    Times,
    dated,
    each_present,
    in_line,
    in_seconds,
    unit,
)
from unfoldkit.errors import Diagnostic, UnfoldError, user_error
from unfoldkit.io.csv import UNREADABLE, open_text

Tell = Callable[[str], None]
STRAY = 0.01
"""The share of lines without a time that a log may have: a crash, a cut or a start leaves a few."""
_YEAR = 366 * 86400.0


def unheard(text: str) -> None:
    """Leave a note untold."""


def read_log(path: Path, match: str, column: str | None, tell: Tell) -> Times:
    """Return the times of the lines that hold ``match``, sorted, in s or since 1970 in the unit of the log.

    Lines that begin with ``#`` (W3C extended logs), and measurements of k6 that are no request, are left out. Of lines
    in JSON the value of ``column`` is taken, or that of a usual name. At most 1 % of the lines may be without a time;
    ``tell`` is told of them.

    Raises:
        UnfoldError: the file cannot be read, or more lines have no time.
    """
    missed: list[int] = []
    try:
        with open_text(path, errors="replace") as stream:
            times = np.fromiter(_times(stream, match, column, missed), np.float64)
    except UNREADABLE as error:
        raise user_error(f"cannot read the log: {error}", file=str(path)) from error
    _judge(missed, times.size + len(missed), path, tell)
    return np.sort(each_present(_years(times)))


def line_time(text: str, column: str | None = None) -> float | None:
    """Return the time of a line, in JSON or not; ``None`` if it has none."""
    found = _json(text, column) if text.startswith("{") else None
    return in_line(text) if found is None else found


def _times(lines: Iterator[str], match: str, column: str | None, missed: list[int]) -> Iterator[float]:
    for line, text in enumerate(lines, 1):
        if match not in text or text.startswith("#") or text.isspace() or is_aside(text):
            continue
        found = line_time(text, column)
        if found is None:
            missed.append(line)
        else:
            yield found


def _json(text: str, column: str | None) -> float | None:
    try:
        cells = json.loads(text)
        name = column or _named(cells)
        return None if name is None else _value(name, cells.get(name))
    except (ValueError, OverflowError, RecursionError):
        return None


def _named(cells: Iterable[str]) -> str | None:
    plain = {name.lstrip("@_").lower(): name for name in cells}
    found = next((plain[name] for name in COLUMNS if name in plain), None)
    return found or next((name for name in cells if unit(name)[0] in COLUMNS), None)


def _value(name: str, value: object) -> float | None:
    if isinstance(value, str):
        return float(value) if NUMBER.fullmatch(value) else dated(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return in_seconds(float(value), unit(name)[1] or 1.0)


def _judge(missed: list[int], lines: int, path: Path, tell: Tell) -> None:
    if not missed:
        return
    if len(missed) > STRAY * lines:
        hint = "common log format, ISO 8601, or seconds since 1970; arrivals.match takes only lines that hold a text"
        told = f"no time in this line, nor in {len(missed) - 1:,} other of {lines:,}" if missed[1:] else ""
        raise UnfoldError(Diagnostic(told or "no time in this line", str(path), missed[0], 1, hint=hint))
    count = f"{len(missed):,} of {lines:,} lines, the first of them line {missed[0]}"
    tell(f"{path}: without a time and left out: {count}")


def _years(times: Times) -> Times:
    """Where lines have no year, one that is half a year before the line above it is of the next year."""
    if not times.size or not YEARLESS <= times[0] < YEARLESS + _YEAR:
        return times
    return times + _YEAR * np.cumsum(np.diff(times, prepend=times[0]) < -_YEAR / 2)
