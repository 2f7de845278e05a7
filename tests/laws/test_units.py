"""Quantities that are written read back as the same number."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from pydantic_core import PydanticCustomError

from unfoldkit.spec import units

FAMILIES = units.UNIT_FAMILIES

PAIRS = [(family.parse, family.render) for name, family in FAMILIES.items() if name != "bytes"]
NUMBERS = st.floats(min_value=0, max_value=1e15) | st.integers(0, 10**15).map(float)


@pytest.mark.parametrize(("parse", "show"), PAIRS, ids=lambda function: function.__name__)
@given(value=NUMBERS)
@example(value=5e-324)
@example(value=0.07)
@example(value=1e15)
def test_a_quantity_reads_back(parse: Callable[[Any], float], show: Callable[[float], str], value: float) -> None:
    """For every number, parse(format(number)) is that number to the last bit."""
    assert parse(show(value)) == value


@given(count=st.integers(0, 10**18))
def test_bytes_read_back(count: int) -> None:
    """For every whole number of bytes up to the largest amount, parse(format(n)) is n."""
    assert FAMILIES["bytes"].parse(FAMILIES["bytes"].render(count)) == count


@given(value=st.floats(0, 1))
def test_fractions_read_back(value: float) -> None:
    """A fraction written as a percentage is the same fraction."""
    assert units.parse_fraction(FAMILIES["percent"].render(value)) == value


TEXTS = {
    "Bandwidth": "{} B/s", "Bytes": "{} B", "Duration": "{} s", "Frequency": "{} Hz", "Money": "${}",
    "Percent": "{}%", "Price": "${}/h", "Rate": "{}/s",
}  # fmt: skip


@pytest.mark.parametrize("name", [*TEXTS, "Fraction"])
@given(value=NUMBERS)
def test_what_a_spec_accepts_it_writes_and_accepts_again(name: str, value: float) -> None:
    """For every type, validate, dump as JSON and validate again gives the same value."""
    adapter: TypeAdapter[Any] = TypeAdapter(getattr(units, name))
    given_text = TEXTS[name].format(repr(value)) if name in TEXTS else min(value, 1.0)
    first = adapter.validate_python(given_text)
    assert adapter.validate_json(adapter.dump_json(first)) == first


@given(
    text=st.text(max_size=40),
    parse=st.sampled_from([parse for parse, _ in PAIRS] + [FAMILIES["bytes"].parse, units.parse_fraction]),
)
def test_any_text_is_a_quantity_or_refused(text: str, parse: Callable[[Any], float]) -> None:
    """Whatever the text, a parser returns a number that is neither negative nor infinite, or refuses in words."""
    with contextlib.suppress(PydanticCustomError):
        assert 0 <= parse(text) <= units.MAX_QUANTITY
