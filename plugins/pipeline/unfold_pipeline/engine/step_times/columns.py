"""Read the columns of a measured table: CSV, gzipped or not, or Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfold_pipeline._types import FloatArray
from unfoldkit.api import csv_rows, require_packages, user_error
from unfoldkit.errors import list_columns
from unfoldkit.io.tables import parse_parquet
from unfoldkit.safe_io.files import read_bytes

PARQUET = ".parquet"


@dataclass(frozen=True, slots=True)
class MeasuredTable:
    """A table as columns of text and numbers.

    Attributes:
        path: The file.
        columns: Cells of each column, as text.
        lines: (rows,) line of each row in a text file.
    """

    path: Path
    columns: Mapping[str, Sequence[str]]
    lines: Sequence[int]

    def __len__(self) -> int:
        return len(self.lines)

    def numbers(self, name: str, *, least: float = 0.0) -> FloatArray:
        """Return a column as finite numbers.

        Raises:
            UnfoldError: A cell is not a number of at least ``least``.
        """
        try:
            values = np.array(self.columns[name], dtype=np.float64)
        except ValueError:
            values = np.array([_parse(cell) for cell in self.columns[name]])
        bad = np.flatnonzero(~(np.isfinite(values) & (values >= least)))
        if bad.size:
            row = int(bad[0])
            cell, line = str(self.columns[name][row])[:40], self.lines[row]
            raise user_error(
                f"line {line}: {cell!r} is not a number of at least {least:g}", file=str(self.path), key=name
            )
        return values

    def latencies(self, name: str) -> FloatArray:
        """Return a column of measured times; nothing takes no time at all.

        Raises:
            UnfoldError: A cell is no positive number.
        """
        values = self.numbers(name)
        if (values == 0).any():
            line = self.lines[int(np.argmin(values))]
            message = f"line {line}: a latency of 0 is not a measurement"
            raise user_error(message, file=str(self.path), key=name, hint="leave the row out")
        return values

    def select(self, keep: Sequence[bool] | Any) -> MeasuredTable:
        """Return the rows that ``keep`` marks."""
        rows = [int(row) for row in np.flatnonzero(np.asarray(keep))]
        return MeasuredTable(
            self.path,
            {name: [cells[row] for row in rows] for name, cells in self.columns.items()},
            [self.lines[row] for row in rows],
        )

    def where(self, wanted: Mapping[str, str]) -> MeasuredTable:
        """Return the rows with cells equal to ``wanted``; columns that the table lacks do not restrict it."""
        names = [name for name in wanted if name in self.columns]
        if not names or not len(self):
            return self
        keep = np.ones(len(self), dtype=bool)
        for name in names:
            keep &= np.array(self.columns[name]) == wanted[name]
        return self.select(keep)


def read_table(path: Path, required: Sequence[str]) -> MeasuredTable:
    """Read measurements from a CSV or Parquet file with a header.

    Raises:
        UnfoldError: The file is no table, or lacks a column.
    """
    if path.suffix == PARQUET:
        return _read_parquet(path, required)
    names: list[str] = []
    cells: list[list[str]] = []
    lines: list[int] = []
    for row in csv_rows(path, required):
        names = names or list(row.cells)
        cells.append(list(row.cells.values()))
        lines.append(row.line)
    if not cells:
        raise user_error("the table has no rows", file=str(path))
    columns = [list(column) for column in zip(*cells, strict=True)]
    return MeasuredTable(path, dict(zip(names, columns, strict=True)), lines)


def _read_parquet(path: Path, required: Sequence[str]) -> MeasuredTable:
    require_packages("a Parquet file", "pyarrow", file=str(path))
    table = parse_parquet(read_bytes(path), str(path))
    missing = [name for name in required if name not in table.column_names]
    if missing:
        hint = f"it has {list_columns(table.column_names)}"
        raise user_error(f"no column {', '.join(missing)}", file=str(path), hint=hint)
    if not table.num_rows:
        raise user_error("the table has no rows", file=str(path))
    columns = {name: [_text(value) for value in table[name].to_pylist()] for name in table.column_names}
    return MeasuredTable(path, columns, range(1, table.num_rows + 1))


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _parse(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


MAX_FACTORS = {"m": 2, "requests": 2, "context": 8}
"""How far beyond a table each size may lie: table ``extrapolation`` of the benchmark engine-fidelity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableEnd:
    """The end of a table in one size.

    Attributes:
        operator: What was measured.
        size: Name of the size: ``m``, ``requests`` or ``context``.
        measured: Largest size in the table.
        needed: Largest size that is needed.
    """

    operator: str
    size: str
    measured: int
    needed: int


def reject_distant_size(end: TableEnd, factor: int, file: str, hint: str) -> None:
    """Reject a size that lies more than a factor beyond its table.

    Raises:
        UnfoldError: It does.
    """
    if end.needed > factor * end.measured:
        message = f"{end.operator}: the table ends at {end.size} {end.measured:,}, and {end.needed:,} are needed"
        raise user_error(message, file=file, hint=hint)
