"""Read the times of arrivals from tables: one row an arrival, or one an interval with a count of arrivals."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from unfoldkit.arrivals.readers import k6
from unfoldkit.arrivals.readers.dates import clocked, in_digits, is_day, is_slashed, serial, slashed
from unfoldkit.arrivals.readers.rate_columns import is_paced, per, value
from unfoldkit.arrivals.readers.timestamps import COLUMNS, NUMBER, Times, alone, dated, in_seconds, present, unit
from unfoldkit.errors import Diagnostic, UnfoldError, did_you_mean, user_error
from unfoldkit.io.csv import UNREADABLE, csv_lines, open_text

Counts = NDArray[np.int64]
Rows = Iterator[tuple[int, list[str]]]
COUNTS = ("count", "counts", "requests", "invocations", "n")
"""Names of columns that count the arrivals of an interval, in any case."""
GAPS = ("interarrival", "inter_arrival", "interarrival_time", "inter_arrival_time", "iat")
"""Names of columns that hold the time since the arrival before, in any case and with a unit or without."""
_AS_ROWS = "a whole number; arrivals.rates names a column of arrivals a second, counts: '' takes each row as one"
_AS_RATE = "arrivals a second, such as 12.5; arrivals.counts: '' takes each row as one arrival"
# an empty cell is a count that is missing, where words tell that the column holds none
_COUNT = re.compile(r"(\d{1,15}(\.0*)?|\d{1,3}(,\d{3})+)?")
# no count, but meant as one: to take its row as one arrival would be wrong a thousandfold
_ROUNDED = re.compile(r"\d+([.,]\d+)? ?[kKMG]")
_WHOLE = re.compile(r"\d{1,15}(\.0*)?|\d{1,3}(,\d{3})+")
_MINUTE = 60.0
_ENDED = ("end_timestamp", "duration")


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the times stand in a table: names that are asked for, and names that are likely.

    ``counts`` is the column of counts, ``rates`` that of arrivals a second; ``""`` if none is meant, ``None`` if a name
    shall tell; ``match`` is a text that rows must hold. What is likely is taken where it is there.
    """

    time: str | None = None
    likely: str | None = None
    counts: str | None = None
    likely_counts: str | None = None
    match: str = ""
    rates: str | None = None
    likely_rates: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """Times in s, and how many arrivals came from each on till the next; without counts or rates, each is one arrival.

    ``rates`` are arrivals a second. ``column`` is that of both; ``guessed`` says that only its name told so.
    """

    times: Times
    counts: Counts | None = None
    column: str = ""
    guessed: bool = False
    rates: Times | None = None


@dataclass(frozen=True, slots=True)
class _Amount:
    """The column of counts, or of rates: arrivals in each ``per`` s."""

    at: int
    name: str
    per: float | None = None
    guessed: bool = False


def from_rows(head: list[str], rows: Rows, columns: Columns, path: Path) -> Found:
    """Return the times of rows under a head, wherever they stood; errors as those of :func:`read_table`."""
    return _named(head, _holding(rows, columns.match), columns, path)


def read_table(path: Path, columns: Columns) -> Found:
    """Return the times of a table, with counts where a column holds them.

    Raises:
        UnfoldError: the file cannot be read, there is no such column, or a cell is no time or no count.
    """
    try:
        with open_text(path, errors="replace") as stream:
            return _table(csv_lines(stream), columns, path)
    except UNREADABLE as error:
        raise user_error(f"cannot read the trace: {error}", file=str(path)) from error


def known(head: Sequence[str], wanted: str | None = None) -> bool:
    """Return whether the first row of a table says so: it names a column of times, or has a time itself."""
    names = [name.strip() for name in head]
    if wanted:
        return wanted in names
    return _usual(names) is not None or _texts(names) > 0 or _ended(names) or bool(names and NUMBER.fullmatch(names[0]))


def _table(lines: Rows, columns: Columns, path: Path) -> Found:
    first = next(lines, (0, []))
    head = [name.strip() for name in first[1]]
    if not head:
        return Found(np.zeros(0))
    if columns.time is None and _texts(head):
        return _functions(_holding(lines, columns.match), head, path)
    if columns.time is None and head and alone(head[0]):
        times = _times(_holding(itertools.chain([first], lines), columns.match), 0, path)
        return Found(present(_in_seconds(times, "", head[0])))
    return _named(head, _holding(lines, columns.match), columns, path)


