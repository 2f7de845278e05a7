"""Traffic envelopes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from unfoldkit.arrivals import envelope, traces

GRID = arrays.arrays(np.float64, st.integers(1, 60), elements=st.integers(0, 400).map(lambda tick: tick / 16)).map(
    np.sort
)


class OnlineEnvelope:
    """Reference implementation: the envelope of the recent past, updated with every arrival."""

    def __init__(self, lengths: Sequence[float]) -> None:
        self.lengths = tuple(lengths)
        self.times: list[float] = []
        self.peaks = [0] * len(self.lengths)

    def add(self, time: float) -> None:
        self.times.append(time)
        counts = [sum(time - length < other for other in self.times) for length in self.lengths]
        self.peaks = [max(pair) for pair in zip(self.peaks, counts, strict=True)]

    def read(self, now: float) -> list[int]:
        counts = [sum(now - length < other for other in self.times) for length in self.lengths]
        result = [max(pair) for pair in zip(self.peaks, counts, strict=True)]
        self.peaks = [0] * len(self.lengths)
        return result


@settings(deadline=None)
@given(GRID, st.integers(1, 64).map(lambda tick: tick / 16))
def test_envelope_is_the_largest_count_over_all_windows(times: np.ndarray, length: float) -> None:
    expected = max(int(((times >= start) & (times < start + length)).sum()) for start in times)
    assert envelope.compute_envelope(times, np.array([length])).tolist() == [expected]


@settings(deadline=None)
@given(GRID)
def test_first_excess_is_the_first_window_above_the_envelope(times: np.ndarray) -> None:
    lengths = envelope.window_lengths(0.5, 8.0)
    counts = envelope.compute_envelope(times, lengths)
    assert envelope.find_first_excess(times, lengths, counts) is None
    excess = envelope.find_first_excess(times, lengths, counts - 1)
    assert excess is not None
    start, length, count = excess
    assert int(((times >= start) & (times < start + length)).sum()) == count


@settings(deadline=None)
@given(GRID, st.integers(1, 40))
def test_trailing_envelope_equals_the_online_reference(times: np.ndarray, readings: int) -> None:
    lengths = envelope.window_lengths(0.25, 4.0)
    instants = np.linspace(0.0, 26.0, readings)
    observer, index, rows = OnlineEnvelope(lengths.tolist()), 0, []
    for instant in instants:
        while index < times.size and times[index] <= instant:
            observer.add(float(times[index]))
            index += 1
        rows.append(observer.read(float(instant)))
    assert rows == envelope.trailing_envelope(times, lengths, instants).tolist()


def test_window_lengths_double_up_to_sixty_seconds() -> None:
    lengths = envelope.window_lengths(0.1)
    assert lengths[:3].tolist() == [0.1, 0.2, 0.4]
    assert lengths[-2:].tolist() == [51.2, 60.0]


@pytest.mark.shared
def test_envelopes_of_the_azure_traces_match_their_description(shared: Path) -> None:
    lengths = np.array([0.125, 1.0, 10.0, 60.0])
    for name, expected in (("code", [23, 72, 415, 723]), ("conv", [7, 19, 112, 522])):
        times = traces.read_trace(shared / "data" / "traces" / f"azure_llm_2023_{name}.csv.gz")
        assert envelope.compute_envelope(times, lengths).tolist() == expected
