"""Quantities with their unit: `150 ms`, `12 GiB`, `$3.06/h`, `150/s`, `4 GB/s`, `100 MHz`, `0.1%`.

``UNIT_FAMILIES`` lists what each kind of quantity may look like; one parser reads all of them. The annotated types at
the end are for the fields of specs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any

from annotated_types import GroupedMetadata
from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

from unfoldkit.errors import format_value, shorten

NUMBER = r"[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+"
SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {
    "B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4,
    "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4,
}  # fmt: skip
HERTZ = {"Hz": 1.0, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9}
PER = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
SPELLINGS = {
    "second": "s", "sec": "s", "minute": "min", "mn": "min", "hour": "h", "hr": "h", "day": "d",
    "millisecond": "ms", "milli": "ms", "msec": "ms", "microsecond": "us", "nanosecond": "ns",
}  # fmt: skip
"""Other spellings of units, for hints."""
MAX_QUANTITY = 1e18
"""The largest duration in s, memory in bytes, rate or amount of money; up to here every quantity reads back exactly."""
MIN_PERCENTAGE = 2
"""A number of at least so much instead of a fraction is meant as a percentage; 1.3 may mean more than once."""
_PRICE_PERIOD_S = 3600.0
_NUMBER_PATTERN = r"^\s*([0-9._eE+-]+)\s*"


@dataclass(frozen=True, kw_only=True)
class UnitFamily:
    """One kind of quantity: ``[$] number [unit] [/ period] [%]``.

    Args:
        example: A quantity for hints.
        description: What it is, for JSON schemas.
        units: Units after the number, with their factors; empty for none.
        periods: Periods after a slash, in s; empty for none.
        symbol: ``$`` before or ``%`` after the number; empty for none.
        convert: Computes the value from the number and the factors of unit and period.
        shown_units: The units that are tried to format a value, with their factors.
        format: Formats a value that has no units to try.
    """

    example: str
    description: str
    units: Mapping[str, float] = field(default_factory=dict)
    periods: Mapping[str, float] = field(default_factory=dict)
    symbol: str = ""
    convert: Callable[[str, float, float], float] = lambda number, unit, _period: float(number) * unit
    shown_units: Mapping[str, float] = field(default_factory=dict)
    format: Callable[[float], str] = str

    @property
    def pattern(self) -> str:
        """The pattern of a quantity; its groups are the number, the unit and the period."""
        unit = r"([A-Za-zµ]+)" if self.units else "()"
        period = r"\s*/\s*([a-z]+)" if self.periods else "()"
        head, tail = (r"\$\s*", "") if self.symbol == "$" else ("", r"\s*%" if self.symbol else "")
        return rf"{head}({NUMBER})\s*{unit}{period}{tail}"

    @property
    def schema_pattern(self) -> str:
        """The pattern of a quantity for JSON schemas."""
        if self.symbol == "$":
            period = rf"\s*/\s*({'|'.join(self.periods)})" if self.periods else ""
            return rf"^\s*\$\s*[0-9._eE+-]+{period}\s*$"
        unit = rf"({'|'.join(self.units)})" if self.units else ""
        if self.periods:
            single = len(self.periods) == 1
            unit += (r"\s*" if unit else "") + r"/\s*" + ("s" if single else f"({'|'.join(self.periods)})")
        return rf"{_NUMBER_PATTERN}{unit}{self.symbol}\s*$"

    def parse(self, value: Any) -> float:
        """Parse a quantity; the error of an invalid one has a hint with an example."""
        match = self._match(value)
        unit = _find_factor(match[2], self.units, value, self.example) if self.units else 1.0
        period = _find_factor(match[3], self.periods, value, self.example) if self.periods else 1.0
        _check_size(float(match[1]) * unit / (period if self.convert is _convert_rate else 1.0), value)
        return _check_size(self.convert(match[1], unit, period), value)

    def render(self, value: float) -> str:
        """Format a value as the shortest text that ``parse`` reads back to the same number."""
        if not self.shown_units:
            return self.format(value)
        texts = [f"{_format_plain(float(f'{value / size:.12g}'))} {unit}" for unit, size in self.shown_units.items()]
        exact = [text for text in texts if self._reads_as(text, value)]
        base_unit = next(unit for unit, size in self.shown_units.items() if size == 1)
        return min(exact, key=len) if exact else f"{_format_plain(value)} {base_unit}"

    def _reads_as(self, text: str, value: float) -> bool:
        try:
            return self.parse(text) == value
        except PydanticCustomError:
            # rounded up beyond the largest quantity
            return False

    def _match(self, value: Any) -> re.Match[str]:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            got = "nothing" if value is None else format_value(value)
            context = {"got": got, "hint": f'write "{self.example}"'}
            raise PydanticCustomError("unit", "expected a quantity, got {got}", context)
        # keyboards and converters write the Greek letter for the sign
        text = str(value).strip().replace("\N{GREEK SMALL LETTER MU}", "\N{MICRO SIGN}")
        match = re.fullmatch(self.pattern, text)
        if match:
            return match
        if text.startswith(("-", "$-", "$ -")):
            raise _error('"{value}" must not be negative', value, self.example)
        if re.fullmatch(rf"\+?(?:{NUMBER})", text):
            # the unit of the example is a guess, and may be wrong: list all units
            units = () if self.periods or self.symbol else self.units
            raise _error('"{value}" has no unit', value, self._with_unit(text.lstrip("+")), units)
        if self.symbol == "$" and (number := re.search(NUMBER, _write_decimal_point(text))):
            # the period of a price may be another one than that of the example, and 40k is not 40
            is_amount = not self.periods and not re.search("[0-9][A-Za-z]", text)
            example = self._with_unit(number[0]) if is_amount else self.example
            raise _error(f'"{{value}}" is not in {self.description}', value, example)
        raise _error('"{value}" is not a quantity', value, self.example)

    def _with_unit(self, number: str) -> str:
        """Return a number with the unit of the example; as a percentage, 0.01 may mean 1% or 0.01%."""
        text = re.sub(NUMBER, shorten(number), self.example, count=1)
        is_fraction = text.endswith("%") and 0 < float(number) <= 1
        return f'{_format_percent(float(number))}" or "{text}' if is_fraction else text


def _write_decimal_point(text: str) -> str:
    """Drop the signs and blanks that group thousands, and write a point for a comma before decimals."""
    return re.sub(r"(?<=[0-9])[,'_\s](?=[0-9]{3}(?![0-9]))", "", text).replace(",", ".")


def _convert_bytes(number: str, unit: float, _period: float) -> int:
    # not with floats, which are exact only up to 2^53
    return round(Decimal(number) * int(unit)) if float(number) else 0


def _convert_rate(number: str, _unit: float, period: float) -> float:
    return float(number) / period


def _convert_price(number: str, _unit: float, period: float) -> float:
    return float(number) * (_PRICE_PERIOD_S / period)


def _convert_percent(number: str, _unit: float, _period: float) -> float:
    # by decimal point, not by division, so that every fraction has a percentage that reads back exactly
    return float(Decimal(number).scaleb(-2)) if _check_size(float(number), number) else 0.0


def _format_bytes(count: float) -> str:
    size = int(count)
    units = [name for name in ("TiB", "GiB", "MiB", "KiB") if size and size % BYTES[name] == 0]
    return f"{size // BYTES[units[0]]} {units[0]}" if units else f"{size} B"


def _format_percent(fraction: float) -> str:
    text = f"{Decimal(repr(float(fraction))).scaleb(2):f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + "%"


def _format_plain(value: float) -> str:
    return str(int(value)) if abs(value) < 1e15 and value == int(value) else repr(float(value))


UNIT_FAMILIES: Mapping[str, UnitFamily] = {
    "duration": UnitFamily(
        example="150 ms",
        description="a duration",
        units=SECONDS,
        shown_units={"s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0, "h": 3600.0},
    ),
    "bytes": UnitFamily(
        example="12 GiB",
        description="an amount of memory",
        units=BYTES,
        convert=_convert_bytes,
        format=_format_bytes,
    ),
    "rate": UnitFamily(
        example="150/s",
        description="events per time",
        periods=PER,
        convert=_convert_rate,
        format=lambda value: f"{_format_plain(value)}/s",
    ),
    "bandwidth": UnitFamily(
        example="4 GB/s",
        description="bytes per second",
        units=BYTES,
        periods={"s": 1.0},
        shown_units={f"{name}/s": float(BYTES[name]) for name in ("B", "kB", "MB", "GB", "TB")},
    ),
    "frequency": UnitFamily(example="100 MHz", description="cycles per second", units=HERTZ, shown_units=HERTZ),
    "money": UnitFamily(
        example="$3.06",
        description="US dollars",
        symbol="$",
        format=lambda value: f"${_format_plain(value)}",
    ),
    "price": UnitFamily(
        example="$3.06/h",
        description="US dollars per time",
        symbol="$",
        periods=PER,
        convert=_convert_price,
        format=lambda value: f"${_format_plain(value)}/h",
    ),
    "percent": UnitFamily(
        example="0.1%",
        description="a percentage",
        symbol="%",
        convert=_convert_percent,
        format=_format_percent,
    ),
}


def parse_fraction(value: Any) -> float:
    """Parse a fraction from 0 to 1, from a number (``0.25``) or a percentage (``25%``)."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fraction = float(value) if is_number else UNIT_FAMILIES["percent"].parse(value)
    if not 0 <= fraction <= 1:
        is_percentage = is_number and MIN_PERCENTAGE <= fraction <= 100
        raise _error("{value} is not between 0 and 1", value, f"{fraction:g}%" if is_percentage else "0.25")
    return fraction


