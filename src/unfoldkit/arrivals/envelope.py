"""Traffic envelopes: the most queries in any window of each length (InferLine, section on high-frequency tuning)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unfoldkit.jit import compiled

Times = NDArray[np.float64]
Counts = NDArray[np.int64]
LONGEST_S = 60.0


def windows(shortest: float, longest: float = LONGEST_S) -> Times:
    """Return window lengths in seconds: ``shortest``, doubled while below ``longest``, and ``longest`` itself."""
    lengths = [shortest]
    while lengths[-1] * 2 < longest:
        lengths.append(lengths[-1] * 2)
    return np.array(lengths if lengths[-1] >= longest else [*lengths, longest])


def envelope(times: Times, lengths: Times) -> Counts:
    """Return the largest number of arrivals in any ``[t, t + length)``, for each length; O(n) a length."""
    return np.array([_most(times, float(length)) for length in lengths], dtype=np.int64)


def first_excess(times: Times, lengths: Times, counts: Counts) -> tuple[float, float, int] | None:
    """Return ``(start, length, count)`` of the first window with more arrivals than ``counts`` allow, or ``None``."""
    found = [
        (float(times[at]), float(length), _count_from(times, at, float(length)))
        for length, most in zip(lengths, counts, strict=True)
        if (at := _first_above(times, float(length), int(most))) >= 0
    ]
    return min(found, default=None)


def live(times: Times, lengths: Times, instants: Times) -> Counts:
    """Return what :class:`LiveEnvelope` reads at each instant; shape (instants, lengths), compiled."""
    out = np.zeros((instants.size, lengths.size), dtype=np.int64)
    for index, length in enumerate(lengths):
        _live(times, float(length), instants, out[:, index])
    return out


class LiveEnvelope:
    """The envelope of the recent past, kept up to date arrival by arrival.

    Holds the arrivals of the longest window and one monotone pointer a window: O(1) an arrival and window, amortised.
    """

    __slots__ = ("_lengths", "_peaks", "_starts", "_times")

    def __init__(self, lengths: Sequence[float]) -> None:
        self._lengths = tuple(lengths)
        self._times: list[float] = []
        self._starts = [0] * len(self._lengths)
        self._peaks = [0] * len(self._lengths)

    def add(self, time: float) -> None:
        """Take an arrival; times must not go back."""
        self._times.append(time)
        for index, length in enumerate(self._lengths):
            self._move(index, time - length)
            self._peaks[index] = max(self._peaks[index], len(self._times) - self._starts[index])
        self._forget()

    def read(self, now: float) -> tuple[int, ...]:
        """Return, for each window, the most arrivals in any ``(t - length, t]`` since the last reading."""
        for index, length in enumerate(self._lengths):
            self._move(index, now - length)
        current = [len(self._times) - start for start in self._starts]
        result = tuple(max(peak, count) for peak, count in zip(self._peaks, current, strict=True))
        self._peaks = [0] * len(self._lengths)
        return result

    def _move(self, index: int, edge: float) -> None:
        start = self._starts[index]
        while start < len(self._times) and self._times[start] <= edge:
            start += 1
        self._starts[index] = start

    def _forget(self) -> None:
        oldest = min(self._starts)
        if oldest > 1024 and oldest * 2 > len(self._times):
            del self._times[:oldest]
            self._starts = [start - oldest for start in self._starts]


@compiled
def _most(times: Times, length: float) -> int:
    best, end = 0, 0
    for start in range(times.size):
        while end < times.size and times[end] < times[start] + length:
            end += 1
        best = max(best, end - start)
    return best


@compiled
def _first_above(times: Times, length: float, most: int) -> int:
    for start in range(times.size - most):
        if times[start + most] < times[start] + length:
            return start
    return -1


@compiled
def _live(times: Times, length: float, instants: Times, out: Counts) -> None:
    start, at = 0, 0
    for index in range(instants.size):
        peak = 0
        while at < times.size and times[at] <= instants[index]:
            while times[start] <= times[at] - length:
                start += 1
            at += 1
            peak = max(peak, at - start)
        edge = start
        while edge < at and times[edge] <= instants[index] - length:
            edge += 1
        start = edge
        out[index] = max(peak, at - edge)


def _count_from(times: Times, at: int, length: float) -> int:
    return int(np.searchsorted(times, times[at] + length)) - at
