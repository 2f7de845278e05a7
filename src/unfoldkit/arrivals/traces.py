"""Read arrival times from files: CSV, NPZ, NPY, access logs; each also gzipped where it is text."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfoldkit.csvfile import UNREADABLE, csv_lines, open_text
from unfoldkit.errors import Diagnostic, UnfoldError, did_you_mean, fail

Times = NDArray[np.float64]
COLUMNS = ("arrival_s", "arrival", "arrival_time", "time_s", "timestamp", "time", "ts", "datetime", "date")
_EPOCHS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
_CLF = re.compile(r"\[(\d{2}/[A-Za-z]{3}/\d{4}:\d{2}:\d{2}:\d{2})(\.\d+)? ([+-]\d{4})\]")
_ISO = re.compile(r"(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2}:\d{2})([.,]\d+)?\s*(Z|[+-]\d{2}:?\d{2})?")
_GRAINS = (60.0, 1.0)
_PRESENT_S = 1e8
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")


def read(path: Path, *, column: str | None = None, likely: str | None = None, match: str = "") -> Times:
    """Return the arrival times of a trace in seconds since its first arrival.

    ``.csv`` takes ``column``, its only one, or the first of ``likely``, ``arrival_s``, ``timestamp``, ... in any case;
    ``.npz`` takes the array ``column`` or its only one; ``.log`` (also rotated: ``.log.1``) is an access log (common
    log format, or lines with an ISO 8601 time), whose lines may stand in the order in which requests ended; only those
    that hold ``match`` are read. Text may be gzipped. Large numbers are milli-, micro- or nanoseconds since 1970, other
    ones seconds. Where times of day are whole seconds or minutes, as most servers log them, see :func:`spread`.

    Raises:
        UnfoldError: no such column, a line without a time, no arrival at all, or times that go back.
    """
    names = [item for item in path.suffixes if item != ".gz" and not item[1:].isdigit()]
    suffix = names[-1] if names else path.suffix
    readers: dict[str, Callable[[], Times]] = {
        ".csv": lambda: _csv(path, column, likely),
        ".npz": lambda: _arrays(path, column),
        ".npy": lambda: _arrays(path, column),
        ".log": lambda: np.sort(_log(path, match)),
    }
    if suffix not in readers:
        raise fail(
            f"cannot read a trace that ends in {suffix!r}", file=str(path), hint="one of: .csv, .log, .npy, .npz"
        )
    times = _seconds(readers[suffix]())
    check(times, str(path))
    return check(spread(times, np.random.default_rng(0)))


def spread(times: Times, rng: np.random.Generator) -> Times:
    """Return times of day that are whole minutes or seconds, several of them alike, at random moments within these.

    Taken as they stand, all requests of a second would come at one instant, a burst that never was. Other times are
    returned as they are, and so are seconds that do not count from 1970, which are no server's stamps.
    """
    if times.size < 2 or times[0] < _PRESENT_S or times[-1] == times[0] or (np.diff(times) > 0).all():
        return times
    grain = next((item for item in _GRAINS if not (times % item).any()), 0.0)
    return np.sort(times + grain * rng.random(times.size)) if grain else times


def check(times: Times, file: str = "", *, line: int = 0) -> Times:
    """Return the times from 0 on.

    Raises:
        UnfoldError: the trace is empty, not finite, or goes back in time (``line`` is that of the first arrival).
    """
    if times.size == 0:
        raise UnfoldError(Diagnostic("the trace has no arrival", file, line, 1 if line else 0))
    bad = np.flatnonzero(~np.isfinite(times))
    if bad.size:
        raise fail(f"arrival {bad[0] + 1} is not a finite time", file=file)
    back = np.flatnonzero(np.diff(times) < 0)
    if back.size:
        at = int(back[0]) + 1
        raise fail(f"arrival {at + 1} ({times[at]:g} s) is before the one above it", file=file, hint="sort the trace")
    return np.ascontiguousarray(times - times[0])


def _seconds(times: Times) -> Times:
    """Return times of the present in seconds: as such they would lie thousands of years ahead."""
    first = float(times[0]) if times.size else 0.0
    return times / next((unit for least, unit in _EPOCHS if first >= least), 1.0)


def compress(times: Times, factor: float) -> Times:
    """Return the trace played ``factor`` times as fast: the rate grows, burstiness and envelope shape stay."""
    return times / factor


def window(times: Times, start: float, end: float) -> Times:
    """Return the arrivals in ``[start, end)`` as seconds since ``start``."""
    low, high = np.searchsorted(times, [start, end])
    return times[low:high] - start


def split(times: Times, share: float) -> tuple[Times, Times]:
    """Return the first ``share`` of the time span, and the rest from 0 on."""
    span = float(times[-1])
    return window(times, 0.0, span * share), window(times, span * share, np.inf)


def scale(times: Times, factor: float, rng: np.random.Generator) -> Times:
    """Return the trace with every arrival kept or repeated so that the mean rate is ``factor`` as high.

    A repeated arrival is moved evenly within the gap that follows it, so no two of them stand at one instant.
    """
    copies = np.floor(factor + rng.random(times.size)).astype(np.int64)
    gaps = np.diff(times, append=times[-1])
    moved = np.repeat(times, copies) + np.repeat(gaps, copies) * rng.random(int(copies.sum()))
    return np.sort(moved)


def _csv(path: Path, column: str | None, likely: str | None = None) -> Times:
    try:
        with open_text(path) as stream:
            lines = csv_lines(stream)
            head = next(lines, (0, []))[1]
            if column is None and head and _NUMBER.fullmatch(head[0].strip()):
                return np.array([float(head[0]), *_cells(lines, 0, path)])
            return np.fromiter(_cells(lines, _place(head, column, likely, path), path), np.float64)
    except UNREADABLE as error:
        raise fail(f"cannot read the trace: {error}", file=str(path)) from error


def _place(head: list[str], column: str | None, likely: str | None, path: Path) -> int:
    names = [name.strip() for name in head]
    known = names if column else [name.lower() for name in names]
    if likely in names and not column:
        return names.index(likely)
    for name in (column,) if column else COLUMNS:
        if name in known:
            return known.index(name)
    if len(names) == 1 and not column:
        return 0
    hint = (
        did_you_mean(column, names)
        if column
        else f"it has: {', '.join(names[:12])}; wanted one of: {', '.join(COLUMNS)}"
    )
    raise UnfoldError(Diagnostic(f"no column {column or 'of arrival times'}", str(path), 1, 1, hint=hint))


def _cells(lines: Iterator[tuple[int, list[str]]], place: int, path: Path) -> Iterator[float]:
    for line, row in lines:
        if place >= len(row):
            raise UnfoldError(Diagnostic(f"the row has {len(row)} cells", str(path), line, 1))
        yield _time(row[place].strip(), path, line)


def _time(text: str, path: Path, line: int) -> float:
    if _NUMBER.fullmatch(text):
        return float(text)
    found = _stamp(text)
    if found is None:
        message = f"{text[:40]!r} is not a time"
        hint = "seconds (12.5) or ISO 8601 (2023-11-16 18:17:03.97)"
        raise UnfoldError(Diagnostic(message, str(path), line, 1, hint=hint))
    return found


def _log(path: Path, match: str) -> Times:
    try:
        with open_text(path) as stream:
            lines = ((line, text) for line, text in enumerate(stream, 1) if text.strip() and match in text)
            return np.fromiter((_time_in(text, path, line) for line, text in lines), float)
    except UNREADABLE as error:
        raise fail(f"cannot read the log: {error}", file=str(path)) from error


def _time_in(text: str, path: Path, line: int) -> float:
    found = _CLF.search(text)
    if found:
        whole = datetime.strptime(f"{found[1]} {found[3]}", "%d/%b/%Y:%H:%M:%S %z").timestamp()
        return whole + float(found[2] or 0.0)
    stamp = _stamp(text)
    if stamp is None:
        hint = "common log format or ISO 8601"
        raise UnfoldError(Diagnostic("no time in this line", str(path), line, 1, hint=hint))
    return stamp


def _stamp(text: str) -> float | None:
    found = _ISO.search(text)
    if not found:
        return None
    zone = (found[4] or "Z").replace("Z", "+0000").replace(":", "")
    # fractions of seven digits are usual in cloud traces, and strptime takes six
    whole = datetime.strptime(f"{found[1]} {found[2]} {zone}", "%Y-%m-%d %H:%M:%S %z").timestamp()
    return whole + float((found[3] or "0").replace(",", "."))


def _arrays(path: Path, name: str | None) -> Times:
    try:
        data = np.load(path, allow_pickle=False)
        if isinstance(data, np.ndarray):
            return data.astype(np.float64).ravel()
        key = name or next((key for key in COLUMNS if key in data.files), data.files[0] if len(data.files) == 1 else "")
        if key not in data.files:
            raise fail(f"no array {key or 'of arrival times'}", file=str(path), hint=f"it has: {', '.join(data.files)}")
        return np.asarray(data[key], dtype=np.float64).ravel()
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise fail(f"cannot read the arrays: {error}", file=str(path)) from error
