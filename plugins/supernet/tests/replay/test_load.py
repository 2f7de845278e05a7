"""Load scaling of a trace."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.supernet.tests.helpers import draw_arrivals
from unfold_supernet.replay import load
from unfold_supernet.scheduling.policies import SubnetProfile, compute_capacity, scale_latencies
from unfold_supernet.scheduling.requests import RequestTargets
from unfoldkit.api import UnfoldError
from unfoldkit.arrivals.envelope import compute_envelope

NETS = (
    SubnetProfile("small", 80.0, ((1, 0.001), (32, 0.004))),
    SubnetProfile("large", 90.0, ((1, 0.004), (32, 0.064))),
)
SLO = 0.02


def trace(count: int) -> np.ndarray:
    """Draw arrivals at 500 per second."""
    return np.cumsum(np.random.default_rng(0).exponential(0.002, count))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.floats(0.1, 5.0))
def test_scaled_requests_retain_their_targets(seed: int, times: float) -> None:
    """After scaling, each request has the targets of the request that it was made from."""
    scaled = load.scale_arrivals(draw_arrivals(500, 300, seed), times, seed)
    found, places = scaled.arrivals, scaled.origins
    original = draw_arrivals(500, 300, seed)
    asked = RequestTargets(original, original).select(places)
    assert found.size == asked.deadlines_s.size
    assert (np.diff(found) >= 0).all()
    # a repeated arrival lies within the gap that follows it
    assert (found >= asked.deadlines_s - 1e-12).all()
    later = np.append(original[1:], original[-1])
    assert (found <= later[places] + 1e-12).all()


@settings(max_examples=20, deadline=None)
@given(st.floats(0.2, 3.0), st.floats(0.2, 2.0))
def test_busiest_window_demands_the_load(share: float, pace: float) -> None:
    """At any speed, the busiest ten deadlines demand the given fraction of the fastest subnet's capacity."""
    nets, times = scale_latencies(NETS, pace), trace(2_000)
    found = load.scale_arrivals(times, load.compute_rate_factor(times, nets, SLO, share), 0).arrivals
    span = load.WINDOW_SLOS * SLO
    most = max(compute_capacity(net, SLO) for net in nets)
    assert compute_envelope(found, np.array([span]))[0] / span / most == pytest.approx(share, rel=0.15)


def test_trace_without_load_is_unchanged() -> None:
    """Without a load, every arrival stays where it is."""
    times = trace(50)
    assert load.compute_rate_factor(times, NETS, SLO, None) == 1.0
    assert load.scale_arrivals(times, 1.0, 0).arrivals is times


def test_load_beyond_memory_is_refused() -> None:
    """Too many requests, or fewer than two, are refused with the key."""
    for times in (1e9, 1e-9):
        with pytest.raises(UnfoldError, match=r"serving\.load"):
            load.scale_arrivals(trace(100), times, 0)
