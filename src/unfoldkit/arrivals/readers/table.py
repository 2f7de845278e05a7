"""Read arrival times from tables: one row per arrival, or one per interval with a count or a rate of arrivals."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from unfoldkit._types import FloatArray, IntArray
from unfoldkit.arrivals.readers import load_generators, rate_columns
from unfoldkit.arrivals.readers.timestamps import (
    COLUMNS,
    FIRST_EPOCH_S,
    MAX_MOONCAKE_RATE,
    MOONCAKE_FIELDS,
    NUMBER,
    UNITS_S,
    TimeNotation,
    check_clock,
    check_order,
    epoch_to_seconds,
    is_ambiguous,
    is_time,
    parse_plain_timestamps,
    split_unit,
    to_seconds,
)
from unfoldkit.errors import Diagnostic, UnfoldError, did_you_mean, list_columns, quote_cell, user_error
from unfoldkit.io.tables import UNREADABLE, csv_lines, open_text, read_parquet_rows

Rows = Iterator[tuple[int, list[str]]]
"""Line numbers and cells."""
COUNT_COLUMNS = (
    *("count", "counts", "requests", "invocations", "n"),
    *("num_requests", "n_requests", "request_count", "num_model_requests"),
)
"""Names of columns that count the arrivals of an interval, in any case."""
_COUNT_CALL = re.compile(r"count(\(\*?\)|_star\(\)|_)")
"""What queries call a count without a name: ``count(*)`` in SQL and CloudWatch, ``count_`` in Azure."""
_BIN_CALL = re.compile(r"bin\(.+\)")
"""What CloudWatch Logs Insights calls the start of an interval: ``bin(1m)``."""
GAP_COLUMNS = ("interarrival", "inter_arrival", "interarrival_time", "inter_arrival_time", "iat")
"""Names of columns that hold the time since the previous arrival, in any case and with or without a unit."""
UNNAMED = ("", "Unnamed: 0")
"""Names of a first column that is the index of a data frame; it is a time if it holds dates."""
_COUNT_HINT = (
    "a whole number; no dot between thousands; arrivals.rates names a column of rates, "
    "counts: '' reads each row as one arrival"
)
_RATE_HINT = "arrivals per second, such as 12.5; arrivals.counts: '' reads each row as one arrival"
# an empty cell is a missing count, whereas words show that the column holds none
_COUNT_CELL = re.compile(r"(\d{1,15}(\.0*)?|\d{1,3}(,\d{3})+)?")
# abbreviated counts are refused: a row read as one arrival would be wrong by a factor of a thousand
_ABBREVIATED = re.compile(r"\d+([.,]\d+)? ?[kKMG]")
# a dot before three zeros may separate thousands: 1.000 is 1 or 1000
_WHOLE = re.compile(r"(?!\d{1,3}\.000$)\d{1,15}(\.0*)?|\d{1,3}(,\d{3})+")
_CLOCK = re.compile(r"\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?( ?[AaPp]\.?[Mm]\.?)?")
"""A time of day."""
_CLOCK_NUMBER = re.compile(r"\d{1,2}")
"""An hour or a minute."""
_ISO_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:")
"""The beginning of a date with a time of day."""
_MINUTE_S = 60.0
_CHUNK_ROWS = 2**16
"""Rows with dates that are parsed at once."""
_END_COLUMNS = ("end_timestamp", "duration")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableColumns:
    """The columns that a table is read by.

    Args:
        time: The column of times.
        default_time: The column of times if the table has it.
        counts: The column of counts; ``""`` if there is none, ``None`` if the names decide.
        default_counts: The column of counts if the table has it.
        match: A text that a row must contain.
        rates: The column of arrivals per second.
        default_rates: The column of rates if the table has it.
        notation: How times are written.
    """

    time: str | None = None
    default_time: str | None = None
    counts: str | None = None
    default_counts: str | None = None
    match: str = ""
    rates: str | None = None
    default_rates: str | None = None
    notation: TimeNotation = field(default_factory=TimeNotation)


@dataclass(frozen=True, slots=True)
class TraceRows:
    """FloatArray in s, with the counts or rates of arrivals from each time to the next; without them, single arrivals.

    ``column`` is the column of counts or rates, ``by_name`` whether only its name identified it. ``has_unit`` states
    that the names of the columns decide the unit of the times.
    """

    times: FloatArray
    counts: IntArray | None = None
    column: str = ""
    by_name: bool = False
    rates: FloatArray | None = None
    has_unit: bool = False


@dataclass(frozen=True, slots=True)
class _AmountColumn:
    """The column of counts, or of rates per ``period_s``."""

    index: int
    name: str
    period_s: float | None = None
    by_name: bool = False


def read_rows(head: list[str], rows: Rows, columns: TableColumns, path: Path) -> TraceRows:
    """Read the times of rows under a head, whatever file format they come from.

    Raises:
        UnfoldError: See :func:`read_table`.
    """
    return _read_named(head, _select(rows, columns.match), columns, path)


def sort_rows(rows: TraceRows, columns: TableColumns, path: Path) -> TraceRows:
    """Sort rows by time: documents and columnar files need not be in order.

    Raises:
        UnfoldError: They are in order but for an hour that their clock repeats, or single arrivals, in a column that
            is not stated, have no order like durations.
    """
    check_clock(rows.times, str(path))
    if columns.time is None and rows.counts is None and rows.rates is None:
        check_order(rows.times, str(path))
    return reorder_rows(rows, np.argsort(rows.times, kind="stable"))


def reverse_rows(rows: TraceRows) -> TraceRows:
    """Reverse the order of rows."""
    return reorder_rows(rows, np.arange(rows.times.size)[::-1])


def reorder_rows(rows: TraceRows, order: NDArray[np.intp]) -> TraceRows:
    """Select the rows of a trace by their (n,) indices, with their counts and rates."""
    counts = None if rows.counts is None else rows.counts[order]
    rates = None if rows.rates is None else rows.rates[order]
    return TraceRows(rows.times[order], counts, rows.column, rows.by_name, rates, rows.has_unit)


def read_table(path: Path, columns: TableColumns) -> TraceRows:
    """Read the times of a table, with counts or rates where a column holds them.

    Raises:
        UnfoldError: The file cannot be read, a column is missing, or a cell is not a time, count or rate.
    """
    try:
        with open_text(path, errors="replace") as stream:
            return _read_lines(csv_lines(stream), columns, path)
    except UNREADABLE as error:
        raise user_error(f"cannot read the trace: {error}", file=str(path)) from error


def read_parquet(path: Path, columns: TableColumns) -> TraceRows:
    """Read the times of a Parquet file, sorted, with the counts or rates of its rows.

    Raises:
        UnfoldError: The file cannot be read, or a cell is not a time, count or rate.
    """
    names, cells = read_parquet_rows(path)
    rows = ((number, list(row)) for number, row in enumerate(cells, 1))
    try:
        return sort_rows(read_rows(names, rows, columns, path), columns, path)
    except UnfoldError as error:
        raise name_positions(error, "row") from error


def name_positions(error: UnfoldError, word: str) -> UnfoldError:
    """Return the error of a file without lines: its numbers of lines are those of rows or entries, as ``word`` says."""
    faults = [
        replace(each, message=f"{word} {each.line}: {each.message}", line=0) if each.line else each
        for each in error.diagnostics
    ]
    return UnfoldError(*faults)


def is_table_head(head: Sequence[str], column: str | None = None) -> bool:
    """Whether the first row of a file is that of a table: it names a column of times, or holds a time itself."""
    names = [name.strip() for name in head]
    if column:
        return column in names
    first_is_number = bool(names and NUMBER.fullmatch(names[0]))
    return _usual_column(names) is not None or _minute_columns(names) > 0 or _has_ends(names) or first_is_number


def _read_lines(lines: Rows, columns: TableColumns, path: Path) -> TraceRows:
    first = next(lines, (0, []))
    while _is_comment(first[1]):
        first = next(lines, (0, []))
    head = [name.strip() for name in first[1]]
    if not head:
        return TraceRows(np.zeros(0))
    if columns.time is None and _minute_columns(head):
        return _read_minutes(_select(lines, columns.match), head, path)
    if columns.time is None and (is_time(head[0]) or columns.notation.parse_text(head[0]) is not None):
        rows = _select(itertools.chain([first], lines), columns.match)
        return TraceRows(_read_times(rows, 0, "", columns.notation, path))
    return _read_named(head, _select(lines, columns.match), columns, path)


def _is_comment(cells: Sequence[str]) -> bool:
    """Whether a first line only describes the table; a head may begin with ``#`` too."""
    return bool(cells) and cells[0].startswith("#") and not is_table_head([cells[0].lstrip("# "), *cells[1:]])