def _named(head: list[str], rows: Rows, columns: Columns, path: Path) -> Found:
    if columns.time is None and _ended(head):
        ends, lasted = (head.index(name) for name in _ENDED)
        times, seconds = _counted(rows, ends, _Amount(lasted, _ENDED[1], 1.0), path)
        return Found(np.sort(times - seconds))
    if k6.is_head(head):
        rows = k6.requests(rows)
    place = _place(head, columns, path)
    rows = _whole(head, place, rows) if columns.time is None else rows
    first = next(rows, None)
    if first is None:
        return Found(np.zeros(0))
    if is_day(head[place], first[1][place].strip() if first[1][place:] else ""):
        _wrong(first[1][place].strip(), first[0], path)
    amount = _amount(head, place, first[1], columns, path)
    times, amounts = _read(itertools.chain([first], rows), place, amount, path)
    times = _in_seconds(times, head[place], first[1][place].strip())
    times = np.cumsum(times) if unit(head[place])[0] in GAPS else present(times)
    if amount is None or amounts is None or (amount.guessed and amount.per is None and _plain(amounts)):
        return Found(times)
    if amount.per is not None:
        return Found(times, None, amount.name, amount.guessed, amounts / amount.per)
    return Found(times, amounts.astype(np.int64), amount.name, amount.guessed)


def _ended(head: Sequence[str]) -> bool:
    """Whether a table tells of each request when it ended and how long it took, as that of Azure Functions of 2021."""
    return set(_ENDED) <= set(head) and _usual(head) is None


def _in_seconds(times: Times, name: str, text: str) -> Times:
    """Return what stands in a column in s, by the unit of its name; dates in one of milliseconds stay."""
    if not NUMBER.fullmatch(text) or in_digits(text):
        return times
    seconds = unit(name)[1]
    return serial(times, name) if seconds is None else in_seconds(times, seconds)


def _read(rows: Rows, place: int, amount: _Amount | None, path: Path) -> tuple[Times, Times | None]:
    return (_times(rows, place, path), None) if amount is None else _counted(rows, place, amount, path)


def _holding(rows: Rows, match: str) -> Rows:
    return (item for item in rows if match in ",".join(item[1])) if match else rows


def _place(head: list[str], columns: Columns, path: Path) -> int:
    if columns.time:
        return _at(head, columns.time, path)
    found = head.index(columns.likely) if columns.likely in head else _usual(head)
    if found is None and (len(head) != 1 or head[0].lower() in COUNTS):
        hint = f"it has: {', '.join(head[:12])}; arrivals.column names it, or call it timestamp"
        raise UnfoldError(Diagnostic("no column of arrival times", str(path), 1, 1, hint=hint))
    return found or 0


def _whole(head: list[str], place: int, rows: Rows) -> Rows:
    """Put the day before a time or an hour that has a column of its own."""
    names = [name.lower() for name in head]
    other = {"time": "date", "date": "hour"}.get(names[place])
    if other not in names:
        return rows
    day, clock = sorted((place, names.index(other)), key=lambda at: names[at] != "date")
    last = max(day, clock)
    return (
        (line, [*row[:place], clocked(row[day].strip(), row[clock].strip()), *row[place + 1 :]])
        for line, row in rows
        if row[last:]
    )


def _at(head: list[str], name: str, path: Path) -> int:
    if name not in head:
        raise UnfoldError(Diagnostic(f"no column {name}", str(path), 1, 1, hint=did_you_mean(name, head)))
    return head.index(name)


def _usual(head: Sequence[str]) -> int | None:
    """Names as they stand go before those with a unit, which may be durations."""
    for names in ([name.lower().lstrip("@_") for name in head], [unit(name)[0] for name in head]):
        found = next((names.index(name) for name in COLUMNS if name in names), None)
        if found is not None:
            return found
    return None


def _amount(head: list[str], place: int, row: list[str], columns: Columns, path: Path) -> _Amount | None:
    """Return which column tells how many arrive: what is asked for, what is likely, or what its name tells."""
    counts = _wanted(columns.counts, columns.likely_counts, head)
    rates = _wanted(columns.rates, columns.likely_rates, head)
    if rates:
        return _Amount(_at(head, rates, path), rates, per(rates) or 1.0)
    if counts:
        return _Amount(_at(head, counts, path), counts)
    return None if "" in (counts, rates) else _guessed(head, place, row)


def _wanted(asked: str | None, likely: str | None, head: list[str]) -> str | None:
    return likely if asked is None and likely in ("", *head) else asked


