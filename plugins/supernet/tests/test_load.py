"""Laws of a trace that is as heavy as the spec wants it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_supernet.replay import load
from unfold_supernet.scheduling.policies import SubnetProfile, compute_capacity, scale_latencies
from unfoldkit.api import UnfoldError
from unfoldkit.arrivals.envelope import envelope

NETS = (
    SubnetProfile("small", 80.0, ((1, 0.001), (32, 0.004))),
    SubnetProfile("large", 90.0, ((1, 0.004), (32, 0.064))),
)
SLO = 0.02


def trace(count: int) -> np.ndarray:
    """Return arrivals at 500 a second."""
    return np.cumsum(np.random.default_rng(0).exponential(0.002, count))


@settings(max_examples=20, deadline=None)
@given(st.floats(0.2, 3.0), st.floats(0.2, 2.0))
def test_the_busiest_part_asks_the_share(share: float, pace: float) -> None:
    """On nets of any speed the busiest ten times to live ask the given share of what the quickest net can answer."""
    nets, times = scale_latencies(NETS, pace), trace(2_000)
    found = load.scale_arrivals(times, load.compute_rate_factor(times, nets, SLO, share), 0).arrivals
    span = load.WINDOW_SLOS * SLO
    most = max(compute_capacity(net, SLO) for net in nets)
    assert envelope(found, np.array([span]))[0] / span / most == pytest.approx(share, rel=0.15)


def test_without_a_load_a_trace_is_played_as_it_is() -> None:
    """A spec that names no load leaves every arrival where it is."""
    times = trace(50)
    assert load.compute_rate_factor(times, NETS, SLO, None) == 1.0
    assert load.scale_arrivals(times, 1.0, 0).arrivals is times


def test_a_load_beyond_memory_is_told() -> None:
    """More requests than memory should hold, or none at all, are an error that names the key."""
    for times in (1e9, 1e-9):
        with pytest.raises(UnfoldError, match=r"serving\.load"):
            load.scale_arrivals(trace(100), times, 0)