def _read_named(head: list[str], rows: Rows, columns: TableColumns, path: Path) -> TraceRows:
    notation = columns.notation
    if columns.time is None and _has_ends(head):
        end, duration = (head.index(name) for name in _END_COLUMNS)
        durations = _AmountColumn(duration, _END_COLUMNS[1], 1.0)
        times, seconds = _read_amounts(rows, end, head[end], durations, notation, path)
        return TraceRows(np.sort(times - seconds))
    if load_generators.is_k6_table(head):
        rows = load_generators.select_k6_requests(rows)
    elif load_generators.is_locust_history(head) and not columns.match:
        rows = load_generators.select_locust_totals(head, rows)
    first = next(rows, None)
    index = _time_column(head, columns, path, [] if first is None else first[1])
    if first is None:
        return TraceRows(np.zeros(0))
    _require_one_column(head, index, first[1], path)
    if columns.time is None:
        _require_no_duration(head, index, first, columns.notation, path)
    amount = _amount_column(head, index, first[1], columns, path)
    rows = _join_dates(head, index, itertools.chain([first], rows), first[1], notation)
    if amount is None:
        is_mooncake = head[index] == "timestamp" and set(head) >= MOONCAKE_FIELDS
        times = _read_times(rows, index, head[index], notation, path, is_mooncake=is_mooncake)
        return TraceRows(times, has_unit=is_mooncake)
    times, amounts = _read_amounts(rows, index, head[index], amount, notation, path)
    if amount.period_s is not None:
        return TraceRows(times, None, amount.name, amount.by_name, amounts / amount.period_s)
    if amount.by_name and _is_row_number(amounts):
        return TraceRows(times)
    return TraceRows(times, amounts.astype(np.int64), amount.name, amount.by_name)


