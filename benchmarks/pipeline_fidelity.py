"""A running pipeline next to its estimate: p99 and attainment of three pipelines at loads of 30, 50 and 70 %.

"chain": a small and a large model; "cascade": the large one sees 40 % of the queries; "diamond": four models with a
fork and a join. Each is run twice over: with models that wait, as for accelerators of their own, and with convolutional
networks (ONNX) that compute on this machine, of which the diamond has more replicas than two cores can compute for.

Cases are played in rounds, each on its own: it profiles the stages, and replays a Poisson trace at each load that this
profile says, open loop, against real processes: 250 queries, or 500 where networks compute. The error of a case is the
median of its rounds; "pooled" is that of all latencies of its rounds together. The pace of a core of a virtual machine
changes with other load, within seconds (see ``queries_per_s`` of the rounds): for networks that compute, a profile
shows how fast the machine was, not how fast it will be. The distance between the measured rounds of odd and even
number is what any estimate could reach here, and "paced" is the error of the same simulator with the times that the
batches of the replay took, as ``serve --replay`` prints it: what is left of the error once the pace is known.

``p99_error_percent_max`` covers both: the pipelines that wait by the profile, since their stages keep its pace as those
with an accelerator do; those that compute, paced. Their error by the profile is printed beside it.

Replicas have ``placement: {pin: core}``; "moved" are those that the system moves between the cores. Disturbed is a
round in which other programs took 5 % of a core or more: it is left out if most others of its case were quiet.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks import fidelity_models
from unfold_pipeline.problem import latency_profile
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs import serve
from unfold_pipeline.verbs.profile import profile
from unfoldkit.api import Figure, Report, Run, RunDir
from unfoldkit.arrivals import processes
from unfoldkit.engines.local import LocalEngine, available_cores
from unfoldkit.run_context import Options
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

T = TypeVar("T")
Floats = NDArray[np.float64]
LOADS = (0.3, 0.5, 0.7)
QUIET = 0.05
BATCH = 4
SLACK = 3.0
TAIL = 0.99
ODD_EVEN = (0, 1)
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
ROUNDS = {"waiting": 4, "computing": 6}
QUERIES = {"waiting": 250, "computing": 500}
SHAPES = {
    "chain": """
  first: {{model: {entry_small}, max_batch: 4}}
  second: {{after: {{first: 100%}}, model: {large}, max_batch: 4}}
""",
    "cascade": """
  quick: {{model: {entry_small}, max_batch: 4}}
  sure: {{after: {{quick: 40%}}, model: {large}, max_batch: 4}}
""",
    "diamond": """
  enter: {{model: {entry_tiny}, max_batch: 4}}
  left: {{after: {{enter: 100%}}, model: {small}, max_batch: 4}}
  right: {{after: {{enter: 60%}}, model: {small}, max_batch: 4}}
  join: {{after: {{left: 100%, right: 100%}}, model: {tiny}, max_batch: 4}}
