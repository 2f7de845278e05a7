"""Laws of a trace that is as heavy as the spec wants it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_supernet.replay import load
from unfold_supernet.scheduling.policies import Served, capacity, slower
from unfold_supernet.schema.models import ServingSpec
from unfoldkit.api import UnfoldError
from unfoldkit.arrivals.envelope import envelope

NETS = (Served("small", 80.0, ((1, 0.001), (32, 0.004))), Served("large", 90.0, ((1, 0.004), (32, 0.064))))
SLO = 0.02


def serving(share: str | None) -> ServingSpec:
    """Return a spec with a load."""
    return ServingSpec.model_validate({"slo": "20 ms", "load": share})


def trace(count: int) -> np.ndarray:
    """Return arrivals at 500 a second."""
    return np.cumsum(np.random.default_rng(0).exponential(0.002, count))


@settings(max_examples=20, deadline=None)
@given(st.floats(0.2, 3.0), st.floats(0.2, 2.0))
def test_the_busiest_part_asks_the_share(share: float, pace: float) -> None:
    """On nets of any speed the busiest ten times to live ask the given share of what the quickest net can answer."""
    nets, times = slower(NETS, pace), trace(2_000)
    found, _places = load.laden(times, load.factor(times, nets, serving(f"{share * 100:.6f}%")), 0)
    span = load.WINDOW * SLO
    most = max(capacity(net, SLO) for net in nets)
    assert envelope(found, np.array([span]))[0] / span / most == pytest.approx(share, rel=0.15)


def test_without_a_load_a_trace_is_played_as_it_is() -> None:
    """A spec that names no load leaves every arrival where it is."""
    times = trace(50)
    assert load.factor(times, NETS, serving(None)) == 1.0
    assert load.laden(times, 1.0, 0)[0] is times


def test_a_load_beyond_memory_is_told() -> None:
    """More requests than memory should hold, or none at all, are an error that names the key."""
    for times in (1e9, 1e-9):
        with pytest.raises(UnfoldError, match=r"serving\.load"):
            load.laden(trace(100), times, 0)
