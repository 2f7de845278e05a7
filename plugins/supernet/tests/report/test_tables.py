"""Units of columns, byte counts and buffers."""

from __future__ import annotations

import pytest

from unfold_supernet.report.tables import choose_buffer_unit, scale_column
from unfoldkit.api import format_bytes


@pytest.mark.parametrize(
    ("most", "values", "unit", "shown"),
    [("MB", [25e6, 1e6], "MB", [25.0, 1.0]), ("MB", [5e9], "MB", [5000.0]), ("MB", [3250.0], "kB", [3.25]),
     ("mJ", [4.7e-8], "nJ", [47.0]), ("GMAC", [204.0], "MAC", [204.0]), ("ms", [0.0], "ms", [0.0])],
)  # fmt: skip
def test_column_unit_shows_the_largest_value(most: str, values: list[float], unit: str, shown: list[float]) -> None:
    """The unit is the requested one, or the largest below it that shows the largest value."""
    column, found = scale_column("x", most, values)
    assert column.unit == unit
    assert found == pytest.approx(shown)


def test_bytes_are_formatted_in_their_unit() -> None:
    """Buffers below a MiB are in KiB, below a KiB in bytes, and none has an exponent."""
    assert [format_bytes(2 << 20), format_bytes(4096), format_bytes(204)] == ["2 MiB", "4 KiB", "204 B"]
    assert [format_bytes(1000 << 10), format_bytes((1 << 20) - 96), format_bytes(3 << 39)] == [
        "1000 KiB",
        "1 MiB",
        "1536 GiB",
    ]
    assert [format_bytes(1728 << 10), format_bytes(100 << 20), format_bytes(1 << 30)] == [
        "1.69 MiB",
        "100 MiB",
        "1 GiB",
    ]


@pytest.mark.parametrize(
    ("sizes", "unit"),
    [([1 << 18, 1 << 20], "MiB"), ([1 << 19], "KiB"), ([1700, 6700, 1728 << 10], "KiB"), ([0, 1 << 21], "MiB")],
)
def test_buffer_unit_shows_the_smallest_buffer(sizes: list[int], unit: str) -> None:
    """A sweep from one KiB to some MiB is in KiB, so that its first buffers do not read 0.00."""
    assert choose_buffer_unit(sizes)[0] == unit
