"""Service-time variability in a plan that uses mean latencies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unfold_pipeline.estimator import uncertainty
from unfold_pipeline.estimator.slo import SloChecker, build_slo_checker
from unfold_pipeline.planner.planner import NoPlan, find_plan
from unfold_pipeline.problem import latency_profile
from unfold_pipeline.problem.build import build_problem
from unfold_pipeline.problem.problem import SearchBudget
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs import plan
from unfoldkit.api import Report, Run, RunDir
from unfoldkit.engines.local import LocalEngine
from unfoldkit.queueing import reference
from unfoldkit.spec.validate import validate
from unfoldkit.spec.yaml_reader import parse

SPEC = """
version: 1
kind: pipeline
name: naps
slo: {p99: LIMIT}
arrivals: {process: poisson, rate: 20/s, duration: 60 s}
hardware: {core: {price: $0.05/h}, gpu: {price: $9/h}}
stages:
  nap: {model: {code: "served:nap", features: 2}, max_batch: 1}
"""
EVEN = (1.0,) * latency_profile.QUANTILES
UNEVEN = (0.5,) * 56 + (4.5,) * 8


def prepared(folder: Path, spread: tuple[float, ...], limit: str = "150 ms") -> tuple[PipelineSpec, Run]:
    """A spec and a run with a profile of 20 ms a batch, as uneven as given."""
    spec = validate(PipelineSpec, parse(SPEC.replace("LIMIT", limit), "naps.yaml"))
    run = Run(RunDir(folder / "run"), LocalEngine(1), base=folder, allow_code=True)
    point = latency_profile.BatchTiming(batch=1, mean=0.02, p50=0.02, p90=0.02, p99=0.02, count=100, spread=spread)
    latency_profile.store_profile("nap", [point], "made", run)
    return spec, run


def build_checker_for(spec: PipelineSpec, run: Run) -> SloChecker:
    """The SLO checker of a spec."""
    problem = build_problem(spec, run)
    return build_slo_checker(problem.pipeline, problem.samples, problem.slo_s)


def test_constant_service_times_change_nothing(tmp_path: Path) -> None:
    """If all batches of a profile took equally long, the percentile is that of the plan."""
    spec, run = prepared(tmp_path, EVEN)
    checker = build_checker_for(spec, run)
    found = find_plan(checker, SearchBudget(), lambda *_: None)
    assert not isinstance(found, NoPlan)
    assert uncertainty.simulate_jitter(
        checker, found.plan, build_problem(spec, run).latency_sources, run.seed
    ) == pytest.approx(checker.tail_latency(found.plan), rel=1e-9)


def test_variable_service_times_are_simulated(tmp_path: Path) -> None:
    """The percentile equals the reference simulator with service times drawn from the profile."""
    spec, run = prepared(tmp_path, UNEVEN)
    checker = build_checker_for(spec, run)
    found = find_plan(checker, SearchBudget(), lambda *_: None)
    assert not isinstance(found, NoPlan)
    (estimator,) = checker.estimators
    (choice,) = found.plan
    drawn = uncertainty.draw_service_factors(latency_profile.load_profile("nap", run), 0, run.seed)
    arrivals = estimator.sample.arrivals
    ended, _ = reference.serve(arrivals, range(arrivals.size), (0.0, 0.02), choice.replicas, factor=drawn.tolist())
    seconds = [time - arrivals[item] for time, item in ended]
    reported = uncertainty.simulate_jitter(checker, found.plan, build_problem(spec, run).latency_sources, run.seed)
    assert reported == pytest.approx(estimator.rank_percentile(np.array(seconds)), rel=1e-9)
    assert reported > 2 * checker.tail_latency(found.plan)


def test_plan_reports_variability_that_misses_the_slo(tmp_path: Path) -> None:
    """A plan that misses the SLO with variable service times states by how much and what to do."""
    spec, run = prepared(tmp_path, UNEVEN, "100 ms")
    report = plan.plan(spec, run)
    assert isinstance(report, Report)
    reported = dict(report.lines)["variability"]
    assert "over the SLO" in reported
    assert "lower slo.p99" in reported


def test_plan_without_a_profile_has_no_variability(tmp_path: Path) -> None:
    """The variability of latencies in the spec is unknown, so the report does not mention it."""
    text = SPEC.replace("LIMIT", "150 ms").replace(
        'model: {code: "served:nap", features: 2}', "latency: {core: {1: 20 ms}}"
    )
    spec = validate(PipelineSpec, parse(text, "naps.yaml"))
    report = plan.plan(spec, Run(RunDir(tmp_path / "run"), LocalEngine(1), base=tmp_path))
    assert isinstance(report, Report)
    assert "variability" not in dict(report.lines)
