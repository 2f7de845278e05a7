"""Units that fit what is shown: a family of a few thousand weights has no megabytes."""

from __future__ import annotations

from collections.abc import Sequence

from unfoldkit.api import Column

MIB = 2**20
UNITS = (("GiB", 2**30), ("MiB", MIB), ("KiB", 1024))
ALMOST = 1 - 1 / 2048
"""Share of a unit from which on it is rounded to the whole unit."""
PREFIXES = (("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0), ("m", 1e-3), ("µ", 1e-6), ("n", 1e-9))


def scaled(name: str, most: str, values: Sequence[float], digits: int = 2) -> tuple[Column, list[float]]:
    """Return a column of values, given in the plain unit, by the largest unit up to ``most`` that shows them."""
    prefix, base = (most[0], most[1:]) if most[0] in "GMkmµn" and len(most) > 1 else ("", most)
    allowed = PREFIXES[[sign for sign, _ in PREFIXES].index(prefix) :]
    largest = max(map(abs, values), default=0.0)
    # one digit more than none, so that 3 kMAC among 1 kMAC are not three alike
    need = 10.0 if digits == 0 else 1.0
    sign, factor = next((pair for pair in allowed if largest >= need * pair[1]), allowed[0 if largest == 0 else -1])
    digits = min(digits, 1) if sign != prefix and largest >= 100 * factor else digits
    return Column(name, sign + base, digits), [value / factor for value in values]


def size(bytes_: int) -> str:
    """Return bytes as text in B, KiB, MiB or GiB, in three digits and without an exponent."""
    if bytes_ < 1024:
        return f"{bytes_} B"
    unit, each = next(pair for pair in UNITS if bytes_ >= pair[1] * ALMOST)
    value = bytes_ / each
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def buffer_unit(sizes: Sequence[int]) -> tuple[str, int]:
    """Return the unit that tells buffers of these bytes apart, the smallest too, and its bytes."""
    least = min((size for size in sizes if size > 0), default=MIB)
    return ("MiB", MIB) if max(sizes) >= MIB and least >= MIB / 10 else ("KiB", 1024)