def _require_one_column(head: Sequence[str], index: int, cells: Sequence[str], path: Path) -> None:
    """Reject a name that several columns with different cells have: either may hold the arrivals."""
    namesakes = [cell for name, cell in zip(head, cells, strict=False) if name == head[index]]
    if len(set(namesakes)) > 1:
        message = f"{len(namesakes)} columns are called {head[index]!r}, with different times"
        raise UnfoldError(Diagnostic(message, str(path), 1, 1, head[index], "rename all but that of the arrivals"))


def _require_no_duration(
    head: Sequence[str], index: int, first: tuple[int, list[str]], notation: TimeNotation, path: Path
) -> None:
    """Reject numbers under ``time`` next to complete times: they may be how long each request took."""
    line, cells = first
    is_number = head[index].lower() == "time" and len(cells) > index and NUMBER.fullmatch(cells[index].strip())
    if not is_number or notation.unit is not None or float(cells[index]) >= FIRST_EPOCH_S:
        return
    for name, cell in zip(head, cells, strict=False):
        if _ISO_TIME.match(cell) and notation.parse_text(cell) is not None:
            message = f"{head[index]} may be a duration, since {name} holds complete times"
            hint = f"arrivals.column: {name}, or {head[index]}"
            raise UnfoldError(Diagnostic(message, str(path), line, 1, head[index], hint))


def _has_ends(head: Sequence[str]) -> bool:
    """Whether rows hold the end and duration of a request, as in the data of Azure Functions of 2021."""
    return set(_END_COLUMNS) <= set(head) and _usual_column(head) is None


def _select(rows: Rows, match: str) -> Rows:
    return (row for row in rows if match in ",".join(row[1])) if match else rows


def _time_column(head: list[str], columns: TableColumns, path: Path, row: list[str]) -> int:
    if columns.time:
        return _find_column(head, columns.time, path)
    index = head.index(columns.default_time) if columns.default_time in head else _usual_column(head)
    if index is None and head[0] in UNNAMED and row and columns.notation.parse_text(row[0]) is not None:
        return 0
    if index is None and (len(head) != 1 or _is_count_name(head[0])):
        hint = f"it has: {list_columns(head)}; arrivals.column names it, or call it timestamp"
        raise UnfoldError(Diagnostic("no column of arrival times", str(path), 1, 1, hint=hint))
    return index or 0


def _join_dates(head: Sequence[str], index: int, rows: Rows, first: Sequence[str], notation: TimeNotation) -> Rows:
    """Join the date and the time of day where a table has columns of both; other rows stay as they are.

    The time of day is a text in the column ``index``, or numbers in columns of hours and minutes. A cell that is a time
    by itself needs neither.
    """
    names = [name.lower() for name in head]
    date = names.index("date") if "date" in names else None
    if date is None or (date == index and "hour" not in names):
        return rows
    if len(first) <= index or NUMBER.fullmatch(first[index]) or notation.parse_text(first[index]) is not None:
        return rows
    parts = [index] if date != index else [names.index(name) for name in ("hour", "minute") if name in names]
    pattern = _CLOCK if date != index else _CLOCK_NUMBER
    if len(first) <= max(date, *parts) or not all(pattern.fullmatch(first[part].strip()) for part in parts):
        return rows
    return ((number, _join_cells(cells, index, date, parts)) for number, cells in rows)


