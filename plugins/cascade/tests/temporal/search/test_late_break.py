"""What the last patients break is not certified, though a random split puts such patients into every part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unfold_cascade._types import FloatArray
from unfold_cascade.planner.select import COST_DRIFTED, LOSS_DRIFTED, OUTCOME_DRIFTED
from unfold_cascade.temporal.problem import CascadeGoal, OutcomeGoal
from unfold_cascade.temporal.search.compose import FrontPoint
from unfold_cascade.temporal.search.late_break import refuse_late_break
from unfold_cascade.temporal.search.outcome_guarantees import list_units, sum_outcome
from unfold_cascade.temporal.search.planner import SearchResult
from unfold_cascade.temporal.search.select import CohortTrial, Selection, try_on_cohort
from unfold_cascade.temporal.simulation.cost import CostMeasure, build_cost_measure

ALERTS = OutcomeGoal(name="alerts", measure="alerts", stage=2, per_100h=10.0)
SENSITIVITY = OutcomeGoal(name="sensitivity", measure="sensitivity", stage=2, within_h=12.0)
LABEL = OutcomeGoal(name="label", measure="label", stage=2, label=1)


def _build_measure(search: SearchResult) -> CostMeasure:
    return build_cost_measure("flops", search.baselines.latched_quality.bill, search.study.call_costs)


def _choose_point(search: SearchResult) -> FrontPoint:
    return sorted(search.front.points, key=lambda point: point.cost)[len(search.front.points) // 2]


def _try_point(search: SearchResult) -> list[CohortTrial]:
    study, measure, trials = search.study, _build_measure(search), []
    for cohort in (study.train, study.calibrate, study.test):
        latched = search.baselines.decode_both(cohort, study)[0]
        trials.append(try_on_cohort(study, cohort, [_choose_point(search)], latched, measure))
    return trials


def _measure_excess(trial: CohortTrial, kind: str, outcome: OutcomeGoal | None, min_saving: float) -> FloatArray:
    if outcome is None:
        return trial.costs[0].excess(min_saving) if kind == "saving" else trial.loss_differences()[0]
    excess, sums = np.full(trial.conduct.cohort.clusters, np.nan), sum_outcome(outcome, trial.conduct)
    excess[list_units(outcome, trial.conduct.cohort)] = sums.numerator - sums.limit * sums.denominator
    return excess


@pytest.mark.parametrize(
    ("kind", "outcome", "reason"),
    [
        ("loss", None, LOSS_DRIFTED),
        ("saving", None, COST_DRIFTED),
        ("outcome", ALERTS, OUTCOME_DRIFTED),
        ("outcome", LABEL, OUTCOME_DRIFTED),
    ],
)
def test_a_promise_that_the_last_patients_break_is_refused(
    search: SearchResult, kind: str, outcome: OutcomeGoal | None, reason: str
) -> None:
    """The same patients in random order, or in none that is known, keep their certificate."""
    # fewer than 60 patients with an event say nothing
    trials, rng = 2 * _try_point(search), np.random.default_rng(1)
    sums = [(trial.costs[0].baseline.sum(), trial.costs[0].cascade.sum()) for trial in trials]
    baseline, cascade = np.sum(sums, axis=0).tolist()
    min_saving = 0.9999 * baseline / cascade
    excess = np.concatenate([_measure_excess(trial, kind, outcome, min_saving) for trial in trials])
    allowed = float(np.nanmean(excess)) + 1e-3
    goal = CascadeGoal(
        max_loss=allowed if kind == "loss" else None,
        budget=None,
        confidence=0.95,
        outcomes=() if outcome is None else (replace(outcome, allowed=allowed),),
        min_saving=min_saving if kind == "saving" else None,
    )
    study = replace(search.study, problem=replace(search.problem, goal=goal))
    selection = Selection(
        point=_choose_point(search), is_certified=True, certified_loss=0.0, cases=40, method="betting"
    )
    random = rng.permutation(len(excess))
    # not all of them: patients sorted by what they reach say nothing either
    is_late = (excess > allowed) & (rng.random(len(excess)) < 0.6)
    late = np.argsort(np.argsort(random + len(excess) * is_late))
    found = []
    for order in (late, random, None):
        ends = np.cumsum([trial.conduct.cohort.clusters for trial in trials])[:-1]
        ranks = [None] * len(trials) if order is None else np.split(order, ends)
        parts = []
        for trial, rank in zip(trials, ranks, strict=True):
            cohort = trial.conduct.cohort
            ordered = replace(cohort, timeline=replace(cohort.timeline, order=rank))
            parts.append((ordered, search.baselines.decode_both(cohort, search.study)[0]))
        tested = refuse_late_break(study, selection, parts, _build_measure(search))
        found.append((tested.is_certified, tested.reason))
    assert found == [(False, reason), (True, ""), (True, "")]


@pytest.mark.parametrize("outcome", [ALERTS, SENSITIVITY, LABEL])
def test_each_number_of_an_outcome_has_its_patient(search: SearchResult, outcome: OutcomeGoal) -> None:
    """An outcome of some patients, such as those with an event, leaves the others out of their order."""
    for trial in _try_point(search):
        units = list_units(outcome, trial.conduct.cohort)
        assert len(units) == len(sum_outcome(outcome, trial.conduct).numerator)
        assert (np.diff(units) > 0).all()
