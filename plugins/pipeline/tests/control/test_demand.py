"""Arrivals between the samples of counters: none is lost, none is invented, and no replica holds the others back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_pipeline.control.demand import MAX_ARRIVALS, CounterSeries, SignalError, spread_arrivals


def series(times_s: list[float], values: list[float]) -> CounterSeries:
    """A counter with samples at some times."""
    return CounterSeries(np.array(times_s, dtype=np.float64), np.array(values, dtype=np.float64))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=20),
    st.lists(st.floats(0.1, 30.0), min_size=20, max_size=20),
    st.integers(0, 10**9),
)
def test_each_query_lies_between_the_samples_that_counted_it(
    counts: list[int], gaps_s: list[float], start: int
) -> None:
    """The arrivals between two samples are as many as the counter grew, whatever its first value."""
    times_s = np.cumsum([1.6e9, *gaps_s[: len(counts)]])
    values = start + np.cumsum([0, *counts])
    arrivals_s, until_s = spread_arrivals([CounterSeries(times_s, values.astype(np.float64))])
    assert until_s == times_s[-1]
    assert np.diff(np.searchsorted(arrivals_s, times_s)).tolist() == counts
    assert np.all(np.diff(arrivals_s) >= 0)


def test_a_counter_that_falls_began_anew() -> None:
    """After a restart the value itself is what was counted, as in PromQL."""
    arrivals_s, _ = spread_arrivals([series([0, 10, 20, 30], [100, 104, 3, 5])])
    assert np.histogram(arrivals_s, [0, 10, 20, 30])[0].tolist() == [4, 3, 2]


def test_a_new_replica_adds_nothing_that_it_counted_before() -> None:
    """A counter that appears with a million does not stand for a million queries now."""
    arrivals_s, _ = spread_arrivals([series([0, 10, 20], [0, 5, 10]), series([10, 20], [1e6, 1e6 + 2])])
    assert arrivals_s.size == 12


def test_a_replica_that_ended_does_not_hold_back_the_others() -> None:
    """Arrivals count until the last sample of the slowest counter that is still scraped."""
    running = series([0, 10, 20, 30, 40, 50], [0, 1, 2, 3, 4, 5])
    later = series([5, 15, 25, 35, 45], [0, 1, 2, 3, 4])
    ended = series([0, 10], [0, 7])
    arrivals_s, until_s = spread_arrivals([running, later, ended])
    assert until_s == 45
    # the last query of the running counter lies at 45 s
    assert arrivals_s.size == 7 + 4 + 5


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([], "no data"),
        ([series([1], [5])], "no data"),
        ([series([1, 2], [5, np.nan])], "implausible"),
        ([series([0, 10, 20], [0, 5, 10]), series([0, 10, 20], [0, 5, np.inf])], "implausible"),
        ([series([1, 2], [0, MAX_ARRIVALS * 2.0])], "implausible"),
        ([series([0, 10, 20], [3, -2, 4])], "implausible"),
        ([series([1, 2], [0, -1e308])], "implausible"),
    ],
)
def test_what_is_no_demand_is_reported(items: list[CounterSeries], reason: str) -> None:
    """Too few samples, and a counter of something else, are errors with a short label."""
    with pytest.raises(SignalError) as caught:
        spread_arrivals(items)
    assert caught.value.reason == reason


def test_samples_that_are_not_finite_are_skipped() -> None:
    """A NaN between two samples hides no query."""
    arrivals_s, until_s = spread_arrivals([series([0, 10, 20], [0, np.nan, 6])])
    assert (arrivals_s.size, until_s) == (6, 20)
