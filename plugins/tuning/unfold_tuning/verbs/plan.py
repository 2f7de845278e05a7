"""The verb ``plan``: how many instances of which type to hold in each stage."""

from __future__ import annotations

from dataclasses import replace

from unfold_tuning.job.build import build_problem
from unfold_tuning.planner.spot_or_on_demand import solve_job
from unfold_tuning.report.plan import report_plan
from unfold_tuning.schema.tuning import TuningSpec
from unfoldkit.api import Metric, Report, Run


def plan(spec: TuningSpec, run: Run) -> Report:
    """Find the cheapest plan that meets the deadline, or the fastest within the budget."""
    began = run.clock()
    problem = build_problem(spec, run)
    solution = solve_job(problem, run.progress)
    run.progress("baselines and bound", 0, 1)
    report = report_plan(problem, solution)
    run.progress("baselines and bound", 1, 1)
    seconds = Metric(run.clock() - began, "s", timed=True)
    return replace(report, metrics={**report.metrics, "planning_seconds": seconds})