def _join_cells(cells: list[str], index: int, date: int, parts: Sequence[int]) -> list[str]:
    if len(cells) <= max(date, *parts):
        return cells
    clock = ":".join(cells[part].strip().zfill(2) for part in parts)
    if clock.isdigit():
        clock += ":00"
    return [*cells[:index], f"{cells[date].strip()} {clock}", *cells[index + 1 :]]


def _find_column(head: list[str], name: str, path: Path) -> int:
    if name not in head:
        raise UnfoldError(Diagnostic(f"no column {name}", str(path), 1, 1, hint=did_you_mean(name, head)))
    return head.index(name)


def _usual_column(head: Sequence[str]) -> int | None:
    """Find a usual name; complete names take precedence over those with a unit, which may be durations."""
    for names in ([name.lower().lstrip("@_") for name in head], [split_unit(name)[0] for name in head]):
        index = next((names.index(name) for name in COLUMNS if name in names), None)
        if index is not None:
            return index
    return next((index for index, name in enumerate(head) if _BIN_CALL.fullmatch(name)), None)


def _is_count_name(name: str) -> bool:
    return name.lower() in COUNT_COLUMNS or _COUNT_CALL.fullmatch(name.lower()) is not None


def _amount_column(
    head: list[str], time_index: int, row: list[str], columns: TableColumns, path: Path
) -> _AmountColumn | None:
    """Return the column of counts or rates: the stated one, the default one, or the one that its name identifies."""
    counts = _stated_column(columns.counts, columns.default_counts, head)
    rates = _stated_column(columns.rates, columns.default_rates, head)
    if rates:
        return _AmountColumn(_find_column(head, rates, path), rates, rate_columns.rate_period_s(rates) or 1.0)
    if counts:
        return _AmountColumn(_find_column(head, counts, path), counts)
    return None if "" in (counts, rates) else _named_amount(head, time_index, row)


def _stated_column(stated: str | None, default: str | None, head: list[str]) -> str | None:
    return default if stated is None and default in ("", *head) else stated


def _named_amount(head: list[str], time_index: int, row: list[str]) -> _AmountColumn | None:
    candidates = [index for index in range(min(len(head), len(row))) if index != time_index]
    for index in candidates:
        if _is_count_name(head[index]):
            cell = row[index].strip()
            # other numbers are refused as counts: a mean of counts, read as one arrival, is a wrong rate
            is_mean = head[index].lower() != "n" and NUMBER.fullmatch(cell)
            is_count = is_mean or _COUNT_CELL.fullmatch(cell) or _ABBREVIATED.fullmatch(cell)
            return _AmountColumn(index, head[index], None, by_name=True) if is_count else None
    for index in candidates:
        period_s = rate_columns.rate_period_s(head[index])
        if period_s is not None and rate_columns.parse_rate(row[index]) is not None:
            return _AmountColumn(index, head[index], period_s, by_name=True)
    stated = next((index for index in candidates if rate_columns.has_rate_unit(row[index])), None)
    return None if stated is None else _AmountColumn(stated, head[stated], 1.0, by_name=True)


def _is_row_number(counts: FloatArray) -> bool:
    """Whether values are all 1, or count up from 0 or 1: then each row is one arrival."""
    return bool((counts == 1).all() or (counts[0] <= 1 and (np.diff(counts) == 1).all()))


def _read_times(
    rows: Rows,
    index: int,
    name: str,
    notation: TimeNotation,
    path: Path,
    *,
    is_single: bool = True,
    is_mooncake: bool = False,
) -> FloatArray:
    """Read a column of times; its first cell decides whether the column holds numbers or dates.

    ``is_single`` states that each is one arrival: counts lie on a grid. ``is_mooncake`` states that the table has
    Mooncake's columns, so whole numbers are milliseconds unless they would be too many requests a second.
    """
    cells = _read_cells(rows, index, path)
    line, text = next(cells, (0, ""))
    if not line:
        return np.zeros(0)
    cells = itertools.chain([(line, text)], cells)
    if notation.format is not None or not NUMBER.fullmatch(text):
        return _parse_dates(cells, path, notation)
    times = np.fromiter((_parse_number(cell, path, number, notation) for number, cell in cells), np.float64)
    stem, column_unit_s = split_unit(name)
    unit_s = notation.unit_s or column_unit_s
    if is_mooncake and unit_s is None and _are_milliseconds(times):
        unit_s = UNITS_S["ms"]
    if stem in GAP_COLUMNS:
        return np.cumsum(to_seconds(times, unit_s or 1.0))
    if unit_s is not None:
        return epoch_to_seconds(to_seconds(times, unit_s)) if notation.unit is None else to_seconds(times, unit_s)
    if is_ambiguous(float(times[0]), text):
        _raise_not_a_time(text, line, path, notation.number_hint)
    return notation.convert_numbers(times, name, str(path), is_single=is_single)


