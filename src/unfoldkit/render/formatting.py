"""How a value looks, in every format alike."""

from __future__ import annotations

from unfoldkit.format import format_number
from unfoldkit.report import Cell, Column, Metric, Table


def cell(value: Cell, column: Column) -> str:
    """Return a table's value as text; the unit stands in the head of the column."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return format_number(value, column.digits)
    return value


def head(column: Column) -> str:
    """Return the head of a column: its name and its unit."""
    return f"{column.name} {column.unit}".strip()


def numeric(table: Table) -> list[bool]:
    """Return which columns of a table are set flush right."""
    return [_is_numeric(column, [row[i] for row in table.rows]) for i, column in enumerate(table.columns)]


def _is_numeric(column: Column, values: list[Cell]) -> bool:
    return column.digits is not None or any(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


def metric(item: Metric) -> str:
    """Return a metric's value with its unit."""
    if item.value is None:
        return "not measured"
    text = format_number(item.value)
    return f"{text} {item.unit}".strip()
