"""Latencies that NVIDIA's perf_analyzer measured: its CSV files, one a batch size (``-b``), as ``-f`` writes them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from unfold_pipeline.spec import BatchLatency
from unfoldkit.api import Diagnostic, Run, UnfoldError

COMPUTE = ("Server Compute Input", "Server Compute Infer", "Server Compute Output")
LOAD = ("Concurrency", "Request Rate")
MICRO = 1e-6


def latency_of(files: Mapping[int, str], key: str, run: Run) -> BatchLatency:
    """Return the seconds of a batch by its size, read from one file a size.

    Raises:
        UnfoldError: a file is not there, or is not one of perf_analyzer.
    """
    return {batch: read(run.path(name, key=f"{key}.{batch}")) for batch, name in files.items()}


def read(path: Path) -> float:
    """Return the mean seconds that the server computed at the least load: queues are what the estimator adds.

    Raises:
        UnfoldError: a column or a figure is missing.
    """
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        raise UnfoldError(Diagnostic("no measurement is in it", str(path), 1, 1))
    missing = [name for name in COMPUTE if name not in rows[0]]
    if missing:
        hint = "perf_analyzer -m MODEL -b BATCH -f FILE writes it"
        raise UnfoldError(Diagnostic(f"no column {missing[0]!r}", str(path), 1, 1, hint=hint))
    load = next((name for name in LOAD if name in rows[0]), None)
    numbered = list(enumerate(rows, 2))
    line, row = min(numbered, key=lambda item: _number(item[1], load, path, item[0]) if load else 0.0)
    seconds = sum(_number(row, name, path, line) for name in COMPUTE) * MICRO
    if seconds <= 0:
        raise UnfoldError(Diagnostic("a batch takes more than 0 s", str(path), line, 1))
    return seconds


def _number(row: Mapping[str, str | None], name: str, path: Path, line: int) -> float:
    try:
        return float(row[name] or "")
    except ValueError as error:
        raise UnfoldError(Diagnostic(f"{row[name]!r} is not a number ({name})", str(path), line, 1)) from error
