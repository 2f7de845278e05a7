"""Quantities with their unit written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic_core import PydanticCustomError

from unfoldkit.spec import units

FAMILIES = units.UNIT_FAMILIES


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (FAMILIES["duration"].parse, "150 ms", 0.15),
        (FAMILIES["duration"].parse, "1.5h", 5400.0),
        (FAMILIES["duration"].parse, " 2 min ", 120.0),
        (FAMILIES["duration"].parse, "3 µs", 3e-6),
        (FAMILIES["duration"].parse, "3 \N{GREEK SMALL LETTER MU}s", 3e-6),
        (FAMILIES["bytes"].parse, "12 GiB", 12 * 1024**3),
        (FAMILIES["bytes"].parse, "1.5 kB", 1500),
        (FAMILIES["bytes"].parse, "1e-99999999999999999999 B", 0),
        (FAMILIES["percent"].parse, "1e-99999999999999999999 %", 0),
        (FAMILIES["rate"].parse, "150/s", 150.0),
        (FAMILIES["rate"].parse, "90 / min", 1.5),
        (FAMILIES["money"].parse, "$3.06", 3.06),
        (FAMILIES["money"].parse, "$ .5", 0.5),
        (FAMILIES["price"].parse, "$3.06/h", 3.06),
        (FAMILIES["price"].parse, "$24/d", 1.0),
        (FAMILIES["percent"].parse, "0.1%", 0.001),
        (FAMILIES["percent"].parse, "7 %", 0.07),
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
        (FAMILIES["duration"].parse, 150, '"150" has no unit', 'write "150 ms"'),
        (FAMILIES["duration"].parse, "150", '"150" has no unit', 'write "150 ms"'),
        (FAMILIES["duration"].parse, 8, '"8" has no unit', 'one of: ns, us, µs, ms, s, min, h, d; write "8 ms"'),
        (FAMILIES["duration"].parse, "+1.5", '"+1.5" has no unit', 'write "1.5 ms"'),
        (FAMILIES["duration"].parse, "5 m", 'the unknown unit "m"', "one of: ns, us"),
        (FAMILIES["duration"].parse, "5 Seconds", 'the unknown unit "Seconds"', 'write "5 s"'),
        (FAMILIES["duration"].parse, "3 mins", 'the unknown unit "mins"', 'write "3 min"'),
        (FAMILIES["bandwidth"].parse, "4 gb/s", 'the unknown unit "gb"', 'write "4 GB/s"'),
        (FAMILIES["price"].parse, "$3/hour", 'the unknown unit "hour"', 'write "$3/h"'),
        (FAMILIES["duration"].parse, "-5 ms", "must not be negative", 'write "150 ms"'),
        (FAMILIES["duration"].parse, "1e400 s", "too large", "at most 1e+18"),
        (FAMILIES["duration"].parse, "soon", "is not a quantity", 'write "150 ms"'),
        (FAMILIES["duration"].parse, None, "expected a quantity, got nothing", 'write "150 ms"'),
        (FAMILIES["duration"].parse, True, "expected a quantity, got true", 'write "150 ms"'),
        (FAMILIES["duration"].parse, [1], "expected a quantity, got [1]", 'write "150 ms"'),
        (FAMILIES["duration"].parse, "x" * 99, "x" * 57 + "...", 'write "150 ms"'),
        (FAMILIES["bytes"].parse, "1e300 TiB", "too large", "at most 1e+18"),
        (FAMILIES["rate"].parse, "5/month", 'the unknown unit "month"', "one of: s, min, h, d"),
        (FAMILIES["money"].parse, 3, '"3" has no unit', 'write "$3"'),
        (FAMILIES["money"].parse, "40 EUR", "is not in US dollars", 'write "$40"'),
        (FAMILIES["money"].parse, "$1,000", "is not in US dollars", 'write "$1000"'),
        (FAMILIES["money"].parse, "$1 000 000", "is not in US dollars", 'write "$1000000"'),
        (FAMILIES["money"].parse, "1'000.50 $", "is not in US dollars", 'write "$1000.50"'),
        (FAMILIES["money"].parse, "40,50 €", "is not in US dollars", 'write "$40.50"'),
        (FAMILIES["money"].parse, "$40k", "is not in US dollars", 'write "$3.06"'),
        (FAMILIES["price"].parse, "€12/h", "is not in US dollars per time", 'write "$3.06/h"'),
        (FAMILIES["money"].parse, "$-3", "must not be negative", 'write "$3.06"'),
        (FAMILIES["price"].parse, "$3", "is not in US dollars per time", 'write "$3.06/h"'),
        (FAMILIES["percent"].parse, 0.01, '"0.01" has no unit', 'write "1%" or "0.01%"'),
        (FAMILIES["percent"].parse, 4, '"4" has no unit', 'write "4%"'),
        (units.parse_fraction, "101%", "is not between 0 and 1", 'write "0.25"'),
        (units.parse_fraction, 95, "is not between 0 and 1", 'write "95%"'),
        (units.parse_fraction, 1.3, "is not between 0 and 1", 'write "0.25"'),
        (units.parse_fraction, float("nan"), "is not between 0 and 1", 'write "0.25"'),
    ],
)
def test_an_invalid_quantity_is_reported(parse: Callable[[Any], float], given: Any, message: str, hint: str) -> None:
    """Every refusal names the mistake in the value and the right notation."""
    with pytest.raises(PydanticCustomError) as caught:
        parse(given)
    assert message in caught.value.message()
    assert hint in (caught.value.context or {})["hint"]


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (FAMILIES["duration"].render, 0.025, "25 ms"),
        (FAMILIES["duration"].render, 0.0, "0 s"),
        (FAMILIES["duration"].render, 7200.0, "2 h"),
        (FAMILIES["duration"].render, 90.0, "90 s"),
        (FAMILIES["duration"].render, 1e18, "1e+18 s"),
        (FAMILIES["bytes"].render, 12 * 1024**3, "12 GiB"),
        (FAMILIES["bytes"].render, 1500, "1500 B"),
        (FAMILIES["bytes"].render, 0, "0 B"),
        (FAMILIES["rate"].render, 1.5, "1.5/s"),
        (FAMILIES["money"].render, 3.0, "$3"),
        (FAMILIES["price"].render, 3.06, "$3.06/h"),
        (FAMILIES["percent"].render, 0.07, "7%"),
        (FAMILIES["percent"].render, 0.001, "0.1%"),
        (FAMILIES["percent"].render, 1.0, "100%"),
        (FAMILIES["percent"].render, 0.0, "0%"),
    ],
)
def test_a_quantity_is_written_as_a_person_would(show: Callable[[Any], str], value: float, text: str) -> None:
    """The shortest text that reads back, in a unit that a person would choose."""
    assert show(value) == text
