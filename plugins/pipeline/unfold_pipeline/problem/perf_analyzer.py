"""Import latencies that NVIDIA's perf_analyzer measured: one CSV file per batch size, as ``-b B -f FILE`` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from unfoldkit.api import Diagnostic, Run, UnfoldError, csv_rows

COMPUTE_COLUMNS = ("Server Compute Input", "Server Compute Infer", "Server Compute Output")
LOAD_COLUMNS = ("Concurrency", "Request Rate")
MICROSECOND = 1e-6


def load_latencies(files: Mapping[int, str], key: str, run: Run) -> dict[int, float]:
    """Return the seconds of a batch by its size, one file per size; ``key`` locates the files in the spec.

    Raises:
        UnfoldError: a file is missing or was not written by perf_analyzer.
    """
    return {batch: read_latency(run.path(name, key=f"{key}.{batch}")) for batch, name in files.items()}


def read_latency(path: Path) -> float:
    """Return the mean compute seconds at the lowest load; queueing is what the estimator adds.

    Raises:
        UnfoldError: a column or a figure is missing.
    """
    rows = list(csv_rows(path, COMPUTE_COLUMNS, hint="perf_analyzer -m MODEL -b BATCH -f FILE writes it"))
    if not rows:
        raise UnfoldError(Diagnostic("the file holds no measurement", str(path), 1, 1))
    load = next((name for name in LOAD_COLUMNS if name in rows[0].cells), None)
    row = min(rows, key=lambda measured: measured.number(load) if load else 0.0)
    seconds = sum(row.number(name) for name in COMPUTE_COLUMNS) * MICROSECOND
    if seconds <= 0:
        raise row.wrong("a batch takes more than 0 s", COMPUTE_COLUMNS[1])
    return seconds
