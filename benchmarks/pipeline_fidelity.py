"""A running pipeline beside its estimate: p99 and attainment of three pipelines at loads of 30, 50 and 70 %.

Each attempt profiles the stages, estimates a Poisson trace, and replays it, open loop, against real processes on this
machine. Other programs disturb it: an attempt counts if they took less than 5 % of a core while it profiled and while
it replayed; after five that did not, the least disturbed one counts, and is counted as disturbed. "chain": a small and
a large convolutional network (ONNX); "cascade": the large one sees 40 % of the queries; "diamond": four networks with a
fork and a join, more replicas than two cores can compute for; "waiting": the same shape, waiting as for accelerators.
A run takes replicas that the system moves between the cores, and those of ``placement: {pin: core}``, which figures of
before that key lack.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks import fidelity_models
from unfold_pipeline import profiles, serve
from unfold_pipeline.profile import profile
from unfold_pipeline.spec import PipelineSpec
from unfoldkit.api import Report, Run, RunDir
from unfoldkit.arrivals import processes
from unfoldkit.engines.local import LocalEngine, available_cores
from unfoldkit.spec.loader import parse
from unfoldkit.spec.validate import validate

T = TypeVar("T")
LOADS = (0.3, 0.5, 0.7)
QUIET = 0.05
TRIES = 5
QUERIES = 1000
BATCH = 4
SLACK = 3.0
HEAD = """
version: 1
kind: pipeline
name: {name}
slo: {{p99: {limit:.6f} s}}
arrivals: {{process: poisson, rate: 10/s, duration: 10 s}}
hardware: {{core: {{price: $0.05/h}}}}
placement: {{{placement}}}
tuner: {{policy: fixed}}
stages:
"""
WAYS = {"moved": "", "pinned": "pin: core"}
STAGES = {
    "chain": """
  first: {model: {file: small.onnx}, max_batch: 4}
  second: {after: {first: 100%}, model: {file: large.onnx}, max_batch: 4}
""",
    "cascade": """
  quick: {model: {file: small.onnx}, max_batch: 4}
  sure: {after: {quick: 40%}, model: {file: large.onnx}, max_batch: 4}
""",
    "diamond": """
  enter: {model: {file: tiny.onnx}, max_batch: 4}
  left: {after: {enter: 100%}, model: {file: small.onnx}, max_batch: 4}
  right: {after: {enter: 60%}, model: {file: small.onnx}, max_batch: 4}
  join: {after: {left: 100%, right: 100%}, model: {file: tiny.onnx}, max_batch: 4}
""",
    "waiting": """
  enter: {model: {code: "benchmarks.fidelity_models:quick", features: 64}, max_batch: 4}
  left: {after: {enter: 100%}, model: {code: "benchmarks.fidelity_models:slow", features: 64}, max_batch: 4}
  right: {after: {enter: 60%}, model: {code: "benchmarks.fidelity_models:slow", features: 64}, max_batch: 4}
  join:
    after: {left: 100%, right: 100%}
    model: {code: "benchmarks.fidelity_models:quick", features: 64}
    max_batch: 4
