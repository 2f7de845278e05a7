"""Guarantees on outcomes over time: sensitivity, alert rate, utility, and the loss within one stage.

Each is a mean over patients, so that the certificate counts patients and no hours. Rates and utilities are ratios of
sums over hours. ``A / B <= x`` is tested as ``E[a - x * b] <= 0``, where a and b are the sums of one patient. A patient
of the certifying cohort with more than twice the largest sum of the tuning cohort refuses the guarantee.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.planner.guarantees import Guarantee
from unfold_cascade.planner.saving import average_by_unit
from unfold_cascade.temporal.early_warning_metrics import LABEL_LEAD_H
from unfold_cascade.temporal.models.study import Cohort
from unfold_cascade.temporal.problem import OutcomeGoal
from unfold_cascade.temporal.simulation.trajectories import Int8

HEADROOM = 2.0
TINY = 1e-300


@dataclass(frozen=True, slots=True)
class Conduct:
    """What a policy or a baseline does on a cohort: (n,) stages and (n,) alerts of the last stage."""

    stage: IntArray | Int8
    alert: BoolArray

    def has_reached(self, stage: int, stages: int) -> BoolArray:
        """Mark the (n,) hours at which it places the patient in ``stage`` or later; the last stage is the alert."""
        reached: BoolArray = self.alert if stage == stages else self.stage >= stage
        return reached


@dataclass(frozen=True, slots=True)
class CohortConduct:
    """A cohort, what the baseline does on it, and what each of m cascades does."""

    cohort: Cohort
    baseline: Conduct
    cascades: Sequence[Conduct]


def build_outcome_guarantees(
    goals: Sequence[OutcomeGoal], tune: CohortConduct, fresh: CohortConduct
) -> list[Guarantee]:
    """Build one guarantee for each outcome of a goal, over m cascades."""
    return [_build_guarantee(goal, tune, fresh) for goal in goals]


def measure_sensitivity(cohort: Cohort, conduct: Conduct, stage: int, within_h: float) -> FloatArray:
    """Compute (P,) whether each patient that enters a stage is placed there at most ``within_h`` before the event.

    Of a patient with several stays it is the share of them.

    The event of a stage is its onset, ``LABEL_LEAD_H`` after the label of the last stage. Patients without an hour in
    the window are left out.
    """
    is_window = _mark_window(cohort, stage, within_h)
    patients, index = np.unique(cohort.entity[is_window], return_inverse=True)
    caught = np.zeros(len(patients))
    has_reached = conduct.has_reached(stage, cohort.entered.shape[1])
    np.maximum.at(caught, index, has_reached[is_window].astype(np.float64))
    return average_by_unit(caught, cohort.timeline.cluster[patients])


def _mark_window(cohort: Cohort, stage: int, within_h: float) -> BoolArray:
    """Mark the (n,) hours at most ``within_h`` before the event of a stage."""
    since, is_last = cohort.since[:, stage - 1], stage == cohort.entered.shape[1]
    until = np.where(np.isfinite(since), LABEL_LEAD_H - since, np.inf) if is_last else _hours_until(cohort, stage)
    is_window: BoolArray = (until >= 0) & (until <= within_h)
    return is_window


def _hours_until(cohort: Cohort, stage: int) -> FloatArray:
    """Compute (n,) the hours until a patient enters ``stage``, negative afterwards and infinite where it never does."""
    entered, entity = cohort.entered[:, stage - 1], cohort.entity
    hour = np.arange(len(entity)) - cohort.timeline.starts[entity]
    entry = np.full(cohort.entities, np.inf)
    np.minimum.at(entry, entity[entered], hour[entered])
    until: FloatArray = entry[entity] - hour
    return until


@dataclass(frozen=True, slots=True)
class OutcomeSums:
    """An outcome as a ratio of sums by patient, (P,) each, and the limit of that ratio in a goal."""

    numerator: FloatArray
    denominator: FloatArray
    limit: float


def sum_outcome(goal: OutcomeGoal, part: CohortConduct) -> OutcomeSums:
    """Sum an outcome of the only cascade of ``part``: events missed, alerts per 100 hours, or utility lost."""
    if goal.within_h is not None or goal.label is not None:
        missed = _compare(goal, part)[0]
        return OutcomeSums(missed, np.ones(len(missed)), goal.allowed)
    cohort = part.cohort
    if goal.per_100h is not None:
        free, alert = _mark_free(goal, part), part.cascades[0].has_reached(goal.stage, cohort.entered.shape[1])
        alerts, hours = (_sum_by_patient(cohort, each.astype(np.float64)) for each in (free & alert, free))
        return OutcomeSums(100.0 * alerts, hours, goal.per_100h)
    gain = cohort.utility.alert - cohort.utility.silence
    lost = gain * part.baseline.alert - gain * part.cascades[0].alert
    possible = np.where(cohort.utility.optimal, gain, 0.0)
    return OutcomeSums(_sum_by_patient(cohort, lost), _sum_by_patient(cohort, possible), goal.allowed)


def list_units(goal: OutcomeGoal, cohort: Cohort) -> IntArray:
    """List the numbers of the independent units that ``sum_outcome`` counts, in its order."""
    if goal.within_h is not None:
        units: IntArray = np.unique(cohort.cluster[_mark_window(cohort, goal.stage, goal.within_h)])
        return units
    return np.arange(cohort.clusters) if goal.label is None else np.unique(cohort.cluster[cohort.highest == goal.label])


def _sum_by_patient(cohort: Cohort, values: FloatArray) -> FloatArray:
    """Sum (n,) values by patient, (P,)."""
    sums: FloatArray = np.bincount(cohort.cluster, values, cohort.clusters).astype(np.float64)
    return sums


def _mark_free(goal: OutcomeGoal, part: CohortConduct) -> BoolArray:
    """Mark the (n,) hours at which an alert of the stage is false."""
    cohort = part.cohort
    is_last = goal.stage == cohort.entered.shape[1]
    free: BoolArray = cohort.events.event_free if is_last else ~cohort.entered[:, goal.stage - 1]
    return free


def _build_guarantee(goal: OutcomeGoal, tune: CohortConduct, fresh: CohortConduct) -> Guarantee:
    if goal.within_h is not None or goal.label is not None:
        before, after = (_compare(goal, part) for part in (tune, fresh))
        return Guarantee(goal.name, goal.allowed, before, after, is_cost=True)
    before, after = (_sum_excess(goal, part) for part in (tune, fresh))
    scaled = [_scale(*pair) for pair in zip(before, after, strict=True)]
    tune_part, fresh_part = (np.array([pair[part] for pair in scaled]) for part in (0, 1))
    return Guarantee(goal.name, 0.0, tune_part, fresh_part, is_cost=True)


def _compare(goal: OutcomeGoal, part: CohortConduct) -> FloatArray:
    """Compute (m, P) how much more each cascade misses than the baseline: events, or hours of one true stage."""
    cohort = part.cohort
    if goal.within_h is not None:
        base = measure_sensitivity(cohort, part.baseline, goal.stage, goal.within_h)
        missed = [base - measure_sensitivity(cohort, each, goal.stage, goal.within_h) for each in part.cascades]
        return np.array(missed)
    is_label = cohort.highest == goal.label
    clusters, truth = cohort.cluster[is_label], cohort.highest[is_label]
    base = (part.baseline.stage[is_label] != truth).astype(np.float64)
    differences = [(each.stage[is_label] != truth) - base for each in part.cascades]
    return np.array([average_by_unit(each, clusters) for each in differences])


def _sum_excess(goal: OutcomeGoal, part: CohortConduct) -> FloatArray:
    """Compute (m, P) the sum over hours of what each cascade has too much: alerts, or utility lost."""
    cohort = part.cohort
    if goal.per_100h is not None:
        free, stages = _mark_free(goal, part), cohort.entered.shape[1]
        alerts = [each.has_reached(goal.stage, stages) for each in part.cascades]
        hours = [np.where(free, alert - goal.per_100h / 100.0, 0.0) for alert in alerts]
        return np.array([_sum_by_patient(cohort, each) for each in hours])
    gain = cohort.utility.alert - cohort.utility.silence
    possible = np.where(cohort.utility.optimal, gain, 0.0)
    base = gain * part.baseline.alert
    lost = [base - gain * each.alert - goal.allowed * possible for each in part.cascades]
    return np.array([_sum_by_patient(cohort, each) for each in lost])


def _scale(tune: FloatArray, fresh: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Scale sums to [-1, 1] by twice the largest sum of the tuning cohort; a larger one refuses the guarantee."""
    largest = max(HEADROOM * float(np.abs(tune).max()), TINY)
    if fresh.max() > largest:
        return tune / largest, np.ones(len(fresh))
    return tune / largest, np.maximum(fresh / largest, -1.0)
