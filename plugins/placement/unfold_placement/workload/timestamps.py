"""Times in tables of tasks: seconds, Unix times in any unit, or dates as logs and spreadsheets write them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from statistics import median

import numpy as np

from unfold_placement.schema.columns import MIN_UNIX_S, NEGATIVE, Columns
from unfoldkit.api import CsvRow
from unfoldkit.arrivals.readers.dates import is_digit_date, is_slashed_date, parse_slashed_dates
from unfoldkit.arrivals.readers.timestamps import MONTHS, ZONE_HINT, epoch_to_seconds, is_time, parse_timestamp
from unfoldkit.io.tables import is_number

DATE_COLUMNS = ("arrival", "start", "end", "deadline")
"""Columns that may hold dates; a run is a duration only."""
DAY_S, HOUR_S = 86400.0, 3600.0
_CLOCK, _ZONE = r"(?P<clock>\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?)", r"(?P<zone>UTC|GMT|Z|[+-]\d\d:?\d\d)"
_ZONED_CLOCK = re.compile(r":\d\d(?:[.,]\d+)? *(?:[Zz]|UTC|GMT|[+-]\d\d(?::?\d\d)?)(?: +\d{4})?$")
"""The end of a date with a time zone; C's ``ctime`` has the year behind it."""
_WEEKDAY, _MONTH = r"(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,? +)?", rf"(?P<month>{'|'.join(MONTHS)})[a-z]*"
_WRITTEN_DATES = (
    re.compile(r"(?P<day>\d{1,2})\.(?P<month>\d{1,2})\.(?P<year>\d{4})\b[ ,T]*(?P<clock>.*)"),
    re.compile(rf"(?P<year>\d{{4}})([-/])(?P<month>\d{{1,2}})\2(?P<day>\d{{1,2}})[ T]+{_CLOCK} ?{_ZONE}?"),
    re.compile(rf"{_WEEKDAY}{_MONTH} +(?P<day>\d{{1,2}}) +{_CLOCK} +(?:{_ZONE} +)?(?P<year>\d{{4}})(?: [ELX])?"),
    re.compile(rf"{_WEEKDAY}{_MONTH} +(?P<day>\d{{1,2}}),? +(?P<year>\d{{4}}),? +{_CLOCK} ?{_ZONE}?"),
    re.compile(rf"{_WEEKDAY}(?P<day>\d{{1,2}})[ -]{_MONTH}[ -](?P<year>\d{{4}}) +{_CLOCK} ?{_ZONE}?"),
)
"""Dates with one reading besides ISO 8601: of spreadsheets where the day comes first (31.01.2026 12:00), of databases
(2026/01/31 12:00, 2026-01-31 12:00:00 UTC), of C's ``ctime`` (Sat Jan 31 12:00:00 2026; LSF writes how a job ended
behind it), and of mails (Sat, 31 Jan 2026 12:00:00 GMT)."""
SPREADSHEET_DAYS = (25569.0, 80000.0)
"""Numbers of days in spreadsheets from 1970 to 2119."""
MAX_SPREADSHEET_SPAN = 3660.0
"""Days that a table with numbers of days spans at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeFormat:
    """How a file writes times, and the times that stand for missing ones.

    Attributes:
        columns: The columns of the file.
        has_dates: Times are dates rather than numbers.
        ticks_per_s: Numbers per second, by column; 1 elsewhere.
        origin_s: Time in seconds from which tasks count.
        first_s: Earliest arrival, start or end in seconds.
        last_s: Latest arrival, start or end in seconds.
    """

    columns: Columns
    has_dates: bool
    ticks_per_s: Mapping[str, float] = field(default_factory=dict)
    origin_s: float = 0.0
    first_s: float = 0.0
    last_s: float = 0.0

    def read_time_s(self, row: CsvRow, column: str) -> float:
        """Return a time in seconds, not counted from the origin."""
        if self.has_dates:
            return parse_datetime_cell(row, column)
        return self.columns.read_seconds(row, column) / self.ticks_per_s.get(column, 1.0)

    def read_run_s(self, row: CsvRow, arrival_s: float) -> float | None:
        """Return the run time in seconds: from start (or arrival) to end, else from its column; None if unknown.

        Args:
            row: The row.
            arrival_s: Its arrival in seconds, not counted from the origin.

        Raises:
            UnfoldError: The end is before the start.
        """
        if not ("end" in self.columns.names and row.get("end")):
            return self.columns.read_seconds(row, "run") if row.get("run") else None
        start_s = self.read_time_s(row, "start") if row.get("start") else arrival_s
        run_s = self.read_time_s(row, "end") - start_s
        if run_s < 0 and NEGATIVE in self.columns.unknown.get("run", ()):
            return None
        if run_s < 0:
            hint = "table: {unknown: {run: [negative]}} treats such run times as missing"
            if self.has_dates and -run_s <= HOUR_S and not _ZONED_CLOCK.search(row.get("end")):
                hint = f"{ZONE_HINT}; {hint}"
            raise row.wrong(
                f"it ends {-run_s:g} s before its {'start' if row.get('start') else 'arrival'}", "end", hint
            )
        return run_s

    def read_slack_s(self, row: CsvRow, arrival_s: float) -> float:
        """Return the seconds from a task's arrival to its deadline, infinity without one."""
        cell = row.get("deadline")
        if self.has_dates and cell and not is_number(cell):
            return parse_datetime_cell(row, "deadline") - arrival_s
        return self.columns.read_seconds(row, "deadline") if cell else math.inf