""",
}
SHARES = {
    "chain": (1.0, 1.0),
    "cascade": (1.0, 0.4),
    "diamond": (1.0, 1.0, 0.6, 1.0),
    "waiting": (1.0, 1.0, 0.6, 1.0),
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """A replay: its report, the cores that other programs took meanwhile, and the rate of the trace a second."""

    report: Report
    foreign: float
    rate: float


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:  # noqa: ARG001 - no data is needed
    """Measure every pipeline at every load."""
    rows = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        fidelity_models.convolution(folder / "tiny.onnx", 64, 3, seed)
        fidelity_models.convolution(folder / "small.onnx", 96, 4, seed)
        fidelity_models.convolution(folder / "large.onnx", 128, 5, seed)
        for name in ["waiting"] if quick else STAGES:
            for load in LOADS[1:2] if quick else LOADS:
                for way in WAYS:
                    rows += _case(name, load, way, folder, seed, quick=quick)
    kept = [row for row in rows if row["counts"]]
    return {
        "metrics": metrics([row for row in kept if row["cores"] == "moved"]) | pinned(kept),
        "tables": {"attempts": rows},
        "aims": {"p99_error_percent_max": "≤ 10"},
        "notes": notes(),
    }


def notes() -> list[str]:
    """Return what a reader must know of the figures."""
    return [
        "load: of the busiest stage or of all cores, rate over throughput with full batches; one replica a stage",
        f"foreign cores: the larger of what others took while profiling and replaying; niceness here {os.nice(0)}",
    ]


def metrics(rows: list[dict[str, Any]]) -> dict[str, float | int | None]:
    """Return the largest errors over the attempts that count."""
    return {
        "p99_error_percent_max": max(abs(row["p99_error_percent"]) for row in rows),
        "p50_error_percent_max": max(abs(row["p50_error_percent"]) for row in rows),
        "attainment_error_points_max": max(abs(row["attainment_error_points"]) for row in rows),
        "cases": len(rows),
        "disturbed_cases": sum(row["foreign_cores"] > QUIET for row in rows),
        "lost": sum(row["lost"] for row in rows),
    }


def pinned(rows: list[dict[str, Any]]) -> dict[str, float | int | None]:
    """Return the largest error at p99 with replicas that keep to a core."""
    return {"pinned_p99_error_percent_max": max(abs(r["p99_error_percent"]) for r in rows if r["cores"] == "pinned")}


def _case(name: str, load: float, way: str, folder: Path, seed: int, *, quick: bool) -> list[dict[str, Any]]:
    """Return the attempts at one load and way; the one that counts is marked."""
    attempts: list[Attempt] = []
    while len(attempts) < (1 if quick else TRIES) and not any(item.foreign <= QUIET for item in attempts):
        count = QUERIES // 5 if quick else QUERIES
        attempts.append(_attempt(name, load, way, folder, [seed, len(attempts)], count))
    best = min(attempts, key=lambda item: item.foreign)
    told = {"pipeline": name, "load": load, "cores": way}
    return [told | _row(item) | {"counts": item is best} for item in attempts]


def _attempt(name: str, load: float, way: str, folder: Path, seed: list[int], count: int) -> Attempt:
    with tempfile.TemporaryDirectory(dir=folder) as text:
        place = Path(text)
        run = Run(RunDir(place / "run"), LocalEngine(1), base=folder, allow_code=True)
        _, while_profiling = _watched(lambda: profile(_spec(name, 1.0, way), run))
        spec = _spec(name, SLACK * _single(name, run), way)
        rate = load * min(_throughputs(name, run))
        gaps = processes.gamma(rate, count / rate, np.random.default_rng(seed))
        np.savez(place / "trace.npz", arrival_s=gaps)
        report, while_replaying = _watched(lambda: serve.serve(spec, _with_plan(run, spec, place / "trace.npz")))
    if not isinstance(report, Report):
        raise TypeError("a replay ends in a report")
    return Attempt(report, max(while_profiling, while_replaying), rate)


def _watched(action: Callable[[], T]) -> tuple[T, float]:
    """Return what an action returns, and the cores that other programs took meanwhile."""
    began, busy, own = time.perf_counter(), _busy(), sum(os.times()[:4])
    result = action()
    seconds = time.perf_counter() - began
    return result, max(0.0, _busy() - busy - (sum(os.times()[:4]) - own)) / seconds


def _spec(name: str, limit: float, way: str = "moved") -> PipelineSpec:
    head = HEAD.format(name=name, limit=limit, placement=WAYS[way])
    return validate(PipelineSpec, parse(head + STAGES[name], name))


def _with_plan(run: Run, spec: PipelineSpec, trace: Path) -> Run:
    stages = {stage: {"hardware": "core", "batch": BATCH, "replicas": 1} for stage in spec.named}
    options = {"replay": str(trace), "plan": {"decision": {"stages": stages}}}
    return Run(run.directory, run.engine, base=run.base, allow_code=True, options=options)


def _throughputs(name: str, run: Run) -> list[float]:
    """Return the queries a second with which each stage alone is full, and with which all cores are."""
    found, work = [], 0.0
    for stage, share in zip(_spec(name, 1.0).named, SHARES[name], strict=True):
        last = (profiles.stored(stage, run) or [])[-1]
        found.append(last.batch / last.mean / share)
        work += last.cpu * share * last.mean / last.batch
    return [*found, available_cores() / max(work, 1e-9)]


def _single(name: str, run: Run) -> float:
    """Return the seconds of one query that never waits, all stages one after the other."""
    points = [(profiles.stored(stage, run) or [])[0] for stage in _spec(name, 1.0).named]
    return math.fsum(point.mean + point.wake for point in points)


def _busy() -> float:
    """Return the seconds that all cores together have worked since the start of the machine (Linux)."""
    fields = [int(item) for item in Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def _row(attempt: Attempt) -> dict[str, Any]:
    values = {key: metric.value or 0.0 for key, metric in attempt.report.metrics.items()}
    table = {row[0]: row for row in attempt.report.tables[0].rows}
    (p50, thought50), (p90, thought90) = (table[key][1:3] for key in ("p50", "p90"))
    return {
        "queries_per_s": attempt.rate,
        "p50_ms": p50,
        "estimated_p50_ms": thought50,
        "p50_error_percent": _error(p50, thought50),
        "p90_error_percent": _error(p90, thought90),
        "p99_ms": values["p99_ms"],
        "estimated_p99_ms": values["estimated_p99_ms"],
        "p99_error_percent": _error(values["p99_ms"], values["estimated_p99_ms"]),
        "attainment_error_points": (values["attainment"] - values["estimated_attainment"]) * 100,
        "sender_late_ms": values["sender_lateness_ms"],
        "foreign_cores": attempt.foreign,
        "lost": int(values["lost"]),
    }


def _error(measured: Any, estimated: Any) -> float:
    return (float(estimated) / float(measured) - 1) * 100
