"""The benchmark of growth curves: skipped points are reported, and growth is fitted to the others."""

from __future__ import annotations

import math
import time

import pytest

from benchmarks.scale import Bounds, Curve, Row, growth, measured, refusal

BOUNDS = Bounds(10.0, 100.0, 2**30)
CURVE = Curve("gates", ("rows",), ((10,), (100,), (1000,), (10_000,)))


def linear(words: list[str], bounds: Bounds) -> Row:
    """Stand for a process that takes a hundredth of its work in seconds."""
    assert bounds is BOUNDS
    seconds = int(words[2]) / 100
    return {"seconds": seconds, "wall": seconds + 0.5, "peak_mib": 100, "what": ""}


def test_a_point_over_the_bound_is_not_run_and_says_why() -> None:
    """A point that would take too long, going by the one before, is left out with its estimate, and so is all above."""
    rows = list(measured(CURVE, 0, BOUNDS, time.monotonic() + 100, linear))
    assert [("seconds" in row) for row in rows] == [True, True, False, False]
    assert rows[2]["not_run"] == "would take about 20 s; 10 s are left for it"


def test_out_of_time_runs_nothing() -> None:
    """When the time of all curves is over, no point is begun."""
    rows = list(measured(CURVE, 0, BOUNDS, time.monotonic() - 1, linear))
    assert {row["not_run"] for row in rows} == {"out of time for all curves"}


def test_memory_bounds_a_point() -> None:
    """A point with too much memory, judged by the one before, is refused."""
    last = {"work": 10, "wall": 1.0, "seconds": 0.001, "peak_mib": 600}
    assert refusal("gates", {"work": 100}, last, BOUNDS, 50.0) == "would need about 4 GiB"


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_growth_is_the_power(power: float) -> None:
    """Of seconds that are a power of the work, the growth is that power; of one point there is none."""
    rows = [{"work": work, "seconds": work**power} for work in (10, 100, 1000)]
    assert math.isclose(growth(rows) or 0.0, power)
    assert growth(rows[:1]) is None
