"""Durations, dollars, percentages and counts as reports print them."""

from __future__ import annotations

import math

DURATION_UNITS = (
    (10, 1, 2, "s"),
    (120, 1, 0, "s"),
    (7200, 60, 1, "min"),
    (172_800, 3600, 1, "h"),
    (math.inf, 86_400, 1, "d"),
)
"""``(below this many seconds, seconds per unit, decimals, unit)``."""


def format_duration(seconds: float, *, round_up: bool = False) -> str:
    """Format a duration in the unit that fits it: ``42 s``, ``9.7 min``, ``3.2 h``.

    Args:
        seconds: The duration.
        round_up: Never print less than the duration, as a deadline must not be shortened by rounding.
    """
    _, unit_s, digits, unit = next(row for row in DURATION_UNITS if seconds < row[0])
    value = seconds / unit_s
    if round_up:
        value = math.ceil(value * 10**digits - 1e-9) / 10**digits
    return f"{value:.{digits}f} {unit}"


def format_dollars(usd: float) -> str:
    """Format dollars, with four decimals below ten cents."""
    return f"${usd:,.2f}" if usd >= 0.1 or usd == 0 else f"${usd:.4f}"


def format_percent(fraction: float) -> str:
    """Format a fraction as a percentage that is never rounded up to certainty."""
    text = f"{fraction:.1%}".replace("%", " %")
    return "> 99.9 %" if text == "100.0 %" and fraction < 1 else text.replace(".0 %", " %")


def format_cost_difference(baseline_usd: float, plan_usd: float) -> str:
    """Format how much more a baseline costs than a plan: ``+12 %``, ``the same``."""
    percent = (baseline_usd / plan_usd - 1) * 100 if plan_usd else 0.0
    if abs(percent) < 0.05:
        return "the same"
    return f"{percent:+.0f} %" if abs(percent) >= 10 else f"{percent:+.1f} %"


def format_count(number: int, noun: str) -> str:
    """Format a number with its noun: ``1 trial``, ``32 trials``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
