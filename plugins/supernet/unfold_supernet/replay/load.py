"""A trace made as heavy as a share of what the family can answer: it asks the same of a machine of any speed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unfold_supernet.arrays import Floats, Ints
from unfold_supernet.scheduling.policies import Served, capacity
from unfold_supernet.schema.models import ServingSpec
from unfoldkit.api import fail
from unfoldkit.arrivals import traces
from unfoldkit.arrivals.envelope import envelope

WINDOW = 10
"""Times to live over which a trace is at its busiest: a crowd that is gone within one is no load."""
MOST = 20_000_000
"""Requests of a trace, which is held in memory."""


def factor(arrivals: Floats, nets: Sequence[Served], serving: ServingSpec) -> float:
    """Return by how much the rate of a trace must grow so that its busiest part asks ``load`` of the quickest net."""
    if serving.load is None:
        return 1.0
    span = WINDOW * serving.slo
    busiest = float(envelope(arrivals, np.array([span]))[0]) / span
    return serving.load * max(capacity(net, serving.slo) for net in nets) / busiest


def laden(arrivals: Floats, times: float, seed: int) -> tuple[Floats, Ints]:
    """Return a trace with its rate multiplied, and the place that each arrival had; its length and busy times stay.

    Raises:
        UnfoldError: nothing is left of it, or more than memory should hold.
    """
    if times == 1.0:
        return arrivals, np.arange(arrivals.size)
    if arrivals.size * times > MOST:
        message, hint = f"at this load the trace has {arrivals.size * times:,.0f} requests", "a shorter trace"
        raise fail(message, key="serving.load", hint=f"{hint}, or a lower load; at most {MOST:,}")
    found, places = traces.scaled(arrivals, times, np.random.default_rng([seed, 0x10AD]))
    if found.size < 2:
        raise fail("at this load nothing is left of the trace", key="serving.load", hint="a longer trace")
    return found, places
