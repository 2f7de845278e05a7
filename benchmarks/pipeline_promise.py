"""On which share of fresh samples a plan keeps its target: four shipped pipelines, with and without a confidence.

Each pipeline is planned for several samples of its own traffic. The plan is then tried on samples that neither the
search nor its scenarios have seen: other seeds, drawn by the process of the spec.
"""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pipeline_plan import CONFIGS, NAMES
from unfold_pipeline.estimator.estimator import Estimator
from unfold_pipeline.estimator.slo import build_slo_checker
from unfold_pipeline.planner.confident_plan import ConfidentPlan, find_confident_plan
from unfold_pipeline.problem.build import build_problem
from unfold_pipeline.problem.problem import Problem
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfoldkit.api import Run, RunDir
from unfoldkit.engines.local import LocalEngine
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import read_document

CONFIDENCE = 0.9
FRESH_SAMPLES = 24
SAMPLES = 3
UNSEEN_STREAM = 1000
AIMS = {"kept_share_min": "≥ 0.85"}
COLUMNS = ["pipeline", "seed", "confidence", "cost", "promised_share", "kept_share", "seconds"]


def run(quick: bool, seed: int, data: Path | None) -> dict[str, Any]:
    """Measure the kept share of plans for one sample and of plans with a confidence."""
    del data
    rows: list[list[Any]] = []
    for name in NAMES[:1] if quick else NAMES:
        for sample_seed in range(seed, seed + (1 if quick else SAMPLES)):
            rows += [_measure_plan(name, sample_seed, confidence) for confidence in (None, CONFIDENCE)]
    sure = [row for row in rows if row[2] is not None]
    plain = [row for row in rows if row[2] is None]
    ratios = [with_confidence[3] / without[3] for with_confidence, without in zip(sure, plain, strict=True)]
    errors = [abs(row[4] - row[5]) for row in plain]
    by_pipeline = [statistics.mean(row[5] for row in sure if row[0] == name) for name in {row[0] for row in sure}]
    metrics = {
        "kept_share_min": min(row[5] for row in sure),
        "kept_share_pipeline_min": min(by_pipeline),
        "kept_share_mean": statistics.mean(row[5] for row in sure),
        "kept_share_without_min": min(row[5] for row in plain),
        "kept_share_without_mean": statistics.mean(row[5] for row in plain),
        "expected_share_error_mean": statistics.mean(errors),
        "extra_cost_percent": 100 * (statistics.mean(ratios) - 1),
        "extra_cost_percent_max": 100 * (max(ratios) - 1),
        "plans": len(sure),
    }
    note = f"{FRESH_SAMPLES} fresh samples per plan; the standard error of one share of 0.9 is 0.06"
    return {
        "metrics": metrics,
        "tables": [{"name": "plans", "columns": COLUMNS, "rows": rows}],
        "aims": AIMS,
        "notes": [note, "latencies, prices and traffic are those of configs/pipeline"],
    }


def build_benchmark_problem(name: str, seed: int, confidence: float | None) -> Problem:
    """Return the problem of a shipped pipeline for one sample of its traffic."""
    spec = validate(PipelineSpec, read_document(str(CONFIGS / f"{name}.yaml")))
    spec = spec.model_copy(update={"slo": spec.slo.model_copy(update={"confidence": confidence})})
    return build_problem(spec, Run(RunDir(Path("runs") / spec.name), LocalEngine(1), base=CONFIGS, seed=seed))


def measure_kept_share(problem: Problem, result: ConfidentPlan, fresh_samples: int = FRESH_SAMPLES) -> float:
    """Return the share of samples that the planner has not seen on which its plan meets the SLO."""
    kept = 0
    for draw in range(fresh_samples):
        samples = [
            sampler(np.random.default_rng([problem.seed, UNSEEN_STREAM, draw, index]))
            for index, sampler in enumerate(problem.samplers)
        ]
        tails_s = [Estimator(problem.pipeline, sample).tail_latency(result.solution.plan) for sample in samples]
        kept += max(tails_s) <= problem.slo_s
    return kept / fresh_samples


def _measure_plan(name: str, seed: int, confidence: float | None) -> list[Any]:
    problem, start_s = build_benchmark_problem(name, seed, confidence), time.process_time()
    checker = build_slo_checker(problem.pipeline, problem.samples, problem.slo_s)
    result = find_confident_plan(checker, problem, lambda *_: None)
    if not isinstance(result, ConfidentPlan):
        return [name, seed, confidence, math.nan, math.nan, math.nan, time.process_time() - start_s]
    seconds = time.process_time() - start_s
    promised = result.share.share if result.share is not None else math.nan
    kept = measure_kept_share(problem, result)
    return [name, seed, confidence, result.solution.hourly_cost, promised, kept, seconds]
