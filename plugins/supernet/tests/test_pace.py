"""Laws of how fast the machine is now, and of rules that go by it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_supernet.scheduling.policies import Served, fitted, slower
from unfold_supernet.scheduling.speed import STEPS, Pace, paced

NETS = (
    Served("small", 80.0, ((1, 0.001), (8, 0.003), (32, 0.008))),
    Served("large", 90.0, ((1, 0.004), (8, 0.020), (32, 0.064))),
)


@pytest.mark.parametrize("factor", [0.6, 1.0, 3.0, 12.0])
def test_the_pace_is_learned(factor: float) -> None:
    """Where every batch takes so many times its profile, the pace comes to within a tenth of that."""
    pace = Pace()
    for _ in range(2_000):
        pace.learn(0.01, 0.01 * factor)
    assert pace.scale == pytest.approx(factor, rel=0.1)
    assert pace.usual == pytest.approx(factor, rel=0.1)


@settings(max_examples=60, deadline=None)
@given(st.integers(-10, 55), st.floats(0.0, 0.2), st.integers(1, 60))
def test_a_rule_goes_by_the_pace_of_now(step: int, slack: float, waiting: int) -> None:
    """At any pace the choice is that of the rule made for nets so much slower; at pace one, of the rule itself."""
    pace = Pace()
    rule = paced(fitted, NETS, pace)
    assert rule(slack, waiting) == fitted(NETS)(slack, waiting)
    pace.scale = pace.usual = math.exp(step / STEPS)
    assert rule(slack, waiting) == fitted(slower(NETS, pace.scale))(slack, waiting)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.7, 4.0), st.floats(1.0, 3.0), st.floats(0.0, 0.2), st.integers(1, 60))
def test_nothing_is_started_that_a_slow_batch_would_make_late(
    usual: float, more: float, slack: float, waiting: int
) -> None:
    """Whatever is usual, what is started is in time at the pace that nine in ten batches keep, but for a step of it."""
    pace = Pace(usual * more, usual)
    choice = paced(fitted, NETS, pace)(slack, waiting)
    if choice is not None:
        step = math.exp(0.5 / STEPS)
        assert NETS[choice.net].takes(min(choice.batch, waiting)) * pace.scale <= slack * step * (1 + 1e-9)
