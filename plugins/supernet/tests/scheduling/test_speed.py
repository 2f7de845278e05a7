"""Slowdown of the machine."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_supernet.scheduling.policies import SubnetProfile, make_fitted, scale_latencies
from unfold_supernet.scheduling.speed import STEPS_PER_E, Slowdown, adapt_to_slowdown

NETS = (
    SubnetProfile("small", 80.0, ((1, 0.001), (8, 0.003), (32, 0.008))),
    SubnetProfile("large", 90.0, ((1, 0.004), (8, 0.020), (32, 0.064))),
)


@pytest.mark.parametrize("factor", [0.6, 1.0, 3.0, 12.0])
def test_slowdown_converges_to_the_measured_ratio(factor: float) -> None:
    """If every batch takes a constant multiple of its profile, the slowdown converges to it within a tenth."""
    pace = Slowdown()
    for _ in range(2_000):
        pace.update(0.01, 0.01 * factor)
    assert pace.p90 == pytest.approx(factor, rel=0.1)
    assert pace.median == pytest.approx(factor, rel=0.1)


@settings(max_examples=60, deadline=None)
@given(st.integers(-10, 55), st.floats(0.0, 0.2), st.integers(1, 60))
def test_policy_uses_the_present_slowdown(step: int, slack: float, waiting: int) -> None:
    """At any slowdown, the decision is that of the policy built for slower subnets."""
    pace = Slowdown()
    rule = adapt_to_slowdown(make_fitted, NETS, pace)
    assert rule(slack, waiting) == make_fitted(NETS)(slack, waiting)
    pace.p90 = pace.median = math.exp(step / STEPS_PER_E)
    assert rule(slack, waiting) == make_fitted(scale_latencies(NETS, pace.p90))(slack, waiting)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.7, 4.0), st.floats(1.0, 3.0), st.floats(0.0, 0.2), st.integers(1, 60))
def test_batches_are_in_time_at_the_90th_percentile(usual: float, more: float, slack: float, waiting: int) -> None:
    """Whatever the median, a started batch is in time at the 90th percentile, up to a step of the grid."""
    pace = Slowdown(usual * more, usual)
    choice = adapt_to_slowdown(make_fitted, NETS, pace)(slack, waiting)
    if choice is not None:
        step = math.exp(0.5 / STEPS_PER_E)
        assert NETS[choice.subnet].estimate_latency(min(choice.batch, waiting)) * pace.p90 <= slack * step * (1 + 1e-9)
