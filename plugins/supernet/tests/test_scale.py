"""Units that fit what is shown."""

from __future__ import annotations

import pytest

from unfold_supernet.scale import buffer_unit, scaled, size


@pytest.mark.parametrize(
    ("most", "values", "unit", "shown"),
    [("MB", [25e6, 1e6], "MB", [25.0, 1.0]), ("MB", [5e9], "MB", [5000.0]), ("MB", [3250.0], "kB", [3.25]),
     ("mJ", [4.7e-8], "nJ", [47.0]), ("GMAC", [204.0], "MAC", [204.0]), ("ms", [0.0], "ms", [0.0])],
)  # fmt: skip
def test_values_are_shown_in_a_unit_that_shows_them(
    most: str, values: list[float], unit: str, shown: list[float]
) -> None:
    """The unit is the one asked for, or the largest below it in which the largest value is at least one."""
    column, found = scaled("x", most, values)
    assert column.unit == unit
    assert found == pytest.approx(shown)


def test_bytes_are_told_in_their_unit() -> None:
    """Buffers below a MiB are told in KiB, below a KiB in bytes, and none with an exponent."""
    assert [size(2 << 20), size(4096), size(204)] == ["2 MiB", "4 KiB", "204 B"]
    assert [size(1000 << 10), size((1 << 20) - 96), size(3 << 39)] == ["1000 KiB", "1 MiB", "1536 GiB"]
    assert [size(1728 << 10), size(100 << 20), size(1 << 30)] == ["1.69 MiB", "100 MiB", "1 GiB"]
    assert [buffer_unit([1 << 23, 1 << 18])[0], buffer_unit([0, 1 << 20])[0]] == ["MiB", "MiB"]
    # 20 KiB beside 1.69 MiB would be 0.02 MiB, and 4 KiB nothing
    assert buffer_unit([1728 << 10, 20 << 10, 4 << 10])[0] == "KiB"