def detect_time_format(rows: Sequence[CsvRow], columns: Columns) -> TimeFormat:
    """Detect how a file writes times from its arrivals, or from starts and ends where it has none.

    Raises:
        UnfoldError: A cell is not a time.
    """
    used = [name for name in ("arrival", "start", "end") if name == "arrival" or name in columns.names]
    cells = [(row, name) for name in used for row in rows if row.get(name)]
    times = TimeFormat(columns=columns, has_dates=bool(cells) and _is_date(cells[0][0][cells[0][1]]))
    if not cells:
        return times
    numbers = [times.read_time_s(row, name) for row, name in cells]
    if not times.has_dates:
        _check_days(cells, numbers, columns)
    ticks_per_s = _detect_units([name for _, name in cells], numbers)
    seconds = [number / ticks_per_s[name] for number, (_, name) in zip(numbers, cells, strict=True)]
    arrivals = [time for time, (_, name) in zip(seconds, cells, strict=True) if name == "arrival"] or seconds
    earliest_s, first_s = min(arrivals), min(seconds)
    has_origin = times.has_dates or earliest_s >= MIN_UNIX_S
    # a task that started before the first arrival of the file arrived then
    origin_s = first_s if has_origin and any(not row.get("arrival") for row in rows) else earliest_s * has_origin
    return replace(times, ticks_per_s=ticks_per_s, origin_s=origin_s, first_s=first_s, last_s=max(seconds))


def _check_days(cells: Sequence[tuple[CsvRow, str]], numbers: Sequence[float], columns: Columns) -> None:
    """Check that times without a stated scale are no numbers of days, as spreadsheets write dates.

    Raises:
        UnfoldError: They look like such numbers.
    """
    found = dict[str, list[tuple[CsvRow, float]]]()
    for (row, name), time in zip(cells, numbers, strict=True):
        found.setdefault(name, []).append((row, time))
    days = [name for name in found if name not in columns.scales and _may_be_days([time for _, time in found[name]])]
    has_fractions = any(not time.is_integer() for name in days for _, time in found[name])
    if days and (has_fractions or DAY_S in columns.scales.values()):
        row, time = found[days[0]][0]
        date = datetime.fromtimestamp((time - SPREADSHEET_DAYS[0]) * DAY_S, UTC)
        message = f"{time:g} may be a spreadsheet's number of days, {date:%Y-%m-%d %H:%M}"
        scale = ", ".join(f"{name}: 86400" for name in days)
        raise row.wrong(message, days[0], f"scale: {{{scale}}} reads days, 1 seconds; or format the cells as dates")


def _may_be_days(times: Sequence[float]) -> bool:
    (first, last), (earliest, latest) = SPREADSHEET_DAYS, (min(times), max(times))
    return first <= earliest <= latest <= last and latest - earliest <= MAX_SPREADSHEET_SPAN


def _detect_units(names: Sequence[str], numbers: Sequence[float]) -> dict[str, float]:
    """Return the numbers per second of each column: those of the first, unless both count from 1970."""
    columns: dict[str, list[float]] = {}
    for name, number in zip(names, numbers, strict=True):
        columns.setdefault(name, []).append(number)
    first = next(iter(columns))
    earliest = min(columns[first])
    ticks_per_s = dict.fromkeys(columns, _ticks_per_s(earliest))
    if earliest / ticks_per_s[first] >= MIN_UNIX_S:
        # the median is no sentinel, such as 0 where a task has not ended
        own = {name: (median(times), _ticks_per_s(median(times))) for name, times in columns.items() if name != first}
        ticks_per_s |= {name: ticks for name, (typical, ticks) in own.items() if typical / ticks >= MIN_UNIX_S}
    return ticks_per_s


