"""Per-request targets of a trace: columns ``deadline`` and ``least_accuracy`` beside the arrival times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unfold_supernet._types import FloatArray, IntArray
from unfoldkit.api import CsvRow, csv_rows, user_error
from unfoldkit.arrivals.readers.detect import detect_form
from unfoldkit.arrivals.readers.timestamps import split_unit, to_seconds
from unfoldkit.io.tables import csv_lines, open_text

DEADLINE_COLUMN, ACCURACY_COLUMN, ROWS_COLUMN = "deadline", "least_accuracy", "rows"
MAX_DEADLINE_S = 86_400.0


@dataclass(frozen=True, slots=True)
class RequestTargets:
    """Targets of each request, as in serving: an insufficiently accurate subnet never serves it, however late it gets.

    Attributes:
        deadlines_s: Seconds from arrival to deadline.
        min_accuracies: Minimum accuracy between 0 and 1; 0 admits every subnet.
    """

    deadlines_s: FloatArray
    min_accuracies: FloatArray

    def select(self, indices: IntArray) -> RequestTargets:
        """Select the targets of some requests."""
        return RequestTargets(self.deadlines_s[indices], self.min_accuracies[indices])


def read_targets(path: Path, count: int, slo: float) -> RequestTargets | None:
    """Read the targets of a trace; an empty cell means the spec's deadline, or any accuracy.

    Args:
        path: The trace.
        count: Requests in the trace.
        slo: The spec's deadline, in seconds.

    Returns:
        The targets, or ``None`` if the trace is no table or has neither column.

    Raises:
        UnfoldError: A row is not exactly one request, or a cell is no valid target.
    """
    deadline, accuracy, size = _find_columns(path)
    if not deadline and not accuracy and not size:
        return None
    rows = list(csv_rows(path))
    for row in rows if size else ():
        _check_single(row, size)
    if not deadline and not accuracy:
        return None
    if len(rows) != count:
        message = f"{len(rows):,} rows with targets describe {count:,} requests"
        hint = "write one row for each request, and no row that counts several"
        raise user_error(message, file=str(path), key=deadline or accuracy, hint=hint)
    seconds = split_unit(deadline)[1] if deadline else 1.0
    if seconds is None:
        hint = "name it deadline_ms or deadline_s"
        raise user_error(f"column {deadline} has no unit", file=str(path), key=deadline, hint=hint)
    return RequestTargets(
        np.array([_parse_deadline(row, deadline, seconds, slo) for row in rows]),
        np.array([parse_min_accuracy(row, accuracy) for row in rows]),
    )


def _find_columns(path: Path) -> tuple[str, str, str]:
    """Find the columns of deadlines, accuracies and rows by name; an empty name means that one is absent."""
    if detect_form(path) != "table":
        return "", "", ""
    with open_text(path, errors="replace") as stream:
        header: Sequence[str] = [name.strip() for name in next(csv_lines(stream), (0, []))[1]]
    deadline = next((name for name in header if split_unit(name)[0] == DEADLINE_COLUMN), "")
    accuracy, size = (
        next((name for name in header if name.lower() == column), "") for column in (ACCURACY_COLUMN, ROWS_COLUMN)
    )
    return deadline, accuracy, size


def _check_single(row: CsvRow, column: str) -> None:
    """Check that a request has one row: a replay sends no larger one, and would promise too much."""
    if row.get(column) and row.number(column) != 1:
        message = f"a request of {row[column][:40]} rows; those of a replay have one"
        raise row.wrong(message, column, "write a line for each row, or rename a column that means something else")


def _parse_deadline(row: CsvRow, column: str, seconds: float, slo: float) -> float:
    if not row.get(column):
        return slo
    deadline_s = to_seconds(row.number(column), seconds)
    if not 0 < deadline_s <= MAX_DEADLINE_S:
        hint = "a time from the request's arrival, above 0 and at most one day"
        raise row.wrong(f"{row[column][:40]} is not a valid deadline", column, hint)
    return deadline_s


def parse_min_accuracy(row: CsvRow, column: str) -> float:
    """Parse a minimum accuracy, written as a fraction or in percent; an empty cell gives 0.

    Raises:
        UnfoldError: The cell is no fraction between 0 and 1.
    """
    text = row.get(column)
    if not text:
        return 0.0
    is_percent = text.endswith("%")
    row.cells[column] = text.removesuffix("%").strip()
    accuracy = row.number(column, least=0.0) / (100 if is_percent else 1)
    if not accuracy <= 1 or math.isnan(accuracy):
        raise row.wrong(f"{text[:40]} is not a fraction", column, "write 0.91 or 91%")
    return accuracy
