"""Read arrival times from Parquet, by the rules of tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from unfoldkit.arrivals.readers.table import TableColumns, TraceRows, read_rows, sort_rows
from unfoldkit.errors import UnfoldError
from unfoldkit.io.parquet import read_parquet_cells


def read_parquet(path: Path, columns: TableColumns) -> TraceRows:
    """Read the times of a Parquet file, sorted, with the counts or rates of its rows.

    Raises:
        UnfoldError: the file cannot be read, or a cell is not a time, count or rate.
    """
    names, cells = read_parquet_cells(path)
    try:
        return sort_rows(read_rows(names, _number_rows(cells), columns, path))
    except UnfoldError as error:
        rows = [replace(each, message=f"row {each.line}: {each.message}", line=0) for each in error.diagnostics]
        raise UnfoldError(*rows) from error


def _number_rows(cells: list[list[str]]) -> Iterator[tuple[int, list[str]]]:
    for number, row in enumerate(zip(*cells, strict=True), 1):
        yield number, list(row)