def _are_milliseconds(times: FloatArray) -> bool:
    """Whether sorted numbers are whole, and few enough as milliseconds for requests of a language model."""
    is_whole = bool(np.isfinite(times).all()) and not (times % 1).any()
    return is_whole and times.size <= MAX_MOONCAKE_RATE * float(times[-1] - times[0]) * UNITS_S["ms"]


def _parse_dates(cells: Iterator[tuple[int, str]], path: Path, notation: TimeNotation) -> FloatArray:
    """Parse a column of dates, many at once where all are plain."""
    parts: list[FloatArray] = []
    while chunk := list(itertools.islice(cells, _CHUNK_ROWS)):
        times = parse_plain_timestamps([cell for _, cell in chunk]) if notation.format is None else None
        if times is None:
            times = np.array([_parse_date(cell, path, number, notation) for number, cell in chunk])
        parts.append(times)
    return np.concatenate(parts)


def _parse_date(text: str, path: Path, line: int, notation: TimeNotation) -> float:
    time = notation.parse_text(text)
    if time is None and notation.format is None and NUMBER.fullmatch(text):
        return float(text)
    return _raise_not_a_time(text, line, path, notation.hint) if time is None else time


def _parse_number(text: str, path: Path, line: int, notation: TimeNotation) -> float:
    return float(text) if NUMBER.fullmatch(text) else _parse_date(text, path, line, notation)


def _read_amounts(
    rows: Rows, index: int, name: str, amount: _AmountColumn, notation: TimeNotation, path: Path
) -> tuple[FloatArray, FloatArray]:
    amounts: list[float] = []
    parse = _parse_count if amount.period_s is None else _parse_rate

    def collect() -> Rows:
        for line, row in rows:
            cell = row[amount.index].strip() if amount.index < len(row) else ""
            amounts.append(parse(cell, amount.name, path, line))
            yield line, row

    times = _read_times(collect(), index, name, notation, path, is_single=False)
    return times, np.array(amounts)


def _parse_count(text: str, name: str, path: Path, line: int) -> int:
    if not _WHOLE.fullmatch(text):
        raise UnfoldError(Diagnostic(f"{quote_cell(text)} is not a count", str(path), line, 1, name, _COUNT_HINT))
    return int(float(text.replace(",", "")))


def _parse_rate(text: str, name: str, path: Path, line: int) -> float:
    rate = rate_columns.parse_rate(text)
    if rate is None:
        raise UnfoldError(Diagnostic(f"{quote_cell(text)} is not a rate", str(path), line, 1, name, _RATE_HINT))
    return rate


def _read_cells(rows: Rows, index: int, path: Path) -> Iterator[tuple[int, str]]:
    for line, row in rows:
        if index >= len(row):
            raise UnfoldError(Diagnostic(f"the row has {len(row)} cells", str(path), line, 1))
        yield line, row[index].strip()


def _raise_not_a_time(text: str, line: int, path: Path, hint: str) -> NoReturn:
    raise UnfoldError(Diagnostic(f"{quote_cell(text)} is not a time", str(path), line, 1, hint=hint))


def _minute_columns(head: Sequence[str]) -> int:
    """Return the number of columns before those of minutes (1, 2, ...); 0 if the table has none."""
    first = head.index("1") if "1" in head else 0
    minutes = head[first:]
    return first if len(minutes) > 1 and minutes == [str(minute) for minute in range(1, len(minutes) + 1)] else 0


def _read_minutes(rows: Rows, head: list[str], path: Path) -> TraceRows:
    """Sum a table with a row per function and a column per minute, as in the data of Azure Functions of 2019."""
    first = _minute_columns(head)
    totals = np.zeros(len(head) - first, np.int64)
    for line, row in rows:
        cells = row[first : len(head)]
        if len(cells) < totals.size or not all(map(str.isdecimal, cells)):
            index = next((index for index, cell in enumerate(cells) if not cell.isdecimal()), len(cells))
            _parse_count(cells[index] if index < len(cells) else "", head[first + index], path, line)
        totals += np.fromiter(map(int, cells), np.int64, totals.size)
    return TraceRows(_MINUTE_S * np.arange(totals.size, dtype=np.float64), totals, f"1 to {head[-1]}")
