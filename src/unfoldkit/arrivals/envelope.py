"""Traffic envelopes: the largest number of queries in any window of each length.

Source: Crankshaw et al., InferLine (SoCC 2020), section 5, high-frequency tuning.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from unfoldkit._types import FloatArray, IntArray
from unfoldkit.jit import compiled

LONGEST_WINDOW_S = 60.0


class Excess(NamedTuple):
    """A window that holds more arrivals than an envelope allows: its start and length in s, and its arrivals."""

    start_s: float
    length_s: float
    arrivals: int


def window_lengths(shortest_s: float, longest_s: float = LONGEST_WINDOW_S) -> FloatArray:
    """Return window lengths in s: ``shortest_s`` doubled while below ``longest_s``, then ``longest_s`` itself."""
    lengths = [shortest_s]
    while lengths[-1] * 2 < longest_s:
        lengths.append(lengths[-1] * 2)
    return np.array(lengths if lengths[-1] >= longest_s else [*lengths, longest_s])


def compute_envelope(times: FloatArray, lengths: FloatArray) -> IntArray:
    """Return the largest number of arrivals in any ``[t, t + length)`` for each length, in O(n) per length.

    Args:
        times: Sorted arrival times in s.
        lengths: Window lengths in s.
    """
    return np.array([_max_count(times, float(length)) for length in lengths], dtype=np.int64)


def find_first_excess(times: FloatArray, lengths: FloatArray, counts: IntArray) -> Excess | None:
    """Return the earliest window with more arrivals than ``counts`` allow, or ``None``.

    Args:
        times: Sorted arrival times in s.
        lengths: Window lengths in s.
        counts: The largest allowed number of arrivals for each length.
    """
    candidates = [
        Excess(float(times[start]), float(length), _count_from(times, start, float(length)))
        for length, max_count in zip(lengths, counts, strict=True)
        if (start := _first_above(times, float(length), int(max_count))) >= 0
    ]
    return min(candidates, default=None)


def trailing_envelope(times: FloatArray, lengths: FloatArray, instants: FloatArray) -> IntArray:
    """Return the envelope that an online observer reads at each instant.

    A reading is the largest number of arrivals in any ``(t - length, t]`` since the previous instant.

    Args:
        times: Sorted arrival times in s.
        lengths: Window lengths in s.
        instants: Sorted reading times in s.

    Returns:
        Counts of shape (instants, lengths).
    """
    out = np.zeros((instants.size, lengths.size), dtype=np.int64)
    for index, length in enumerate(lengths):
        _trail(times, float(length), instants, out[:, index])
    return out


@compiled
def _max_count(times: FloatArray, length: float) -> int:
    best, end = 0, 0
    for start in range(times.size):
        while end < times.size and times[end] < times[start] + length:
            end += 1
        best = max(best, end - start)
    return best


@compiled
def _first_above(times: FloatArray, length: float, max_count: int) -> int:
    for start in range(times.size - max_count):
        if times[start + max_count] < times[start] + length:
            return start
    return -1


@compiled
def _trail(times: FloatArray, length: float, instants: FloatArray, out: IntArray) -> None:
    start, end = 0, 0
    for index in range(instants.size):
        peak = 0
        while end < times.size and times[end] <= instants[index]:
            while times[start] <= times[end] - length:
                start += 1
            end += 1
            peak = max(peak, end - start)
        edge = start
        while edge < end and times[edge] <= instants[index] - length:
            edge += 1
        start = edge
        out[index] = max(peak, end - edge)


def _count_from(times: FloatArray, start: int, length: float) -> int:
    return int(np.searchsorted(times, times[start] + length)) - start
