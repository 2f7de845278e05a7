"""Minimum accuracies of requests."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfold_supernet.replay.baselines import ADAPTIVE
from unfold_supernet.scheduling.accuracy_levels import build_accuracy_levels
from unfold_supernet.scheduling.policies import Policy, SubnetProfile
from unfold_supernet.scheduling.speed import Slowdown
from unfoldkit.serving.model import Call

SLO = 0.1


@st.composite
def families(draw: st.DrawFn) -> tuple[SubnetProfile, ...]:
    """Draw one to five profiles in any order of accuracy and latency, some equally accurate."""
    found = draw(st.lists(st.tuples(st.integers(50, 55), st.floats(1e-4, 0.1)), min_size=1, max_size=5))
    return tuple(
        SubnetProfile(str(at), float(accuracy), ((1, seconds), (8, 2 * seconds)))
        for at, (accuracy, seconds) in enumerate(found)
    )


@pytest.mark.parametrize("name", sorted(ADAPTIVE))
@given(nets=families(), least=st.floats(0, 1), slack=st.floats(-0.01, SLO), rows=st.integers(1, 40))
def test_picked_subnets_reach_the_minimum_accuracy(
    name: str, nets: tuple[SubnetProfile, ...], least: float, slack: float, rows: int
) -> None:
    """The picked subnet, and the one for late requests, reach the minimum accuracy or are the most accurate."""

    def make(some: Sequence[SubnetProfile]) -> Policy:
        return ADAPTIVE[name](some, SLO)

    found = build_accuracy_levels(nets, make, Slowdown())
    level = found.level(Call(1, least_accuracy=least))
    best = max(net.accuracy_fraction for net in nets)
    picked = found.pick(slack, rows, level)
    for way in (found.hopeless[level], *([] if picked is None else [picked[0]])):
        assert nets[way].accuracy_fraction >= min(least, best)
        assert found.serves[way] >= level
    alone = [net for net in nets if net.accuracy_fraction >= min(least, best)]
    assert (picked is None) == (make(alone)(slack, rows) is None)


@given(nets=families(), slack=st.floats(0, 10), rows=st.integers(9, 400))
def test_split_requests_run_on_the_most_accurate_subnet_in_time(
    nets: tuple[SubnetProfile, ...], slack: float, rows: int
) -> None:
    """A request with more rows than a batch runs on the most accurate subnet that computes all parts in time."""
    levels = build_accuracy_levels(nets, lambda some: ADAPTIVE["steady"](some, SLO), Slowdown())
    assert levels.pick_split is not None
    choice = levels.pick_split(slack, rows, 0)
    fitting = [net.accuracy for net in nets if net.estimate_split_latency(rows) <= slack]
    assert (choice is None) == (not fitting)
    if choice is not None:
        assert choice[1] == rows
        assert nets[choice[0]].accuracy == max(fitting)


def test_request_that_fits_a_batch_is_never_split() -> None:
    """A policy that drops a request which fits a batch is not overruled."""
    nets = (SubnetProfile("a", 90.0, ((1, 1e-3), (8, 2e-3))),)
    levels = build_accuracy_levels(nets, lambda some: ADAPTIVE["steady"](some, SLO), Slowdown())
    assert levels.pick_split is not None
    assert levels.pick_split(10.0, 8, 0) is None
    assert levels.pick_split(10.0, 9, 0) == (0, 9)


def test_split_latency_sums_full_batches_and_the_remainder() -> None:
    """Parts of the largest measured batch take its time; the remainder is interpolated."""
    profile = SubnetProfile("a", 90.0, ((1, 1.0), (8, 2.0)))
    assert [profile.estimate_split_latency(rows) for rows in (1, 8, 16, 17)] == [1.0, 2.0, 4.0, 5.0]
