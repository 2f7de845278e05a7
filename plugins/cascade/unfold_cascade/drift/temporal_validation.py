"""Validation over time: the cascade of a plan on new patients, beside what was promised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.drift.outcomes import CERTIFIED_SAVING, Promise, Sums, judge_promises
from unfold_cascade.drift.statistics import DriftSample
from unfold_cascade.drift.temporal import check_drift, compare_hours, sample_new, sample_planned
from unfold_cascade.drift.validation_report import (
    ValidationData,
    build_validation_report,
    describe_unlabelled,
    join_reports,
)
from unfold_cascade.report.sentences import changed_units
from unfold_cascade.temporal.data.readers import read_table
from unfold_cascade.temporal.data.table import EntityTable, compute_hours_since, index_entities, select_rows
from unfold_cascade.temporal.data.targets import label_stages
from unfold_cascade.temporal.early_warning_metrics import compute_lead_hours, compute_utility, locate_events
from unfold_cascade.temporal.models.study import Cohort
from unfold_cascade.temporal.problem import TemporalProblem
from unfold_cascade.temporal.report import sentences
from unfold_cascade.temporal.search.outcome_guarantees import CohortConduct, Conduct, sum_outcome
from unfold_cascade.temporal.search.select import average_by_patient
from unfold_cascade.temporal.serving.plan_loader import LoadedPlan, load_temporal_plan
from unfold_cascade.temporal.simulation.cost import build_cost_measure, compute_bill, sum_costs
from unfold_cascade.temporal.simulation.policy import ALWAYS_EVALUATED, build_policy_arrays
from unfold_cascade.temporal.simulation.trajectories import simulate
from unfoldkit.api import Report, Run

UTILITY_MARGIN = 0.02
SHARE_MARGIN = 0.05
ALERT_MARGIN = 1.0
SAVING_MARGIN = 0.05


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of some hours: (n, S) stages entered, (n, S) hours since then, and (n,) highest stage entered."""

    entered: BoolArray
    since: FloatArray
    highest: IntArray


@dataclass(frozen=True, slots=True)
class Observed:
    """Labelled patients, and what the cascade and the baseline of a plan do with them."""

    sample: DriftSample
    labels: Labels

    @property
    def cohort(self) -> Cohort:
        """The new patients in the form in which a plan's search evaluates policies, without baseline probabilities."""
        timeline, since_last = self.sample.timeline, self.labels.since[:, -1]
        return Cohort(
            timeline=timeline,
            scores=self.sample.scores,
            entered=self.labels.entered,
            since=self.labels.since,
            highest=self.labels.highest,
            baseline_p={},
            utility=compute_utility(since_last),
            events=locate_events(since_last, timeline.starts),
        )


def validate_hours(problem: TemporalProblem, planned: TemporalProblem, run: Run, verb: str) -> Report:
    """Compare the promises of a plan with new patients; without labels, check for drift.

    Args:
        problem: The problem with the new data.
        planned: The problem of the plan.
        run: Holds the plan among its options.
        verb: ``validate`` or ``plan``.

    Raises:
        UnfoldError: A column is missing, or a label is neither 0 nor 1.
    """
    table = read_table(problem.source, run)
    targets = [stage.target for stage in planned.stages]
    if _lacks_labels(table, [target.column for target in targets if target.column is not None]):
        return describe_unlabelled(check_drift(problem, planned, run), verb)
    plan = load_temporal_plan(planned, run, run.options.get("baseline_plan") or run.options["plan"])
    table, known = leave_out_known(plan, table)
    new = sample_new(plan, table, run)
    promises = observe_promises(plan, table, new)
    data = ValidationData(
        name=planned.name,
        subtitle=(f"{len(table.ids):,} new patients", f"{len(table):,} hours"),
        path=problem.source.path,
        digest=table.digest,
        confidence=planned.goal.confidence,
        unlabelled=0,
        served=sentences.describe_served_baseline() if plan.serves_baseline else sentences.describe_served_cascade(),
    )
    report = build_validation_report(data, judge_promises(promises, planned.goal.confidence, run.seed), run)
    report = replace(report, notes=(*report.notes, *changed_units(plan.study.hours.find_changed_units(table)), *known))
    return report if verb == "validate" else join_reports(compare_hours(problem, plan, table, new, run), report)