def _guessed(head: list[str], place: int, row: list[str]) -> _Amount | None:
    others = [at for at in range(min(len(head), len(row))) if at != place]
    for at in others:
        if head[at].lower() in COUNTS:
            meant = _COUNT.fullmatch(row[at].strip()) or _ROUNDED.fullmatch(row[at].strip())
            return _Amount(at, head[at], None, guessed=True) if meant else None
    named = (at for at in others if per(head[at]) and value(row[at]) is not None)
    found = next(named, next((at for at in others if is_paced(row[at])), None))
    return None if found is None else _Amount(found, head[found], per(head[found]) or 1.0, guessed=True)


def _plain(counts: Times) -> bool:
    """Ones, and numbers from 0 or 1 on, say no more than that each row is an arrival."""
    return bool((counts == 1).all() or (counts[0] <= 1 and (np.diff(counts) == 1).all()))


def _times(rows: Rows, place: int, path: Path) -> Times:
    cells = _cells(rows, place, path)
    line, text = next(cells, (0, ""))
    if not line:
        return np.zeros(0)
    cells = itertools.chain([(line, text)], cells)
    if is_slashed(text):
        return _slashed(list(cells), path)
    as_date = in_digits(text)
    return np.fromiter((_value(text, path, line, as_date=as_date) for line, text in cells), np.float64)


def _slashed(cells: list[tuple[int, str]], path: Path) -> Times:
    found = slashed([text for _, text in cells])
    return _wrong(*cells[found][::-1], path) if isinstance(found, int) else found


def _value(text: str, path: Path, line: int, *, as_date: bool) -> float:
    return float(text) if NUMBER.fullmatch(text) and not as_date else _time(text, path, line)


def _counted(rows: Rows, place: int, amount: _Amount, path: Path) -> tuple[Times, Times]:
    amounts: list[float] = []
    read = _count if amount.per is None else _rate

    def kept() -> Rows:
        for line, row in rows:
            amounts.append(read(row[amount.at].strip() if amount.at < len(row) else "", amount.name, path, line))
            yield line, row

    return _times(kept(), place, path), np.array(amounts)


def _count(text: str, name: str, path: Path, line: int) -> int:
    if not _WHOLE.fullmatch(text):
        raise UnfoldError(Diagnostic(f"{text[:40]!r} is not a count", str(path), line, 1, name, _AS_ROWS))
    return int(float(text.replace(",", "")))


def _rate(text: str, name: str, path: Path, line: int) -> float:
    found = value(text)
    if found is None:
        raise UnfoldError(Diagnostic(f"{text[:40]!r} is not a rate", str(path), line, 1, name, _AS_RATE))
    return found


def _cells(rows: Rows, place: int, path: Path) -> Iterator[tuple[int, str]]:
    for line, row in rows:
        if place >= len(row):
            raise UnfoldError(Diagnostic(f"the row has {len(row)} cells", str(path), line, 1))
        yield line, row[place].strip()


def _time(text: str, path: Path, line: int) -> float:
    found = dated(text)
    return _wrong(text, line, path) if found is None else found


def _wrong(text: str, line: int, path: Path) -> NoReturn:
    hint = "seconds (12.5) or ISO 8601 (2023-11-16 18:17:03.97)"
    raise UnfoldError(Diagnostic(f"{text[:40]!r} is not a time", str(path), line, 1, hint=hint))


def _texts(head: Sequence[str]) -> int:
    """Return how many columns stand before those of minutes, named 1, 2, ...; 0 where there are none."""
    first = head.index("1") if "1" in head else 0
    minutes = head[first:]
    return first if len(minutes) > 1 and minutes == [str(minute) for minute in range(1, len(minutes) + 1)] else 0


def _functions(rows: Rows, head: list[str], path: Path) -> Found:
    """A row for each function, a column for each minute, as in the data of Azure Functions."""
    first = _texts(head)
    totals = np.zeros(len(head) - first, np.int64)
    for line, row in rows:
        cells = row[first : len(head)]
        if len(cells) < totals.size or not all(map(str.isdecimal, cells)):
            place = next((at for at, cell in enumerate(cells) if not cell.isdecimal()), len(cells))
            _count(cells[place] if place < len(cells) else "", head[first + place], path, line)
        totals += np.fromiter(map(int, cells), np.int64, totals.size)
    return Found(_MINUTE * np.arange(totals.size, dtype=np.float64), totals, f"1 to {head[-1]}")
