"""Laws of a trace whose requests name deadlines and accuracies of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.supernet.tests.helpers import parse_spec
from unfold_supernet._types import FloatArray
from unfold_supernet.family.artifacts import RECORD_FILE
from unfold_supernet.replay import load
from unfold_supernet.replay.baselines import NamedPolicy, list_policies
from unfold_supernet.replay.player import SimulatedServer, replay_with_targets
from unfold_supernet.scheduling import requests
from unfold_supernet.scheduling.policies import SubnetProfile
from unfold_supernet.scheduling.requests import RequestTargets
from unfold_supernet.scheduling.simulator import ReplayOutcome, simulate_trace
from unfold_supernet.scheduling.speed import Slowdown
from unfold_supernet.verbs.plan import plan
from unfoldkit.api import Run, RunDir, UnfoldError, Verdict
from unfoldkit.engines.local import LocalEngine

NETS = (
    SubnetProfile("small", 80.0, ((1, 0.001), (8, 0.002), (32, 0.006))),
    SubnetProfile("middle", 85.0, ((1, 0.002), (8, 0.008), (32, 0.024))),
    SubnetProfile("large", 90.0, ((1, 0.004), (8, 0.020), (32, 0.064))),
)
SHARES = np.array([net.accuracy_fraction for net in NETS])
SLO = 0.03
SPEC = """
version: 1
kind: supernet
name: t
data: {source: digits}
space: {stages: [{width: 4}]}
serving: {slo: 30 ms}
"""


def arrivals(rate: float, count: int, seed: int) -> FloatArray:
    """Return Poisson arrivals."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


def drawn(count: int, seed: int) -> RequestTargets:
    """Return targets of many kinds, some of which nobody can meet."""
    rng = np.random.default_rng([seed, 1])
    return RequestTargets(
        rng.choice([0.0005, 0.005, 0.03, 0.5], count), rng.choice([0.0, 0.82, 0.85, 0.9, 0.99], count)
    )


def rules(apart: bool = True) -> dict[str, NamedPolicy]:
    """Return everybody who is played, by name."""
    return {one.name: one for one in list_policies(NETS, "steady", SLO, has_targets=apart)}


def played(times: FloatArray, asked: RequestTargets, name: str, swap: float = 0.0) -> ReplayOutcome:
    """Return a trace in simulated time."""
    return replay_with_targets(times, asked, rules()[name], NETS, Slowdown(), SimulatedServer(NETS, swap))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 100), st.floats(20, 4000), st.sampled_from(["steady", "fitted", "slackfit", "cheapest"]))
def test_no_net_answers_that_is_less_accurate_than_asked(seed: int, rate: float, name: str) -> None:
    """At any load everybody is answered once, by a net as accurate as asked, or by the best where none is."""
    times, asked = arrivals(rate, 300, seed), drawn(300, seed)
    found = played(times, asked, name)
    assert (found.batch_size > 0).all()
    assert (SHARES[found.subnet] >= np.minimum(asked.min_accuracies, SHARES.max())).all()
    assert found.accurate_enough is not None
    assert (found.accurate_enough == (asked.min_accuracies <= SHARES.max())).all()
    assert not found.in_time[asked.deadlines_s < NETS[0].estimate_latency(1)].any()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 100), st.floats(20, 300), st.sampled_from(["steady", "slackfit", "only middle"]))
def test_alike_targets_are_one_deadline(seed: int, rate: float, name: str) -> None:
    """Requests that all ask for the spec's deadline and any accuracy are answered as without targets."""
    times = arrivals(rate, 200, seed)
    plain = simulate_trace(times, SLO, NETS, rules(apart=False)[name].build(NETS))
    if not plain.in_time.all():
        return
    found = played(times, RequestTargets(np.full(200, SLO), np.zeros(200)), name)
    assert found.in_time.all()
    assert (found.subnet == plain.subnet).all()
    assert (found.batch_size == plain.batch_size).all()


def test_who_has_time_gets_accuracy() -> None:
    """Of two kinds of requests in one stream the generous are answered by more accurate nets, the tight in time."""
    times = arrivals(100, 2_000, 3)
    tight = np.arange(2_000) % 2 == 0
    found = played(times, RequestTargets(np.where(tight, 0.003, 0.2), np.zeros(2_000)), "fitted")
    assert SHARES[found.subnet[tight]].mean() < SHARES[found.subnet[~tight]].mean() - 0.03
    # a batch that runs when it comes makes a tight one late: no rule looks into the future
    assert found.in_time[tight].mean() > 0.7
    assert found.in_time[~tight].all()


