"""Read arrival times from files: tables, logs and arrays; and cut, stretch and thin what was read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unfoldkit.arrivals.jitter import counter_like, doubtful, expand, paced, spread
from unfoldkit.arrivals.readers.detect import form
from unfoldkit.arrivals.readers.json_document import read_document
from unfoldkit.arrivals.readers.log import Tell, read_log, unheard
from unfoldkit.arrivals.readers.table import GAPS, Columns, Found, read_table
from unfoldkit.arrivals.readers.timestamps import COLUMNS, Times, in_seconds, present, unit
from unfoldkit.errors import Diagnostic, UnfoldError, user_error
from unfoldkit.safe_io.arrays import parse_npy, read_npz
from unfoldkit.safe_io.files import read_bytes

_HOUR_S = 3600.0
_WORDS = {"array": "an array", "log": "a log"}


def read(
    path: Path,
    *,
    column: str | None = None,
    likely: str | None = None,
    counts: str | None = None,
    likely_counts: str | None = None,
    match: str = "",
    rates: str | None = None,
    likely_rates: str | None = None,
    tell: Tell = unheard,
) -> Times:
    """Return the arrival times of a trace in seconds since its first arrival.

    Text is a table or a log, gzipped or not. Its name tells (``.csv``; ``.log``, ``.log.1``, ``.log-20231116``,
    ``.jsonl``), and where it does not, its beginning.

    A table takes ``column``, its only one, or the first of ``likely``, ``arrival_s``, ``timestamp``, ... in any case
    and with a unit (``time_ms``). Where the column ``counts`` (or one called ``count``, ``requests``, ...; ``""`` means
    none) counts arrivals by interval, so many are spread by chance up to the next time; ``rates``, or a column called
    ``rps``, ``requests_per_second``, ..., tells how many come in a second of it. Tables of functions and
    minutes, as those of Azure Functions, are summed. A log (``readers/log.py``) may stand in the order in
    which requests ended. ``.npz`` takes the array ``column`` or its only one. Only rows and lines that hold ``match``
    are read. Large numbers are milli-, micro- or nanoseconds since 1970, others seconds. Times of whole seconds or
    minutes are spread over these, see :func:`unfoldkit.arrivals.jitter.spread`.

    ``tell`` is given in words what was left out or taken for something that it might not be.

    Raises:
        UnfoldError: no such column, a row without a time, no arrival at all, or times that go back.
    """
    found = _found(path, Columns(column, likely, counts, likely_counts, match, rates, likely_rates), tell)
    check(found.times, str(path))
    if found.counts is None and found.rates is None and (doubt := doubtful(found.times)):
        tell(f"{path}: {doubt}")
    return check(_arrivals(found, str(path)), str(path))


def _arrivals(found: Found, file: str) -> Times:
    rng = np.random.default_rng(0)
    if found.rates is not None:
        return paced(found.times, found.rates, rng, file=file, key=found.column)
    if found.counts is not None:
        return expand(found.times, found.counts, rng, file=file, key=found.column)
    return spread(found.times, rng)


def _found(path: Path, columns: Columns, tell: Tell) -> Found:
    which = form(path, columns.time)
    if (asked := columns.rates or columns.counts) and which in ("array", "log"):
        raise user_error(
            f"only a table has counts or rates, and this is read as {_WORDS[which]}", file=str(path), key=asked
        )
    if which == "array":
        return Found(_arrays(path, columns.time))
    if which == "log":
        return Found(read_log(path, columns.match, columns.time, tell))
    found = read_document(path, columns) if which == "document" else read_table(path, columns)
    if found.guessed:
        how = "arrivals by interval" if found.rates is None else "a rate of arrivals"
        tell(f"{path}: column {found.column} is read as {how}; counts: '' takes each row as one")
    if found.rates is not None and counter_like(found.rates):
        tell(f"{path}: {found.column} never falls; if it counts from a start, give its rate(...) in its place")
    return found


def check(times: Times, file: str = "", *, line: int = 0) -> Times:
    """Return the times from 0 on.

    Raises:
        UnfoldError: the trace is empty, not finite, or goes back in time (``line`` is that of the first arrival).
    """
    if times.size == 0:
        raise UnfoldError(Diagnostic("the trace has no arrival", file, line, 1 if line else 0))
    bad = np.flatnonzero(~np.isfinite(times))
    if bad.size:
        raise user_error(f"arrival {bad[0] + 1} is not a finite time", file=file)
    back = np.flatnonzero(np.diff(times) < 0)
    if back.size:
        at = int(back[0]) + 1
        # a second hour of the same name cannot be sorted into the first
        winter = _HOUR_S * 0.8 < times[at - 1] - times[at] <= _HOUR_S
        hint = "an hour back, as winter time begins? write the times in UTC" if winter else "sort the trace"
        raise user_error(f"arrival {at + 1} ({times[at]:g} s) is before the one above it", file=file, hint=hint)
    return np.ascontiguousarray(times - times[0])


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
    return scaled(times, factor, rng)[0]


def scaled(times: Times, factor: float, rng: np.random.Generator) -> tuple[Times, NDArray[np.int64]]:
    """Return a trace as :func:`scale` does, and for each of its arrivals the place in ``times`` that it was made of."""
    copies = np.floor(factor + rng.random(times.size)).astype(np.int64)
    gaps = np.diff(times, append=times[-1])
    moved = np.repeat(times, copies) + np.repeat(gaps, copies) * rng.random(int(copies.sum()))
    order = np.argsort(moved, kind="stable")
    return moved[order], np.repeat(np.arange(times.size), copies)[order]


def _arrays(path: Path, name: str | None) -> Times:
    try:
        data = _stored(path)
        if isinstance(data, np.ndarray):
            return present(_line(data, path))
        names = list(data)
        key = name or _key(names)
        if key not in names:
            raise user_error(
                f"no array {key or 'of arrival times'}", file=str(path), hint=f"it has: {', '.join(names)}"
            )
        base, seconds = unit(key)
        times = in_seconds(_line(data[key], path), seconds or 1.0)
        return np.cumsum(times) if base in GAPS else present(times)
    except (TypeError, ValueError, OverflowError) as error:
        raise user_error(f"cannot read the arrays: {error}", file=str(path)) from error


def _stored(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    content = read_bytes(path)
    try:
        return read_npz(content) if content.startswith(b"PK") else parse_npy(content)
    except UnfoldError as error:
        raise user_error(f"cannot read the arrays: {error.diagnostics[0].message}", file=str(path)) from error


def _line(data: np.ndarray, path: Path) -> Times:
    """Return the numbers of an array, which may stand in a row or a column, but not in several."""
    if data.size != max(data.shape, default=1):
        shape = " x ".join(map(str, data.shape))
        raise user_error(
            f"the array is {shape}; times are one number an arrival", file=str(path), hint="keep its column"
        )
    return data.astype(np.float64).ravel()


def _key(names: list[str]) -> str:
    usual = [name for name in COLUMNS if name in names] or [name for name in names if unit(name)[0] in COLUMNS]
    return usual[0] if usual else names[0] if len(names) == 1 else ""
