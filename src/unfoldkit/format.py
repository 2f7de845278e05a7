"""Format durations, money, ratios, byte counts and plain numbers the same way in every report line and table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

DurationStyle = Literal["elapsed", "latency"]
_ELAPSED_STEPS = ((10.0, 1.0, 2, "s"), (120.0, 1.0, 0, "s"), (7200.0, 60.0, 1, "min"), (172_800.0, 3600.0, 1, "h"))
_SHORTEST_ELAPSED_S = 0.01
"""Shorter durations would read as zero seconds."""
_BYTE_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
# from this share of a unit on, a size is rounded up to the complete unit instead of "1024 KiB"
_UNIT_THRESHOLD = 1 - 1 / 2048
_LONGEST = 1e15
"""Floats from here on have more digits than they hold."""


def format_duration(seconds: float, *, style: DurationStyle = "elapsed", round_up: bool = False) -> str:
    """Format a duration in the unit that fits its size.

    Args:
        seconds: The duration in s, not negative.
        style: ``elapsed`` uses s, min, h and d (``42 s``, ``9.7 min``, ``3.2 h``), and µs and ms below 10 ms.
            ``latency`` uses µs and ms, and seconds from 10 s on (``35 µs``, ``4.2 ms``, ``180 ms``, ``12.5 s``).
        round_up: Never show less than ``seconds``, as a deadline requires. Only for ``elapsed``.
    """
    if style == "latency":
        return _format_latency(seconds)
    if 0 < seconds < _SHORTEST_ELAPSED_S:
        # in steps of 0.1 ms, and of 0.1 µs below one of them
        digits = 4 if seconds >= 1e-4 else 7
        return _format_latency(_round(seconds, digits, up=round_up))
    for limit, unit_s, digits, unit in _ELAPSED_STEPS:
        if seconds < limit:
            return f"{_round(seconds / unit_s, digits, up=round_up):.{digits}f} {unit}"
    return f"{_round(seconds / 86_400, 1, up=round_up):.1f} d"


def format_money(usd: float, *, round_up: bool = False) -> str:
    """Format US dollars with two decimals; amounts below ten cents with four, or as many as show two digits.

    Args:
        usd: The amount.
        round_up: Never show less than ``usd``, as a budget requires.
    """
    digits = 2 if usd >= 0.1 or usd <= 0 else min(12, max(4, 1 - math.floor(math.log10(usd))))
    return f"${_round(usd, digits, up=round_up):,.{digits}f}"


def divide_costs(baseline: float, value: float) -> float | None:
    """Return ``baseline / value``, 1 where both are zero, and ``None`` where only ``value`` is."""
    if value > 0:
        return baseline / value
    return None if baseline > 0 else 1.0


def format_percent(fraction: float) -> str:
    """Format a fraction as a percentage with one decimal; below 1 it never reads ``100 %``."""
    text = f"{100 * fraction:.1f} %"
    return "> 99.9 %" if text == "100.0 %" and fraction < 1 else text.replace(".0 %", " %")


def format_bytes(count: int) -> str:
    """Format a byte count in B, KiB, MiB or GiB with three significant digits and no exponent."""
    if count < 1024:
        return f"{count} B"
    unit, unit_bytes = next(pair for pair in _BYTE_UNITS if count >= pair[1] * _UNIT_THRESHOLD)
    value = count / unit_bytes
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def format_count(count: int, noun: str) -> str:
    """Format a count with its noun: ``1 trial``, ``32 trials``, ``2 classes``, ``5 queries``."""
    if count == 1:
        return f"1 {noun}"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{count:,} {noun[:-1]}ies"
    return f"{count:,} {noun}{'es' if noun.endswith(('s', 'x', 'ch')) else 's'}"


def format_names(names: Sequence[str], shown: int) -> str:
    """Join names, and count those beyond the first ``shown``: ``a, b and 3 others``."""
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {format_count(rest, 'other')}" if rest > 0 else "")


def format_number(value: float, digits: int | None = None) -> str:
    """Format a number with thousands separated by commas.

    Args:
        value: An integer, or a float that need not be finite.
        digits: Decimals; ``None`` keeps integers as they are and shows three significant digits of a float, in
            scientific notation below 0.0001 and from 10^15 on.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "∞" if value > 0 else "–"
    if isinstance(value, int) and digits is None:
        return f"{value:,}"
    if digits is not None:
        # adding 0.0 removes the minus sign of a value that rounds to zero
        return f"{round(value, digits) + 0.0:,.{digits}f}"
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}" if decimals < 7 and abs(value) < _LONGEST else f"{value:.2e}"


def format_amount(value: float) -> str:
    """Format an amount with four significant digits, and a large one with all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 9999.5 else f"{value:,.4g}"


def attach_unit(number: str, unit: str) -> str:
    """Attach a unit to a number; a currency comes first, as in sentences: $5 an hour is $5/h."""
    if unit.startswith("$"):
        sign = "-" if number.startswith("-") else ""
        return f"{sign}${number.removeprefix('-')}{unit[1:]}"
    return f"{number} {unit}".strip()


def _format_latency(seconds: float) -> str:
    milliseconds = seconds * 1e3
    if milliseconds >= 1e4:
        return f"{seconds:,.1f} s"
    if 0 < milliseconds < 0.1:
        return f"{milliseconds * 1e3:,.3g} µs"
    return f"{milliseconds:,.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"


def _round(value: float, digits: int, *, up: bool) -> float:
    # the tolerance keeps an exact value such as 2.3 from being rounded up by its binary representation
    return math.ceil(value * 10**digits - 1e-9) / 10**digits if up else value
