"""Read arrival times from tables, logs, JSON documents and arrays; cut, compress and scale what was read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfoldkit._types import FloatArray, IntArray
from unfoldkit.arrivals.readers.detect import detect_form, has_log_name
from unfoldkit.arrivals.readers.json_document import read_document
from unfoldkit.arrivals.readers.log import Warn, ignore_warning, read_log
from unfoldkit.arrivals.readers.table import (
    GAP_COLUMNS,
    TableColumns,
    TraceRows,
    read_parquet,
    read_table,
    reorder_rows,
    reverse_rows,
)
from unfoldkit.arrivals.readers.timestamps import (
    COLUMNS,
    FIRST_EPOCH_S,
    ZONE_HINT,
    TimeNotation,
    describe_clock_step,
    describe_skipped_hour,
    epoch_to_seconds,
    find_repeated_hour,
    format_time,
    split_unit,
    to_seconds,
)
from unfoldkit.arrivals.spreading import (
    describe_suspicion,
    expand_counts,
    expand_rates,
    is_counter_like,
    spread_rounded_times,
)
from unfoldkit.errors import Diagnostic, UnfoldError, user_error
from unfoldkit.safe_io.arrays import parse_npy, read_npz
from unfoldkit.safe_io.files import read_bytes

_HOUR_S = 3600.0
_YEAR_S = 365.25 * 86_400.0
_MAX_SPAN_S = 10 * _YEAR_S
MAX_SCALED = 20_000_000
MIN_NEWEST_FIRST = 10
_FORM_NAMES = {"array": "an array", "log": "a log"}


def read_trace(
    path: Path,
    *,
    column: str | None = None,
    likely: str | None = None,
    counts: str | None = None,
    likely_counts: str | None = None,
    match: str = "",
    rates: str | None = None,
    likely_rates: str | None = None,
    notation: TimeNotation | None = None,
    warn: Warn = ignore_warning,
    on_newest_first: Callable[[], None] | None = None,
    on_unsorted: Callable[[NDArray[np.intp]], None] | None = None,
) -> FloatArray:
    """Read the arrival times of a trace in seconds since its first arrival.

    Text is a table, a log or a JSON document, gzipped or not; its name or its beginning decides which. Timestamps are
    ISO 8601, epoch seconds to nanoseconds, common log format, or as ``notation`` says; see
    :mod:`unfoldkit.arrivals.readers.timestamps`. Counts and rates become arrivals at random moments of their
    interval, and rounded stamps are spread, see :mod:`unfoldkit.arrivals.spreading`.

    Args:
        path: The trace.
        column: The column, JSON field or array of times; without it, the only one or the first usual name.
        likely: The column of times if the table has it.
        counts: The column that counts arrivals per interval; ``""`` for none, ``None`` to go by the names.
        likely_counts: The column of counts if the table has it.
        match: A text that a row or line must contain.
        rates: The column of arrivals per second.
        likely_rates: The column of rates if the table has it.
        notation: How times are written.
        warn: Receives notes about skipped lines and doubtful readings.
        on_newest_first: Called if a table lists its newest row first, as exports of databases do; its rows are
            reversed. Without it, such a table is an error: a caller may read other columns of the rows.
        on_unsorted: Called with the order of the rows if the newest is first, or if they are stamps of a clock in no
            order, as in logs that are written when a request ends. Without it, such a table is an error. Times from 0
            on in no order always are: two traces in one file would become one of twice the rate.

    Raises:
        UnfoldError: A column is missing, a row has no time, there is no arrival, or times go back.
    """
    notation = notation or TimeNotation()
    notation.check()
    columns = TableColumns(
        time=column,
        default_time=likely,
        counts=counts,
        default_counts=likely_counts,
        match=match,
        rates=rates,
        default_rates=likely_rates,
        notation=notation,
    )
    rows = _read_rows(path, columns, warn)
    _check_finite(rows.times, str(path))
    if on_newest_first is not None and _is_newest_first(rows.times):
        rows = reverse_rows(rows)
        on_newest_first()
    if on_unsorted is not None and (_is_newest_first(rows.times) or _may_be_sorted(rows)):
        newest_first = np.arange(rows.times.size)[::-1]
        order = newest_first if _is_newest_first(rows.times) else np.argsort(rows.times, kind="stable")
        if step := describe_clock_step(rows.times):
            warn(f"{path}: {step}")
        rows = reorder_rows(rows, order)
        on_unsorted(order)
    validate_times(rows.times, str(path))
    _check_span(rows.times, str(path))
    if skipped := describe_skipped_hour(rows.times):
        warn(f"{path}: {skipped}")
    if rows.counts is None and rows.rates is None:
        suspicion = describe_suspicion(rows.times, has_unit=rows.has_unit or notation.unit is not None)
        if suspicion:
            warn(f"{path}: {suspicion}")
    return validate_times(_to_arrivals(rows, notation, str(path)), str(path))


def validate_times(times: FloatArray, file: str = "") -> FloatArray:
    """Check that times are sorted and finite, and return them from 0 on.

    Args:
        times: Arrival times in s.
        file: The file to name in errors.

    Raises:
        UnfoldError: The trace is empty, not finite, or goes back in time.
    """
    if times.size == 0:
        raise UnfoldError(Diagnostic("the trace has no arrival", file))
    _check_finite(times, file)
    back = np.flatnonzero(np.diff(times) < 0)
    if back.size:
        index = int(back[0]) + 1
        # an hour that a clock repeats cannot be sorted into the first one
        is_hour = 0.8 * _HOUR_S < times[index - 1] - times[index] <= _HOUR_S
        hint = ZONE_HINT if is_hour else "sort the trace"
        message = f"arrival {index + 1} ({format_time(float(times[index]))}) is before the one above it"
        raise user_error(message, file=file, hint=hint)
    return np.ascontiguousarray(times - times[0])


def _check_finite(times: FloatArray, file: str) -> None:
    infinite = np.flatnonzero(~np.isfinite(times))
    if infinite.size:
        raise user_error(f"arrival {infinite[0] + 1} is not a finite time", file=file)


def _is_newest_first(times: FloatArray) -> bool:
    """Whether no row is later than the one above it; a few rows may be out of order by chance."""
    return bool(times.size >= MIN_NEWEST_FIRST and times[-1] < times[0] and (np.diff(times) <= 0).all())


def _may_be_sorted(rows: TraceRows) -> bool:
    """Whether single arrivals with stamps of a clock are out of order, other than by an hour that it repeats."""
    back_s = -np.diff(rows.times)
    is_single = rows.counts is None and rows.rates is None
    is_stamped = bool(rows.times.size and np.isfinite(rows.times).all() and rows.times.min() >= FIRST_EPOCH_S)
    return is_single and is_stamped and bool((back_s > 0).any()) and find_repeated_hour(rows.times) is None


def _check_span(times: FloatArray, file: str) -> None:
    """Reject a trace with rows in several units: each alone is plausible, together they last for ages.

    Raises:
        UnfoldError: It would last for more than ten years.
    """
    if times[-1] - times[0] <= _MAX_SPAN_S:
        return
    index = int(np.argmax(np.diff(times))) + 1
    years = (times[-1] - times[0]) / _YEAR_S
    message = f"the trace would last {years:,.0f} years: arrival {index + 1} is far from the one above it"
    raise user_error(message, file=file, hint="do all rows have the same unit and origin?")


def compress_time(times: FloatArray, factor: float) -> FloatArray:
    """Replay a trace ``factor`` times as fast: the rate grows, burstiness and the shape of the envelope stay."""
    return times / factor


def cut_window(times: FloatArray, start_s: float, end_s: float) -> FloatArray:
    """Return the arrivals in ``[start_s, end_s)`` as seconds since ``start_s``."""
    low, high = np.searchsorted(times, [start_s, end_s])
    return times[low:high] - start_s


def scale_rate(times: FloatArray, factor: float, rng: np.random.Generator) -> FloatArray:
    """Keep or repeat arrivals at random so that the mean rate is ``factor`` times as high.

    A repeated arrival moves to a random moment of the gap that follows it, so that no two share an instant.
    """
    return scale_rate_with_sources(times, factor, rng)[0]


def scale_rate_with_sources(times: FloatArray, factor: float, rng: np.random.Generator) -> tuple[FloatArray, IntArray]:
    """Scale a trace like :func:`scale_rate`, and return for each arrival the index of the one that it copies.

    Raises:
        UnfoldError: The result would be too long to hold.
    """
    if times.size * factor > MAX_SCALED:
        message = f"scaled by {factor:g}, the trace would have {times.size * factor:,.0f} arrivals"
        raise user_error(message, key="arrivals.scale", hint=f"at most {MAX_SCALED:,}")
    copies = np.floor(factor + rng.random(times.size)).astype(np.int64)
    gaps = np.diff(times, append=times[-1])
    moved = np.repeat(times, copies) + np.repeat(gaps, copies) * rng.random(int(copies.sum()))
    order = np.argsort(moved, kind="stable")
    return moved[order], np.repeat(np.arange(times.size), copies)[order]


def _to_arrivals(rows: TraceRows, notation: TimeNotation, file: str) -> FloatArray:
    rng = np.random.default_rng(0)
    if rows.rates is not None:
        return expand_rates(rows.times, rows.rates, rng, file=file, key=rows.column)
    if rows.counts is not None:
        return expand_counts(rows.times, rows.counts, rng, file=file, key=rows.column)
    return spread_rounded_times(rows.times, rng, unit_s=notation.unit_s or 0.0)


def _read_rows(path: Path, columns: TableColumns, warn: Warn) -> TraceRows:
    form = detect_form(path, columns.time, columns.notation)
    stated = columns.rates or columns.counts
    if stated and form in ("array", "log"):
        message = f"only a table has counts or rates, and this is read as {_FORM_NAMES[form]}"
        raise user_error(message, file=str(path), key=stated)
    if form == "array":
        return TraceRows(_read_array(path, columns.time, columns.notation))
    if form == "log":
        rows = TraceRows(read_log(path, columns.match, columns.time, columns.notation, warn))
        return rows if has_log_name(path) else _require_several(rows, path)
    readers = {"document": read_document, "parquet": read_parquet, "table": read_table}
    rows = readers[form](path, columns)
    rows = _require_several(rows, path) if form == "document" else rows
    if rows.by_name:
        meaning = "arrivals by interval" if rows.rates is None else "a rate of arrivals"
        warn(f"{path}: column {rows.column} is read as {meaning}; counts: '' reads each row as one")
    if rows.rates is not None and is_counter_like(rows.rates):
        warn(f"{path}: {rows.column} never falls; if it is a counter, give its rate(...) instead")
    return rows


def _require_several(rows: TraceRows, path: Path) -> TraceRows:
    """Reject the single time of a document: it is the start of a test that the document summarizes."""
    if rows.times.size == 1 and rows.counts is None and rows.rates is None:
        hint = "a summary has no arrival times: export a line for each request, or counts by interval"
        raise user_error("the file holds a single time", file=str(path), hint=hint)
    return rows


def _read_array(path: Path, name: str | None, notation: TimeNotation) -> FloatArray:
    try:
        data = _load_arrays(path)
        if isinstance(data, np.ndarray):
            return _convert_array(_flatten(data, path), "", notation, path)
        names = list(data)
        key = name or _time_key(names)
        if key not in names:
            message = f"no array {key or 'of arrival times'}"
            raise user_error(message, file=str(path), hint=f"it has: {', '.join(names)}")
        return _convert_array(_flatten(data[key], path), key, notation, path)
    except (TypeError, ValueError, OverflowError) as error:
        raise user_error(f"cannot read the arrays: {error}", file=str(path)) from error


def _load_arrays(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    content = read_bytes(path)
    try:
        return read_npz(content) if content.startswith(b"PK") else parse_npy(content)
    except UnfoldError as error:
        raise user_error(f"cannot read the arrays: {error.diagnostics[0].message}", file=str(path)) from error


def _convert_array(numbers: FloatArray, name: str, notation: TimeNotation, path: Path) -> FloatArray:
    stem, column_unit_s = split_unit(name)
    unit_s = notation.unit_s or column_unit_s
    times = to_seconds(numbers, unit_s or 1.0)
    if stem in GAP_COLUMNS:
        return np.cumsum(times)
    if notation.unit:
        return times
    is_doubtful = unit_s is None and times.size > 0
    return notation.convert_numbers(times, name, str(path)) if is_doubtful else epoch_to_seconds(times)


def _flatten(data: np.ndarray, path: Path) -> FloatArray:
    """Return the numbers of an array that is a row or a column."""
    if data.size != max(data.shape, default=1):
        shape = " x ".join(map(str, data.shape))
        message = f"the array is {shape}; times are one number per arrival"
        raise user_error(message, file=str(path), hint="keep the column of times")
    return data.astype(np.float64).ravel()


def _time_key(names: list[str]) -> str:
    usual = [name for name in COLUMNS if name in names] or [name for name in names if split_unit(name)[0] in COLUMNS]
    return usual[0] if usual else names[0] if len(names) == 1 else ""
