"""Describe for which regions, systems and terms a price list has prices, if none of them is a price that counts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from unfoldkit.errors import escape_unprintable, shorten
from unfoldkit.format import format_names

REGION, SYSTEM, CURRENCY, TERM = "region", "system", "currency", "term"
LABELS = {
    **dict.fromkeys(("region", "regioncode", "armregionname", "location", "availabilityzone"), REGION),
    **dict.fromkeys(("os", "operatingsystem", "productdescription", "preinstalledsw"), SYSTEM),
    **dict.fromkeys(("currency", "currencycode"), CURRENCY),
    **dict.fromkeys(("unit", "unitofmeasure"), "unit"),
    **dict.fromkeys(("termtype", "type"), TERM),
    **dict.fromkeys(("tenancy", "capacitystatus"), "capacity"),
}
"""What a key says of a price, by its letters."""
TERMS = ("ondemand", "reserved", "reservation", "consumption", "devtestconsumption")
COUNTED = (
    "",
    "ondemand",
    "usd",
    "linux",
    "linux/unix",
    "linux/unix (amazon vpc)",
    "shared",
    "na",
    "used",
    "hrs",
    "1 hour",
    "consumption",
)
"""Values that count, in lower case."""
MAX_SHOWN, MAX_LENGTH = 3, 32
MAX_DEPTH = 16
"""No list of a cloud is nested as deeply."""


def describe_contents(document: Any, region: str) -> str:
    """Describe what the prices of a list are for, as ``region eu-west-1; system Windows``, beyond what counts."""
    values: dict[str, dict[str, None]] = {}
    for label, value in _iter_facts(document):
        text = value.strip()
        # a column "type" may hold instance types
        is_known = label != TERM or text.lower() in TERMS
        is_here = label == REGION and text.startswith(region)
        if is_known and not is_here and text.lower() not in COUNTED:
            values.setdefault(label, {})[shorten(escape_unprintable(text), MAX_LENGTH)] = None
    return "; ".join(f"{label} {format_names(list(names), MAX_SHOWN)}" for label, names in values.items())


def _iter_facts(node: Any, depth: int = 0) -> Iterator[tuple[str, str]]:
    if depth == MAX_DEPTH:
        return
    if isinstance(node, list):
        for item in node:
            yield from _iter_facts(item, depth + 1)
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _read_key(str(key), value)
            products = _parse_products(value) if key == "PriceList" and isinstance(value, list) else value
            yield from _iter_facts(products, depth + 1)


def _parse_products(entries: list[Any]) -> list[Any]:
    """Parse products of AWS, which may be JSON in a text; what is none says nothing."""
    products = []
    for entry in entries:
        with suppress(ValueError, RecursionError):
            products.append(json.loads(entry) if isinstance(entry, str) else entry)
    return products


def _read_key(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        label = LABELS.get("".join(letter for letter in key.lower() if letter.isalnum()))
        if key == "productName" and "Windows" in value:
            label = SYSTEM
        if label is not None:
            yield label, value
    elif isinstance(value, Mapping):
        label = {"pricePerUnit": CURRENCY, "terms": TERM, "pricing": REGION}.get(key)
        if label is not None:
            yield from ((label, str(name)) for name in value)
        if label == REGION:
            yield from ((SYSTEM, str(name)) for names in value.values() if isinstance(names, Mapping) for name in names)
