"""Rates that change in time, as one rate a piece. "AutoScale-like": they imitate the traces of Gandhi et al. (2012)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from unfoldkit.errors import did_you_mean, user_error

Rates = NDArray[np.float64]
PIECES = 100
PIECE_S = 30.0


def ramp(low: float, high: float, count: int = PIECES) -> Rates:
    """Return rates that climb evenly from ``low`` to ``high``."""
    return np.linspace(low, high, count)


def spike(base: float, peak: float, count: int = PIECES, *, start: float = 0.5, width: float = 0.1) -> Rates:
    """Return ``base`` with a plateau of ``peak`` that begins at the share ``start`` and lasts the share ``width``."""
    at = np.arange(count) / count
    return np.where((at >= start) & (at < start + width), peak, base)


def sines(
    low: float, high: float, count: int = PIECES, *, periods: float = 2.0, ripple: float = 0.0, ripples: float = 10.0
) -> Rates:
    """Return a sine between ``low`` and ``high`` with a second, quicker one of relative height ``ripple`` on it."""
    at = np.arange(count) / count
    wave = np.sin(2 * np.pi * periods * at) + ripple * np.sin(2 * np.pi * ripples * at)
    return low + (high - low) * (wave / (1 + ripple) + 1) / 2


def phases(levels: tuple[float, ...], count: int = PIECES) -> Rates:
    """Return equally long plateaus at the given levels."""
    return np.array([levels[min(len(levels) - 1, index * len(levels) // count)] for index in range(count)])


def _large(count: int = PIECES) -> Rates:
    return sines(60.0, 280.0, count, periods=3.0, ripple=0.5, ripples=11.0)


AUTOSCALE_LIKE: Mapping[str, Callable[[], Rates]] = MappingProxyType(
    {
        "big-spike": lambda: spike(90.0, 300.0),
        "slowly-varying": lambda: sines(70.0, 260.0),
        "dual-phase": lambda: phases((90.0, 240.0)),
        "steep-tri-phase": lambda: phases((80.0, 180.0, 290.0, 120.0)),
        "quickly-varying": lambda: sines(70.0, 260.0, periods=10.0),
        "large-varying": _large,
    }
)


SHAPES: Mapping[str, Callable[[], Rates]] = MappingProxyType({**AUTOSCALE_LIKE, "ramp": lambda: ramp(60.0, 300.0)})


def named(name: str) -> Rates:
    """Return the rates, per second, of an AutoScale-like shape or a ramp: 100 pieces of 30 s, at most 300 a second.

    Raises:
        UnfoldError: there is no such shape.
    """
    if name not in SHAPES:
        raise user_error(f"no such shape: {name!r}", hint=did_you_mean(name, SHAPES))
    return SHAPES[name]()


def thicken(times: Rates, factor: float, piece: float = 10.0) -> Rates:
    """Return the rates of a trace counted in pieces of ``piece`` seconds and multiplied by ``factor``."""
    edges = np.arange(0.0, float(times[-1]) + piece, piece)
    return np.histogram(times, edges)[0] * (factor / piece)
