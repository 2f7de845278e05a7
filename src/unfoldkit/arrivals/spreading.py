"""Spread arrivals evenly over the second, minute or interval to which a trace has rounded them."""

from __future__ import annotations

import numpy as np

from unfoldkit._types import FloatArray, IntArray
from unfoldkit.arrivals.readers.timestamps import FIRST_EPOCH_S, MIN_REPEATED
from unfoldkit.errors import user_error

MAX_ARRIVALS = 100_000_000
"""Counts may stand for so many arrivals; more would not fit into memory beside their plan."""
_STAMP_RESOLUTIONS_S = (60.0, 1.0)
_SAME_GAP = 0.5
_MIN_ROWS = 10


def spread_rounded_times(times: FloatArray, rng: np.random.Generator, *, unit_s: float = 0.0) -> FloatArray:
    """Move arrivals that share a rounded time to random moments within its resolution.

    Without it, all requests of one second would arrive at one instant, a burst that never happened. Two cases are
    rounded by definition: stamps since 1970 that are whole minutes or seconds, and multiples of an explicit unit of at
    least a second. Other times stay as they are.

    Args:
        times: Sorted times in s.
        rng: Source of randomness.
        unit_s: The unit of the numbers in s, if the spec states it, else 0.
    """
    if times.size < 2 or times[-1] == times[0] or (np.diff(times) > 0).all():
        return times
    resolutions = _STAMP_RESOLUTIONS_S if times[0] >= FIRST_EPOCH_S else (unit_s,) if unit_s >= 1 else ()
    resolution = next((each for each in resolutions if not (times % each).any()), 0.0)
    return np.sort(times + resolution * rng.random(times.size)) if resolution else times


def expand_counts(times: FloatArray, counts: IntArray, rng: np.random.Generator, *, file: str, key: str) -> FloatArray:
    """Draw ``counts[i]`` arrivals at random moments between ``times[i]`` and the next time.

    The last interval, and an interval before a gap of an otherwise regular clock, has the usual length.

    Raises:
        UnfoldError: There is only one interval, or there are too many arrivals.
    """
    intervals = _split_intervals(times, file, key)
    totals = np.add.reduceat(counts, intervals[1])
    _check_total(float(totals.sum(dtype=np.float64)), file, key)
    return _draw_within(intervals[0], intervals[2], totals, rng)


def expand_rates(times: FloatArray, rates: FloatArray, rng: np.random.Generator, *, file: str, key: str) -> FloatArray:
    """Draw arrivals at the rate per second ``rates[i]`` between ``times[i]`` and the next time.

    A fraction of an arrival is carried over to the next interval. Within an interval, arrivals come at random moments.

    Raises:
        UnfoldError: There is only one interval, or there are too many arrivals.
    """
    marks, first, widths = _split_intervals(times, file, key)
    expected = np.cumsum(np.add.reduceat(rates, first) * widths)
    _check_total(float(expected[-1]), file, key)
    totals = np.diff(np.floor(expected + 0.5), prepend=0.0).astype(np.int64)
    return _draw_within(marks, widths, totals, rng)


def describe_suspicion(times: FloatArray, *, has_unit: bool = False) -> str:
    """Describe how sorted arrivals may have been misread; empty if nothing looks suspicious.

    Rows at a regular interval are usually counts, and repeated whole seconds are usually rounded. Numbers without any
    unit are checked before, see :func:`~unfoldkit.arrivals.readers.timestamps.describe_unit_doubt`.

    Args:
        times: Sorted times in s.
        has_unit: Whether the spec states the unit of the numbers.
    """
    gaps = np.diff(times)
    if times.size >= _MIN_ROWS and gaps.min() >= 1 and np.ptp(gaps) <= 1e-6 * gaps[0]:
        return f"a row every {gaps[0]:,.6g} s, each read as one arrival; arrivals.counts names a column of counts"
    if has_unit or times[0] >= FIRST_EPOCH_S or times[-1] == times[0] or (times % 1).any():
        return ""
    if times.size > _MIN_ROWS and (gaps == 0).mean() >= MIN_REPEATED:
        return "whole seconds, many of them repeated; if they are rounded, set arrivals.unit: s to spread them"
    return ""


def is_counter_like(rates: FloatArray) -> bool:
    """Whether rates are whole numbers that rise and never fall, like the readings of a counter."""
    steps = np.diff(rates)
    return bool(rates.size >= _MIN_ROWS and (steps >= 0).all() and rates[-1] > rates[0] and not (rates % 1).any())


def _split_intervals(times: FloatArray, file: str, key: str) -> tuple[FloatArray, IntArray, FloatArray]:
    marks, first = np.unique(times, return_index=True)
    if marks.size < 2:
        message = "counts at a single time have no interval"
        raise user_error(message, file=file, key=key, hint="give two rows or more")
    return marks, first, _interval_widths(marks)


def _check_total(total: float, file: str, key: str) -> None:
    if total > MAX_ARRIVALS:
        hint = f"at most {MAX_ARRIVALS:,}; a shorter trace, or arrivals.match"
        raise user_error(f"{total:,.0f} arrivals are too many to plan with", file=file, key=key, hint=hint)


def _draw_within(marks: FloatArray, widths: FloatArray, totals: IntArray, rng: np.random.Generator) -> FloatArray:
    start = np.repeat(marks, totals)
    return np.sort(start + np.repeat(widths, totals) * rng.random(start.size))


def _interval_widths(marks: FloatArray) -> FloatArray:
    gaps = np.diff(marks)
    usual = float(np.median(gaps))
    steps = gaps / usual
    regular = np.isclose(gaps, usual).mean() >= _SAME_GAP and np.isclose(steps, np.round(steps), atol=1e-6).all()
    return np.full(marks.size, usual) if regular else np.append(gaps, usual)
