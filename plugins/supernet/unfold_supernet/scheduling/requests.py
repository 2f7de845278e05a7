"""What the requests of a trace ask for one by one: columns ``deadline`` and ``least_accuracy`` beside their times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unfold_supernet.arrays import Floats, Ints
from unfoldkit.api import CsvRow, csv_rows, fail
from unfoldkit.arrivals.readers.detect import form
from unfoldkit.arrivals.readers.timestamps import in_seconds, unit
from unfoldkit.io.csv import csv_lines, open_text

DEADLINE, LEAST = "deadline", "least_accuracy"
LONGEST = 86_400.0


@dataclass(frozen=True, slots=True)
class Targets:
    """By request the seconds from its arrival to its deadline, and the share of accuracy that it insists on (0: any).

    As those of a served request: what is less accurate does not answer, however late the answer then is.
    """

    deadlines: Floats
    least: Floats

    def of(self, places: Ints) -> Targets:
        """Return the targets of some requests."""
        return Targets(self.deadlines[places], self.least[places])


def read(path: Path, count: int, slo: float) -> Targets | None:
    """Return what the ``count`` requests of a trace ask for, if it is a table that says so.

    An empty cell stands for the deadline of the spec, ``slo`` in seconds, and for any accuracy.

    Raises:
        UnfoldError: a row is not one request, or a cell is no target.
    """
    deadline, accuracy = _columns(path)
    if not deadline and not accuracy:
        return None
    rows = list(csv_rows(path))
    if len(rows) != count:
        told = f"{len(rows):,} rows with targets are {count:,} requests"
        raise fail(
            told, file=str(path), key=deadline or accuracy, hint="a row for each request, none that counts several"
        )
    seconds = unit(deadline)[1] if deadline else 1.0
    if seconds is None:
        raise fail(f"{deadline} is in no unit", file=str(path), key=deadline, hint="call it deadline_ms or deadline_s")
    return Targets(
        np.array([_deadline(row, deadline, seconds, slo) for row in rows]),
        np.array([least(row, accuracy) for row in rows]),
    )


def _columns(path: Path) -> tuple[str, str]:
    """Return the names of the columns of deadlines and of accuracies, empty where there is none."""
    if form(path) != "table":
        return "", ""
    with open_text(path, errors="replace") as stream:
        head: Sequence[str] = [name.strip() for name in next(csv_lines(stream), (0, []))[1]]
    deadline = next((name for name in head if unit(name)[0] == DEADLINE), "")
    return deadline, next((name for name in head if name.lower() == LEAST), "")


def _deadline(row: CsvRow, column: str, seconds: float, slo: float) -> float:
    if not row.get(column):
        return slo
    found = in_seconds(row.number(column), seconds)
    if not 0 < found <= LONGEST:
        hint = "from when the request came; above 0, at most a day"
        raise row.wrong(f"{row[column][:40]} is no deadline", column, hint)
    return found


def least(row: CsvRow, column: str) -> float:
    """Return the share of accuracy that a row insists on, written as such or in percent; 0 where its cell is empty.

    Raises:
        UnfoldError: it is none.
    """
    text = row.get(column)
    if not text:
        return 0.0
    percent = text.endswith("%")
    row.cells[column] = text.removesuffix("%").strip()
    found = row.number(column, least=0.0) / (100 if percent else 1)
    if not found <= 1 or math.isnan(found):
        raise row.wrong(f"{text[:40]} is no share", column, "0.91, or 91%")
    return found
