"""Demand of a deployment that this project does not serve: arrivals between the samples of its counters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from unfold_pipeline._types import FloatArray

MAX_ARRIVALS = 20_000_000
"""A counter that grows by more in three minutes counts something else."""
MIN_KNOWN_S = 1.0
SCRAPES_UNTIL_ENDED = 2.5
"""A series without a sample for so many of its intervals belongs to a replica that has ended."""


class SignalError(Exception):
    """The demand is unknown: ``reason`` is a short label, the text a sentence."""

    def __init__(self, reason: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.reason, self.hint = reason, hint


@dataclass(frozen=True, slots=True)
class CounterSeries:
    """Samples of one counter: ascending Unix seconds, and its values; shape (samples,)."""

    times_s: FloatArray
    values: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a deployment was asked for recently.

    Attributes:
        arrivals_s: Arrival of each query in Unix seconds, sorted, none after ``until_s``.
        until_s: Up to when all arrivals are known, in Unix seconds.
        age_s: How long ago that is.
        queued: Items that wait at each stage, NaN where that is unknown; shape (stages,).
        since_s: From when on they are known, in Unix seconds.
        gap: Why arrivals may be missing, so that the demand may be larger; empty if none are.
    """

    arrivals_s: FloatArray
    until_s: float
    age_s: float
    queued: FloatArray
    since_s: float = -math.inf
    gap: str = ""

    def mean_rate(self, window_s: float) -> float:
        """Return the queries per second of the last ``window_s`` seconds, or of those that are known."""
        known_s = min(window_s, max(self.until_s - self.since_s, MIN_KNOWN_S))
        recent = self.arrivals_s.size - np.searchsorted(self.arrivals_s, self.until_s - known_s, "right")
        return float(recent / known_s)


class DemandSource(Protocol):
    """Reads the demand of a deployment."""

    @property
    def location(self) -> str:
        """What is read, in words."""

    def read(self) -> Demand:
        """Return the demand of the last minutes.

        Raises:
            SignalError: It is unknown.
        """


def spread_arrivals(series: Sequence[CounterSeries]) -> tuple[FloatArray, float]:
    """Return the arrivals that counters stand for, and up to when all of them are known, in Unix seconds.

    The queries between two samples are spread evenly over the time between them. A counter that falls was reset to 0,
    as in PromQL's ``increase``; what a series counted before its first sample is left out, also as there.

    Raises:
        SignalError: No series has two samples, the newest of a series is no number, one is negative, or they count too
            much.
    """
    if not all(math.isfinite(item.values[-1]) for item in series if item.values.size):
        raise SignalError("implausible", "the newest sample of a counter is no finite number")
    known = [item for item in map(_drop_invalid, series) if item.times_s.size > 1]
    if not known:
        raise SignalError("no data", "no counter has two samples yet")
    newest_s = max(float(item.times_s[-1]) for item in known)
    until_s = min(float(item.times_s[-1]) for item in known if not has_ended(item, newest_s))
    arrivals = np.sort(np.concatenate([_spread_series(item) for item in known]))
    return arrivals[: np.searchsorted(arrivals, until_s, "right")], until_s


def find_first_sample(series: Sequence[CounterSeries]) -> float:
    """Return from when on the arrivals of counters are known, in Unix seconds: the first of two samples."""
    return min((float(item.times_s[0]) for item in series if item.times_s.size > 1), default=-math.inf)


def _drop_invalid(series: CounterSeries) -> CounterSeries:
    is_valid = np.isfinite(series.values) & np.isfinite(series.times_s)
    return CounterSeries(series.times_s[is_valid], series.values[is_valid])


def has_ended(series: CounterSeries, newest_s: float) -> bool:
    """Return whether a counter of two samples or more lacks those of its last intervals before ``newest_s``."""
    interval_s = float(np.median(np.diff(series.times_s)))
    return float(series.times_s[-1]) < newest_s - SCRAPES_UNTIL_ENDED * interval_s


def _spread_series(series: CounterSeries) -> FloatArray:
    if series.values.min() < 0:
        message = f"a counter was {series.values.min():.3g}, and no number of queries is negative"
        raise SignalError("implausible", message, "select a counter of queries")
    growth = np.diff(series.values)
    growth = np.where(growth < 0, series.values[1:], growth)
    counted = np.concatenate([[0.0], np.cumsum(growth)])
    if counted[-1] > MAX_ARRIVALS:
        message = f"a counter grew by {counted[-1]:.3g} queries in {np.ptp(series.times_s):.0f} s"
        raise SignalError("implausible", message, "select a counter of queries")
    positions = np.arange(math.floor(counted[-1])) + 0.5
    return np.interp(positions, counted, series.times_s)