def _check_size(value: float, text: Any) -> float:
    if value > MAX_QUANTITY:
        context = {"value": shorten(str(text)), "hint": f"at most {MAX_QUANTITY:g}"}
        raise PydanticCustomError("unit", '"{value}" is too large', context)
    return value


def _find_factor(name: str, units: Mapping[str, float], value: Any, example: str) -> float:
    if name in units:
        return float(units[name])
    context = {"value": shorten(str(value)), "unit": shorten(name)}
    if intended := _find_intended(name, units):
        before, _, after = str(value).strip().rpartition(name)
        context["hint"] = f'write "{before}{intended}{after}"'
    else:
        context["hint"] = f"one of: {', '.join(units)}; write {example!r}".replace("'", '"')
    raise PydanticCustomError("unit", '"{value}" has the unknown unit "{unit}"', context)


def _find_intended(name: str, units: Mapping[str, float]) -> str:
    """Return the unit that a word such as ``seconds``, ``MIN`` or ``gb`` means; empty if none or several."""
    word = name.lower()
    words = (word, word.removesuffix("s") if len(word) > 2 else word)
    candidates = {SPELLINGS[spelling] for spelling in words if spelling in SPELLINGS}
    candidates |= {unit for unit in units if unit.lower() in words}
    candidates &= set(units)
    return candidates.pop() if len(candidates) == 1 else ""


