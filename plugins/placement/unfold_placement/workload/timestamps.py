"""Times of a table of tasks: seconds, times since 1970 in any unit, or dates as logs and sheets write them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from unfold_placement.schema.columns import UNKNOWN, Columns
from unfoldkit.api import CsvRow
from unfoldkit.arrivals.readers.dates import in_digits, is_slashed, slashed
from unfoldkit.arrivals.readers.timestamps import alone, dated, present

MOMENTS = ("arrival", "start", "end", "deadline")
SINCE_1970 = 1e9
"""Arrivals from here on (2001) are times of the present, and then 0 s is the earliest of them."""

DAY = 86400.0


@dataclass(frozen=True, slots=True)
class TimeFormat:
    """How a file tells times: as dates or in numbers, of which ``each`` are a second, counted from ``origin`` (s)."""

    columns: Columns
    dated: bool
    ticks_per_s: float = 1.0
    origin: float = 0.0

    def read_time_s(self, line: CsvRow, column: str) -> float:
        """Return a moment in s, as the file counts them."""
        return (
            parse_datetime_cell(line, column)
            if self.dated
            else self.columns.read_seconds(line, column) / self.ticks_per_s
        )

    def read_run_s(self, line: CsvRow) -> float:
        """Return how long a task runs in s: as it says, or from its start, or arrival, to its end."""
        if "end" not in self.columns.names:
            return self.columns.read_seconds(line, "run")
        began = "start" if line.get("start") not in UNKNOWN else "arrival"
        found = self.read_time_s(line, "end") - self.read_time_s(line, began)
        if found < 0:
            raise line.wrong(f"it ends {-found:g} s before its {began}", "end")
        return found

    def read_slack_s(self, line: CsvRow, came: float) -> float:
        """Return the seconds from a task's arrival to its deadline."""
        cell = line.get("deadline")
        if self.dated and cell and not is_number(cell):
            return parse_datetime_cell(line, "deadline") - came
        return self.columns.read_seconds(line, "deadline") if cell else math.inf


def detect_time_format(rows: Sequence[CsvRow], columns: Columns) -> TimeFormat:
    """Return how a file tells times, by its arrivals."""
    plain = TimeFormat(columns, dated=bool(rows) and _is_date(rows[0]["arrival"]))
    first = min((plain.read_time_s(line, "arrival") for line in rows), default=0.0)
    in_seconds = float(present(np.array([first]))[0])
    origin = in_seconds if plain.dated or in_seconds >= SINCE_1970 else 0.0
    return replace(plain, ticks_per_s=first / in_seconds if in_seconds else 1.0, origin=origin)


def normalize_dates(rows: Sequence[CsvRow]) -> list[CsvRow]:
    """Return rows with dates such as 31/01/2026 12:00 as ISO 8601: which is the month, all of them together say."""
    cells = [(at, name) for at, line in enumerate(rows) for name in MOMENTS if is_slashed(line.get(name).strip())]
    found = slashed([rows[at][name].strip() for at, name in cells]) if cells else np.zeros(0)
    if isinstance(found, int):
        at, name = cells[found]
        raise rows[at].wrong(f"{rows[at][name][:40]!r} is not a date and time", name)
    made = list(rows)
    for (at, name), time in zip(cells, found.tolist(), strict=True):
        made[at] = replace(made[at], cells={**made[at].cells, name: datetime.fromtimestamp(time, UTC).isoformat()})
    return made


def is_number(text: str) -> bool:
    """Return whether a cell is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def parse_datetime_cell(line: CsvRow, column: str) -> float:
    """Return a cell that is a date and time as seconds since 1970.

    Raises:
        UnfoldError: it is none.
    """
    found = parse_datetime(line[column])
    if found is None:
        hint = "others of this file are: 2026-01-31 12:00:00"
        raise line.wrong(f"{line[column][:40]!r} is not a date and time", column, hint)
    return found


def parse_datetime(text: str) -> float | None:
    """Return a date, with a time or of midnight (UTC where it does not say), as seconds since 1970, or nothing."""
    plain = text.strip()
    found = (dated(each) for each in (plain, f"{plain} 00:00") if alone(each))
    return next((time for time in found if time is not None), None)


def _is_date(text: str) -> bool:
    # a time of day alone is how long something took
    return in_digits(text) or (not is_number(text) and (parse_datetime(text) or 0.0) > DAY)
