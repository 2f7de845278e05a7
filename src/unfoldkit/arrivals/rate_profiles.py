"""Named profiles of a rate over time, as one rate per piece.

The "AutoScale-like" profiles imitate the traces of Gandhi et al., AutoScale (ACM TOCS 2012).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from unfoldkit._types import FloatArray
from unfoldkit.errors import did_you_mean, user_error

PIECES = 100
PIECE_S = 30.0


def ramp(low: float, high: float) -> FloatArray:
    """Return rates that climb linearly from ``low`` to ``high``."""
    return np.linspace(low, high, PIECES)


def spike(base: float, peak: float) -> FloatArray:
    """Return ``base`` with a plateau of ``peak`` that begins halfway and lasts a tenth of the profile."""
    position = np.arange(PIECES) / PIECES
    return np.where((position >= 0.5) & (position < 0.5 + 0.1), peak, base)


def sines(low: float, high: float, *, periods: float = 2.0, ripple: float = 0.0, ripples: float = 10.0) -> FloatArray:
    """Return a sine between ``low`` and ``high``, with a faster sine of relative height ``ripple`` added."""
    position = np.arange(PIECES) / PIECES
    wave = np.sin(2 * np.pi * periods * position) + ripple * np.sin(2 * np.pi * ripples * position)
    return low + (high - low) * (wave / (1 + ripple) + 1) / 2


def plateaus(levels: tuple[float, ...]) -> FloatArray:
    """Return equally long plateaus at the given levels."""
    return np.array([levels[min(len(levels) - 1, index * len(levels) // PIECES)] for index in range(PIECES)])


AUTOSCALE_LIKE: Mapping[str, Callable[[], FloatArray]] = MappingProxyType(
    {
        "big-spike": lambda: spike(90.0, 300.0),
        "slowly-varying": lambda: sines(70.0, 260.0),
        "dual-phase": lambda: plateaus((90.0, 240.0)),
        "steep-tri-phase": lambda: plateaus((80.0, 180.0, 290.0, 120.0)),
        "quickly-varying": lambda: sines(70.0, 260.0, periods=10.0),
        "large-varying": lambda: sines(60.0, 280.0, periods=3.0, ripple=0.5, ripples=11.0),
    }
)
SHAPES: Mapping[str, Callable[[], FloatArray]] = MappingProxyType({**AUTOSCALE_LIKE, "ramp": lambda: ramp(60.0, 300.0)})


def rate_profile(name: str) -> FloatArray:
    """Return the rates per second of a named profile: 100 pieces of 30 s, at most 300 per second.

    Raises:
        UnfoldError: No profile has this name.
    """
    if name not in SHAPES:
        raise user_error(f"no such shape: {name!r}", hint=did_you_mean(name, SHAPES))
    return SHAPES[name]()
