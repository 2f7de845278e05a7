"""Latencies that NVIDIA's perf_analyzer measured: its CSV files, one a batch size (``-b``), as ``-f`` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from unfold_pipeline.schema.models import BatchLatency
from unfoldkit.api import Diagnostic, Run, UnfoldError, csv_rows

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
    rows = list(csv_rows(path, COMPUTE, hint="perf_analyzer -m MODEL -b BATCH -f FILE writes it"))
    if not rows:
        raise UnfoldError(Diagnostic("no measurement is in it", str(path), 1, 1))
    load = next((name for name in LOAD if name in rows[0].cells), None)
    row = min(rows, key=lambda item: item.number(load) if load else 0.0)
    seconds = sum(row.number(name) for name in COMPUTE) * MICRO
    if seconds <= 0:
        raise row.wrong("a batch takes more than 0 s", COMPUTE[1])
    return seconds
