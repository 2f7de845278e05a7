"""Arrival processes: renewal streams with a given rate and burstiness, and streams with a piecewise constant rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unfoldkit._types import FloatArray


def gamma_arrivals(rate: float, duration: float, rng: np.random.Generator, *, scv: float = 1.0) -> FloatArray:
    """Draw arrivals in ``[0, duration)`` with gamma distributed gaps of shape ``1/scv`` and mean ``1/rate``.

    Args:
        rate: Arrivals per second.
        duration: Length of the stream in s.
        rng: Source of randomness.
        scv: Squared coefficient of variation of the gaps: 1 is Poisson, 0 is a clock.

    Returns:
        Sorted times in s. The first arrival comes one gap after 0.
    """
    chunks: list[FloatArray] = []
    end = 0.0
    while end < duration:
        size = max(64, int((duration - end) * rate * 1.1) + 16)
        chunk = end + np.cumsum(_draw_gaps(rate, scv, size, rng))
        chunks.append(chunk)
        end = float(chunk[-1])
    times = np.concatenate(chunks) if chunks else np.empty(0)
    return times[: int(np.searchsorted(times, duration))]


def piecewise_arrivals(
    rates: Sequence[float] | FloatArray,
    length: float,
    rng: np.random.Generator,
    *,
    scv: float = 1.0,
) -> FloatArray:
    """Draw arrivals at the mean rate ``rates[i]`` in the ``i``-th piece.

    One renewal stream of unit rate is stretched by the inverse of the cumulated rate, so that its burstiness continues
    across the ends of pieces.

    Args:
        rates: Arrivals per second, one value per piece.
        length: Length of a piece in s.
        rng: Source of randomness.
        scv: Squared coefficient of variation of the gaps of the unit stream.
    """
    heights = np.asarray(rates, dtype=np.float64)
    cumulated = np.concatenate([[0.0], np.cumsum(heights * length)])
    total = float(cumulated[-1])
    unit = gamma_arrivals(1.0, total, rng, scv=scv)
    times: FloatArray = np.interp(unit, cumulated, np.arange(cumulated.size) * length)
    return times


def _draw_gaps(rate: float, scv: float, size: int, rng: np.random.Generator) -> FloatArray:
    if scv == 0:
        return np.full(size, 1.0 / rate)
    gaps: FloatArray = rng.standard_gamma(1.0 / scv, size) * scv if scv != 1 else rng.standard_exponential(size)
    gaps /= rate
    return gaps