def _error(message: str, value: Any, example: str, units: Iterable[str] = ()) -> PydanticCustomError:
    names = ", ".join(units)
    hint = f'one of: {names}; write "{example}"' if names else f'write "{example}"'
    return PydanticCustomError("unit", message, {"value": shorten(str(value)), "example": example, "hint": hint})


@dataclass(frozen=True)
class _Quantity(GroupedMetadata):
    """The validation, serialization and JSON schema of a unit family, for ``Annotated``."""

    family: str

    def __iter__(self) -> Iterator[Any]:
        family = UNIT_FAMILIES[self.family]
        yield BeforeValidator(family.parse)
        yield PlainSerializer(family.render)
        schema = {"type": "string", "pattern": family.schema_pattern, "examples": [family.example]}
        yield WithJsonSchema({**schema, "description": family.description})


Duration = Annotated[float, _Quantity("duration")]
Bytes = Annotated[int, _Quantity("bytes")]
Rate = Annotated[float, _Quantity("rate")]
Bandwidth = Annotated[float, _Quantity("bandwidth")]
Frequency = Annotated[float, _Quantity("frequency")]
Money = Annotated[float, _Quantity("money")]
Price = Annotated[float, _Quantity("price")]
Percent = Annotated[float, _Quantity("percent")]
Fraction = Annotated[
    float,
    BeforeValidator(parse_fraction),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": 1},
                {"type": "string", "pattern": rf"{_NUMBER_PATTERN}%\s*$"},
            ],
            "examples": ["25%", 0.25],
            "description": "a fraction, from 0 to 1 or as a percentage",
        }
    ),
]
