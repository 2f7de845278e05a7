"""Laws of outcomes over time: each is certified by patient, at most delta of false certificates pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from unfold_cascade._types import BoolArray
from unfold_cascade.planner.guarantees import compute_cost_tests
from unfold_cascade.temporal.data.table import Timeline, index_entities, starts_from_sizes
from unfold_cascade.temporal.early_warning_metrics import compute_utility, locate_events
from unfold_cascade.temporal.models.study import Cohort
from unfold_cascade.temporal.problem import OutcomeGoal
from unfold_cascade.temporal.search.outcome_guarantees import (
    CohortConduct,
    Conduct,
    build_outcome_guarantees,
    measure_sensitivity,
    sum_outcome,
)

DELTA = 0.05
GOALS = (
    OutcomeGoal(name="sensitivity", measure="sensitivity", stage=1, within_h=6.0, allowed=0.1),
    OutcomeGoal(name="alerts", measure="alerts", stage=1, per_100h=10.0),
    OutcomeGoal(name="utility", measure="utility", stage=1, allowed=0.1),
    OutcomeGoal(name="label", measure="label", stage=1, label=1, allowed=0.1),
)


def _draw_cohort(rng: np.random.Generator, patients: int) -> Cohort:
    """Draw patients of 20 to 40 hours; every second one gets the label of the only stage at hour 15."""
    starts = starts_from_sizes(rng.integers(20, 40, patients))
    entity = index_entities(starts)
    hour = np.arange(len(entity)) - starts[entity]
    since = np.where(entity % 2 == 0, hour - 15.0, -np.inf)
    fields: dict[str, Any] = {
        "timeline": Timeline(starts, hour.astype(np.float64)),
        "entity": entity,
        "entities": patients,
        "cluster": entity,
        "clusters": patients,
        "entered": (since >= 0)[:, None],
        "since": since[:, None],
        "highest": (since >= 0).astype(np.int64),
        "utility": compute_utility(since),
        "events": locate_events(since, starts),
    }
    return cast("Cohort", SimpleNamespace(**fields))


def _conduct(alert: BoolArray) -> Conduct:
    return Conduct(alert.astype(np.int64), alert)


def _by_patient(cohort: Cohort, chosen: BoolArray, hours: BoolArray) -> BoolArray:
    alert: BoolArray = chosen[cohort.entity] & hours
    return alert


def _draw_part(rng: np.random.Generator, patients: int, goal: OutcomeGoal) -> CohortConduct:
    """Draw a cohort and a cascade that breaks the goal by a hair: patients differ, their hours agree."""
    cohort = _draw_cohort(rng, patients)
    free = cohort.events.event_free
    everyone, late = np.ones(patients, dtype=np.bool_), ~free
    base = _by_patient(cohort, everyone, late)
    if goal.per_100h is not None:
        # one patient in ten alerts at every event-free hour, of all patients alike
        noisy = rng.random(patients) < 0.1
        return CohortConduct(cohort, _conduct(base), [_conduct(_by_patient(cohort, noisy, free) | base)])
    missed = rng.random(patients) < 0.1
    return CohortConduct(cohort, _conduct(base), [_conduct(_by_patient(cohort, ~missed, late))])


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.name)
def test_a_broken_outcome_passes_at_most_at_delta(goal: OutcomeGoal) -> None:
    """At the edge of a goal at most delta of 200 certifying cohorts pass; far inside it the outcome passes."""
    rng, draws = np.random.default_rng(3), 200
    tune = _draw_part(rng, 200, goal)
    passed = 0
    for _ in range(draws):
        (guarantee,) = build_outcome_guarantees([goal], tune, _draw_part(rng, 120, goal))
        passed += compute_cost_tests([guarantee], 1, DELTA).certify[0] <= DELTA
    assert passed <= draws * DELTA + 3 * np.sqrt(draws * DELTA * (1 - DELTA))
    wide = OutcomeGoal(
        name=goal.name,
        measure=goal.measure,
        stage=1,
        within_h=goal.within_h,
        label=goal.label,
        allowed=0.5,
        per_100h=None if goal.per_100h is None else 60.0,
    )
    (guarantee,) = build_outcome_guarantees([wide], tune, _draw_part(rng, 120, wide))
    assert compute_cost_tests([guarantee], 1, DELTA).certify[0] <= DELTA


def test_sensitivity_counts_alerts_within_the_hours_before_the_event() -> None:
    """An alert before the window does not count, one within it does, and each patient counts once."""
    cohort = _draw_cohort(np.random.default_rng(1), 10)
    until = cohort.events.hours_until
    for hours, share in ((until == 5, 1.0), (until == 9, 0.0), (until == -1, 0.0)):
        caught = measure_sensitivity(cohort, _conduct(np.asarray(hours)), 1, 6.0)
        assert len(caught) == 5
        assert caught.mean() == share


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.name)
def test_the_ratio_that_a_validation_states_is_the_one_that_is_certified(goal: OutcomeGoal) -> None:
    """The ratio of the sums is beyond the limit exactly where the mean of the certificate's differences is."""
    rng, beyond = np.random.default_rng(8), set()
    for _ in range(30):
        part = _draw_part(rng, 60, goal)
        sums = sum_outcome(goal, part)
        (guarantee,) = build_outcome_guarantees([goal], part, part)
        ratio = sums.numerator.sum() / sums.denominator.sum()
        assert (ratio > sums.limit) == (guarantee.tune[0].mean() > guarantee.epsilon)
        beyond.add(bool(ratio > sums.limit))
    assert beyond == {True, False}
