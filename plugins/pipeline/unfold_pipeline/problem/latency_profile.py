"""Measured latencies: what ``unfold profile`` stores in a run, and what NVIDIA's perf_analyzer wrote to CSV files."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from unfoldkit.api import Diagnostic, Run, UnfoldError, csv_rows, user_error
from unfoldkit.safe_io.files import parse_object

FOLDER = "profile"
ACTIVATION_FILE = "activation.json"
QUANTILES = 64
COMPUTE_COLUMNS = ("Server Compute Input", "Server Compute Infer", "Server Compute Output")
LOAD_COLUMNS = ("Concurrency", "Request Rate")
MICROSECOND = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTiming:
    """Measured seconds of batches of one size. The field names are those of the stored file.

    Attributes:
        batch: Number of queries.
        mean, p50, p90, p99: Seconds from hand-over to answer.
        count: Number of measurements.
        spread: 64 quantiles over the mean; the service-time variability.
        wake: Extra seconds of a batch on a replica that was idle; measured for the smallest batch.
        cpu: Fraction of the time in which the batch kept a core busy.
    """

    batch: int
    mean: float
    p50: float
    p90: float
    p99: float
    count: int
    spread: tuple[float, ...]
    wake: float = 0.0
    cpu: float = 1.0


def summarize_timings(
    batch: int, seconds: Sequence[float], idle_seconds: Sequence[float] = (), cpu: float = 1.0
) -> BatchTiming:
    """Summarize measurements of one batch size.

    Args:
        batch: Number of queries.
        seconds: Measurements on a busy replica.
        idle_seconds: Measurements after a pause.
        cpu: Fraction of the time in which a core was busy.
    """
    values = np.array(seconds)
    p50, p90, p99 = (float(np.quantile(values, level)) for level in (0.5, 0.9, 0.99))
    mean = float(values.mean())
    spread = np.quantile(values, (np.arange(QUANTILES) + 0.5) / QUANTILES) / mean
    # medians: a pause may also end in a hiccup of the machine, which is not a part of waking up
    wake = max(0.0, float(np.median(idle_seconds)) - p50) if idle_seconds else 0.0
    return BatchTiming(
        batch=batch,
        mean=mean,
        p50=p50,
        p90=p90,
        p99=p99,
        count=values.size,
        spread=tuple(float(quantile) for quantile in spread),
        wake=wake,
        cpu=cpu,
    )


def store_profile(stage: str, timings: Sequence[BatchTiming], made_from: str, run: Run) -> None:
    """Write the profile of a stage to the run; ``made_from`` is the fingerprint of its model."""
    body = {"stage": stage, "where": describe_processor(), "points": [asdict(timing) for timing in timings]}
    run.directory.write(_file_name(stage), (json.dumps(body, indent=1) + "\n").encode(), made_from=made_from)


def load_profile(stage: str, run: Run, *, made_from: str | None = None) -> tuple[BatchTiming, ...] | None:
    """Return the profile of a stage if the run has one, of the model ``made_from`` unless that is ``None``."""
    if not run.directory.has(_file_name(stage), made_from=made_from):
        return None
    with run.directory.decoding(_file_name(stage), "a profile") as data:
        return tuple(_parse_timing(point) for point in parse_object(data)["points"])


def describe_processor() -> str:
    """Return the cores and the processor model of this machine in words."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {models[0] if models else platform.machine()}"


def load_profile_machine(stage: str, run: Run) -> str:
    """Return the processor on which a stage was measured, in words; empty if unknown."""
    if not run.directory.has(_file_name(stage)):
        return ""
    with run.directory.decoding(_file_name(stage), "a profile") as data:
        return str(parse_object(data).get("where", ""))


def require_profile(stage: str, run: Run) -> tuple[BatchTiming, ...]:
    """Return the profile of a stage.

    Raises:
        UnfoldError: The stage was not profiled.
    """
    timings = load_profile(stage, run)
    if timings is None:
        message = f"this stage was not profiled yet in {run.directory.path}"
        hint = "unfold profile SPEC first; --run DIR names the folder of its profiles"
        raise user_error(message, key=f"stages.{stage}.model", hint=hint)
    return timings


def store_activation(seconds: Mapping[str, float], run: Run) -> None:
    """Write the measured seconds from ordering a replica of each stage until it serves; 0 stands for unknown."""
    known = {**load_activation(run), **{stage: round(value, 3) for stage, value in seconds.items() if value > 0}}
    run.directory.write(ACTIVATION_FILE, (json.dumps(known, indent=1) + "\n").encode())


def load_activation(run: Run) -> dict[str, float]:
    """Return the measured seconds from ordering a replica until it serves by stage; empty if none was measured."""
    if not run.directory.has(ACTIVATION_FILE):
        return {}
    with run.directory.decoding(ACTIVATION_FILE, "activation times") as data:
        return {str(stage): float(seconds) for stage, seconds in parse_object(data).items()}


def load_perf_analyzer_latencies(files: Mapping[int, str], key: str, run: Run) -> dict[int, float]:
    """Return the seconds of a batch by its size, one file per size; ``key`` locates the files in the spec.

    Raises:
        UnfoldError: A file is missing or was not written by perf_analyzer.
    """
    return {batch: read_perf_analyzer_latency(run.path(name, key=f"{key}.{batch}")) for batch, name in files.items()}


def read_perf_analyzer_latency(path: Path) -> float:
    """Return the mean compute seconds at the lowest load; queueing is what the estimator adds.

    Raises:
        UnfoldError: A column or a figure is missing.
    """
    rows = list(csv_rows(path, COMPUTE_COLUMNS, hint="perf_analyzer -m MODEL -b BATCH -f FILE writes it"))
    if not rows:
        raise UnfoldError(Diagnostic("the file holds no measurement", str(path), 1, 1))
    load = next((name for name in LOAD_COLUMNS if name in rows[0].cells), None)
    row = min(rows, key=lambda measured: measured.number(load) if load else 0.0)
    seconds = sum(row.number(name) for name in COMPUTE_COLUMNS) * MICROSECOND
    if seconds <= 0:
        raise row.wrong("a batch must take more than 0 s", COMPUTE_COLUMNS[1])
    return seconds


def _file_name(stage: str) -> str:
    return f"{FOLDER}/{stage}.json"


def _parse_timing(data: Mapping[str, object]) -> BatchTiming:
    return BatchTiming(**{**data, "spread": tuple(data["spread"])})  # type: ignore[arg-type]
