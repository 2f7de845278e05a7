"""The report of a cascade: verdict, metrics, tables, figure, lines, next command and the plan itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from unfold_cascade.data.dataset import find_similar_labels
from unfold_cascade.planner.planner import Solution
from unfold_cascade.planner.policy import Outcome
from unfold_cascade.planner.select import BASELINE_IS_BETTER, OVER_BUDGET
from unfold_cascade.report import sentences
from unfold_cascade.report.case_flow import draw_case_flow, draw_exit_accuracy
from unfold_cascade.report.certificate import (
    allowed_losses,
    build_label_tables,
    certificate_line,
    refusal_reason,
    relaxation_settings,
)
from unfold_cascade.report.gate_quality import draw_reliability, draw_risk_coverage, list_gates
from unfold_cascade.report.quality import (
    accuracy,
    baseline_accuracy,
    baseline_cost,
    baseline_drop,
    baseline_utility,
    certified_loss_points,
    class_skew,
    evaluate_test_rows,
    has_error_costs,
    list_gaps,
    loss_points,
    utility,
)
from unfold_cascade.report.tables import build_candidate_table, build_policy_table, build_stage_tables
from unfold_cascade.report.threshold_tables import describe_with_thresholds
from unfoldkit.api import (
    AnyFigure,
    Figure,
    Metric,
    Report,
    RunDir,
    Series,
    Verdict,
    divide_costs,
    format_count,
    label_metrics,
)

METRIC_LABELS = {"loss_points": "loss measured on test rows", "front_points": "cascades on the front"}


def build_plan_report(solution: Solution, directory: RunDir, verb: str) -> Report:
    """Build the report of ``train`` or ``plan`` on the test rows, which nothing before has read."""
    problem, dataset = solution.problem, solution.problem.dataset
    outcome = evaluate_test_rows(solution, solution.policy)
    return Report(
        kind="cascade",
        verb=verb,
        name=problem.name,
        verdict=Verdict.NO if solution.policy is None else Verdict.YES,
        question=_question(solution),
        headline=_headline(solution, outcome, directory),
        subtitle=_subtitle(solution),
        metrics=label_metrics(
            _build_metrics(solution, outcome),
            METRIC_LABELS | sentences.label_bounds(solution.problem.goal.confidence),
        ),
        tables=(
            build_policy_table(solution),
            *build_label_tables(solution, outcome),
            *build_stage_tables(solution, outcome),
            build_candidate_table(solution),
        ),
        figures=tuple(_build_figures(solution, outcome)),
        lines=tuple(_list_lines(solution, outcome)),
        notes=(*list_notes(dataset.unlabelled, dataset.source), *_list_data_notes(solution)),
        next=_next_command(solution, directory, verb),
        decision=_build_decision(solution),
        provenance={"inputs": {"data": dataset.digest}},
    )


def list_notes(unlabelled: int, table: str) -> tuple[str, ...]:
    """List the notes of a report about rows that were skipped."""
    return (sentences.unlabelled_rows(unlabelled, table),) if unlabelled else ()


def _list_data_notes(solution: Solution) -> Iterator[str]:
    dataset, are_grouped = solution.problem.dataset, solution.problem.data.groups_copies
    if dataset.copies:
        yield sentences.copied_rows(dataset.identical, dataset.near, dataset.source, are_grouped=are_grouped)
    if dataset.patients and dataset.clusters is not None:
        yield sentences.repeated_patients(dataset.patients, int(dataset.clusters.max()) + 1)
    if dataset.has_unnamed_groups:
        yield sentences.unnamed_groups(dataset.source)
    yield from sentences.label_marks(dataset.marks, dataset.names)
    yield from sentences.doubtful_values(dataset.doubts)


def _build_metrics(solution: Solution, outcome: Outcome) -> dict[str, Metric]:
    timed, unit, goal = solution.problem.cost.is_measured, solution.tables.unit, solution.problem.goal
    target = f"≤ {goal.max_loss * 100:g}" if goal.max_loss is not None else None
    certified, cost = _certified_loss(solution), float(outcome.cost.mean())
    return {
        "saving": Metric(divide_costs(baseline_cost(solution), cost), "x", timed=timed),
        "loss_points": Metric(round(loss_points(solution, outcome), 9), "points", timed=timed),
        "certified_loss_points": Metric(
            None if certified is None else round(certified * 100, 9),
            "points",
            target=target,
            ok=None if target is None else solution.policy is not None,
            timed=timed,
        ),
        "saving_lower_bound": Metric(solution.selection.saving_bound, "x", timed=timed),
        "baseline_accuracy": Metric(baseline_accuracy(solution), timed=False),
        "cascade_accuracy": Metric(accuracy(solution, outcome.answer), timed=timed),
        "baseline_cost": Metric(baseline_cost(solution), unit, timed=timed),
        "cascade_cost": Metric(cost, unit, timed=timed),
        "front_points": Metric(len(solution.front.policies), timed=timed),
        **_latency_metrics(solution, outcome),
        **_utility_metrics(solution, outcome),
    }


def _certified_loss(solution: Solution) -> float | None:
    """Return the certified loss; for a refused plan the smallest one that could be certified."""
    selection, goal = solution.selection, solution.problem.goal
    if solution.policy is not None:
        return selection.certified_loss
    return None if goal.max_loss is None or selection.reason else selection.min_certifiable_loss


def _latency_metrics(solution: Solution, outcome: Outcome) -> dict[str, Metric]:
    if np.isnan(solution.baseline.latency_us):
        return {}
    saving = solution.baseline.latency_us / float(outcome.latency_us.mean())
    return {"latency_saving": Metric(saving, "x", timed=True)}


def _utility_metrics(solution: Solution, outcome: Outcome) -> dict[str, Metric]:
    if not has_error_costs(solution):
        return {}
    timed = solution.problem.cost.is_measured
    return {
        "baseline_weighted_accuracy": Metric(baseline_utility(solution), timed=False),
        "cascade_weighted_accuracy": Metric(utility(solution, outcome.answer), timed=timed),
    }


def _build_figures(solution: Solution, outcome: Outcome) -> Iterator[AnyFigure]:
    if solution.policy is not None:
        yield draw_case_flow(solution, solution.policy, outcome)
    yield _build_figure(solution)
    if solution.policy is None:
        return
    gates, timed = list_gates(solution, solution.policy, outcome), solution.problem.cost.is_measured
    figures = (
        draw_exit_accuracy(solution, solution.policy, outcome),
        draw_risk_coverage(gates, timed=timed),
        draw_reliability(gates, timed=timed),
    )
    yield from (figure for figure in figures if figure is not None)


def _build_figure(solution: Solution) -> Figure:
    front = solution.front
    outcomes = [evaluate_test_rows(solution, policy) for policy in front.policies]
    cost = tuple(float(outcome.cost.mean()) for outcome in outcomes)
    tuned = tuple(float(100 * (1 - loss)) for loss in front.loss)
    tested = tuple(100 * utility(solution, outcome.answer) for outcome in outcomes)
    baseline = (baseline_cost(solution),), (100 * baseline_utility(solution),)
    series = [
        Series("on the tuning rows", tuple(map(float, front.cost)), tuned, "steps"),
        Series("on the test rows", cost, tested, "line"),
        Series(f"baseline ({solution.baseline.name})", *baseline, "points"),
    ]
    if solution.policy is not None:
        selected = evaluate_test_rows(solution, solution.policy)
        values = (float(selected.cost.mean()),), (100 * utility(solution, selected.answer),)
        series.append(Series("selected", *values, "points"))
    measure = "weighted accuracy" if has_error_costs(solution) else "accuracy"
    title = f"{solution.problem.name}: {measure} and cost of {format_count(len(front.cost), 'cascade')}"
    unit = f"mean cost per case, {solution.tables.unit}"
    timed = solution.problem.cost.is_measured
    return Figure("front", title, unit, f"{measure} %", tuple(series), log_x=True, timed=timed)


def _list_lines(solution: Solution, outcome: Outcome) -> Iterator[tuple[str, str]]:
    problem, front = solution.problem, solution.front
    yield "certificate", certificate_line(solution, certified_loss_points(solution, outcome))
    if solution.policy is not None:
        open_labels = (
            [] if problem.data.is_scored else [n for n in problem.dataset.names if n not in problem.goal.max_loss_of]
        )
        yield "not promised", sentences.not_promised(open_labels, has_saving=problem.goal.min_saving is not None)
    if solution.attempt is not None:
        counts = solution.attempt
        yield "attempt", sentences.attempt(counts.number, counts.joint_confidence, counts.allowed)
    bound = solution.selection.saving_bound
    if bound:
        ratio = divide_costs(baseline_cost(solution), float(outcome.cost.mean()))
        yield "saving", sentences.saving_bound(ratio, bound, problem.goal.confidence, len(outcome.cost))
    ends = (sentences.short_saving(divide_costs(solution.baseline.cost, float(front.cost[end]))) for end in (-1, 0))
    yield "front", sentences.front_range(len(front.cost), *ends)
    gaps = list(list_gaps(solution))
    if gaps:
        yield "greedy", sentences.greedy_gap(gaps)
    similar = find_similar_labels(problem.dataset.names)
    if similar:
        yield "labels", sentences.similar_labels(similar)
    drop = baseline_drop(solution)
    if drop is not None:
        yield "baseline", sentences.baseline_drop(solution.baseline.name, *drop)
    skew = class_skew(solution, outcome)
    if skew is not None:
        name = solution.baseline.name
        correct = skew.correct_of_baseline, skew.correct_of_cascade
        yield "skew", sentences.class_skew(skew.label, skew.share, skew.others, name, *correct)
    if problem.goal.errors is not None:
        yield "errors", sentences.error_costs(problem.goal.errors)
    rows = problem.dataset.rows
    sizes = len(rows.train), len(rows.calibrate), len(rows.test)
    yield "split", sentences.split(*sizes, is_recorded=problem.is_recorded)


def _headline(solution: Solution, outcome: Outcome, directory: RunDir) -> str:
    goal, selection, unit = solution.problem.goal, solution.selection, solution.tables.unit
    baseline = solution.baseline
    if solution.policy is not None:
        cost = baseline_cost(solution)
        ratio = divide_costs(cost, float(outcome.cost.mean()))
        return sentences.headline(ratio, cost, unit, loss_points(solution, outcome), str(directory.path))
    if goal.budget is not None and selection.reason == BASELINE_IS_BETTER:
        return sentences.baseline_is_better(baseline.name, baseline_accuracy(solution), baseline.cost, unit)
    if goal.budget is not None and selection.reason == OVER_BUDGET:
        return sentences.over_budget(goal.budget, unit, float(solution.front.cost[0]))
    if selection.reason:
        return sentences.use_baseline(baseline.name, refusal_reason(solution))
    return sentences.not_certified(allowed_losses(solution), sentences.relaxations(selection.relaxations))


def _question(solution: Solution) -> str:
    goal = solution.problem.goal
    allowed = "" if goal.max_loss is None else allowed_losses(solution)
    return sentences.question(solution.baseline.name, allowed, goal.budget, solution.tables.unit)


def _subtitle(solution: Solution) -> tuple[str, ...]:
    stages = solution.problem.zoo.stages
    models = sum(len(stage.models) for stage in stages) or len(solution.problem.recorded)
    return (
        format_count(len(stages), "stage"),
        sentences.choice_of_models(models),
        format_count(len(solution.problem.dataset.labels), "case"),
    )


def _next_command(solution: Solution, directory: RunDir, verb: str) -> str:
    goal = solution.problem.goal
    if solution.policy is None and goal.budget is None and not solution.selection.reason:
        return f"unfold plan {directory.word} {relaxation_settings(solution)}"
    if verb == "plan":
        return f"unfold plan {directory.word} --out plan.yaml"
    if not solution.problem.is_recorded:
        return f"unfold serve {directory.word}"
    setting = "goal.max_loss=1%" if goal.budget is None else "'goal.budget=1000 per case'"
    return f"unfold plan {directory.word} --set {setting} --out front.html"


def _build_decision(solution: Solution) -> dict[str, Any]:
    """Build the plan: models, order and cuts of each stage. Measured times are no part of it."""
    decision = {"baseline": solution.baseline.name, "goal": solution.problem.goal.document}
    if solution.policy is None:
        return decision | {"cascade": None}
    return decision | {"cascade": describe_with_thresholds(solution.problem, solution.tables, solution.policy)}
