"""Whether the promises of a certified cascade break for the last patients, in the order in which their records began.

A random split hides a change over calendar time, as every part holds early and late patients. The test is that of
``data.case_order``, with one number for each patient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.data.case_order import are_sorted, find_late_break
from unfold_cascade.planner.saving import BUDGET, SAVING
from unfold_cascade.planner.select import COST_DRIFTED, LOSS_DRIFTED, OUTCOME_DRIFTED
from unfold_cascade.temporal.evaluation.evaluate import Outcome
from unfold_cascade.temporal.models.study import Cohort, Study
from unfold_cascade.temporal.search.outcome_guarantees import list_units, sum_outcome
from unfold_cascade.temporal.search.select import CohortTrial, Selection, count_hours, try_on_cohort
from unfold_cascade.temporal.simulation.cost import CostMeasure

LOSS = "loss"
Excesses = tuple[str, IntArray, FloatArray]
"""A promise, and (u,) numbers of units with how much each exceeds it."""


def refuse_late_break(
    study: Study, selection: Selection, baselines: Sequence[tuple[Cohort, Outcome]], measure: CostMeasure
) -> Selection:
    """Certify no cascade if the last patients break a promise that the earlier ones keep.

    Patients in no known order, or sorted by the stage that they reach, show no change over time.

    Args:
        study: The study.
        selection: The selection.
        baselines: What the baseline does on each cohort to test on: together a random sample of the patients.
        measure: What costs are compared by.
    """
    if not selection.is_certified:
        return selection
    found: dict[str, list[tuple[IntArray, FloatArray]]] = {}
    ranks, stages = [], []
    for cohort, outcome in baselines:
        if cohort.timeline.order is None:
            return selection
        trial = try_on_cohort(study, cohort, [selection.point], outcome, measure)
        rank, stage = _rank_units(cohort, cohort.timeline.order), np.zeros(cohort.clusters, dtype=np.int64)
        np.maximum.at(stage, cohort.cluster, cohort.highest)
        ranks.append(rank)
        stages.append(stage)
        for name, units, excess in _list_excesses(study, trial):
            found.setdefault(name, []).append((rank[units], excess))
    if are_sorted(np.concatenate(stages)[np.argsort(np.concatenate(ranks))]):
        return selection
    broken = find_late_break({name: _order(parts) for name, parts in found.items()})
    if broken is None:
        return selection
    reason = {LOSS: LOSS_DRIFTED, SAVING: COST_DRIFTED, BUDGET: COST_DRIFTED}.get(broken, OUTCOME_DRIFTED)
    return replace(selection, is_certified=False, reason=reason)


def _rank_units(cohort: Cohort, order: IntArray) -> IntArray:
    """Rank the independent units by the first of their entities, from the (P,) ranks of these."""
    rank = np.full(cohort.clusters, np.iinfo(np.int64).max)
    np.minimum.at(rank, cohort.timeline.cluster, order)
    return rank


def _list_excesses(study: Study, trial: CohortTrial) -> Iterator[Excesses]:
    """List by promise how much each unit exceeds it; the promise holds where the mean is at most 0."""
    goal, cohort, costs = study.problem.goal, trial.conduct.cohort, trial.costs[0]
    units = np.arange(cohort.clusters)
    if goal.max_loss is not None:
        yield LOSS, units, trial.loss_differences()[0] - goal.max_loss
    if goal.min_saving is not None:
        yield SAVING, units, costs.excess(goal.min_saving)
    if goal.budget is not None:
        yield BUDGET, units, costs.over(goal.budget * count_hours(cohort)).excess(1.0)
    for outcome in goal.outcomes:
        sums = sum_outcome(outcome, trial.conduct)
        yield outcome.name, list_units(outcome, cohort), sums.numerator - sums.limit * sums.denominator


def _order(parts: Sequence[tuple[IntArray, FloatArray]]) -> FloatArray:
    """Join the values of several cohorts, and order them by rank."""
    rank, values = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    ordered: FloatArray = values[np.argsort(rank)]
    return ordered
