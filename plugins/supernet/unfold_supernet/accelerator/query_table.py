"""The queries of a plan: drawn, or the rows of a table that names an accuracy and a latency for each."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from unfold_supernet.accelerator.queries import Asked, Listed, drawn
from unfold_supernet.accelerator.scheduler import ACCURACY, POLICIES
from unfold_supernet.scheduling.requests import LEAST, least
from unfold_supernet.schema.models import QueriesSpec
from unfoldkit.api import CsvRow, Run, csv_rows, fail
from unfoldkit.arrivals.readers.timestamps import unit
from unfoldkit.safe_io.files import read_bytes

LATENCIES = ("latency", "deadline", "slo")
KEY = "queries.path"


def digests(run: Run, files: Mapping[str, str | None]) -> dict[str, str]:
    """Return the SHA-256 of each file by its name; files are by the key that names them, if any does."""
    paths = [run.path(name, key=key) for key, name in files.items() if name is not None]
    return {path.name: hashlib.sha256(read_bytes(path)).hexdigest() for path in paths}


def asked_of(given: QueriesSpec, run: Run) -> Asked:
    """Return the queries of a spec.

    Raises:
        UnfoldError: the file is not there or is no such table.
    """
    if given.path is None:
        return drawn(given.count, given.pattern, run.seed, given.hold)
    return listed(run.path(given.path, key=KEY), given.policy)


def listed(path: Path, policy: str) -> Listed:
    """Return the targets of a table: ``accuracy`` in percent, and ``latency_ms`` (or ``deadline``, ``slo``, in s, us).

    A trace that a family replays is one too: its ``least_accuracy`` is a share. An empty cell asks for nothing. What
    the policy goes by must be a column.

    Raises:
        UnfoldError: there is no such column, no row, or a cell that is no target.
    """
    rows = list(csv_rows(path))
    if not rows:
        raise fail("the table has no query", file=str(path), key=KEY)
    accuracy, latency, seconds = _columns(list(rows[0].cells), POLICIES[policy] == ACCURACY, path)
    if accuracy.lower() == LEAST:
        # 0.28 asks for 28 %, not for a rounding error more
        accuracies = np.round([least(row, accuracy) * 100 for row in rows], 9)
    else:
        accuracies = np.array([_percent(row, accuracy) for row in rows])
    deadlines = np.array([_target(row, latency, math.inf) * seconds for row in rows])
    if 0 < accuracies.max() <= 1 and accuracy.lower() != LEAST:
        message = f"no query asks for more than {accuracies.max():g} %: accuracies are in percent"
        raise fail(message, file=str(path), key=accuracy, hint="write 77.5, or 77.5%, not 0.775")
    return Listed(accuracies, deadlines)


def _columns(head: list[str], by_accuracy: bool, path: Path) -> tuple[str, str, float]:
    """Return the columns of accuracy and latency, empty if there is none, and the latter's unit in seconds."""
    accuracy = next((name for name in head if name.lower().startswith(("accuracy", LEAST))), "")
    latency = next((name for name in head if unit(name)[0] in LATENCIES), "")
    there = f"it has {', '.join(head[:12])}"
    if by_accuracy and not accuracy:
        raise fail("no column accuracy, which strict-accuracy goes by", file=str(path), key=KEY, hint=there)
    if not by_accuracy and not latency:
        raise fail("no column latency_ms, which strict-latency goes by", file=str(path), key=KEY, hint=there)
    seconds = unit(latency)[1] if latency else 1.0
    if seconds is None:
        raise fail(f"{latency} is in no unit", file=str(path), key=latency, hint=f"call it {latency}_ms or {latency}_s")
    return accuracy, latency, seconds


def _percent(row: CsvRow, column: str) -> float:
    text = row.get(column)
    if text.endswith("%"):
        row.cells[column] = text[:-1].strip()
    found = _target(row, column, 0.0)
    if found > 100:
        raise row.wrong(f"{found:g} % cannot be accurate", column, "at most 100")
    return found


def _target(row: CsvRow, column: str, nothing: float) -> float:
    return row.number(column, least=0.0) if row.get(column) else nothing