def _ticks_per_s(number: float) -> float:
    seconds = float(epoch_to_seconds(np.array([number]))[0])
    return number / seconds if seconds else 1.0


def find_zones(rows: Iterable[CsvRow]) -> set[bool]:
    """Return whether the dates of a file have a time zone: both where some have one and others have none."""
    # a deadline may be a duration
    cells = (row.get(name) for row in rows for name in DATE_COLUMNS if name != "deadline")
    return {bool(_ZONED_CLOCK.search(cell)) for cell in cells if ":" in cell}


def normalize_dates(rows: Sequence[CsvRow]) -> list[CsvRow]:
    """Rewrite dates such as 31/01/2026 12:00 and 31.01.2026 12:00 as ISO 8601.

    Of dates with slashes, all together decide which number is the month; with points the day is first.

    Raises:
        UnfoldError: A cell is not a date.
    """
    rows = [_use_dashes(row) for row in rows]
    cells = [
        (index, name)
        for index, row in enumerate(rows)
        for name in DATE_COLUMNS
        if is_slashed_date(row.get(name).strip())
    ]
    times = parse_slashed_dates([rows[index][name].strip() for index, name in cells]) if cells else np.zeros(0)
    if isinstance(times, int):
        index, name = cells[times]
        raise rows[index].wrong(f"{rows[index][name][:40]!r} is not a date and time", name)
    normalized = list(rows)
    for (index, name), time in zip(cells, times.tolist(), strict=True):
        text = datetime.fromtimestamp(time, UTC).isoformat()
        normalized[index] = replace(normalized[index], cells={**normalized[index].cells, name: text})
    return normalized


def _use_dashes(row: CsvRow) -> CsvRow:
    cells = {name: row.get(name).strip() for name in DATE_COLUMNS}
    dates = {name: date for name, cell in cells.items() if not _is_plain(cell) and (date := _write_iso(cell))}
    return replace(row, cells={**row.cells, **dates}) if dates else row


def _is_plain(text: str) -> bool:
    """Return whether a text is a number, or is written as ISO 8601 has it."""
    return is_number(text) or (text[4:5] == text[7:8] == "-" and not text.endswith(("UTC", "GMT")))


def _write_iso(text: str) -> str:
    """Return a written date in ISO 8601; empty for any other text."""
    match = next((match for pattern in _WRITTEN_DATES if (match := pattern.fullmatch(text))), None)
    if match is None:
        return ""
    parts = match.groupdict()
    month = MONTHS.index(parts["month"]) + 1 if parts["month"] in MONTHS else parts["month"]
    zone = (parts.get("zone") or "").replace("UTC", "Z").replace("GMT", "Z")
    clock = f" {parts['clock']:0>5}" if ":" in parts["clock"][:2] else f" {parts['clock']}"
    return f"{parts['year']}-{month:0>2}-{parts['day']:0>2}{clock}{zone}".strip()


def parse_datetime_cell(row: CsvRow, column: str) -> float:
    """Return a cell with a date and time in Unix seconds.

    Raises:
        UnfoldError: It is none.
    """
    time = parse_datetime(row[column])
    if time is None:
        hint = "other cells of this file are dates, such as 2026-01-31 12:00:00"
        raise row.wrong(f"{row[column][:40]!r} is not a date and time", column, hint)
    return time


def parse_datetime(text: str) -> float | None:
    """Return a date, with or without a time, in Unix seconds (UTC unless it has a zone), or None."""
    stripped = text.strip()
    if is_digit_date(stripped):
        year, parts = stripped[:4], [stripped[at : at + 2] for at in range(4, len(stripped), 2)]
        month, day, hour, minute, second = [*parts, "00", "00"][:5]
        stripped = f"{year}-{month}-{day} {hour}:{minute}:{second}"
    candidates = (parse_timestamp(candidate) for candidate in (stripped, f"{stripped} 00:00") if is_time(candidate))
    return next((time for time in candidates if time is not None), None)


def _is_date(text: str) -> bool:
    # a time of day without a date is a duration
    return is_digit_date(text) or (not is_number(text) and (parse_datetime(text) or 0.0) > DAY_S)
