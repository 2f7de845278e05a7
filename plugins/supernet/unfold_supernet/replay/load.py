"""Load scaling: a trace is scaled to a fraction of the supernet's capacity, so that results hold on any machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfold_supernet._types import FloatArray, IntArray
from unfold_supernet.scheduling.policies import SubnetProfile, compute_capacity
from unfoldkit.api import user_error
from unfoldkit.arrivals import traces
from unfoldkit.arrivals.envelope import compute_envelope

WINDOW_SLOS = 10
"""Window, in deadlines, over which a trace is busiest: a burst that clears within one deadline is no load."""
MAX_REQUESTS = 20_000_000
"""Requests of a scaled trace, which is held in memory."""


@dataclass(frozen=True, slots=True)
class ScaledTrace:
    """A scaled trace; ``origins`` is the index of the original request that each arrival comes from."""

    arrivals: FloatArray
    origins: IntArray


def compute_rate_factor(
    arrivals: FloatArray, profiles: Sequence[SubnetProfile], slo: float, load: float | None
) -> float:
    """Compute the rate factor at which the busiest part of a trace demands ``load`` of the fastest subnet's capacity.

    Args:
        arrivals: Arrival times in seconds.
        profiles: The subnets.
        slo: Deadline in seconds.
        load: Fraction of the capacity; ``None`` leaves the trace as it is.
    """
    if load is None:
        return 1.0
    window = WINDOW_SLOS * slo
    peak_rate = float(compute_envelope(arrivals, np.array([window]))[0]) / window
    return load * max(compute_capacity(profile, slo) for profile in profiles) / peak_rate


def scale_arrivals(arrivals: FloatArray, factor: float, seed: int) -> ScaledTrace:
    """Scale the rate of a trace; its length and its busy periods stay.

    Raises:
        UnfoldError: Fewer than two requests remain, or more than fit in memory.
    """
    if factor == 1.0:
        return ScaledTrace(arrivals, np.arange(arrivals.size))
    if arrivals.size * factor > MAX_REQUESTS:
        message = f"at this load the trace has {arrivals.size * factor:,.0f} requests"
        hint = f"use a shorter trace or a lower load; at most {MAX_REQUESTS:,} requests"
        raise user_error(message, key="serving.load", hint=hint)
    scaled, origins = traces.scale_rate_with_sources(arrivals, factor, np.random.default_rng([seed, 0x10AD]))
    if scaled.size < 2:
        raise user_error("at this load the trace is empty", key="serving.load", hint="use a longer trace")
    return ScaledTrace(scaled, origins)
