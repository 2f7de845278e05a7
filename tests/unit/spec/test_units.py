"""Quantities with their unit written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic_core import PydanticCustomError

from unfoldkit.spec import units


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.parse_duration, "150 ms", 0.15),
        (units.parse_duration, "1.5h", 5400.0),
        (units.parse_duration, " 2 min ", 120.0),
        (units.parse_duration, "3 µs", 3e-6),
        (units.parse_bytes, "12 GiB", 12 * 1024**3),
        (units.parse_bytes, "1.5 kB", 1500),
        (units.parse_bytes, "1e-99999999999999999999 B", 0),
        (units.parse_percent, "1e-99999999999999999999 %", 0),
        (units.parse_rate, "150/s", 150.0),
        (units.parse_rate, "90 / min", 1.5),
        (units.parse_money, "$3.06", 3.06),
        (units.parse_money, "$ .5", 0.5),
        (units.parse_price, "$3.06/h", 3.06),
        (units.parse_price, "$24/d", 1.0),
        (units.parse_percent, "0.1%", 0.001),
        (units.parse_percent, "7 %", 0.07),
        (units.parse_fraction, "25%", 0.25),
        (units.parse_fraction, 0.25, 0.25),
        (units.parse_fraction, 1, 1.0),
    ],
)
def test_a_quantity_is_read_in_base_units(parse: Callable[[Any], float], text: Any, value: float) -> None:
    """Seconds, bytes, events a second, dollars, dollars an hour, fractions: to the last bit where the text allows."""
    assert parse(text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("parse", "given", "message", "hint"),
    [
        (units.parse_duration, 150, '"150" has no unit', 'write "150 ms"'),
        (units.parse_duration, "150", '"150" has no unit', 'write "150 ms"'),
        (units.parse_duration, 8, '"8" has no unit', 'one of: ns, us, µs, ms, s, min, h, d; write "8 ms"'),
        (units.parse_duration, "+1.5", '"+1.5" has no unit', 'write "1.5 ms"'),
        (units.parse_duration, "5 m", 'the unknown unit "m"', "one of: ns, us"),
        (units.parse_duration, "5 Seconds", 'the unknown unit "Seconds"', 'write "5 s"'),
        (units.parse_duration, "3 mins", 'the unknown unit "mins"', 'write "3 min"'),
        (units.parse_bandwidth, "4 gb/s", 'the unknown unit "gb"', 'write "4 GB/s"'),
        (units.parse_price, "$3/hour", 'the unknown unit "hour"', 'write "$3/h"'),
        (units.parse_duration, "-5 ms", "must not be negative", 'write "150 ms"'),
        (units.parse_duration, "1e400 s", "too large", "at most 1e+18"),
        (units.parse_duration, "soon", "is not a quantity", 'write "150 ms"'),
        (units.parse_duration, None, "expected a quantity, got nothing", 'write "150 ms"'),
        (units.parse_duration, True, "expected a quantity, got true", 'write "150 ms"'),
        (units.parse_duration, [1], "expected a quantity, got [1]", 'write "150 ms"'),
        (units.parse_duration, "x" * 99, "x" * 57 + "...", 'write "150 ms"'),
        (units.parse_bytes, "1e300 TiB", "too large", "at most 1e+18"),
        (units.parse_rate, "5/month", 'the unknown unit "month"', "one of: s, min, h, d"),
        (units.parse_money, 3, '"3" has no unit', 'write "$3"'),
        (units.parse_money, "40 EUR", "is not in US dollars", 'write "$40"'),
        (units.parse_money, "$1,000", "is not in US dollars", 'write "$1000"'),
        (units.parse_money, "40,50 €", "is not in US dollars", 'write "$40.50"'),
        (units.parse_money, "$40k", "is not in US dollars", 'write "$3.06"'),
        (units.parse_price, "€12/h", "is not in US dollars per time", 'write "$3.06/h"'),
        (units.parse_money, "$-3", "must not be negative", 'write "$3.06"'),
        (units.parse_price, "$3", "is not in US dollars per time", 'write "$3.06/h"'),
        (units.parse_percent, 0.01, '"0.01" has no unit', 'write "1%" or "0.01%"'),
        (units.parse_percent, 4, '"4" has no unit', 'write "4%"'),
        (units.parse_fraction, "101%", "is not between 0 and 1", 'write "0.25"'),
        (units.parse_fraction, 95, "is not between 0 and 1", 'write "95%"'),
        (units.parse_fraction, 1.3, "is not between 0 and 1", 'write "0.25"'),
        (units.parse_fraction, float("nan"), "is not between 0 and 1", 'write "0.25"'),
    ],
)
def test_what_is_no_quantity_is_told(parse: Callable[[Any], float], given: Any, message: str, hint: str) -> None:
    """Every refusal says what is wrong with the value and how it would be written."""
    with pytest.raises(PydanticCustomError) as caught:
        parse(given)
    assert message in caught.value.message()
    assert hint in (caught.value.context or {})["hint"]


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (units.format_duration, 0.025, "25 ms"),
        (units.format_duration, 0.0, "0 s"),
        (units.format_duration, 7200.0, "2 h"),
        (units.format_duration, 90.0, "90 s"),
        (units.format_bytes, 12 * 1024**3, "12 GiB"),
        (units.format_bytes, 1500, "1500 B"),
        (units.format_bytes, 0, "0 B"),
        (units.format_rate, 1.5, "1.5/s"),
        (units.format_money, 3.0, "$3"),
        (units.format_price, 3.06, "$3.06/h"),
        (units.format_percent, 0.07, "7%"),
        (units.format_percent, 0.001, "0.1%"),
        (units.format_percent, 1.0, "100%"),
        (units.format_percent, 0.0, "0%"),
    ],
)
def test_a_quantity_is_written_as_a_person_would(show: Callable[[Any], str], value: float, text: str) -> None:
    """The shortest text that reads back, in a unit that a person would choose."""
    assert show(value) == text
