"""Format values of a report alike in every format."""

from __future__ import annotations

from unfoldkit.format import format_number
from unfoldkit.report import Cell, Column, Metric, Table


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
    text = format_number(item.value)
    return f"{text} {item.unit}".strip()
