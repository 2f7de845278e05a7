"""Counts of arrivals by interval, and times that were rounded, become arrivals at random moments within these."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unfoldkit.arrivals import spreading, traces
from unfoldkit.arrivals.readers.timestamps import TimeNotation
from unfoldkit.errors import UnfoldError

COUNTS = np.random.default_rng(1).poisson(30, 200)


def table(folder: Path, head: str, rows: list[str], name: str = "a.csv") -> Path:
    """Write a table of a test."""
    (folder / name).write_text("\n".join([head, *rows]) + "\n")
    return folder / name


@pytest.mark.parametrize("column", ["count", "Counts", "REQUESTS", "invocations", "n"])
@pytest.mark.parametrize("step", [1, 60])
def test_counts_become_arrivals_at_random_moments_of_their_interval(tmp_path: Path, column: str, step: int) -> None:
    """Each interval gets its count of arrivals at random but reproducible moments, and a warning names the column."""
    path = table(tmp_path, f"timestamp,{column}", [f"{1637000000 + at * step},{n}" for at, n in enumerate(COUNTS)])
    messages: list[str] = []
    found = traces.read_trace(path, warn=messages.append)
    assert len(messages) == 1
    assert f"column {column} is read as arrivals by interval" in messages[0]
    begun = found[0] + found
    late = np.searchsorted(np.cumsum(COUNTS), np.arange(found.size), side="right") * step
    # read from the first arrival on, all are earlier by the same part of the first interval
    early = found - late
    assert early.max() - early.min() < step
    gaps = np.diff(begun)
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.05)
    assert found.tolist() == traces.read_trace(path).tolist()


def test_rows_of_one_time_share_its_interval_and_gaps_have_the_usual_length(tmp_path: Path) -> None:
    """Rows of one time share its interval: up to the next time, or as long as others where an even clock has a gap."""
    rng = np.random.default_rng(0)
    times = np.array([0.0, 0, 10, 20, 100, 110])
    even = spreading.expand_counts(times, np.array([5, 5, 10, 1000, 10, 1000]), rng, file="", key="")
    assert np.histogram(even, [0, 10, 20, 30, 100, 110, 120])[0].tolist() == [10, 10, 1000, 0, 10, 1000]
    uneven = spreading.expand_counts(np.array([0.0, 3, 7, 20]), np.array([9, 9, 1000, 0]), rng, file="", key="")
    assert uneven[-1] > 19


def test_the_column_of_counts_can_be_stated(tmp_path: Path) -> None:
    """A column of any name can count, none can, and of a trace like another it counts only where it is there."""
    path = table(tmp_path, "ts,calls,n", ["0,2,7", "1,3,7", "2,4,7"])
    assert traces.read_trace(path).size == 21
    assert traces.read_trace(path, counts="calls").size == 9
    assert traces.read_trace(path, counts="").size == 3
    assert traces.read_trace(path, likely_counts="calls").size == 9
    assert traces.read_trace(path, likely_counts="").size == 3
    assert traces.read_trace(path, likely_counts="asked").size == 21
    with pytest.raises(UnfoldError, match=r"a\.csv:1:1: no column call \(.*calls"):
        traces.read_trace(path, counts="call")


@pytest.mark.parametrize(
    "cells", [["1", "1", "1"], ["0", "1", "2"], ["1", "2", "3"], ["a", "2", "2"], ["0.5", "2", "2"]]
)
def test_row_numbers_and_words_in_a_column_of_counts_are_not_counts(tmp_path: Path, cells: list[str]) -> None:
    """Ones, running numbers and words are not counts, whatever their column is called, unless declared as such."""
    path = table(tmp_path, "n,ts", [f"{cell},{at}" for at, cell in enumerate(cells)])
    assert traces.read_trace(path).tolist() == [0, 1, 2]
    if cells[0].isdigit():
        assert traces.read_trace(path, counts="n").size == sum(map(int, cells))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["0,3", "1,x"], r"a\.csv:3:1: count: 'x' is not a count \(a whole number; .*counts: ''"),
        (["0,3", "1,-2"], r"a\.csv:3:1: count: '-2' is not a count"),
        (["0,3", "1,1.000"], r"a\.csv:3:1: count: '1\.000' is not a count .*no dot between thousands"),
        (["0,", "1,3"], r"a\.csv:2:1: count: '' is not a count"),
        (["0,3", "1"], r"a\.csv:3:1: count: '' is not a count"),
        (["0,3", "soon,4"], r"a\.csv:3:1: 'soon' is not a time"),
        (["5,3", "1,3"], r"a\.csv: arrival 2 \(1 s\) is before"),
        (["0,3"], r"a\.csv: count: counts at a single time"),
        (["0,0", "1,0"], r"a\.csv: the trace has no arrival"),
        (["0,99999999999", "1,7"], r"a\.csv: count: 100,000,000,006 arrivals are too many .*at most 100,000,000"),
    ],
)
def test_bad_counts_are_reported_with_file_line_and_column(tmp_path: Path, rows: list[str], expected: str) -> None:
    """An invalid count, or one too large to plan with, is reported with file, line and column."""
    with pytest.raises(UnfoldError, match=expected) as error:
        traces.read_trace(table(tmp_path, "ts,count", rows))
    assert error.value.code == 2


def test_logs_and_arrays_have_no_counts(tmp_path: Path) -> None:
    """Counts that are asked of a log are refused."""
    with pytest.raises(UnfoldError, match="only a table has counts or rates, and this is read as a log"):
        traces.read_trace(table(tmp_path, "2024-01-01T00:00:01Z GET /", [], "a.log"), counts="n")


MINUTES = "HashOwner,HashApp,HashFunction,Trigger," + ",".join(str(minute) for minute in range(1, 61))


def test_functions_by_minute_are_summed(tmp_path: Path) -> None:
    """All functions of a table by minutes arrive together, each in its minute, or those that match."""
    counts = np.random.default_rng(2).poisson(5, (3, 60))
    counts[:, 0] = 500
    rows = [f"o,a,f{at},{way}," + ",".join(map(str, counts[at])) for at, way in enumerate(("http", "timer", "http"))]
    path = table(tmp_path, MINUTES, rows)
    for match, taken in (("", [0, 1, 2]), ("http", [0, 2]), ("f1", [1])):
        found = traces.read_trace(path, match=match)
        assert found.size == counts[taken].sum()
        assert np.histogram(found, np.arange(0, 3601, 60))[0] == pytest.approx(counts[taken].sum(axis=0), abs=8)
    with pytest.raises(UnfoldError, match="no arrival"):
        traces.read_trace(path, match="queue")


@pytest.mark.parametrize(("cell", "name"), [("x", "2"), ("-1", "2"), ("", "2"), (None, "60")])
def test_bad_counts_of_minutes_are_reported_with_line_and_minute(tmp_path: Path, cell: str | None, name: str) -> None:
    """A missing or invalid count of a minute is reported by line and minute."""
    cells = ["3"] * 59 if cell is None else ["3", cell, *["3"] * 58]
    rows = ["o,a,f,http," + ",".join(each) for each in (["3"] * 60, cells)]
    with pytest.raises(UnfoldError, match=rf"a\.csv:3:1: {name}: '{cell or ''}' is not a count"):
        traces.read_trace(table(tmp_path, MINUTES, rows))


def test_only_rows_that_match_are_read(tmp_path: Path) -> None:
    """Of a table those rows arrive that hold a text in any cell."""
    path = table(tmp_path, "ts,Model", ["0,ChatGPT", "1,GPT-4", "3,ChatGPT"])
    assert traces.read_trace(path, match="ChatGPT").tolist() == [0, 3]


def rounded(rate: float, span: int, grain: int, *, start: float = 0.0) -> np.ndarray:
    """Poisson arrivals with times in whole grains."""
    rng = np.random.default_rng(5)
    return start + np.sort(np.floor(rng.random(int(rate * span)) * span / grain) * grain)


@pytest.mark.parametrize(("rate", "span", "unit"), [(0.5, 1000, 1), (20, 150, 1), (1 / 30, 6000, 60), (2, 6000, 60)])
def test_multiples_of_a_stated_unit_are_spread_within_it(rate: float, span: int, unit: int) -> None:
    times = rounded(rate, span, unit)
    spread = spreading.spread_rounded_times(times, np.random.default_rng(0), unit_s=unit)
    assert (np.floor(spread / unit) * unit).tolist() == times.tolist()
    gaps = np.diff(spread)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize("unit_s", [0.0, 1e-3, 1.0, 60.0])
def test_relative_times_that_are_not_rounded_to_a_stated_unit_stay(unit_s: float) -> None:
    """Without a unit, below a second, or between multiples of the unit, nothing is spread."""
    times = rounded(20, 150, 1) / (4 if unit_s >= 1 else 1)
    assert spreading.spread_rounded_times(times, np.random.default_rng(0), unit_s=unit_s).tolist() == times.tolist()


def test_repeated_seconds_without_a_unit_are_reported(tmp_path: Path) -> None:
    notes: list[str] = []
    path = table(tmp_path, "arrival_s", [f"{time:g}" for time in rounded(20, 150, 1)])
    assert (
        traces.read_trace(path, warn=notes.append).tolist() == (rounded(20, 150, 1) - rounded(20, 150, 1)[0]).tolist()
    )
    assert "arrivals.unit: s" in notes[0]
    assert (np.diff(traces.read_trace(path, notation=TimeNotation(unit="s"))) > 0).all()


@pytest.mark.parametrize("cell", ["1.5k", "12K", "3 M", "1,5k"])
def test_rounded_counts_are_refused(tmp_path: Path, cell: str) -> None:
    """A count that is rounded to thousands is reported at its line; its row is not taken as one arrival."""
    (tmp_path / "a.csv").write_text(f'timestamp,requests\n0,"{cell}"\n60,"{cell}"\n')
    with pytest.raises(UnfoldError, match=rf"a.csv:2:1: requests: '{cell}' is not a count"):
        traces.read_trace(tmp_path / "a.csv")
