"""Format values of a report alike in every format, without characters that steer a terminal or reorder text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from unfoldkit.errors import escape_unprintable
from unfoldkit.format import attach_unit, format_money, format_number
from unfoldkit.report import Cell, Column, Metric, Report, Table


def format_cell(value: Cell, column: Column) -> str:
    """Format a cell of a table; the head of the column has the unit."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return format_number(value, column.digits)
    return value


def format_rows(table: Table) -> list[list[str]]:
    """Format the cells of a table, row by row."""
    return [
        [format_cell(value, column) for value, column in zip(row, table.columns, strict=True)] for row in table.rows
    ]


def format_head(column: Column) -> str:
    """Format the head of a column: its name and its unit."""
    return f"{column.name} {column.unit}".strip()


def numeric_columns(table: Table) -> list[bool]:
    """Return which columns of a table are aligned to the right."""
    return [_is_numeric(column, [row[i] for row in table.rows]) for i, column in enumerate(table.columns)]


def _is_numeric(column: Column, values: list[Cell]) -> bool:
    return column.digits is not None or any(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


def format_metric(item: Metric) -> str:
    """Format the value of a metric with its unit."""
    if item.value is None:
        return "not measured"
    if item.unit.startswith("$") and math.isfinite(item.value):
        return f"{'-' if item.value < 0 else ''}{format_money(abs(item.value))}{item.unit[1:]}"
    return attach_unit(format_number(item.value), item.unit)


CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters (C0 without tab and line feed, C1), line and paragraph separators, and bidirectional controls."""


def strip_controls(report: Report) -> Report:
    """Return the report without control characters in any of its texts."""
    cleaned: Report = _clean(report)
    return cleaned


def escape_controls(text: str) -> str:
    r"""Return JSON with control characters written as ``\uXXXX``."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def escape_lines(text: str) -> str:
    """Escape the unprintable characters of each line of a text that came from a file."""
    return "\n".join(map(escape_unprintable, text.split("\n")))


def _clean(value: Any) -> Any:
    if isinstance(value, Enum):
        return value
    if isinstance(value, str):
        return CONTROLS.sub("", value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{item.name: _clean(getattr(value, item.name)) for item in fields(value)})
    if isinstance(value, Mapping):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, tuple):
        # points of figures are many, and numbers
        return value if value and isinstance(value[0], float) and _is_plain(value) else tuple(map(_clean, value))
    return [_clean(item) for item in value] if isinstance(value, list) else value


def _is_plain(values: tuple[Any, ...]) -> bool:
    return all(type(value) is float for value in values)
