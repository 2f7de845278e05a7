"""Units for report columns and buffers: a supernet of a few thousand weights has no megabytes to show."""

from __future__ import annotations

from collections.abc import Sequence

from unfoldkit.api import Column

MIB = 2**20
PREFIXES = (("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0), ("m", 1e-3), ("µ", 1e-6), ("n", 1e-9))


def scale_column(name: str, max_unit: str, values: Sequence[float], digits: int = 2) -> tuple[Column, list[float]]:
    """Build a report column in the largest SI unit that still shows its values.

    Args:
        name: Name of the column.
        max_unit: Largest unit to use, such as ``MB`` or ``GMAC``.
        values: Cells in the plain unit (bytes, MAC, seconds, joules).
        digits: Digits after the decimal point.

    Returns:
        The column, and the values in its unit.
    """
    has_prefix = max_unit[0] in "GMkmµn" and len(max_unit) > 1
    prefix, base_unit = (max_unit[0], max_unit[1:]) if has_prefix else ("", max_unit)
    allowed = PREFIXES[[sign for sign, _ in PREFIXES].index(prefix) :]
    largest = max(map(abs, values), default=0.0)
    # without decimals, require two digits: 3 kMAC and 2.6 kMAC must not print alike
    min_shown = 10.0 if digits == 0 else 1.0
    fallback = allowed[0 if largest == 0 else -1]
    sign, factor = next((pair for pair in allowed if largest >= min_shown * pair[1]), fallback)
    digits = min(digits, 1) if sign != prefix and largest >= 100 * factor else digits
    return Column(name, sign + base_unit, digits), [value / factor for value in values]


def choose_buffer_unit(sizes: Sequence[int]) -> tuple[str, int]:
    """Choose the unit (its name and its bytes) that shows every buffer size, including the smallest."""
    smallest = min((size for size in sizes if size > 0), default=MIB)
    return ("MiB", MIB) if max(sizes) >= MIB and smallest >= MIB / 10 else ("KiB", 1024)
