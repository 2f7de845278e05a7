"""Reports of problems without a plan: what binds, and the smallest relaxation that helps."""

from __future__ import annotations

from unfold_tuning.job.problem import Problem
from unfold_tuning.planner.planner import Selection, Solution, select_earliest, select_within_budget
from unfold_tuning.report import sentences
from unfold_tuning.report.asha import compare_with_asha
from unfold_tuning.simulator.plan_cost import SimulatedPlan
from unfoldkit.api import Metric, Report, Verdict


def report_infeasible(problem: Problem, solution: Solution) -> Report:
    """Report why no plan meets the deadline or the budget."""
    if solution.selected is not None:
        return _report_over_budget(problem, solution, solution.selected)
    if problem.deadline_s is not None:
        return _report_missed_deadline(problem, solution, problem.deadline_s)
    return _report_small_budget(problem, solution)


def _report_missed_deadline(problem: Problem, solution: Solution, deadline_s: float) -> Report:
    earliest = select_earliest(solution.candidates)
    guaranteed_s = earliest.plan.compute_guaranteed_seconds(problem.confidence)
    fastest, model = _find_fastest_plan(solution), earliest.candidate.model
    probability = max(plan.estimate_on_time_probability(deadline_s) for plan in solution.all_plans)
    metrics = {
        "on_time_probability": Metric(probability, target=f"≥ {problem.confidence:g}", ok=False),
        "fastest_seconds": Metric(fastest.mean_seconds, "s"),
        "fastest_cost_usd": Metric(fastest.mean_cost_usd, "$"),
        "shortest_promise_seconds": Metric(guaranteed_s, "s"),
        "shortest_promise_cost_usd": Metric(earliest.plan.mean_cost_usd, "$"),
    }
    lines = (
        ("binding constraint", _describe_longest_stage(problem, fastest)),
        ("fastest", sentences.describe_fastest(fastest.mean_seconds, fastest.mean_cost_usd)),
        ("on time", sentences.describe_best_probability(probability)),
        (
            "minimal relaxation",
            sentences.describe_relaxed_deadline(guaranteed_s, earliest.plan.mean_cost_usd, model.machine),
        ),
        *compare_with_asha(model, deadline_s, problem.confidence, problem.seed),
    )
    headline = sentences.write_missed_deadline_headline(deadline_s, problem.confidence, guaranteed_s)
    return _build_report(problem, headline, metrics, lines)


def _report_over_budget(problem: Problem, solution: Solution, selected: Selection) -> Report:
    budget_usd, deadline_s = problem.budget_usd or 0.0, problem.deadline_s or 0.0
    plan, confidence = selected.plan, problem.confidence
    affordable = select_within_budget(solution.candidates, budget_usd, confidence)
    later_s = affordable.plan.compute_guaranteed_seconds(confidence) if affordable else None
    metrics = _build_budget_metrics(plan, budget_usd, confidence)
    relaxed_usd = plan.compute_cost_quantile_usd(confidence)
    lines = (
        ("binding constraint", sentences.describe_binding_budget(plan.mean_cost_usd, deadline_s)),
        ("minimal relaxation", sentences.describe_relaxed_budget(relaxed_usd, later_s, budget_usd)),
    )
    headline = sentences.write_over_budget_headline(deadline_s, budget_usd, confidence)
    return _build_report(problem, headline, metrics, lines)


def _report_small_budget(problem: Problem, solution: Solution) -> Report:
    budget_usd = problem.budget_usd or 0.0
    cheapest = min(solution.all_plans, key=lambda plan: plan.mean_cost_usd)
    metrics = _build_budget_metrics(cheapest, budget_usd, problem.confidence)
    relaxed_usd = cheapest.compute_cost_quantile_usd(problem.confidence)
    lines = (("minimal relaxation", sentences.describe_smallest_budget(relaxed_usd, cheapest.mean_seconds)),)
    return _build_report(problem, sentences.write_small_budget_headline(budget_usd, problem.confidence), metrics, lines)


def _build_budget_metrics(plan: SimulatedPlan, budget_usd: float, confidence: float) -> dict[str, Metric]:
    """Build the expected cost of a plan and how likely it stays within the budget, which is what was missed."""
    cost_usd = plan.mean_cost_usd
    probability = plan.estimate_within_budget_probability(budget_usd)
    return {
        "cost_usd": Metric(cost_usd, "$", target=f"≤ {budget_usd:g}", ok=cost_usd <= budget_usd),
        "within_budget_probability": Metric(probability, target=f"≥ {confidence:g}", ok=False),
    }


def _build_report(
    problem: Problem, headline: str, metrics: dict[str, Metric], lines: tuple[tuple[str, str], ...]
) -> Report:
    return Report(
        kind="tuning",
        verb="plan",
        name=problem.name,
        verdict=Verdict.NO,
        headline=headline,
        metrics=metrics,
        lines=lines,
    )


def _find_fastest_plan(solution: Solution) -> SimulatedPlan:
    return min(solution.all_plans, key=lambda plan: plan.mean_seconds)


def _describe_longest_stage(problem: Problem, fastest: SimulatedPlan) -> str:
    seconds = fastest.mean_stage_seconds
    index = int(seconds.argmax())
    stage, allocation = problem.stages[index], fastest.plan[index]
    return sentences.describe_longest_stage(
        index + 1,
        stage.trials,
        max(group.iters for group in stage.groups),
        allocation.workers,
        float(seconds[index]),
        fastest.mean_seconds,
    )
