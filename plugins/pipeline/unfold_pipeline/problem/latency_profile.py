"""Measured latencies: what ``profile`` stores in a run, and what ``plan`` reads of it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from unfold_pipeline.schema.models import BatchLatency
from unfoldkit.api import Run, fail
from unfoldkit.safe_io.files import parse_object

FOLDER = "profile"
SPREAD = 64


@dataclass(frozen=True, slots=True)
class Point:
    """The seconds of a batch of one size: mean, percentiles, number of measurements, and 64 quantiles over the mean.

    ``wake`` is what a batch took longer on a replica that had stood idle; measured for the smallest batch. ``cpu`` is
    the share of the time in which it kept a core busy.
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


def point(batch: int, seconds: Sequence[float], idle: Sequence[float] = (), cpu: float = 1.0) -> Point:
    """Return the summary of some measurements; ``idle`` are those after a pause, ``cpu`` the share of a core."""
    values = np.array(seconds)
    p50, p90, p99 = (float(np.quantile(values, share)) for share in (0.5, 0.9, 0.99))
    mean = float(values.mean())
    spread = np.quantile(values, (np.arange(SPREAD) + 0.5) / SPREAD) / mean
    # medians, as a pause may also end in a hiccup of the machine, which is no part of waking up
    wake = max(0.0, float(np.median(idle)) - p50) if idle else 0.0
    return Point(batch, mean, p50, p90, p99, values.size, tuple(float(item) for item in spread), wake, cpu)


def store(stage: str, points: Sequence[Point], made_from: str, run: Run) -> None:
    """Keep the profile of a stage in the run."""
    body = {"stage": stage, "where": here(), "points": [asdict(item) for item in points]}
    run.directory.write(_name(stage), (json.dumps(body, indent=1) + "\n").encode(), made_from=made_from)


def stored(stage: str, run: Run, *, made_from: str | None = None) -> list[Point] | None:
    """Return the profile of a stage, if the run has it (made from the same model)."""
    if not run.directory.has(_name(stage), made_from=made_from):
        return None
    with run.directory.decoding(_name(stage), "a profile") as data:
        return [_point(item) for item in parse_object(data)["points"]]


def here() -> str:
    """Return the processor of this machine in words."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {models[0] if models else platform.machine()}"


def where(stage: str, run: Run) -> str:
    """Return the machine that the profile of a stage was measured on, in words; empty if it is not known."""
    if not run.directory.has(_name(stage)):
        return ""
    with run.directory.decoding(_name(stage), "a profile") as data:
        return str(parse_object(data).get("where", ""))


def latency_of(stage: str, run: Run) -> BatchLatency:
    """Return the mean seconds by batch size of a stage that was profiled.

    Raises:
        UnfoldError: it was not.
    """
    points = stored(stage, run)
    if points is None:
        raise fail("this stage was not profiled yet", key=f"stages.{stage}.model", hint="unfold profile SPEC first")
    return {item.batch: item.mean for item in points}


def wake_of(stage: str, run: Run) -> float:
    """Return the seconds that a batch of a profiled stage takes longer on a replica that stood idle."""
    return max((item.wake for item in stored(stage, run) or ()), default=0.0)


def _name(stage: str) -> str:
    return f"{FOLDER}/{stage}.json"


def _point(data: Mapping[str, object]) -> Point:
    return Point(**{**data, "spread": tuple(data["spread"])})  # type: ignore[arg-type]
