"""Spread arrivals of which only the second, minute or interval is known by chance over it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unfoldkit.arrivals.readers.dates import is_serial_like
from unfoldkit.arrivals.readers.timestamps import Times
from unfoldkit.errors import user_error

MOST = 100_000_000
"""Arrivals that counts may stand for; more would not fit into memory beside their plan."""
_GRAINS = (60.0, 1.0)
_PRESENT_S = 1e8
_ROWS = 50
_INSTANTS = 10
_REPEATED = 0.2
_CLOCK = 0.5
_CLOCKED = 10
_DAY_S, _HOUR_S = 86400.0, 3600.0
_SPARSE_S = 5.0


def spread(times: Times, rng: np.random.Generator) -> Times:
    """Return times that are whole minutes or seconds, several of them alike, at random moments within these.

    Taken as they stand, all requests of a second would come at one instant, a burst that never was. Times since 1970
    are a server's stamps, and one repeat is enough. Seconds that count from elsewhere are taken as rounded where more
    than 50 arrivals stand at more than 10 instants, a fifth or more of them at that of the one before, and the instants
    lie on no coarser grid than seconds, or else minutes: fewer, or one every 5 s, were chosen. Others stay as they are.
    """
    if times.size < 2 or times[-1] == times[0] or (np.diff(times) > 0).all():
        return times
    grain = _stamped(times) if times[0] >= _PRESENT_S else _rounded(times)
    return np.sort(times + grain * rng.random(times.size)) if grain else times


def expand(times: Times, counts: NDArray[np.int64], rng: np.random.Generator, *, file: str, key: str) -> Times:
    """Return so many arrivals for each time, at random moments from it to the next one; times are sorted.

    The last interval, and any before a gap of a clock that is otherwise even, is as long as is usual.

    Raises:
        UnfoldError: there is but one interval, or there are too many arrivals.
    """
    marks, first, widths = _intervals(times, file, key)
    totals = np.add.reduceat(counts, first)
    _refuse_many(float(totals.sum(dtype=np.float64)), file, key)
    return _placed(marks, widths, totals, rng)


def paced(times: Times, rates: Times, rng: np.random.Generator, *, file: str, key: str) -> Times:
    """Return arrivals at the rates a second that hold from each time to the next one; times are sorted.

    Each interval gets what its rate makes of its length, a part of an arrival being carried over to the next; within
    it they come at random moments, as those of :func:`expand`.

    Raises:
        UnfoldError: there is but one interval, or there are too many arrivals.
    """
    marks, first, widths = _intervals(times, file, key)
    expected = np.cumsum(np.add.reduceat(rates, first) * widths)
    _refuse_many(float(expected[-1]), file, key)
    totals = np.diff(np.floor(expected + 0.5), prepend=0.0).astype(np.int64)
    return _placed(marks, widths, totals, rng)


def _intervals(times: Times, file: str, key: str) -> tuple[Times, NDArray[np.int64], Times]:
    marks, first = np.unique(times, return_index=True)
    if marks.size < 2:
        raise user_error(
            "counts at one time only: their interval is not known", file=file, key=key, hint="two rows or more"
        )
    return marks, first, _widths(marks)


def _refuse_many(total: float, file: str, key: str) -> None:
    if total > MOST:
        hint = f"at most {MOST:,}; a shorter trace, or arrivals.match"
        raise user_error(f"{total:,.0f} arrivals are too many to plan with", file=file, key=key, hint=hint)


def _placed(marks: Times, widths: Times, totals: NDArray[np.int64], rng: np.random.Generator) -> Times:
    start = np.repeat(marks, totals)
    return np.sort(start + np.repeat(widths, totals) * rng.random(start.size))


def doubtful(times: Times) -> str:
    """Return what may have been misread in sorted arrivals, in words; empty where nothing tells so.

    Rows that keep a clock are counts more often than arrivals, and whole numbers over days, or over hours if they come
    far apart, may be milliseconds.
    """
    gaps = np.diff(times)
    if times.size >= _CLOCKED and gaps.min() >= 1 and np.ptp(gaps) <= 1e-6 * gaps[0]:
        return (
            f"a row every {gaps[0]:,.6g} s, each taken as one arrival; arrivals.counts names a column that counts them"
        )
    span = float(times[-1] - times[0])
    if times[0] < _PRESENT_S and _long(times.size, span) and not (times % 1).any():
        lasted = f"{span / _DAY_S:,.1f} days" if span > _DAY_S else f"{span / _HOUR_S:,.1f} hours"
        more = "if they are milliseconds, call the column time_ms or set compress: 1000"
        return f"read as seconds: {times.size:,} arrivals in {lasted}; {more}"
    if times.size > 1 and is_serial_like(times):
        return f"read as seconds: {span:,.3g} s in all; if they are days of a spreadsheet, call the column date"
    return ""


def _long(arrivals: int, span: float) -> bool:
    return span > _DAY_S or (span > _HOUR_S and span > _SPARSE_S * arrivals)


def counter_like(rates: Times) -> bool:
    """Return whether rates are whole numbers that rise and never fall, as those of a counter do."""
    steps = np.diff(rates)
    return bool(rates.size >= _CLOCKED and (steps >= 0).all() and rates[-1] > rates[0] and not (rates % 1).any())


def _stamped(times: Times) -> float:
    return next((grain for grain in _GRAINS if not (times % grain).any()), 0.0)


def _rounded(times: Times) -> float:
    gaps = np.diff(times)
    instants = int((gaps > 0).sum()) + 1
    if times.size <= _ROWS or instants <= _INSTANTS or (gaps == 0).mean() < _REPEATED or (times % 1).any():
        return 0.0
    step = float(np.gcd.reduce(gaps.astype(np.int64)))
    return step if step in _GRAINS else 0.0


def _widths(marks: Times) -> Times:
    gaps = np.diff(marks)
    usual = float(np.median(gaps))
    steps = gaps / usual
    even = np.isclose(gaps, usual).mean() >= _CLOCK and np.isclose(steps, np.round(steps), atol=1e-6).all()
    return np.full(marks.size, usual) if even else np.append(gaps, usual)
