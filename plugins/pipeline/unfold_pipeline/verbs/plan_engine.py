"""The verb ``plan`` for a pipeline whose stage is an LLM engine: the cheapest GPUs that keep TTFT and TPOT."""

from __future__ import annotations

from dataclasses import replace

from unfold_pipeline.engine.build import build_engine_problem
from unfold_pipeline.engine.planner.analysis import analyze_plan, judge, scale_to_end
from unfold_pipeline.engine.planner.search import find_cheapest_engines
from unfold_pipeline.report.engine_plan import (
    build_engine_report,
    build_no_engine_report,
    parse_engine_decision,
    recheck_engine_plan,
)
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfoldkit.api import Metric, Report, Run


def plan_engine(spec: PipelineSpec, run: Run) -> Report:
    """Find the cheapest engines that meet the targets; with ``slo.confidence``, at the upper end of the interval."""
    problem = build_engine_problem(spec, run)
    committed = (run.options.get("baseline_plan") or {}).get("decision", {})
    if committed and committed.get("trace_sha256") != problem.trace_sha256:
        return recheck_engine_plan(problem, committed, judge(problem, parse_engine_decision(committed, problem)))
    start_s = run.clock()
    predicted = find_cheapest_engines(problem, run.progress)
    planning_seconds = Metric(run.clock() - start_s, "s", timed=True)
    low = find_cheapest_engines(scale_to_end(problem, high=False), run.progress)
    high = find_cheapest_engines(scale_to_end(problem, high=True), run.progress)
    solution = predicted if problem.confidence is None else high
    if solution.config is None:
        return build_no_engine_report(problem, solution)
    analysis = analyze_plan(problem, solution.config, (low, high), run.progress)
    report = build_engine_report(problem, solution, judge(problem, solution.config), analysis)
    return replace(report, metrics={**report.metrics, "planning_seconds": planning_seconds})
