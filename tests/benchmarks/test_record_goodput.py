"""Laws of the goodput on real arrivals, and of the benchmark of switches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

from benchmarks import record_goodput, supernet_serve
from benchmarks.record_goodput import RecordMember, Timer, Window, find_busiest, measure_windows, summarize_windows
from unfold_supernet.scheduling.policies import SubnetProfile

SMALL = SubnetProfile("small", 90.0, ((1, 0.01),))
LARGE = SubnetProfile("large", 98.0, ((1, 0.1),))


@dataclass
class FakeTime:
    """A clock that moves only by work and by sleep."""

    now: float = 0.0

    def spend(self, seconds: float) -> None:
        """Let time pass; a little at least, so that waiting for a due time ends."""
        self.now += max(seconds, 1e-5)


def play(rate: float, seconds: float = 10.0) -> dict[str, Any]:
    """Play even arrivals on two members that take what they were measured to take."""
    time = FakeTime()

    def answer(seconds: float, _index: int) -> None:
        time.spend(seconds)

    members = [RecordMember(profile, partial(answer, profile.estimate_latency(1))) for profile in (SMALL, LARGE)]
    window = Window("even", 0.0, seconds, np.arange(0.0, seconds, 1 / rate))
    timer = Timer(clock=lambda: time.now, sleep=time.spend)
    return next(measure_windows(members, [window], timer))


def test_a_calm_window_leaves_nothing_to_gain() -> None:
    """Below what the most accurate member takes, the family is that member and answers no more than it."""
    row = play(rate=2.0)
    assert row["accuracy"] == pytest.approx(LARGE.accuracy)
    assert row["rival"] == "large"
    assert row["goodput_ratio"] == pytest.approx(1.0)
    assert row["load_of_most_accurate"] == pytest.approx(0.2)


def test_in_overload_the_rival_is_no_less_accurate() -> None:
    """At three times its capacity the large member answers a third; the small one is faster, but not as accurate."""
    row = play(rate=30.0)
    assert SMALL.accuracy < row["accuracy"] < LARGE.accuracy
    assert row["rival"] == "large"
    assert row["goodput_per_s"] == pytest.approx(30.0, rel=0.05)
    assert row["goodput_ratio"] == pytest.approx(3.0, rel=0.2)
    assert row["goodput_ratio_bound"] == pytest.approx(row["goodput_ratio"], rel=0.05)


def test_what_no_policy_exceeds_is_all_requests_against_the_most_accurate_member() -> None:
    """Where even the small member is overloaded, the bound lies above the ratio; in a calm window nothing is left."""
    row = play(rate=300.0)
    assert row["goodput_ratio_bound"] == pytest.approx(30.0, rel=0.1)
    assert row["goodput_ratio_bound"] > 2 * row["goodput_ratio"]
    assert play(rate=2.0)["goodput_ratio_bound"] == pytest.approx(1.0)


def test_a_hair_of_accuracy_is_no_gain_over_a_near_rival() -> None:
    """In deep overload nearly all is answered by the smallest member, which alone does as well to 0.1 points."""
    row = play(rate=300.0)
    assert SMALL.accuracy < row["accuracy"] < SMALL.accuracy + record_goodput.NEAR_POINTS
    assert row["rival"] == "large"
    assert row["goodput_ratio"] == pytest.approx(10.0, rel=0.1)
    assert row["rival_near"] == "small"
    assert row["goodput_ratio_near"] == pytest.approx(1.0, rel=0.05)


def test_windows_are_the_busiest_and_as_they_are() -> None:
    """Windows keep the gaps of the trace, start with a request, do not overlap, and come busiest first."""
    times = np.concatenate([np.arange(0, 10, 1.0), np.arange(20, 22, 0.1), np.arange(40, 42, 0.05)])
    found = find_busiest({"a": times, "b": np.arange(0, 100, 5.0)}, 2.0, 3)
    assert [(window.trace, round(window.start_s, 6)) for window in found[:2]] == [("a", 40.0), ("a", 20.0)]
    assert [len(window.arrivals) for window in found] == sorted(
        (len(window.arrivals) for window in found), reverse=True
    )
    assert all(window.arrivals[0] == 0 and window.arrivals[-1] <= 2.0 for window in found)
    assert np.allclose(np.diff(found[0].arrivals), 0.05)


def make_row(ratio: float) -> dict[str, float]:
    """Make what a window's row must have."""
    ratios = {"goodput_ratio": ratio, "goodput_ratio_near": ratio / 2, "goodput_ratio_bound": ratio * 2}
    return {**ratios, "load_of_most_accurate": 1.0, "goodput_per_s": ratio, "requests_per_s": 10.0}


def test_the_control_is_not_counted() -> None:
    """The ratios of the ten windows give the maximum and the median; the eleventh stands beside them."""
    rows = [make_row(float(ratio)) for ratio in range(1, 11)]
    control = make_row(99.0)
    found = summarize_windows([*rows, control])
    assert (found["goodput_ratio_max"], found["goodput_ratio_median"], found["goodput_windows"]) == (10.0, 5.5, 10)
    assert found["goodput_ratio_near_median"] == 2.75
    assert (found["goodput_ratio_bound_median"], found["goodput_in_time_percent_min"]) == (11.0, 10.0)
    assert found["goodput_ratio_conv"] == 99.0
    assert summarize_windows([])["goodput_ratio_max"] is None


def test_goodput_and_calibration_join_the_rest() -> None:
    """The worst net is the error that is printed, and a missing trace and a busy machine are noted."""
    rest = {"metrics": {"attainment": 1.0}, "tables": {}, "aims": {}, "notes": []}
    calibration = [
        {"net": name, "ece_points": after, "ece_points_before": 9.0, "excess_points": -after, "excess_half_width": 2.0}
        for name, after in (("a", 1.0), ("b", 4.0))
    ]
    found = supernet_serve._joined(rest, [], calibration, crowded=True)
    assert found["metrics"]["ece_points_max"] == 4
    assert found["metrics"]["ece_excess_beyond_chance"] == 1
    assert found["metrics"]["goodput_ratio_median"] is None
    assert supernet_serve.NO_TRACES in found["notes"]
    assert supernet_serve.SLOWED not in found["notes"]
    rows = [make_row(1.0)]
    assert supernet_serve.SLOWED in supernet_serve._joined(rest, rows, calibration, crowded=True)["notes"]
