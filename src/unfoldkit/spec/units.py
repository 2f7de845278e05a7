"""Quantities with their unit written out: `150 ms`, `12 GiB`, `$3.06/h`, `150/s`, `4 GB/s`, `100 MHz`, `0.1%`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

from unfoldkit.errors import format_value, shorten

NUMBER = r"[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+"
SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
BYTES = {
    "B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4,
    "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4,
}  # fmt: skip
SPELT = {
    "second": "s", "sec": "s", "minute": "min", "mn": "min", "hour": "h", "hr": "h", "day": "d",
    "millisecond": "ms", "milli": "ms", "msec": "ms", "microsecond": "us", "nanosecond": "ns",
}  # fmt: skip
HERTZ = {"Hz": 1.0, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9}
LARGEST = 1e18
"""No duration in seconds, amount of memory, rate or bill is larger; up to here every quantity reads back exactly."""
LEAST_PERCENT = 2
"""A share of so much or more is meant as a percentage; 1.3 may be meant as more than once."""
PER = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(value: Any) -> float:
    """Return seconds from text such as ``150 ms``."""
    match = _quantity(value, SECONDS, "150 ms")
    return float(match[1]) * SECONDS[match[2]]


def parse_bytes(value: Any) -> int:
    """Return bytes from text such as ``12 GiB``."""
    match = _quantity(value, BYTES, "12 GiB")
    # not by floats, which hold whole numbers up to 2^53 only
    return round(Decimal(match[1]) * BYTES[match[2]]) if float(match[1]) else 0


def parse_bandwidth(value: Any) -> float:
    """Return bytes per second from text such as ``4 GB/s``."""
    match = _match(rf"({NUMBER})\s*([A-Za-z]+)\s*/\s*s", value, "4 GB/s")
    return _sized(float(match[1]) * _unit(match[2], BYTES, value, "4 GB/s"), value)


def parse_frequency(value: Any) -> float:
    """Return cycles per second from text such as ``100 MHz``."""
    match = _quantity(value, HERTZ, "100 MHz")
    return float(match[1]) * HERTZ[match[2]]


def parse_rate(value: Any) -> float:
    """Return events per second from text such as ``150/s``."""
    match = _match(rf"({NUMBER})\s*/\s*([a-z]+)", value, "150/s")
    return _sized(float(match[1]) / _unit(match[2], PER, value, "150/s"), value)


def parse_money(value: Any) -> float:
    """Return US dollars from text such as ``$3.06``."""
    return _sized(float(_match(rf"\$\s*({NUMBER})", value, "$3.06")[1]), value)


def parse_price(value: Any) -> float:
    """Return US dollars per hour from text such as ``$3.06/h``."""
    match = _match(rf"\$\s*({NUMBER})\s*/\s*([a-z]+)", value, "$3.06/h")
    return _sized(float(match[1]) * (3600.0 / _unit(match[2], PER, value, "$3.06/h")), value)


def parse_percent(value: Any) -> float:
    """Return a fraction from text such as ``0.1%``."""
    text = _match(rf"({NUMBER})\s*%", value, "0.1%")[1]
    # by decimal point, not by division: so that every fraction has a percentage that reads back exactly
    return float(Decimal(text).scaleb(-2)) if _sized(float(text), value) else 0.0


def parse_fraction(value: Any) -> float:
    """Return a fraction from 0 to 1, from a number (``0.25``) or a percentage (``25%``)."""
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    result = float(value) if numeric else parse_percent(value)
    if not 0 <= result <= 1:
        percent = numeric and LEAST_PERCENT <= result <= 100
        raise _error("{value} is not between 0 and 1", value, f"{result:g}%" if percent else "0.25")
    return result


def format_duration(seconds: float) -> str:
    """Return the shortest text that ``parse_duration`` reads back to the same number."""
    units = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0, "h": 3600.0}
    return _shortest(seconds, units, parse_duration, "s")


def format_bytes(count: int) -> str:
    """Return the shortest text that ``parse_bytes`` reads back to the same number."""
    units = [name for name in ("TiB", "GiB", "MiB", "KiB") if count and count % BYTES[name] == 0]
    return f"{count // BYTES[units[0]]} {units[0]}" if units else f"{count} B"


def format_bandwidth(per_second: float) -> str:
    """Return the shortest text that ``parse_bandwidth`` reads back to the same number."""
    units = {f"{name}/s": float(BYTES[name]) for name in ("B", "kB", "MB", "GB", "TB")}
    return _shortest(per_second, units, parse_bandwidth, "B/s")


def format_frequency(hertz: float) -> str:
    """Return the shortest text that ``parse_frequency`` reads back to the same number."""
    return _shortest(hertz, HERTZ, parse_frequency, "Hz")


def format_rate(per_second: float) -> str:
    """Return text that ``parse_rate`` reads back."""
    return f"{_plain(per_second)}/s"


def format_money(dollars: float) -> str:
    """Return text that ``parse_money`` reads back."""
    return f"${_plain(dollars)}"


def format_price(dollars_per_hour: float) -> str:
    """Return text that ``parse_price`` reads back."""
    return f"${_plain(dollars_per_hour)}/h"


def format_percent(fraction: float) -> str:
    """Return the shortest text that ``parse_percent`` reads back to the same number."""
    text = f"{Decimal(repr(float(fraction))).scaleb(2):f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + "%"


def _shortest(value: float, units: Mapping[str, float], parse: Callable[[Any], float], base: str) -> str:
    texts = [f"{_plain(float(f'{value / scale:.12g}'))} {name}" for name, scale in units.items()]
    exact = [text for text in texts if parse(text) == value]
    return min(exact, key=len) if exact else f"{_plain(value)} {base}"


def _plain(value: float) -> str:
    return str(int(value)) if abs(value) < 1e15 and value == int(value) else repr(float(value))


def _quantity(value: Any, units: Mapping[str, float], example: str) -> re.Match[str]:
    match = _match(rf"({NUMBER})\s*([A-Za-zµ]+)", value, example, units)
    _sized(float(match[1]) * _unit(match[2], units, value, example), value)
    return match


def _match(pattern: str, value: Any, example: str, units: Iterable[str] = ()) -> re.Match[str]:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        got = "nothing" if value is None else format_value(value)
        raise PydanticCustomError("unit", "expected a quantity, got {got}", {"got": got, "hint": f'write "{example}"'})
    text = str(value).strip()
    match = re.fullmatch(pattern, text)
    if match:
        return match
    if text.startswith(("-", "$-", "$ -")):
        raise _error('"{value}" must not be negative', value, example)
    if re.fullmatch(rf"\+?(?:{NUMBER})", text):
        # the unit of the example is a guess: of a deadline, ms is a wrong one
        raise _error('"{value}" has no unit', value, _written(text.lstrip("+"), example), units)
    raise _error('"{value}" is not a quantity', value, example)


def _written(number: str, example: str) -> str:
    """Return a number with the unit of an example; 0.01 alone may mean 1%, if not 0.01%."""
    text = re.sub(NUMBER, shorten(number), example, count=1)
    return f'{format_percent(float(number))}" or "{text}' if text.endswith("%") and 0 < float(number) <= 1 else text


def _sized(result: float, value: Any) -> float:
    if result > LARGEST:
        raise PydanticCustomError(
            "unit", '"{value}" is too large', {"value": shorten(str(value)), "hint": f"at most {LARGEST:g}"}
        )
    return result


def _meant(name: str, units: Mapping[str, float]) -> str:
    """Return the unit that a word such as ``seconds``, ``MIN`` or ``gb`` stands for; nothing if none or several."""
    word = name.lower()
    singular = word.removesuffix("s") if len(word) > 2 else word
    words = (word, singular)
    found = {SPELT[one] for one in words if one in SPELT} | {one for one in units if one.lower() in words}
    found &= set(units)
    return found.pop() if len(found) == 1 else ""


def _unit(name: str, units: Mapping[str, float], value: Any, example: str) -> float:
    meant = "" if name in units else _meant(name, units)
    if meant:
        before, _, after = str(value).strip().rpartition(name)
        hint = f'write "{before}{meant}{after}"'
        told = {"value": shorten(str(value)), "unit": shorten(name), "hint": hint}
        raise PydanticCustomError("unit", '"{value}" has the unknown unit "{unit}"', told)
    if name not in units:
        raise PydanticCustomError(
            "unit",
            '"{value}" has the unknown unit "{unit}"',
            {
                "value": shorten(str(value)),
                "unit": shorten(name),
                "hint": f"one of: {', '.join(units)}; write {example!r}".replace("'", '"'),
            },
        )
    return float(units[name])


def _error(message: str, value: Any, example: str, units: Iterable[str] = ()) -> PydanticCustomError:
    known = ", ".join(units)
    hint = f'one of: {known}; write "{example}"' if known else f'write "{example}"'
    return PydanticCustomError("unit", message, {"value": shorten(str(value)), "example": example, "hint": hint})


def _schema(pattern: str, example: str, description: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": [example], "description": description})


_N = r"^\s*([0-9._eE+-]+)\s*"
Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration),
    _schema(rf"{_N}({'|'.join(SECONDS)})\s*$", "150 ms", "a duration"),
]
Bytes = Annotated[
    int,
    BeforeValidator(parse_bytes),
    PlainSerializer(format_bytes),
    _schema(rf"{_N}({'|'.join(BYTES)})\s*$", "12 GiB", "an amount of memory"),
]
Rate = Annotated[
    float,
    BeforeValidator(parse_rate),
    PlainSerializer(format_rate),
    _schema(rf"{_N}/\s*({'|'.join(PER)})\s*$", "150/s", "events per time"),
]
Bandwidth = Annotated[
    float,
    BeforeValidator(parse_bandwidth),
    PlainSerializer(format_bandwidth),
    _schema(rf"{_N}({'|'.join(BYTES)})\s*/\s*s\s*$", "4 GB/s", "bytes per second"),
]
Frequency = Annotated[
    float,
    BeforeValidator(parse_frequency),
    PlainSerializer(format_frequency),
    _schema(rf"{_N}({'|'.join(HERTZ)})\s*$", "100 MHz", "cycles per second"),
]
Money = Annotated[
    float,
    BeforeValidator(parse_money),
    PlainSerializer(format_money),
    _schema(r"^\s*\$\s*[0-9._eE+-]+\s*$", "$3.06", "US dollars"),
]
Price = Annotated[
    float,
    BeforeValidator(parse_price),
    PlainSerializer(format_price),
    _schema(rf"^\s*\$\s*[0-9._eE+-]+\s*/\s*({'|'.join(PER)})\s*$", "$3.06/h", "US dollars per time"),
]
Percent = Annotated[
    float,
    BeforeValidator(parse_percent),
    PlainSerializer(format_percent),
    _schema(rf"{_N}%\s*$", "0.1%", "a percentage"),
]
Fraction = Annotated[
    float,
    BeforeValidator(parse_fraction),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": 1},
                {"type": "string", "pattern": rf"{_N}%\s*$"},
            ],
            "examples": ["25%", 0.25],
            "description": "a share, from 0 to 1 or as a percentage",
        }
    ),
]
