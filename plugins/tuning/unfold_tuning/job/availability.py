"""The availability of spot instances by zone, as a log of probes: what a market is modelled from."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unfold_tuning.job.trial_logs import CLOCK_S, scale_clock
from unfoldkit.api import CsvRow, UnfoldError, csv_rows, did_you_mean, format_duration, user_error

TRAILING_S = 3 * 86400.0
"""A market is modelled from this much of its log: older prices and hazards do not predict its cost."""
TIME_COLUMNS = ("time", "timestamp", "datetime", "date", "date_time", "ts")
NUMBER_COLUMNS = ("tick",)
"""Columns, in lower case, by which rows are ordered: dates or a clock, and numbers of ticks.

Without one, a column of any name counts if its first cell is a date or the time of a clock.
"""
COUNT_COLUMNS = {
    "second": 1.0, "seconds": 1.0, "minute": 60.0, "minutes": 60.0, "hour": 3600.0, "hours": 3600.0,
    "elapsed": 0.0, "step": 0.0, "index": 0.0, "t": 0.0,
}  # fmt: skip
"""Columns of numbers, in lower case, that order rows if they rise or fall throughout, as the hour of a day does not.

Their unit is in seconds, or 0 for numbers of ticks.
"""
ZONE_COLUMNS = ("zone", "availability_zone", "availabilityzone", "az", "offer", "region")
STATE_COLUMNS = ("available", "availability", "granted", "state", "status", "up")
"""Columns, in lower case, of a table that has a row for each probe of one zone."""
STATES = {"1": "1", "1.0": "1", "true": "1", "yes": "1", "0": "0", "0.0": "0", "false": "0", "no": "0"}
EMPTY_CELLS = ("", "nan", "none")
MAX_PERIOD = 1.5
"""Rows may be this many ticks apart."""
MAX_TICKS = 2_000_000
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class AvailabilityLog:
    """Whether an instance could be had, or was kept, in each zone at each tick.

    Attributes:
        zones: Names of the zones.
        tick_s: Seconds between two ticks.
        states: One character a tick, ``1`` if available, for each zone; the last tick is the present.
        gaps: Ticks at which some zone has no probe, and the state before.
    """

    zones: tuple[str, ...]
    tick_s: float
    states: tuple[str, ...]
    gaps: tuple[int, ...] = ()

    def to_array(self) -> BoolArray:
        """Return the states: [zones, ticks]."""
        return np.array([[state == "1" for state in states] for states in self.states], dtype=bool)

    def select_trailing(self, seconds: float = TRAILING_S) -> AvailabilityLog:
        """Return the last part of the log."""
        ticks = max(2, round(seconds / self.tick_s))
        first = max(0, len(self.states[0]) - ticks)
        gaps = tuple(gap - first for gap in self.gaps if gap >= first)
        return AvailabilityLog(self.zones, self.tick_s, tuple(states[first:] for states in self.states), gaps)


def read_availability(path: Path, columns: Sequence[str], tick_s: float, key: str) -> AvailabilityLog:
    """Read a log: one row a probe, one column a zone, 1 where an instance was available and 0 where not.

    A table with a column of zones has one row for each probe of one zone. With a column of times, rows may have any
    order. An instance was available at a tick if every probe says so. A tick
    without a probe, or an empty cell, has the state before.

    Raises:
        UnfoldError: A column is missing, a cell cannot be read, the rows are further apart than a tick, or there are
            fewer than two ticks.
    """
    if ".json" in path.suffixes or path.suffix == ".jsonl":
        hint = "a history of prices does not show when an instance could be had: write it as cloud.prices"
        raise user_error("a log of availability is a CSV table", file=str(path), key=key, hint=hint)
    rows = list(csv_rows(path))
    _add_zone_columns(rows, columns)
    names = list(rows[0].cells) if rows else []
    for column in columns:
        if rows and column not in names:
            hint = did_you_mean(column, names) or f"there are {', '.join(names[:12])}"
            raise user_error(f"no column {column!r}", file=str(path), key=key, hint=hint)
    slots = _list_slots(rows, names, columns, tick_s)
    count = max(slots, default=0) + 1
    if len(rows) < 2 or count < 2:
        raise user_error("a log of availability needs at least two ticks", file=str(path), key=key)
    if count > MAX_TICKS:
        raise user_error(f"the log spans {count:,} ticks", file=str(path), key=key, hint="write the period as tick")
    probes = [[_parse_state(row, column) for row in rows] for column in columns]
    states = [_fill_ticks(slots, states, count) for states in probes]
    for column, filled in zip(columns, states, strict=True):
        if not filled:
            raise user_error(f"no probe of the zone {column!r}", file=str(path), key=key)
    gaps: set[int] = set()
    for zone in probes:
        gaps |= set(range(count)) - {slot for slot, state in zip(slots, zone, strict=True) if state}
    return AvailabilityLog(tuple(columns), tick_s, tuple(states), tuple(sorted(gaps)))


def _add_zone_columns(rows: Sequence[CsvRow], zones: Sequence[str]) -> None:
    """Add a column for each zone to a table that names the zone of a probe in its row.

    Raises:
        UnfoldError: The rows are those of several zones, and the log of one is read from all of them.
    """
    plain = {name.strip().lower().replace(" ", "_"): name for name in rows[0].cells} if rows else {}
    place = next((plain[name] for name in ZONE_COLUMNS if name in plain), "")
    state = next((plain[name] for name in STATE_COLUMNS if name in plain), "")
    if not place or place in zones:
        return
    places = sorted({row[place] for row in rows})
    if len(places) > 1 and any(zone in rows[0].cells for zone in zones):
        raise rows[0].wrong("the rows are those of several zones", place, f"write zones: [{', '.join(places[:12])}]")
    for row in rows if state and set(zones) <= set(places) else ():
        row.cells.update({zone: row[state] if row[place] == zone else "" for zone in zones})


def _list_slots(rows: Sequence[CsvRow], names: Sequence[str], zones: Sequence[str], tick_s: float) -> list[int]:
    """List the tick of each row, from 0: by the times or numbers that the rows have, or else in their order.

    Raises:
        UnfoldError: A time cannot be read, or the rows are further apart than a tick.
    """
    plain = {name.strip().lower().replace(" ", "_"): name for name in reversed(names) if name not in zones}
    column = _find_time(rows, plain)
    if column is not None:
        times, has_unit = [_parse_time(row, column) for row in rows], True
    else:
        column, unit_s = _find_number(rows, plain)
        if column is None:
            return list(range(len(rows)))
        times, has_unit = [row.number(column) * (unit_s or 1.0) for row in rows], bool(unit_s)
    steps = np.diff(np.unique(times))
    step = float(np.median(steps)) if len(steps) else tick_s
    if not has_unit:
        times = [at * tick_s / step for at in times]
    elif step > MAX_PERIOD * tick_s:
        period = format_duration(step)
        raise rows[0].wrong(
            f"the rows are {period} apart, not {format_duration(tick_s)}", column, f"write tick: {period}"
        )
    # the last row is the present: ticks are counted back from it
    latest = max(times)
    slots = [round((at - latest) / tick_s) for at in times]
    return [slot - min(slots) for slot in slots]


def _find_time(rows: Sequence[CsvRow], plain: Mapping[str, str]) -> str | None:
    """Find the column of times: by its name, or by its first cell if no column counts ticks."""
    named = next((plain[name] for name in TIME_COLUMNS if name in plain), None)
    if named is not None or any(name in plain for name in NUMBER_COLUMNS):
        return named
    return next((name for name in plain.values() if _is_time(rows[0], name)), None)


def _find_number(rows: Sequence[CsvRow], plain: Mapping[str, str]) -> tuple[str | None, float]:
    """Find the column of numbers that orders the rows, and its unit in seconds; 0 for numbers of ticks."""
    ticks = next((plain[name] for name in NUMBER_COLUMNS if name in plain), None)
    if ticks is not None:
        return ticks, 0.0
    counts = ((plain[name], unit_s) for name, unit_s in COUNT_COLUMNS.items() if name in plain)
    return next(((name, unit_s) for name, unit_s in counts if _is_count(rows, name)), (None, 0.0))


def _is_count(rows: Sequence[CsvRow], column: str) -> bool:
    """Return whether the numbers of a column rise, or fall, from each row to the next."""
    with contextlib.suppress(UnfoldError):
        steps = np.diff([row.number(column) for row in rows])
        return bool((steps > 0).all() or (steps < 0).all())
    return False


def _is_time(row: CsvRow, column: str) -> bool:
    """Return whether a cell is a date, or a number of a clock."""
    with contextlib.suppress(UnfoldError):
        return _parse_time(row, column) >= CLOCK_S
    return False


def _parse_time(row: CsvRow, column: str) -> float:
    """Parse a date, in UTC unless it has a zone, or seconds or milliseconds since 1970."""
    text = row[column].strip()
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if math.isfinite(seconds):
            return scale_clock(seconds)
    try:
        date = dt.datetime.fromisoformat(text.removesuffix(" UTC"))
    except ValueError as error:
        raise row.wrong(f"{text[:40]!r} is not a time", column, "write 2026-05-01T12:00:00+02:00") from error
    return (date if date.tzinfo else date.replace(tzinfo=dt.UTC)).timestamp()


def _parse_state(row: CsvRow, column: str) -> str:
    """Parse a cell as ``1`` or ``0``; empty if nothing is known."""
    text = row[column].strip().lower()
    if text in EMPTY_CELLS:
        return ""
    if text not in STATES:
        raise row.wrong(f"{row[column][:20]!r} is neither 0 nor 1", column, "1: an instance was available")
    return STATES[text]


def _fill_ticks(slots: Sequence[int], probes: Sequence[str], count: int) -> str:
    """Fill every tick with the worst of its probes, or the state before; the first ticks with the first one known."""
    worst: dict[int, str] = {}
    for slot, state in zip(slots, probes, strict=True):
        if state:
            worst[slot] = min(state, worst.get(slot, state))
    if not worst:
        return ""
    states, state = [], worst[min(worst)]
    for slot in range(count):
        state = worst.get(slot, state)
        states.append(state)
    return "".join(states)
