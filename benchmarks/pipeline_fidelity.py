"""A running pipeline beside its estimate: p99 and attainment of three pipelines at loads of 30, 50 and 70 %.

Each case profiles the stages, estimates a Poisson trace, and replays it, open loop, against real processes on this
machine: three times with replicas of ``placement: {pin: core}``, which the main figures are of, and once with replicas
that the system moves between the cores. A case's error is the median of its replays; how far replays of the very same
trace lie apart says what any estimate could reach here. Other programs disturb: a replay in which they took 5 % of a
core or more is left out if another of its case was quiet. "chain": a small and a large convolutional network (ONNX);
"cascade": the large one sees 40 % of the queries; "diamond": four networks with a fork and a join, more replicas than
two cores can compute for; "waiting": the same shape, waiting as for accelerators.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks import fidelity_models
from unfold_pipeline import profiles, serve
from unfold_pipeline.profile import profile
from unfold_pipeline.spec import PipelineSpec
from unfoldkit.api import Report, Run, RunDir
from unfoldkit.arrivals import processes
from unfoldkit.context import Options
from unfoldkit.engines.local import LocalEngine, available_cores
from unfoldkit.spec.loader import parse
from unfoldkit.spec.validate import validate

T = TypeVar("T")
LOADS = (0.3, 0.5, 0.7)
QUIET = 0.05
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
WAYS = {"pinned": "pin: core", "moved": ""}
REPEATS = {"pinned": 3, "moved": 1}
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
    return {
        "metrics": metrics(rows),
        "tables": {"replays": rows},
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
    """Return the largest errors of the cases, and how far the replays of one trace lie apart at most."""
    cases = {
        key: _quiet(list(found)) for key, found in itertools.groupby(rows, lambda row: (row["cores"], row["case"]))
    }
    pinned = [found for (way, _), found in cases.items() if way == "pinned"]
    waiting = [found for found in pinned if found[0]["pipeline"] == "waiting"]
    computing = [found for found in pinned if found not in waiting]
    return {
        "p99_error_percent_max": _worst(pinned, "p99_error_percent"),
        "p50_error_percent_max": _worst(pinned, "p50_error_percent"),
        "attainment_error_points_max": _worst(pinned, "attainment_error_points"),
        "waiting_p99_error_percent_max": _worst(waiting, "p99_error_percent"),
        "computing_p99_error_percent_median": _middle(computing, "p99_error_percent"),
        **_repeats([_apart(found) for found in pinned if len(found) > 1]),
        "moved_p99_error_percent_max": _worst(
            [f for (way, _), f in cases.items() if way == "moved"], "p99_error_percent"
        ),
        "cases": len(cases),
        "disturbed_replays": sum(row["foreign_cores"] > QUIET for row in rows),
        "lost": sum(row["lost"] for row in rows),
    }


def _quiet(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["foreign_cores"] <= QUIET] or rows


def _worst(cases: list[list[dict[str, Any]]], key: str) -> float | None:
    return max((_size(found, key) for found in cases), default=None)


def _middle(cases: list[list[dict[str, Any]]], key: str) -> float | None:
    return statistics.median(_size(found, key) for found in cases) if cases else None


def _size(rows: list[dict[str, Any]], key: str) -> float:
    """Return how large the error of a case is, in either direction: that of the median of its replays."""
    return abs(float(statistics.median(row[key] for row in rows)))


def _repeats(apart: list[float]) -> dict[str, float | None]:
    middle = statistics.median(apart) if apart else None
    return {"repeat_p99_percent_max": max(apart, default=None), "repeat_p99_percent_median": middle}


def _apart(rows: list[dict[str, Any]]) -> float:
    """Return how much larger the largest measured p99 of some replays of one trace is than the least, in percent."""
    found = [float(row["p99_ms"]) for row in rows]
    return (max(found) / min(found) - 1) * 100


def _case(name: str, load: float, way: str, folder: Path, seed: int, *, quick: bool) -> list[dict[str, Any]]:
    """Return the replays at one load and way."""
    count = QUERIES // 5 if quick else QUERIES
    told = {"case": f"{name} {load:g}", "pipeline": name, "load": load, "cores": way}
    with tempfile.TemporaryDirectory(dir=folder) as text:
        place = Path(text)
        run = Run(RunDir(place / "run"), LocalEngine(1), base=folder, allow_code=True)
        _, others = _watched(lambda: profile(_spec(name, 1.0, way), run))
        spec = _spec(name, SLACK * _single(name, run), way)
        rate = load * min(_throughputs(name, run))
        np.savez(place / "trace.npz", arrival_s=processes.gamma(rate, count / rate, np.random.default_rng([seed, 0])))
        replays = [
            _replay(spec, _with_plan(run, spec, place / "trace.npz")) for _ in range(1 if quick else REPEATS[way])
        ]
    return [told | _row(item, rate, max(others, meanwhile)) for item, meanwhile in replays]


def _replay(spec: PipelineSpec, run: Run) -> tuple[Report, float]:
    report, others = _watched(lambda: serve.serve(spec, run))
    if not isinstance(report, Report):
        raise TypeError("a replay ends in a report")
    return report, others


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
    options = Options(replay=str(trace), plan={"decision": {"stages": stages}})
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


def _row(report: Report, rate: float, foreign: float) -> dict[str, Any]:
    values = {key: metric.value or 0.0 for key, metric in report.metrics.items()}
    table = {row[0]: row for row in report.tables[0].rows}
    (p50, thought50), (p90, thought90) = (table[key][1:3] for key in ("p50", "p90"))
    return {
        "queries_per_s": rate,
        "p50_ms": p50,
        "estimated_p50_ms": thought50,
        "p50_error_percent": _error(p50, thought50),
        "p90_error_percent": _error(p90, thought90),
        "p99_ms": values["p99_ms"],
        "estimated_p99_ms": values["estimated_p99_ms"],
        "p99_error_percent": _error(values["p99_ms"], values["estimated_p99_ms"]),
        "attainment_error_points": (values["attainment"] - values["estimated_attainment"]) * 100,
        "sender_late_ms": values["sender_lateness_ms"],
        "foreign_cores": foreign,
        "lost": int(values["lost"]),
    }


def _error(measured: Any, estimated: Any) -> float:
    return (float(estimated) / float(measured) - 1) * 100