def leave_out_known(plan: LoadedPlan, table: EntityTable) -> tuple[EntityTable, tuple[str, ...]]:
    """Leave out the entities with records of the plan's run, unless all are, and join copies of the others.

    Returns:
        The table, and a note if there are such entities.
    """
    joined, is_known = plan.study.hours.recognize(table)
    note = sentences.describe_known_patients(int(is_known.sum()), len(is_known), table.name)
    new = joined if is_known.all() else joined.take(np.flatnonzero(~is_known))
    return new, (note,) if is_known.any() else ()


def _lacks_labels(table: EntityTable, columns: Sequence[str]) -> bool:
    """Whether a column of labels is missing, or holds no value at all."""
    is_empty = {name: bool(np.isnan(cells).all()) for name, cells in zip(table.columns, table.values.T, strict=True)}
    return any(is_empty.get(column, column not in table.unreadable) for column in columns)


def observe_promises(plan: LoadedPlan, table: EntityTable, new: DriftSample) -> list[Promise]:
    """List the promises of a plan with what the labelled patients of a table show.

    Args:
        plan: The plan.
        table: The patients.
        new: What the models and the policy of the plan do with them.

    Raises:
        UnfoldError: A label is neither 0 nor 1.
    """
    targets = [stage.target for stage in plan.problem.stages]
    entered, highest = label_stages(table, targets)
    since = np.column_stack([compute_hours_since(entered[:, s], table.timeline) for s in range(len(targets))])
    test, hours = plan.study.rows.test, plan.study.hours
    rows = select_rows(hours.timeline.starts, test)
    now = Observed(new, Labels(entered, since, highest))
    before = Observed(sample_planned(plan, test), Labels(hours.entered[rows], hours.since[rows], hours.highest[rows]))
    return list(_list_promises(plan, now, before))


def _list_promises(plan: LoadedPlan, now: Observed, before: Observed) -> Iterator[Promise]:
    if not plan.serves_baseline:
        yield from _list_certified(plan, now)
    measured = [_measure_outcomes(plan, observed.sample, observed.labels) for observed in (now, before)]
    margins = {"accuracy": SHARE_MARGIN, "utility": UTILITY_MARGIN, "sensitivity": SHARE_MARGIN}
    for name, unit in (("accuracy", "%"), ("utility", ""), ("sensitivity", "%")):
        if all(outcomes[name].denominator.any() for outcomes in measured):
            yield Promise(name=name, unit=unit, now=measured[0][name], before=measured[1][name], margin=margins[name])
    yield Promise(
        name="alerts", unit="/100 h", now=measured[0]["alerts"], before=measured[1]["alerts"], margin=ALERT_MARGIN,
        higher_is_better=False,
    )  # fmt: skip
    if not plan.serves_baseline:
        yield Promise(
            name="saving", unit="x", now=measured[0]["saving"], before=measured[1]["saving"], margin=SAVING_MARGIN,
            is_relative=True,
        )  # fmt: skip


def _list_certified(plan: LoadedPlan, now: Observed) -> Iterator[Promise]:
    """Yield what the certificate of the cascade covers: the loss, each outcome of the goal, the saving, the budget."""
    goal, cohort, final = plan.problem.goal, now.cohort, len(plan.problem.stages)
    conducts = [Conduct(stage, stage == final) for stage in (now.sample.baseline_stage, now.sample.trajectories.stage)]
    if goal.max_loss is not None:
        loss = average_by_patient(conducts[1].stage, now.sample.baseline_stage, cohort.highest, cohort.cluster)
        sums = Sums(numerator=loss, denominator=np.ones(len(loss)))
        yield Promise(name="loss", unit="points", now=sums, limit=goal.max_loss, largest=1.0, higher_is_better=False)
    for outcome in goal.outcomes:
        summed = sum_outcome(outcome, CohortConduct(cohort, conducts[0], conducts[1:]))
        if summed.denominator.any():
            sums = Sums(numerator=summed.numerator, denominator=summed.denominator)
            is_mean = outcome.within_h is not None or outcome.label is not None
            yield Promise(
                name=f"certified {outcome.measure}",
                unit="points" if is_mean else "",
                now=sums,
                limit=summed.limit,
                largest=1.0 if is_mean else None,
                higher_is_better=False,
            )
    costs = _sum_compared_costs(plan, now)
    if goal.min_saving is not None:
        sums = Sums(numerator=costs[0], denominator=costs[1])
        yield Promise(name=CERTIFIED_SAVING, unit="x", now=sums, limit=goal.min_saving)
    if goal.budget is not None:
        hours = cohort.timeline.sum_by_cluster(np.diff(cohort.timeline.starts).astype(np.float64))
        sums = Sums(numerator=costs[1], denominator=hours)
        yield Promise(name="certified cost", unit="", now=sums, limit=goal.budget, higher_is_better=False)


