"""Validation over time: the cascade of a plan on new patients, beside what was promised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.drift.outcomes import Promise, Sums, judge_promises
from unfold_cascade.drift.statistics import DriftSample
from unfold_cascade.drift.temporal import check_drift, compare_hours, sample_new, sample_planned
from unfold_cascade.drift.validation_report import (
    ValidationData,
    build_validation_report,
    describe_unlabelled,
    join_reports,
)
from unfold_cascade.temporal.data.readers import read_table
from unfold_cascade.temporal.data.table import compute_hours_since, index_entities, select_rows
from unfold_cascade.temporal.data.targets import label_stages
from unfold_cascade.temporal.data.warning_metrics import compute_lead_hours, compute_utility, locate_events
from unfold_cascade.temporal.problem import TemporalProblem
from unfold_cascade.temporal.report import sentences
from unfold_cascade.temporal.serving.plan_loader import LoadedPlan, load_temporal_plan
from unfold_cascade.temporal.simulation.cost import sum_costs
from unfold_cascade.temporal.simulation.policy import ALWAYS_EVALUATED, build_policy_arrays
from unfold_cascade.temporal.simulation.trajectories import simulate
from unfoldkit.api import Report, Run

UTILITY_MARGIN = 0.02
SHARE_MARGIN = 0.05
ALERT_MARGIN = 1.0
SAVING_MARGIN = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPatients:
    """Labels of some hours: (n,) highest stage entered and (n,) hours since the entry into the last one."""

    highest: IntArray
    since_last: FloatArray


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
    columns = {target.column for target in targets if target.column is not None}
    if columns - set(table.columns) - set(table.unreadable):
        return describe_unlabelled(check_drift(problem, planned, run), verb)
    plan = load_temporal_plan(planned, run, run.options.get("baseline_plan") or run.options["plan"])
    _, highest = label_stages(table, targets)
    entered_last = highest == len(targets)
    now = LabelledPatients(highest=highest, since_last=compute_hours_since(entered_last, table.timeline))
    new = sample_new(plan, table, run)
    test, hours = plan.study.rows.test, plan.study.hours
    rows = select_rows(hours.timeline.starts, test)
    before = LabelledPatients(highest=hours.highest[rows], since_last=hours.since[rows, -1])
    promises = list(_list_promises(plan, (new, now), (sample_planned(plan, test), before)))
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
    return report if verb == "validate" else join_reports(compare_hours(problem, plan, table, new, run), report)


Observed = tuple[DriftSample, LabelledPatients]


def _list_promises(plan: LoadedPlan, now: Observed, before: Observed) -> Iterator[Promise]:
    max_loss = plan.problem.goal.max_loss
    if max_loss is not None and not plan.serves_baseline:
        sample, patients = now
        final = sample.trajectories.stage.astype(np.int64)
        extra = (final != patients.highest).astype(np.float64) - (sample.baseline_stage != patients.highest)
        starts = sample.timeline.starts
        loss = np.bincount(index_entities(starts), extra, len(starts) - 1) / np.maximum(np.diff(starts), 1)
        yield Promise(
            name="loss", unit="points", now=Sums(numerator=loss, denominator=np.ones(len(loss))), limit=max_loss
        )
    measured = [_measure_outcomes(plan, *observed) for observed in (now, before)]
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


def _measure_outcomes(plan: LoadedPlan, sample: DriftSample, patients: LabelledPatients) -> dict[str, Sums]:
    """Sum what is served by patient: its accuracy, utility, sensitivity within 48 h, alerts and saving."""
    starts, final = sample.timeline.starts, len(plan.problem.stages)
    entity, count = index_entities(starts), len(starts) - 1
    stage = sample.baseline_stage if plan.serves_baseline else sample.trajectories.stage.astype(np.int64)
    alert: BoolArray = stage == final

    def total(values: FloatArray | BoolArray) -> FloatArray:
        return np.bincount(entity, values, count).astype(np.float64)

    utility, events = compute_utility(patients.since_last), locate_events(patients.since_last, starts)
    gain = utility.alert - utility.silence
    lead_h = compute_lead_hours(alert, events, starts)
    return {
        "accuracy": Sums(numerator=total(stage == patients.highest), denominator=np.diff(starts).astype(np.float64)),
        "utility": Sums(numerator=total(gain * alert), denominator=total(gain * utility.optimal)),
        "sensitivity": Sums(numerator=(lead_h > 0).astype(np.float64), denominator=np.ones(len(lead_h))),
        "alerts": Sums(numerator=100.0 * total(alert & events.event_free), denominator=total(events.event_free)),
        "saving": _measure_saving(plan, sample),
    }


def _measure_saving(plan: LoadedPlan, sample: DriftSample) -> Sums:
    currency = plan.problem.cost.currency
    arrays = build_policy_arrays(plan.baseline.policy, ALWAYS_EVALUATED)
    baseline = simulate(sample.timeline, sample.scores, arrays, plan.problem.transitions)
    costs = [
        sum_costs(trajectories, sample.scores, plan.call_costs, currency)
        for trajectories in (baseline, sample.trajectories)
    ]
    return Sums(numerator=costs[0], denominator=costs[1])
