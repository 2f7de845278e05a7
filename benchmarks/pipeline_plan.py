"""The planners on the four pipelines of ``configs/pipeline`` over rate, burstiness and target.

Every point has 100,000 queries. A proof may simulate 1e8 queries of a stage, so that all points take some minutes.
Latencies are those of this project's study, not the paper's: the ratio to the coarse-grained peak plan is of these
pipelines. It is the product of three: ``burst``, the units for the peak over the fewest that keep the target;
``unit``, those over the cheapest plan on the unit's hardware, where each stage has its own batch and count;
``hardware``, that over the cheapest plan on any hardware.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unfold_pipeline.estimator.estimator import EstimatorCache
from unfold_pipeline.estimator.slo import SloChecker, build_slo_checker
from unfold_pipeline.planner import planner
from unfold_pipeline.planner.bounds import find_least_count
from unfold_pipeline.planner.coarse_grained import CoarseBaseline, PipelineUnit, plan_coarse_baselines
from unfold_pipeline.problem import build
from unfold_pipeline.problem.pipeline import Pipeline
from unfold_pipeline.problem.pricing import price_hardware
from unfold_pipeline.problem.problem import SearchBudget
from unfold_pipeline.problem.sample import draw_sample
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfoldkit.api import Run, RunDir
from unfoldkit.arrivals import processes
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import read_document

CONFIGS = Path(__file__).parents[1] / "configs" / "pipeline"
RATES = (20.0, 50.0, 150.0, 300.0)
SCVS = (1.0, 4.0, 16.0)
QUERIES, FEW = 1e5, 6e3
PROOF = SearchBudget(max_simulated_queries=1e8)
TIGHT = (0.1, 0.15)  # s; the second of the paper's comparison with coarse-grained planning, the first below it
NAMES = ("image-processing", "cascade", "video-monitoring", "social-media")
COLUMNS = [
    "pipeline",
    "rate",
    "scv",
    "slo_s",
    "cost",
    "greedy_excess_percent",
    "peak_ratio",
    "burst",
    "unit",
    "hardware",
    "peak_keeps_target",
    "seconds",
    "proven",
    "seconds_with_proof",
]
METERED = ("greedy_excess_percent", "peak_ratio", "seconds")
FACTORS = ("burst", "unit", "hardware")


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Measure price, processor time (of greedy and search; and again with the proof) on every point."""
    del data
    rows = [row for name in NAMES for row in points(name, quick, seed)]
    by_column = {name: [row[place] for row in rows] for place, name in enumerate(COLUMNS)}
    excess, ratios, seconds = (by_column[name] for name in METERED)
    best = rows[ratios.index(max(ratios))]
    metrics = {
        "optimum_seconds_max": max(seconds),
        "greedy_excess_percent_mean": statistics.mean(excess),
        "greedy_excess_percent_max": max(excess),
        "coarse_peak_ratio_max": max(ratios),
        "coarse_peak_ratio_median": statistics.median(ratios),
        **{f"coarse_peak_{name}_at_max": best[COLUMNS.index(name)] for name in FACTORS},
        "coarse_peak_keeps_target_share": statistics.mean(by_column["peak_keeps_target"]),
        "proof_seconds_max": max(by_column["seconds_with_proof"]),
        "proven_share": statistics.mean(by_column["proven"]),
        "points": len(rows),
    }
    tables = [{"name": "points", "columns": COLUMNS, "rows": rows}]
    note = "latencies and prices are those of configs/pipeline; the paper's 7.6x is of its own pipelines and cluster"
    return {"metrics": metrics, "peers": {}, "tables": tables, "notes": [note, _where(best)]}


def _where(row: list[Any]) -> str:
    parts = " x ".join(f"{name} {row[COLUMNS.index(name)]:.2f}" for name in FACTORS)
    place = f"{row[0]} at {row[1]:g}/s, scv {row[2]:g}, target {row[3] * 1e3:.0f} ms"
    return f"largest ratio to the coarse-grained peak plan: {place} = {parts}"


def spec_of(name: str) -> PipelineSpec:
    """Return one of the specs in ``configs/pipeline``."""
    return validate(PipelineSpec, read_document(str(CONFIGS / f"{name}.yaml")))


def pipeline_of(spec: PipelineSpec) -> Pipeline:
    """Return the pipeline of a spec with given latencies."""
    run = Run(RunDir(Path("runs") / spec.name), LocalEngine(1))
    return build.build_pipeline(spec, price_hardware(spec.hardware, spec.region, spec.prices, run), run)


def points(name: str, quick: bool, seed: int) -> Iterator[list[Any]]:
    """Yield a row for each rate, squared coefficient of variation and target of a pipeline."""
    spec = spec_of(name)
    pipeline = pipeline_of(spec)
    slo = spec.target_s
    grid = ((100.0,), (4.0,), (slo, 2 * slo)) if quick else (RATES, SCVS, tuple(sorted({*TIGHT, slo, 2 * slo})))
    for rate, scv, limit in itertools.product(*grid):
        arrivals = processes.gamma_arrivals(
            rate, (FEW if quick else QUERIES) / rate, np.random.default_rng(seed), scv=scv
        )
        sample = draw_sample(pipeline, arrivals, np.random.default_rng([seed, 1]))
        row = _row(build_slo_checker(pipeline, [sample], limit))
        if row is not None:
            yield [name, rate, scv, limit, *row]


def _row(checker: SloChecker) -> list[Any] | None:
    fresh = replace(checker, estimators=tuple(replace(e, cache=EstimatorCache()) for e in checker.estimators))
    began = time.process_time()
    planner.find_plan(fresh, SearchBudget(prove=False), lambda _step, _done, _total: None)
    seconds = time.process_time() - began
    outcome = planner.find_plan(checker, PROOF, lambda _step, _done, _total: None)
    with_proof = time.process_time() - began - seconds
    coarse = plan_coarse_baselines(checker)
    if isinstance(outcome, planner.NoPlan) or outcome.greedy.plan is None or coarse is None:
        return None
    excess = (checker.pipeline.cost(outcome.greedy.plan) / outcome.hourly_cost - 1) * 100
    peak = coarse.peak
    ratio = [
        peak.hourly_cost / outcome.hourly_cost,
        *_factors(checker, peak, outcome.hourly_cost),
        peak.tail_s <= checker.slo_s,
    ]
    return [outcome.hourly_cost, excess, *ratio, seconds, outcome.is_optimal, with_proof]


def _factors(checker: SloChecker, peak: CoarseBaseline, cost: float) -> tuple[float, float, float]:
    """Return ``burst``, ``unit`` and ``hardware``: their product is the cost of the peak's units over ``cost``."""
    fewest = find_least_count(lambda count: checker.meets_slo(peak.unit.replicate(count))) * peak.unit.usd_per_hour
    own = _on_hardware_of(checker, peak.unit)
    return peak.hourly_cost / fewest, fewest / own, own / cost


def _on_hardware_of(checker: SloChecker, unit: PipelineUnit) -> float:
    """Return the $ an hour of the cheapest plan with all stages on the unit's hardware."""
    pairs = zip(checker.pipeline.stages, unit.configs, strict=True)
    stages = tuple(replace(stage, options=(stage.options[config.option],)) for stage, config in pairs)
    pipeline = replace(checker.pipeline, stages=stages)
    narrow = build_slo_checker(pipeline, [item.sample for item in checker.estimators], checker.slo_s)
    found = planner.find_plan(narrow, SearchBudget(prove=False), lambda _step, _done, _total: None)
    return math.nan if isinstance(found, planner.NoPlan) else found.hourly_cost
