"""How a value looks, in every format alike."""

from __future__ import annotations

import math

from unfoldkit.report import Cell, Column, Metric, Table


def cell(value: Cell, column: Column) -> str:
    """Return a table's value as text; the unit stands in the head of the column."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return number(value, column.digits)
    return value


def head(column: Column) -> str:
    """Return the head of a column: its name and its unit."""
    return f"{column.name} {column.unit}".strip()


def numeric(table: Table) -> list[bool]:
    """Return which columns of a table are set flush right."""
    return [_is_numeric(column, [row[i] for row in table.rows]) for i, column in enumerate(table.columns)]


def _is_numeric(column: Column, values: list[Cell]) -> bool:
    return column.digits is not None or any(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


def number(value: float, digits: int | None = None) -> str:
    """Return a number with thousands separated, to ``digits`` after the point or three significant ones."""
    if isinstance(value, float) and not math.isfinite(value):
        return "∞" if value > 0 else "–"
    if isinstance(value, int) and digits is None:
        return f"{value:,}"
    if digits is not None:
        # no minus before what rounds to nothing
        return f"{round(value, digits) + 0.0:,.{digits}f}"
    if value == 0:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}" if places < 7 else f"{value:.2e}"


def metric(item: Metric) -> str:
    """Return a metric's value with its unit."""
    if item.value is None:
        return "not measured"
    text = number(item.value)
    return f"{text} {item.unit}".strip()
