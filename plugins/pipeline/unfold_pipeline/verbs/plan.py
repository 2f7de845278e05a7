"""The verb ``plan``: the cheapest configuration that meets the SLO, or why there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from unfold_pipeline.estimator.slo import SloChecker, build_slo_checker
from unfold_pipeline.estimator.uncertainty import bootstrap_interval, simulate_jitter
from unfold_pipeline.planner.coarse_grained import plan_coarse_baselines
from unfold_pipeline.planner.confident_plan import ConfidentPlan, find_confident_plan, measure_plan_share
from unfold_pipeline.planner.diagnostics import (
    list_rejected_savings,
    measure_stage_times,
    simulate_replica_losses,
)
from unfold_pipeline.planner.frontier import FrontierPoint, adopt_cheaper_plan, compute_frontier
from unfold_pipeline.planner.infeasibility import explain_infeasibility
from unfold_pipeline.planner.planner import NoPlan, Solution
from unfold_pipeline.problem.build import build_live_sample, build_problem
from unfold_pipeline.problem.problem import Problem
from unfold_pipeline.problem.sample import Sample
from unfold_pipeline.replay.simulated import RULES, simulate_rules
from unfold_pipeline.report.infeasible import build_infeasible_report
from unfold_pipeline.report.plan import PlanAnalysis, build_plan_report
from unfold_pipeline.report.plan_file import parse_saved_plan, recheck_plan
from unfold_pipeline.report.simulated_replay import build_replay_report
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.tuner.replica_table import build_fixed_batch_table
from unfold_pipeline.verbs.plan_engine import plan_engine
from unfoldkit.api import Metric, Progress, Report, Run


def plan(spec: PipelineSpec, run: Run) -> Report:
    """Find the cheapest configuration that meets the SLO; with ``--replay``, simulate a trace under it."""
    if spec.engine_stage is not None:
        return plan_engine(spec, run)
    start_s = run.clock()
    problem = build_problem(spec, run)
    checker = build_slo_checker(problem.pipeline, problem.samples, problem.slo_s, problem.spares)
    if trace := run.options.get("replay"):
        return _replay_trace(problem, checker, build_live_sample(spec, problem, Path(trace), run), run)
    recheck = recheck_plan(problem.name, checker, run.options.get("baseline_plan"))
    if recheck is not None:
        return recheck
    result = find_confident_plan(checker, problem, run.progress)
    planning_seconds = Metric(run.clock() - start_s, "s", timed=True)
    report = _report_result(problem, result, run.progress, checker)
    return replace(report, metrics={**report.metrics, "planning_seconds": planning_seconds})


def _report_result(problem: Problem, result: ConfidentPlan | NoPlan, progress: Progress, checker: SloChecker) -> Report:
    if isinstance(result, NoPlan):
        obstacle = explain_infeasibility(checker, problem.budget.max_simulated_queries)
        return build_infeasible_report(problem, result, obstacle)
    points = compute_frontier(result.solution, problem.frontier_slos_s, problem.budget, progress)
    solution = adopt_cheaper_plan(result.solution, points)
    if solution.plan != result.solution.plan:
        result = _adopt_plan(problem, result, solution, checker)
    analysis = analyze_plan(problem, result.solution, points)
    return build_plan_report(problem, result, analysis)


def _adopt_plan(problem: Problem, result: ConfidentPlan, solution: Solution, checker: SloChecker) -> ConfidentPlan:
    """Return the cheaper solution, unless it meets the SLO on fewer fresh samples than the confidence requires."""
    share = measure_plan_share(checker, problem, solution.plan)
    is_enough = share is None or problem.confidence is None or share.lower_bound >= problem.confidence
    return replace(result, solution=solution, share=share) if is_enough else result


def analyze_plan(problem: Problem, solution: Solution, frontier: tuple[FrontierPoint, ...]) -> PlanAnalysis:
    """Return what explains a solution."""
    checker, configs = solution.checker, solution.plan
    tuner = problem.tuner.admit_plan(configs)
    worst = checker.estimators[checker.find_worst_sample(configs)]
    return PlanAnalysis(
        frontier=frontier,
        baselines=plan_coarse_baselines(checker),
        stage_times=measure_stage_times(checker, configs),
        rejected_savings=list_rejected_savings(checker, configs),
        losses_s=simulate_replica_losses(checker, configs),
        interval=bootstrap_interval(worst, configs, np.random.default_rng([problem.seed, 3])),
        jitter_s=simulate_jitter(checker, configs, problem.latency_sources, problem.seed),
        table=build_fixed_batch_table(checker, configs, tuner.max_replicas) if tuner.stores_table else None,
    )


def _replay_trace(problem: Problem, checker: SloChecker, live: Sample, run: Run) -> Report:
    configs = parse_saved_plan(run.options.get("plan"), problem.pipeline)
    if configs is None:
        result = find_confident_plan(checker, problem, run.progress)
        if isinstance(result, NoPlan):
            obstacle = explain_infeasibility(checker, problem.budget.max_simulated_queries)
            return build_infeasible_report(problem, result, obstacle)
        configs = result.solution.plan
    rules = []
    for rule in simulate_rules(checker, configs, live, problem.tuner.admit_plan(configs)):
        rules.append(rule)
        run.progress("replay", len(rules), RULES)
    return build_replay_report(problem, live, rules)