def test_a_fixed_net_is_accurate_enough_for_some() -> None:
    """A baseline of one net is in time as ever, but keeps what is asked only where that is no more than it has."""
    times = arrivals(20, 300, 5)
    found = played(times, RequestTargets(np.full(300, 1.0), np.where(np.arange(300) < 100, 0.9, 0.0)), "only middle")
    assert found.attainment == 1.0
    assert found.satisfied_fraction == pytest.approx(2 / 3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.floats(0.1, 5.0))
def test_targets_stay_with_their_requests(seed: int, times: float) -> None:
    """In a trace made heavier or lighter each request has the targets of the one that it was made of."""
    scaled = load.scale_arrivals(arrivals(500, 300, seed), times, seed)
    found, places = scaled.arrivals, scaled.origins
    original = arrivals(500, 300, seed)
    asked = RequestTargets(original, original).select(places)
    assert found.size == asked.deadlines_s.size
    assert (np.diff(found) >= 0).all()
    # a repeated arrival lies within the gap that follows it
    assert (found >= asked.deadlines_s - 1e-12).all()
    later = np.append(original[1:], original[-1])
    assert (found <= later[places] + 1e-12).all()


def trace(folder: Path, text: str) -> Path:
    """Return a file with a table."""
    path = folder / "trace.csv"
    path.write_text(text, "utf-8")
    return path


def test_targets_are_read_from_columns(tmp_path: Path) -> None:
    """Deadlines are in the unit of their column, accuracies shares or percent; an empty cell asks for nothing more."""
    path = trace(tmp_path, "time_s,Deadline_ms,least_accuracy\n0,5,0.9\n0.1,,85%\n0.2,20.5,\n")
    found = requests.read_targets(path, 3, SLO)
    assert found is not None
    np.testing.assert_allclose(found.deadlines_s, [0.005, 0.03, 0.0205])
    np.testing.assert_allclose(found.min_accuracies, [0.9, 0.85, 0.0])
    assert requests.read_targets(trace(tmp_path, "time_s,tenant\n0,a\n1,b\n"), 2, SLO) is None


@pytest.mark.parametrize(
    ("row", "told"),
    [("0,-5,", "deadline_ms"), ("0,soon,", "not a number"), ("0,1e9,", "at most one day"), ("0,,92", "0.91 or 91%")],
)
def test_what_is_no_target_is_told(tmp_path: Path, row: str, told: str) -> None:
    """A deadline below 0 or beyond a day, and an accuracy above 1, are an error with line and column."""
    path = trace(tmp_path, f"time_s,deadline_ms,least_accuracy\n{row}\n")
    with pytest.raises(UnfoldError, match=told) as caught:
        requests.read_targets(path, 1, SLO)
    assert caught.value.diagnostics[0].line == 2


def test_rows_that_count_several_have_no_targets(tmp_path: Path) -> None:
    """A table whose rows stand for several requests each is refused: nobody knows which of them asks."""
    with pytest.raises(UnfoldError, match="2 rows with targets describe 7 requests"):
        requests.read_targets(trace(tmp_path, "time_s,count,deadline_ms\n0,3,5\n1,4,5\n"), 7, SLO)


def test_a_plan_replays_targets(tmp_path: Path) -> None:
    """`plan --replay` reports how many got both that they asked for, and how many asked for more than there is."""
    path = trace(tmp_path, "time_s,deadline_ms,least_accuracy\n0,50,0.99\n1,50,0.9\n2,50,\n3,0.1,\n")
    nets = [
        {"name": net.name, "accuracy": net.accuracy, "sensitivity": [], "macs": 1.0,
         "seconds": {str(size): seconds for size, seconds in net.seconds}} for net in NETS
    ]  # fmt: skip
    directory = RunDir(tmp_path / "run")
    directory.write(RECORD_FILE, json.dumps({"nets": nets, "front": [], "classes": [], "reload_seconds": 0.1}).encode())
    spec = parse_spec(SPEC)
    report = plan(spec, Run(directory=directory, engine=LocalEngine(1), seed=1, options={"replay": str(path)}))
    assert report.verdict is Verdict.NO
    assert report.metrics["attainment"].value == 0.75
    assert report.metrics["both_targets"].value == 0.5
    assert "25.0 % require more than the best subnet's 90.00 %" in dict(report.lines)["targets"]
    assert "≤ 0.1 to 50 ms" in report.subtitle
