"""Arrival processes: renewal streams with a given rate and burstiness, and streams whose rate changes in time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]


def gamma(rate: float, duration: float, rng: np.random.Generator, *, scv: float = 1.0) -> Times:
    """Return arrivals in ``[0, duration)`` whose gaps are gamma distributed (shape ``1/scv``, mean ``1/rate``).

    ``scv`` is the squared coefficient of variation of the gaps: 1 is Poisson, 0 is a clock. The first arrival comes one
    gap after 0. Rates are per second.
    """
    parts: list[Times] = []
    last = 0.0
    while last < duration:
        size = max(64, int((duration - last) * rate * 1.1) + 16)
        part = last + np.cumsum(_gaps(rate, scv, size, rng))
        parts.append(part)
        last = float(part[-1])
    times = np.concatenate(parts) if parts else np.empty(0)
    return times[: int(np.searchsorted(times, duration))]


def poisson(rate: float, duration: float, rng: np.random.Generator) -> Times:
    """Return Poisson arrivals in ``[0, duration)``."""
    return gamma(rate, duration, rng)


def pieces(
    rates: Sequence[float] | Times, length: float, rng: np.random.Generator, *, scv: float = 1.0, at_clock: bool = False
) -> Times:
    """Return arrivals whose mean rate is ``rates[i]`` in the ``i``-th piece of ``length`` seconds.

    One renewal stream of unit rate is stretched by the inverse of the cumulated rate, so that the burstiness goes on
    across the ends of pieces; ``at_clock`` takes a clock in the place of a random stream.
    """
    heights = np.asarray(rates, dtype=np.float64)
    area = np.concatenate([[0.0], np.cumsum(heights * length)])
    total = float(area[-1])
    unit = np.arange(0.5, total) if at_clock else gamma(1.0, total, rng, scv=scv)
    times: Times = np.interp(unit, area, np.arange(area.size) * length)
    return times


def _gaps(rate: float, scv: float, size: int, rng: np.random.Generator) -> Times:
    if scv == 0:
        return np.full(size, 1.0 / rate)
    gaps: Times = rng.standard_gamma(1.0 / scv, size) * scv if scv != 1 else rng.standard_exponential(size)
    gaps /= rate
    return gaps
