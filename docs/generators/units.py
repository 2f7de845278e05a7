"""The page of the quantities that a spec writes with their unit."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from docs.generators.markdown import code, table
from unfoldkit.spec import units

INTRO = """# Units

A quantity is written with its unit, as text: `150 ms`, not `0.15`. A number without a unit is rejected with
a suggestion; only a fraction needs none. Numbers are decimal, with an optional exponent. A space before the unit is
optional.

"""
WRITTEN = {
    "Duration": tuple(units.SECONDS),
    "Bytes": tuple(units.BYTES),
    "Bandwidth": tuple(f"{name}/s" for name in units.BYTES),
    "Frequency": tuple(units.HERTZ),
    "Rate": tuple(f"/{name}" for name in units.PER),
    "Money": ("$",),
    "Price": tuple(f"$ /{name}" for name in units.PER),
    "Percent": ("%",),
    "Fraction": ("%", "none"),
}
HELD = {
    "Duration": "seconds",
    "Bytes": "bytes",
    "Bandwidth": "bytes per second",
    "Frequency": "cycles per second",
    "Rate": "events per second",
    "Money": "US dollars",
    "Price": "US dollars per hour",
    "Percent": "a fraction: 1% is 0.01",
    "Fraction": "a fraction from 0 to 1",
}


def page() -> str:
    """Return the table of the quantities."""
    rows = [(code(name), *_described(getattr(units, name)), _units(name), HELD[name]) for name in WRITTEN]
    return INTRO + table(("type", "what", "example", "units", "in Python"), rows)


def _described(annotated: Any) -> tuple[str, str]:
    schema = TypeAdapter(annotated).json_schema()
    return schema["description"], ", ".join(code(str(item)) for item in schema["examples"])


def _units(name: str) -> str:
    return ", ".join(code(unit) if unit != "none" else "none" for unit in WRITTEN[name])