def _sum_compared_costs(plan: LoadedPlan, now: Observed) -> tuple[FloatArray, FloatArray]:
    """Sum the costs of baseline and cascade, in what the plan compares, over the hours of each patient."""
    by, transitions = plan.problem.cost.by, plan.problem.transitions
    arrays = build_policy_arrays(plan.baseline.policy, ALWAYS_EVALUATED)
    bill: dict[str, float] = {}
    if "+" in by:
        tuned = sample_planned(plan, plan.study.rows.train)
        trajectories = simulate(tuned.timeline, tuned.scores, arrays, transitions)
        bill = compute_bill(trajectories, tuned.scores, plan.call_costs)
    measure, sample = build_cost_measure(by, bill, plan.call_costs), now.sample
    baseline = simulate(sample.timeline, sample.scores, arrays, transitions)
    base_costs, costs = (measure.sum_by_patient(sample.scores, each) for each in (baseline, sample.trajectories))
    return sample.timeline.sum_by_cluster(base_costs), sample.timeline.sum_by_cluster(costs)


def _measure_outcomes(plan: LoadedPlan, sample: DriftSample, labels: Labels) -> dict[str, Sums]:
    """Sum what is served by patient: its accuracy, utility, sensitivity within 48 h, alerts and saving."""
    timeline, final = sample.timeline, len(plan.problem.stages)
    starts, entity = timeline.starts, index_entities(timeline.starts)
    stage = sample.baseline_stage if plan.serves_baseline else sample.trajectories.stage.astype(np.int64)
    alert: BoolArray = stage == final

    def total(values: FloatArray | BoolArray) -> FloatArray:
        return timeline.sum_by_cluster(np.bincount(entity, values, len(starts) - 1).astype(np.float64))

    since_last = labels.since[:, -1]
    utility, events = compute_utility(since_last), locate_events(since_last, starts)
    gain = utility.alert - utility.silence
    has_event = events.has_lead_time
    caught = np.zeros(len(starts) - 1)
    caught[has_event] = compute_lead_hours(alert, events, starts) > 0
    return {
        "accuracy": Sums(numerator=total(stage == labels.highest), denominator=total(np.ones(len(entity)))),
        "utility": Sums(numerator=total(gain * alert), denominator=total(gain * utility.optimal)),
        "sensitivity": Sums(
            numerator=timeline.sum_by_cluster(caught),
            denominator=timeline.sum_by_cluster(has_event.astype(np.float64)),
        ),
        "alerts": Sums(numerator=100.0 * total(alert & events.event_free), denominator=total(events.event_free)),
        "saving": _measure_saving(plan, sample),
    }


def _measure_saving(plan: LoadedPlan, sample: DriftSample) -> Sums:
    currency = plan.problem.cost.currency
    arrays = build_policy_arrays(plan.baseline.policy, ALWAYS_EVALUATED)
    baseline = simulate(sample.timeline, sample.scores, arrays, plan.problem.transitions)
    costs = [
        sample.timeline.sum_by_cluster(sum_costs(trajectories, sample.scores, plan.call_costs, currency))
        for trajectories in (baseline, sample.trajectories)
    ]
    return Sums(numerator=costs[0], denominator=costs[1])
