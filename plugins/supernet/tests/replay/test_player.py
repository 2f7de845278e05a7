"""Replays of requests with targets of their own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.supernet.tests.helpers import REPLAY_PROFILES, draw_arrivals
from unfold_supernet._types import FloatArray
from unfold_supernet.replay.baselines import NamedPolicy, list_policies
from unfold_supernet.replay.player import SimulatedServer, replay_with_targets
from unfold_supernet.scheduling.requests import RequestTargets
from unfold_supernet.scheduling.simulator import ReplayOutcome, simulate_trace
from unfold_supernet.scheduling.speed import Slowdown

SHARES = np.array([net.accuracy_fraction for net in REPLAY_PROFILES])
SLO = 0.03


def draw_targets(count: int, seed: int) -> RequestTargets:
    """Draw targets of many kinds, some of which no subnet can meet."""
    rng = np.random.default_rng([seed, 1])
    return RequestTargets(
        rng.choice([0.0005, 0.005, 0.03, 0.5], count), rng.choice([0.0, 0.82, 0.85, 0.9, 0.99], count)
    )


def list_named_policies(apart: bool = True) -> dict[str, NamedPolicy]:
    """List the policies to replay, by name."""
    return {one.name: one for one in list_policies(REPLAY_PROFILES, "steady", SLO, has_targets=apart)}


def replay(times: FloatArray, asked: RequestTargets, name: str, swap: float = 0.0) -> ReplayOutcome:
    """Replay a trace in simulated time."""
    return replay_with_targets(
        times, asked, list_named_policies()[name], REPLAY_PROFILES, Slowdown(), SimulatedServer(REPLAY_PROFILES, swap)
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 100), st.floats(20, 4000), st.sampled_from(["steady", "fitted", "slackfit", "cheapest"]))
def test_every_request_is_served_by_a_sufficiently_accurate_subnet(seed: int, rate: float, name: str) -> None:
    """At any load every request is served once, by a sufficiently accurate subnet or by the best one."""
    times, asked = draw_arrivals(rate, 300, seed), draw_targets(300, seed)
    found = replay(times, asked, name)
    assert (found.batch_size > 0).all()
    assert (SHARES[found.subnet] >= np.minimum(asked.min_accuracies, SHARES.max())).all()
    assert found.accurate_enough is not None
    assert (found.accurate_enough == (asked.min_accuracies <= SHARES.max())).all()
    assert not found.in_time[asked.deadlines_s < REPLAY_PROFILES[0].estimate_latency(1)].any()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 100), st.floats(20, 300), st.sampled_from(["steady", "slackfit", "only middle"]))
def test_equal_targets_behave_as_one_deadline(seed: int, rate: float, name: str) -> None:
    """Requests with the spec's deadline and no minimum accuracy are served as without targets."""
    times = draw_arrivals(rate, 200, seed)
    plain = simulate_trace(times, SLO, REPLAY_PROFILES, list_named_policies(apart=False)[name].build(REPLAY_PROFILES))
    if not plain.in_time.all():
        return
    found = replay(times, RequestTargets(np.full(200, SLO), np.zeros(200)), name)
    assert found.in_time.all()
    assert (found.subnet == plain.subnet).all()
    assert (found.batch_size == plain.batch_size).all()


def test_loose_deadlines_get_more_accurate_subnets() -> None:
    """In a mixed stream, loose deadlines get more accurate subnets and tight ones are met."""
    times = draw_arrivals(100, 2_000, 3)
    tight = np.arange(2_000) % 2 == 0
    found = replay(times, RequestTargets(np.where(tight, 0.003, 0.2), np.zeros(2_000)), "fitted")
    assert SHARES[found.subnet[tight]].mean() < SHARES[found.subnet[~tight]].mean() - 0.03
    # a batch that runs when it comes makes a tight one late: no rule looks into the future
    assert found.in_time[tight].mean() > 0.7
    assert found.in_time[~tight].all()


def test_fixed_subnet_satisfies_only_lower_minimum_accuracies() -> None:
    """A fixed subnet is in time as always, but satisfies only requests that it is accurate enough for."""
    times = draw_arrivals(20, 300, 5)
    found = replay(times, RequestTargets(np.full(300, 1.0), np.where(np.arange(300) < 100, 0.9, 0.0)), "only middle")
    assert found.attainment == 1.0
    assert found.satisfied_fraction == pytest.approx(2 / 3)
