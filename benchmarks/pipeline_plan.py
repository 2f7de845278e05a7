"""The planners on the four pipelines of ``configs/pipeline`` over rate, burstiness and target.

Every point has 100,000 queries. A proof may simulate 1e8 queries of a stage, so that all points take some minutes.
Latencies are those of this project's study, not the paper's: the ratio to CG-Peak is of these pipelines.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unfold_pipeline import planner, workload
from unfold_pipeline.estimator import Memory
from unfold_pipeline.graph import Pipeline
from unfold_pipeline.judge import Judge
from unfold_pipeline.sample import draw
from unfold_pipeline.spec import PipelineSpec
from unfoldkit.api import Run, RunDir
from unfoldkit.arrivals import processes
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.loader import read_document
from unfoldkit.spec.validate import validate

CONFIGS = Path(__file__).parents[1] / "configs" / "pipeline"
RATES = (20.0, 50.0, 150.0, 300.0)
SCVS = (1.0, 4.0, 16.0)
QUERIES, FEW = 1e5, 6e3
PROOF = planner.Effort(most_items=1e8)
TIGHT = 0.15  # s; of the paper's comparison with coarse-grained planning
NAMES = ("image-processing", "cascade", "video-monitoring", "social-media")
COLUMNS = [
    "pipeline",
    "rate",
    "scv",
    "slo_s",
    "cost",
    "greedy_excess_percent",
    "peak_ratio",
    "seconds",
    "proven",
    "seconds_with_proof",
]


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Measure price, processor time (of greedy and search; and again with the proof) on every point."""
    del data
    rows = [row for name in NAMES for row in points(name, quick, seed)]
    excess, ratios, seconds = ([row[place] for row in rows] for place in (5, 6, 7))
    metrics = {
        "optimum_seconds_max": max(seconds),
        "greedy_excess_percent_mean": statistics.mean(excess),
        "greedy_excess_percent_max": max(excess),
        "coarse_peak_ratio_max": max(ratios),
        "coarse_peak_ratio_median": statistics.median(ratios),
        "proof_seconds_max": max(row[9] for row in rows),
        "proven_share": statistics.mean(row[8] for row in rows),
        "points": len(rows),
    }
    tables = [{"name": "points", "columns": COLUMNS, "rows": rows}]
    best = max(rows, key=lambda row: row[6])
    where = f"largest ratio to CG-Peak: {best[0]} at {best[1]:g}/s, scv {best[2]:g}, target {best[3] * 1e3:.0f} ms"
    note = "latencies and prices are those of configs/pipeline; the paper's 7.6x is of its own pipelines and cluster"
    return {"metrics": metrics, "peers": {}, "tables": tables, "notes": [note, where]}


def spec_of(name: str) -> PipelineSpec:
    """Return one of the specs in ``configs/pipeline``."""
    return validate(PipelineSpec, read_document(str(CONFIGS / f"{name}.yaml")))


def pipeline_of(spec: PipelineSpec) -> Pipeline:
    """Return the pipeline of a spec with given latencies."""
    return workload.pipeline(spec, Run(RunDir(Path("runs") / spec.name), LocalEngine(1)))


def points(name: str, quick: bool, seed: int) -> Iterator[list[Any]]:
    """Yield a row for each rate, squared coefficient of variation and target of a pipeline."""
    spec = spec_of(name)
    pipeline = pipeline_of(spec)
    slo = spec.slo.p99
    grid = ((100.0,), (4.0,), (slo, 2 * slo)) if quick else (RATES, SCVS, tuple(sorted({TIGHT, slo, 2 * slo})))
    for rate, scv, limit in itertools.product(*grid):
        arrivals = processes.gamma(rate, (FEW if quick else QUERIES) / rate, np.random.default_rng(seed), scv=scv)
        sample = draw(pipeline, arrivals, np.random.default_rng([seed, 1]))
        row = _row(planner.judge_of(pipeline, [sample], limit))
        if row is not None:
            yield [name, rate, scv, limit, *row]


def _row(judge: Judge) -> list[Any] | None:
    fresh = replace(judge, estimators=tuple(replace(e, memory=Memory()) for e in judge.estimators))
    began = time.process_time()
    planner.solve(fresh, planner.Effort(proof=False), lambda _step, _done, _total: None)
    seconds = time.process_time() - began
    outcome = planner.solve(judge, PROOF, lambda _step, _done, _total: None)
    with_proof = time.process_time() - began - seconds
    coarse = planner.baselines(judge)
    if outcome is None or outcome.greedy.plan is None or coarse is None:
        return None
    excess = (judge.pipeline.cost(outcome.greedy.plan) / outcome.cost - 1) * 100
    return [outcome.cost, excess, coarse[0].cost / outcome.cost, seconds, outcome.proven, with_proof]