""",
}
SHARES = {"chain": (1.0, 1.0), "cascade": (1.0, 0.4), "diamond": (1.0, 1.0, 0.6, 1.0)}
MODELS = {
    "waiting": '{{code: "benchmarks.fidelity_models:{size}"{features}, outputs: {{output: 1}}}}',
    "computing": "{{file: {size}.onnx}}",
}


@dataclass(frozen=True, slots=True)
class Case:
    """A pipeline at a load: its shape, what its models do, and whether replicas keep to a core."""

    shape: str
    models: str
    load: float
    cores: str = "pinned"

    @property
    def name(self) -> str:
        """What the case is called."""
        return f"{self.models} {self.shape} {self.load:g}"

    @property
    def spec(self) -> str:
        """The stages as a spec has them."""
        model, sizes = MODELS[self.models], ("tiny", "small", "large")
        entries = {
            f"entry_{size}": model.format(size=size, features=f", features: {fidelity_models.FEATURES}")
            for size in sizes
        }
        return SHAPES[self.shape].format(**entries, **{size: model.format(size=size, features="") for size in sizes})


def cases(quick: bool) -> list[Case]:
    """Return what is measured."""
    if quick:
        return [Case("diamond", "waiting", LOADS[1])]
    pinned = [Case(shape, models, load) for models in MODELS for shape in SHAPES for load in LOADS]
    return [*pinned, *(Case(shape, "computing", LOADS[1], "moved") for shape in SHAPES)]


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:  # noqa: ARG001 - no data is needed
    """Measure every pipeline at every load."""
    rows = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        fidelity_models.convolution(folder / "tiny.onnx", 64, 3, seed)
        fidelity_models.convolution(folder / "small.onnx", 96, 4, seed)
        fidelity_models.convolution(folder / "large.onnx", 128, 5, seed)
        for _, group in itertools.groupby(cases(quick), lambda case: replace(case, load=0.0)):
            rows += _rounds(list(group), folder, seed, quick=quick)
    found = judge_rounds(rows)
    return {
        "metrics": metrics(found) | {"lost": sum(row.lost for row in rows)},
        "tables": {"cases": found, "rounds": [row.to_row() for row in rows]},
        "aims": {"p99_error_percent_max": "≤ 10"},
        "notes": notes(),
    }


def notes() -> list[str]:
    """Return what a reader must know of the figures."""
    return [
        "load: of the busiest stage or of all cores, rate over throughput with full batches; one replica a stage",
        f"foreign cores: the larger of what others took while profiling and replaying; niceness here {os.nice(0)}",
    ]


@dataclass(frozen=True, slots=True)
class Round:
    """What a round measured: latencies and estimates in ms (evenly spaced quantiles), and what disturbed it.

    ``paced`` are the estimates at the pace of the replay itself.
    """

    case: Case
    rate: float
    measured: Floats
    estimated: Floats
    paced: Floats
    attainment_error_points: float
    late_ms: float
    foreign: float
    lost: int = 0

    def error(self, share: float) -> float:
        """Return how many percent the estimate of a percentile is off."""
        return _error([self], share)

    @property
    def paced_error(self) -> float:
        """How many percent the estimate of p99 at the pace of the replay is off."""
        return _error([replace(self, estimated=self.paced)], TAIL)

    def to_row(self) -> dict[str, Any]:
        """Return a row of the table."""
        p99, thought = (float(np.quantile(times, TAIL)) for times in (self.measured, self.estimated))
        return {
            "case": self.case.name,
            "queries_per_s": self.rate,
            "p99_ms": p99,
            "estimated_p99_ms": thought,
            "p99_error_percent": self.error(TAIL),
            "paced_p99_error_percent": self.paced_error,
            "sender_late_ms": self.late_ms,
            "foreign_cores": self.foreign,
            "lost": self.lost,
        }


def judge_rounds(rows: list[Round]) -> list[dict[str, Any]]:
    """Return a row a case: its latencies beside what was estimated."""
    return [
        _judged(case, [row for row in rows if row.case == case]) for case in dict.fromkeys(row.case for row in rows)
    ]


def _judged(case: Case, rows: list[Round]) -> dict[str, Any]:
    quiet = [row for row in rows if row.foreign <= QUIET]
    taken = quiet if len(quiet) * 2 > len(rows) else rows
    return {
        "case": case.name,
        "pipeline": case.shape,
        "models": case.models,
        "load": case.load,
        "cores": case.cores,
        "p50_error_percent": statistics.median(row.error(0.5) for row in taken),
        "p99_error_percent": statistics.median(row.error(TAIL) for row in taken),
        "p99_error_percent_pooled": _error(taken, TAIL),
        "paced_p99_error_percent": statistics.median(row.paced_error for row in taken),
        "paced_p99_error_percent_pooled": _error([replace(row, estimated=row.paced) for row in taken], TAIL),
        "halves_apart_percent": _apart(taken),
        "attainment_error_points": statistics.median(row.attainment_error_points for row in taken),
        "rounds": len(rows),
        "disturbed": len(rows) - len(quiet),
    }


def _error(rows: list[Round], share: float) -> float:
    """Return how many percent the estimate of a percentile of all latencies of some rounds is off."""
    measured, estimated = (
        np.concatenate(found) for found in zip(*((r.measured, r.estimated) for r in rows), strict=True)
    )
    return float(np.quantile(estimated, share) / np.quantile(measured, share) - 1) * 100


def _apart(rows: list[Round]) -> float | None:
    """Return how much larger the larger p99 is of the rounds of odd and of even number, in percent."""
    if len(rows) < len(ODD_EVEN):
        return None
    halves = [float(np.quantile(np.concatenate([row.measured for row in rows[half::2]]), TAIL)) for half in ODD_EVEN]
    return (max(halves) / min(halves) - 1) * 100


def metrics(found: list[dict[str, Any]]) -> dict[str, float | int | None]:
    """Return the largest errors of the cases, and how far halves of one case lie apart in the median."""
    pinned, moved = ([row for row in found if row["cores"] == cores] for cores in WAYS)
    waiting, computing = ([row for row in pinned if row["models"] == models] for models in ("waiting", "computing"))
    return {
        "p99_error_percent_max": max(
            _sizes(waiting, "p99_error_percent") + _sizes(computing, "paced_p99_error_percent")
        ),
        "waiting_p99_error_percent_max": _worst(waiting, "p99_error_percent"),
        "p50_error_percent_max": _worst(waiting, "p50_error_percent"),
        "attainment_error_points_max": _worst(waiting, "attainment_error_points"),
        "waiting_halves_apart_percent_median": _middle(waiting, "halves_apart_percent"),
        "computing_paced_p99_error_percent_max": _worst(computing, "paced_p99_error_percent"),
        "computing_paced_p99_error_percent_pooled_max": _worst(computing, "paced_p99_error_percent_pooled"),
        "computing_p99_error_percent_max": _worst(computing, "p99_error_percent"),
        "computing_p99_error_percent_median": _middle(computing, "p99_error_percent"),
        "computing_p99_error_percent_pooled_max": _worst(computing, "p99_error_percent_pooled"),
        "computing_attainment_error_points_max": _worst(computing, "attainment_error_points"),
        "computing_halves_apart_percent_median": _middle(computing, "halves_apart_percent"),
        "moved_paced_p99_error_percent_max": _worst(moved, "paced_p99_error_percent"),
        "moved_p99_error_percent_max": _worst(moved, "p99_error_percent"),
        "cases": len(found),
        "disturbed_rounds": sum(row["disturbed"] for row in found),
    }


def _worst(found: list[dict[str, Any]], key: str) -> float | None:
    return max(_sizes(found, key), default=None)


def _middle(found: list[dict[str, Any]], key: str) -> float | None:
    return statistics.median(_sizes(found, key)) if _sizes(found, key) else None


def _sizes(found: list[dict[str, Any]], key: str) -> list[float]:
    return [abs(row[key]) for row in found if row[key] is not None]


def _rounds(group: list[Case], folder: Path, seed: int, *, quick: bool) -> list[Round]:
    """Return the rounds of cases that differ in load alone."""
    return [
        row
        for number in range(1 if quick else ROUNDS[group[0].models])
        for row in _round(group, folder, [seed, number])
    ]


def _round(group: list[Case], folder: Path, seed: list[int]) -> list[Round]:
    """Profile the stages, and replay a trace at each load."""
    with tempfile.TemporaryDirectory(dir=folder) as text:
        run = Run(RunDir(Path(text) / "run"), LocalEngine(1), base=folder, allow_code=True)
        _, others = _watched(lambda: profile(_spec(group[0], 1.0), run))
        return [_replayed(case, run, seed, others) for case in group]


def _replayed(case: Case, run: Run, seed: list[int], others: float) -> Round:
    spec = _spec(case, SLACK * _single(case, run))
    rate, queries = case.load * min(_throughputs(case, run)), QUERIES[case.models]
    trace = run.directory.path / "trace.npz"
    np.savez(trace, arrival_s=processes.gamma_arrivals(rate, queries / rate, np.random.default_rng(seed)))
    report, meanwhile = _watched(lambda: _replay(spec, _with_plan(run, spec, trace)))
    return _read(case, rate, report, max(others, meanwhile))


def _read(case: Case, rate: float, report: Report, foreign: float) -> Round:
    values = {key: metric.value or 0.0 for key, metric in report.metrics.items()}
    plots = [figure for figure in report.figures if isinstance(figure, Figure)]
    measured, estimated, paced = (np.array(series.x) for series in plots[0].series)
    error = (values["attainment"] - values["estimated_attainment"]) * 100
    late, lost = values["sender_lateness_ms"], int(values["lost"])
    return Round(case, rate, measured, estimated, paced, error, late, foreign, lost)


def _replay(spec: PipelineSpec, run: Run) -> Report:
    report = serve.serve(spec, run)
    if not isinstance(report, Report):
        raise TypeError("a replay ends in a report")
    return report


def _watched(action: Callable[[], T]) -> tuple[T, float]:
    """Return what an action returns, and the cores that other programs took meanwhile."""
    began, busy, own = time.perf_counter(), _busy(), sum(os.times()[:4])
    result = action()
    seconds = time.perf_counter() - began
    return result, max(0.0, _busy() - busy - (sum(os.times()[:4]) - own)) / seconds


def _spec(case: Case, limit: float) -> PipelineSpec:
    head = HEAD.format(name=case.shape, limit=limit, placement=WAYS[case.cores])
    return validate(PipelineSpec, parse(head + case.spec, case.shape))


def _with_plan(run: Run, spec: PipelineSpec, trace: Path) -> Run:
    stages = {stage: {"hardware": "core", "batch": BATCH, "replicas": 1} for stage in spec.stages_by_name}
    options = Options(replay=str(trace), plan={"decision": {"stages": stages}})
    return Run(run.directory, run.engine, base=run.base, allow_code=True, options=options)


def _throughputs(case: Case, run: Run) -> list[float]:
    """Return the queries a second with which each stage alone is full, and with which all cores are."""
    found, work = [], 0.0
    for stage, share in zip(_spec(case, 1.0).stages_by_name, SHARES[case.shape], strict=True):
        last = latency_profile.require_profile(stage, run)[-1]
        found.append(last.batch / last.mean / share)
        work += last.cpu * share * last.mean / last.batch
    return [*found, available_cores() / max(work, 1e-9)]


def _single(case: Case, run: Run) -> float:
    """Return the seconds of one query that never waits, all stages one after the other."""
    points = [latency_profile.require_profile(stage, run)[0] for stage in _spec(case, 1.0).stages_by_name]
    return math.fsum(point.mean + point.wake for point in points)


def _busy() -> float:
    """Return the seconds that all cores together have worked since the start of the machine (Linux)."""
    fields = [int(item) for item in Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
