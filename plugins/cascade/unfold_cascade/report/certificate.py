"""The certificate in a report: its line, the command that relaxes the goal, its labels, and sites left out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from unfold_cascade.planner.certificate import cases_needed, smallest_certifiable
from unfold_cascade.planner.leave_one_site_out import SiteResult
from unfold_cascade.planner.planner import Solution, list_leaks
from unfold_cascade.planner.policy import Outcome
from unfold_cascade.planner.select import LEAKED, NO_CHEAPER, SAVING_UNCERTAIN, count_units, number_of_label
from unfold_cascade.report import sentences
from unfold_cascade.report.quality import baseline_utility
from unfoldkit.api import Cell, Column, Metric, Report, Table


def certificate_line(solution: Solution, test_loss_points: float) -> str:
    """State the certificate of a solution that loses so many points on the test rows."""
    selection, goal = solution.selection, solution.problem.goal
    column, baseline = solution.problem.cluster_column, solution.baseline.name
    if selection.point is None:
        return _refusal_line(solution)
    if goal.budget is not None and selection.certified_loss >= baseline_utility(solution):
        return sentences.vacuous_certificate(baseline, column, selection.units, selection.confidence, test_loss_points)
    return sentences.certificate(
        baseline=baseline,
        cluster_column=column,
        certified_loss=selection.certified_loss,
        of_labels=goal.max_loss_of,
        confidence=selection.confidence,
        unit_count=selection.units,
        method=selection.method,
        test_loss_points=test_loss_points,
        has_rejections=selection.has_rejections,
        costs=sentences.certified_costs(goal.min_saving, goal.budget, solution.tables.unit),
    )


def refusal_reason(solution: Solution) -> str:
    """State why the baseline alone should be used."""
    selection, goal, column = solution.selection, solution.problem.goal, solution.problem.cluster_column
    if selection.reason == LEAKED:
        return sentences.leaked_label(list_leaks(solution.problem, solution.tables))
    if selection.reason == NO_CHEAPER:
        return sentences.no_saving(goal.min_saving)
    if selection.reason == SAVING_UNCERTAIN and goal.min_saving is not None:
        return sentences.uncertain_saving(selection.units, column, goal.min_saving, goal.confidence)
    return selection.reason


def allowed_losses(solution: Solution) -> str:
    """List the losses that the goal allows."""
    goal = solution.problem.goal
    return sentences.allowed_losses(goal.max_loss or 0, goal.max_loss_of)


def relaxation_settings(solution: Solution) -> str:
    """Write the options of a command that allows the first of the minimal relaxations."""
    relaxation = dict(solution.selection.relaxations[0])
    settings = [f"goal.max_loss={100 * relaxation['']:g}%"] if "" in relaxation else []
    of_labels = {label: loss for label, loss in relaxation.items() if label}
    if of_labels:
        losses = {**solution.problem.goal.max_loss_of, **of_labels}
        keys = ", ".join(f"{json.dumps(label, ensure_ascii=False)}: {100 * loss:g}%" for label, loss in losses.items())
        settings.append(shlex.quote(f"goal.max_loss_of={{{keys}}}"))
    return " ".join(f"--set {setting}" for setting in settings)


def build_label_tables(solution: Solution, outcome: Outcome) -> list[Table]:
    """Build the table of guarantees over labels, beside the results on the test rows; none without guarantees."""
    goal, problem = solution.problem.goal, solution.problem
    if solution.policy is None or not goal.max_loss_of:
        return []
    columns = (
        Column("label"),
        Column(f"certified on, {sentences.units(problem.cluster_column)}"),
        Column("loss ≤", "points", 1),
        Column("test cases"),
        Column(f"correct, {solution.baseline.name}", "%", 1),
        Column("correct, cascade", "%", 1),
    )
    rows = tuple(_label_row(solution, outcome, label, allowed) for label, allowed in goal.max_loss_of.items())
    return [Table("labels", columns, rows)]


def add_left_out_sites(report: Report, results: Sequence[SiteResult], max_loss: float | None) -> Report:
    """Add the table of the sites, their spread, and how many kept the loss that the goal allows."""
    if not results:
        return report
    losses = [100 * result.loss for result in results]
    over_time = results[0].utility is not None
    metrics = {
        "site_loss_points_min": Metric(min(losses), "points"),
        "site_loss_points_max": Metric(max(losses), "points"),
    }
    kept = None if max_loss is None else sum(result.loss <= max_loss for result in results)
    utilities = [result.utility for result in results if result.utility is not None]
    text = sentences.left_out_sites(len(results), min(losses), max(losses), kept)
    if utilities:
        metrics |= {"site_utility_min": Metric(min(utilities)), "site_utility_max": Metric(max(utilities))}
        text += sentences.utility_of_sites(min(utilities), max(utilities))
    columns = [Column("left out"), Column("patients" if over_time else "cases"), Column("certified elsewhere")]
    columns += [Column("loss", "points", 2), Column("saving", "x", 2)]
    columns += [Column("utility", "", 3), Column("baseline", "", 3), Column("alerts", "/100 h", 1)] if over_time else []
    rows = tuple(_site_row(result, over_time=over_time) for result in results)
    return replace(
        report,
        metrics={**report.metrics, **metrics},
        tables=(*report.tables, Table("sites left out in turn", tuple(columns), rows)),
        lines=(*report.lines, ("new sites", text)),
    )


def _label_row(solution: Solution, outcome: Outcome, label: str, allowed: float) -> tuple[Cell, ...]:
    dataset = solution.problem.dataset
    number = number_of_label(label, dataset.names)
    test, calibrate = dataset.rows.test, dataset.rows.calibrate
    cases = np.flatnonzero(dataset.labels[test] == number)
    certifying = calibrate[dataset.labels[calibrate] == number]
    correct = [answer[cases] == number for answer in (solution.baseline.answer[test], outcome.answer)]
    shares = [100 * float(part.mean()) if part.size else None for part in correct]
    return label, count_units(solution.tables, certifying), 100 * allowed, len(cases), *shares


def _refusal_line(solution: Solution) -> str:
    selection, goal, column = solution.selection, solution.problem.goal, solution.problem.cluster_column
    if selection.reason or goal.max_loss is None:
        return sentences.no_certificate(refusal_reason(solution))
    refusal = sentences.cannot_certify(column, selection.units, allowed_losses(solution), goal.confidence)
    if goal.max_loss_of:
        return refusal
    largest, delta = solution.tables.error_costs.maximum, 1 - goal.confidence
    smallest = smallest_certifiable(selection.units, delta) * largest
    needed = cases_needed(goal.max_loss / largest, delta) if goal.max_loss > 0 else None
    if needed and selection.min_certifiable_loss >= smallest > goal.max_loss:
        return sentences.too_few_units(refusal, column, smallest, needed)
    return sentences.least_certified(refusal, selection.min_certifiable_loss)


def _site_row(result: SiteResult, *, over_time: bool) -> tuple[Cell, ...]:
    certified = "yes" if result.is_certified else "no: the baseline"
    row: tuple[Cell, ...] = (result.site, result.units, certified, 100 * result.loss, result.saving)
    return (*row, result.utility, result.baseline_utility, result.alerts_per_100h) if over_time else row
