"""Validation without time: the cascade of a plan on new cases, beside what was promised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.data.dataset import CORRECT, group_rows
from unfold_cascade.data.error_costs import EQUAL_COSTS, ErrorCosts
from unfold_cascade.data.table import Frame, TableSource, load_frame
from unfold_cascade.drift.outcomes import CERTIFIED_SAVING, Promise, Sums, judge_promises
from unfold_cascade.drift.static import check_new_cases, compare_new_cases, extend_tables
from unfold_cascade.drift.validation_report import (
    ValidationData,
    build_validation_report,
    describe_unlabelled,
    join_reports,
)
from unfold_cascade.planner.policy import Policy, StagePolicy, follow
from unfold_cascade.planner.saving import longest_path_costs
from unfold_cascade.planner.score_tables import ScoreTables
from unfold_cascade.report import sentences
from unfold_cascade.schema import cell_values
from unfold_cascade.serving.loader import LoadedPlan
from unfoldkit.api import Report, Run, did_you_mean, user_error

MAX_LABELS_SHOWN = 10
SHARE_MARGIN = 0.02
SAVING_MARGIN = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledCases:
    """What the cascade and the baseline of a plan did with m labelled cases, and the U units that they belong to."""

    labels: IntArray
    answer: IntArray
    baseline_answer: IntArray
    cost: FloatArray
    baseline_cost: FloatArray
    unit: IntArray

    def extra_losses(self, costs: ErrorCosts) -> FloatArray:
        """Compute (m,) how much more the cascade loses than the baseline."""
        extra: FloatArray = costs.losses(self.answer, self.labels) - costs.losses(self.baseline_answer, self.labels)
        return extra

    def sum_by_unit(self, values: FloatArray) -> FloatArray:
        """Sum (m,) values by unit."""
        sums = np.bincount(self.unit, values, int(self.unit.max()) + 1 if len(self.unit) else 0)
        return sums.astype(np.float64)

    def average_by_unit(self, values: FloatArray) -> Sums:
        """Average (m,) values by unit; each unit counts once."""
        sums = self.sum_by_unit(values) / self.sum_by_unit(np.ones(len(values)))
        return Sums(numerator=sums, denominator=np.ones(len(sums)))


def read_new_labels(loaded: LoadedPlan, frame: Frame) -> IntArray | None:
    """Read the (n,) labels of new rows, -1 where there is none; ``None`` if no row has one.

    Raises:
        UnfoldError: A label is unknown to the run.
    """
    options, names = loaded.problem.data, loaded.problem.dataset.names
    if options.is_scored:
        return np.zeros(len(frame), dtype=np.int64)
    if options.label_column not in frame.columns:
        return None
    text = frame.text(options.label_column, key=options.label_key)
    is_labelled = cell_values.has_label(text)
    if not is_labelled.any():
        return None
    number = {name: index for index, name in enumerate(names)}
    for row in np.flatnonzero(is_labelled):
        if str(text[row]) not in number:
            message = f'{frame.name}: the label "{text[row]}" in row {row + 1} is unknown to the run'
            raise user_error(message, key=options.label_key, hint=did_you_mean(str(text[row]), names))
    return np.array([number[str(word)] if ok else -1 for word, ok in zip(text, is_labelled, strict=True)])


def validate_cases(loaded: LoadedPlan, source: TableSource, run: Run, verb: str) -> Report:
    """Compare the promises of a plan with the cases of ``source``; without labels, check for drift.

    Raises:
        UnfoldError: A column is missing, or a label is unknown to the run.
    """
    frame = load_frame(source)
    labels = read_new_labels(loaded, frame)
    if labels is None:
        return describe_unlabelled(check_new_cases(loaded, source, run), verb)
    problem, known = loaded.problem, len(loaded.problem.dataset.labels)
    unlabelled = int((labels < 0).sum())
    labels, note = leave_out_known(loaded, frame, labels)
    tables = extend_tables(loaded, frame, run)
    new = np.flatnonzero(labels >= 0)
    clusters, _ = group_rows(replace(problem.data, source=source), frame, problem.dataset.order, labels >= 0)
    now = observe_cases(loaded, tables, known + new, labels[new], clusters)
    test = problem.dataset.rows.test
    own_clusters = problem.dataset.clusters
    before = observe_cases(
        loaded, tables, test, problem.dataset.labels[test], None if own_clusters is None else own_clusters[test]
    )
    promises = list(_list_promises(loaded, now, before))
    data = ValidationData(
        name=problem.name,
        subtitle=(f"{len(new):,} new cases", f"{int(now.unit.max()) + 1:,} independent"),
        path=source.path,
        digest=frame.digest,
        confidence=problem.goal.confidence,
        unlabelled=unlabelled,
        served=sentences.served_policy(loaded.baseline.name, is_cascade=loaded.is_cascade),
    )
    report = build_validation_report(data, judge_promises(promises, problem.goal.confidence, run.seed), run)
    units = sentences.changed_units(problem.dataset.find_changed_units(frame))
    report = replace(report, notes=(*report.notes, *units, *filter(None, [note])))
    return report if verb == "validate" else join_reports(compare_new_cases(loaded, source, tables, run), report)


def leave_out_known(loaded: LoadedPlan, frame: Frame, labels: IntArray) -> tuple[IntArray, str]:
    """Take the labels from the rows that the plan's run has seen, unless it has seen all.

    Returns:
        The (n,) labels, -1 where there is none, and a note if there are such rows.
    """
    dataset, is_labelled = loaded.problem.dataset, labels >= 0
    is_known = dataset.find_known(frame) & is_labelled
    if frame.digest == dataset.digest or (is_known.any() and is_known.sum() == is_labelled.sum()):
        return labels, sentences.own_table(frame.name)
    note = sentences.known_cases(int(is_known.sum()), frame.name) if is_known.any() else ""
    return np.where(is_known, -1, labels), note


def observe_cases(
    loaded: LoadedPlan, tables: ScoreTables, rows: IntArray, labels: IntArray, clusters: IntArray | None
) -> LabelledCases:
    """Follow the policy of a plan and its baseline on some rows of the extended tables."""
    candidates = tables.candidates
    alone = replace(tables, first_stage=candidates, second_stage={})
    outcome = follow(tables if loaded.is_cascade else alone, loaded.policy, rows)
    baseline = follow(alone, Policy(StagePolicy((candidates.models.index(loaded.baseline.name),), ()), {}), rows)
    unit = np.arange(len(rows)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    return LabelledCases(
        labels=labels,
        answer=outcome.answer,
        baseline_answer=baseline.answer,
        cost=outcome.cost,
        baseline_cost=baseline.cost,
        unit=unit,
    )


def _list_promises(loaded: LoadedPlan, now: LabelledCases, before: LabelledCases) -> Iterator[Promise]:
    goal, names, costs = loaded.problem.goal, loaded.problem.dataset.names, loaded.tables.error_costs
    if loaded.is_cascade and goal.max_loss is not None:
        differences = now.average_by_unit(now.extra_losses(costs))
        yield Promise(
            name="loss",
            unit="points",
            now=differences,
            limit=goal.max_loss,
            largest=costs.maximum,
            higher_is_better=False,
        )
        for label, allowed in goal.max_loss_of.items():
            part = _select_label(now, names.index(label)) if label in names else None
            if part is not None:
                loss = part.average_by_unit(part.extra_losses(EQUAL_COSTS))
                yield Promise(
                    name=f'loss of "{label}"',
                    unit="points",
                    now=loss,
                    limit=allowed,
                    largest=1.0,
                    higher_is_better=False,
                )
    right = [cases.average_by_unit((cases.answer == cases.labels).astype(np.float64)) for cases in (now, before)]
    yield Promise(name="accuracy", unit="%", now=right[0], before=right[1], margin=SHARE_MARGIN)
    for number, label in enumerate(names if len(names) <= MAX_LABELS_SHOWN and names != (CORRECT,) else ()):
        found = [_sensitivity(cases, number) for cases in (now, before)]
        if found[0].denominator.any() and found[1].denominator.any():
            yield Promise(
                name=f'sensitivity for "{label}"', unit="%", now=found[0], before=found[1], margin=SHARE_MARGIN
            )
    if loaded.is_cascade:
        saving = [_sum_costs(loaded, cases) for cases in (now, before)]
        yield Promise(name="saving", unit="x", now=saving[0], before=saving[1], margin=SAVING_MARGIN, is_relative=True)
        if goal.min_saving is not None:
            yield Promise(name=CERTIFIED_SAVING, unit="x", now=saving[0], limit=goal.min_saving)


def _sum_costs(loaded: LoadedPlan, cases: LabelledCases) -> Sums:
    """Sum what units cost with the baseline and with the cascade."""
    tables, most = loaded.tables, None
    is_single = len(np.unique(cases.unit)) == len(cases.unit)
    if is_single and tables.first_stage.call_prices is None and not np.ptp(cases.baseline_cost):
        most = float(longest_path_costs(tables, loaded.policy, np.arange(1))[0])
    return Sums(
        numerator=cases.sum_by_unit(cases.baseline_cost), denominator=cases.sum_by_unit(cases.cost), most=most or None
    )


def _sensitivity(cases: LabelledCases, label: int) -> Sums:
    has_label = cases.labels == label
    return Sums(
        numerator=cases.sum_by_unit((has_label & (cases.answer == label)).astype(np.float64)),
        denominator=cases.sum_by_unit(has_label.astype(np.float64)),
    )


def _select_label(cases: LabelledCases, label: int) -> LabelledCases | None:
    rows = np.flatnonzero(cases.labels == label)
    if not len(rows):
        return None
    return LabelledCases(
        labels=cases.labels[rows],
        answer=cases.answer[rows],
        baseline_answer=cases.baseline_answer[rows],
        cost=cases.cost[rows],
        baseline_cost=cases.baseline_cost[rows],
        unit=np.unique(cases.unit[rows], return_inverse=True)[1],
    )
