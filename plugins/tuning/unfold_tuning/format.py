"""Times, dollars and shares as a reader wants them."""

from __future__ import annotations

import math


def span(seconds: float, *, up: bool = False) -> str:
    """Return a time in the unit that fits it: ``42 s``, ``9.7 min``, ``3.2 h``; with ``up`` never less than it is."""
    for below, unit, digits, name in ((10, 1, 2, "s"), (120, 1, 0, "s"), (7200, 60, 1, "min"), (172_800, 3600, 1, "h")):
        if seconds < below:
            return f"{_rounded(seconds / unit, digits, up=up):.{digits}f} {name}"
    return f"{_rounded(seconds / 86400, 1, up=up):.1f} d"


def _rounded(value: float, digits: int, *, up: bool) -> float:
    return math.ceil(value * 10**digits - 1e-9) / 10**digits if up else value


def dollars(value: float) -> str:
    """Return dollars, with four digits below ten cents."""
    return f"${value:,.2f}" if value >= 0.1 or value == 0 else f"${value:.4f}"


def share(value: float) -> str:
    """Return a share as a percentage, never rounded up to certainty."""
    shown = f"{value:.1%}".replace("%", " %")
    return "> 99.9 %" if shown == "100.0 %" and value < 1 else shown.replace(".0 %", " %")


def against(other: float, this: float) -> str:
    """Return how much dearer ``other`` is than ``this``."""
    percent = (other / this - 1) * 100 if this else 0.0
    return "the same" if abs(percent) < 0.05 else f"{percent:+.0f} %" if abs(percent) >= 10 else f"{percent:+.1f} %"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 trial``, ``32 trials``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
