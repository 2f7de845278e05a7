"""Parse prices with a currency and a unit of time, in a cell or in the name of a column."""

from __future__ import annotations

import re
from dataclasses import dataclass

_HOURS = {
    **dict.fromkeys(("hour", "hours", "hourly", "hr", "hrs", "h"), 1.0),
    **dict.fromkeys(("day", "daily"), 24.0),
    **dict.fromkeys(("week", "weekly"), 168.0),
    **dict.fromkeys(("month", "monthly", "mo"), 730.0),
    **dict.fromkeys(("year", "yearly", "annual", "annually"), 8760.0),
    **dict.fromkeys(("minute", "min"), 1 / 60),
    **dict.fromkeys(("second", "sec", "s"), 1 / 3600),
}
_DOLLAR = ("", "$", "usd", "us$", "dollar", "dollars")
_CENT = ("cent", "cents", "¢")
_CURRENCIES = ("eur", "gbp", "jpy", "cny", "inr", "cad", "aud", "chf", "brl", "krw", "sek", "€", "£", "¥", "₹")
_PRICES = ("price", "prices", "cost", "usd", "ondemand", "on_demand", "spot", "hourly", "retailprice", "rate")
_EXCLUDED = (
    "saving",
    "savings",
    "pct",
    "percent",
    "windows",
    "reserved",
    "upfront",
    "rhel",
    "suse",
    "sql",
    "band",
    "zone",
)
_PARTS = ("gpu", "gpus", "accelerator", "vcpu", "vcpus", "cpu", "core", "gb", "gib", "tb", "tib", "token", "tokens")
"""A price of one of these is none of an instance."""
_WORDS = re.compile(r"[^a-z0-9_$¢€£¥₹]+|_")
_CELL = re.compile(
    r"(?P<front>[A-Za-z]{2,3}|US\$|[$€£¥₹])?\s*(?P<number>[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|\d*\.?\d+(?:[eE]-?\d+)?)"
    r"\s*(?P<back>[A-Z]{3}|usd|[$¢€£¥₹]|cents?)?\s*(?:(?:/|per\s)?\s*(?P<time>[A-Za-z]+))?"
)
_NONE = ("", "-", "n/a", "na", "none", "null", "unavailable", "nan")


@dataclass(frozen=True, slots=True)
class PriceUnit:
    """The unit of a column of prices: hours per price, the market, a currency other than the US dollar, and cents."""

    hours: float = 1.0
    spot: bool = False
    foreign: str = ""
    has_cents: bool = False


def parse_unit(name: str) -> PriceUnit | None:
    """Parse the unit of a column from its name, such as ``usd_per_hour`` or ``Spot (monthly)``; else ``None``."""
    plain = name.lower().replace("on-demand", "ondemand").replace("on demand", "ondemand")
    words = [word for word in _WORDS.split(plain) if word]
    foreign = next((word.upper() for word in words if word in _CURRENCIES), "")
    is_price = foreign or any(word in _PRICES or word in _DOLLAR for word in words)
    if not is_price or any(word in _EXCLUDED or word in _PARTS for word in words):
        return None
    hours = next((_HOURS[word] for word in words if word in _HOURS), 1.0)
    return PriceUnit(hours, "spot" in words, foreign, any(word in _CENT for word in words))


def parse_price(text: str, column: PriceUnit) -> float | None:
    """Parse a cell such as ``$0.0104 hourly`` or ``380 USD/month`` to US dollars per hour; ``None`` if it is empty.

    Raises:
        ValueError: It is not a price, or one in another currency; the text says which.
    """
    plain = text.strip()
    if plain.lower() in _NONE:
        return None
    match = _CELL.fullmatch(plain)
    time = match["time"].lower() if match and match["time"] else None
    if match is None or (time is not None and time not in _HOURS):
        raise ValueError(f"{plain[:40]!r} is not a price")
    marks = [(mark or "").lower() for mark in (match["front"], match["back"])]
    is_cents = any(mark in _CENT for mark in marks) or (column.has_cents and not any(marks))
    other = column.foreign or next((mark.upper() for mark in marks if mark not in (*_DOLLAR, *_CENT)), "")
    if other:
        raise ValueError(f"{plain[:40]!r} is in {other}, and prices are in dollars here")
    number = float(match["number"].replace(",", "")) / (100 if is_cents else 1)
    return number / (column.hours if time is None else _HOURS[time])
