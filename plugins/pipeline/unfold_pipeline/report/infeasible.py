"""The report of an infeasible problem: the binding constraint and the minimal relaxation."""

from __future__ import annotations

from unfold_pipeline.planner.infeasibility import Obstacle
from unfold_pipeline.planner.planner import NoPlan
from unfold_pipeline.problem.problem import Problem
from unfold_pipeline.report import sentences
from unfold_pipeline.report.plan import Lines, build_subtitle, list_cascade_inputs, list_cascade_lines
from unfoldkit.api import Metric, Report, Verdict


def build_infeasible_report(problem: Problem, no_plan: NoPlan, obstacle: Obstacle) -> Report:
    """Return the report of a problem without a plan."""
    is_proven = no_plan.is_search_complete
    lines = _list_obstacles(problem, obstacle) if is_proven else _list_search_lines(problem, obstacle)
    cascade_inputs = list_cascade_inputs(problem)
    relaxed_ms = None if obstacle.relaxed_slo_s is None else obstacle.relaxed_slo_s * 1e3
    return Report(
        kind="pipeline",
        verb="plan",
        name=problem.name,
        verdict=Verdict.NO,
        headline=sentences.describe_no_plan(problem.slo_s, is_proven=is_proven),
        subtitle=build_subtitle(problem),
        metrics={
            "relaxed_p99_ms": Metric(relaxed_ms, "ms"),
            "relaxed_cost_per_hour": Metric(obstacle.relaxed_cost, "$/h"),
        },
        lines=(*lines, *_list_survival(problem), *list_cascade_lines(problem)),
        next=_find_next_command(problem, obstacle, is_proven=is_proven),
        provenance={"inputs": cascade_inputs} if cascade_inputs else {},
    )


def _list_survival(problem: Problem) -> Lines:
    return (("survive", sentences.describe_survival_goal()),) if problem.spares else ()


def _list_obstacles(problem: Problem, obstacle: Obstacle) -> Lines:
    name, others_s = problem.pipeline.stages[obstacle.stage].name, obstacle.total_s - obstacle.stage_s
    quotas = [(required.hardware, required.quota) for required in obstacle.quotas]
    if quotas:
        binding = sentences.describe_binding_quotas(quotas)
    else:
        binding = sentences.describe_binding_stage(name, obstacle.hardware, obstacle.stage_s, others_s)
    relaxed = None
    if obstacle.relaxed_slo_s is not None and obstacle.relaxed_cost is not None:
        relaxed = (obstacle.relaxed_slo_s, obstacle.relaxed_cost)
    return (
        ("binding constraint", binding),
        ("minimal relaxation", sentences.describe_relaxation(relaxed, quotas, name, problem.slo_s - others_s)),
    )


def _list_search_lines(problem: Problem, obstacle: Obstacle) -> Lines:
    """Return the lines on a search that was stopped: no constraint is known to bind."""
    stopped = ("search", sentences.describe_stopped_search(problem.budget.max_simulated_queries))
    if obstacle.relaxed_slo_s is None or obstacle.relaxed_cost is None:
        return (stopped,)
    return stopped, ("known plan", sentences.describe_known_plan(obstacle.relaxed_slo_s, obstacle.relaxed_cost))


def _find_next_command(problem: Problem, obstacle: Obstacle, *, is_proven: bool) -> str:
    """Return the command that would find a plan, or nothing if none is known."""
    if not is_proven:
        limit = max(1.0, problem.budget.max_simulated_queries) * 10
        return f"unfold plan SPEC --set search.limit={limit:.0f}"
    if obstacle.relaxed_slo_s is not None:
        return f"unfold plan SPEC --set 'slo.p99={obstacle.relaxed_slo_s * 1e3:.0f} ms'"
    options = "".join(f" --set hardware.{quota.hardware}.quota={quota.quota}" for quota in obstacle.quotas)
    return f"unfold plan SPEC{options}" if options else ""
