"""The certificate counts patients, holds under resampling, and tests strong evidence first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from plugins.cascade.tests.runs import certify_in_sequence
from unfold_cascade.planner import certificate
from unfold_cascade.planner.guarantees import measure_evidence, order_tests
from unfold_cascade.temporal.data.table import index_entities, starts_from_sizes
from unfold_cascade.temporal.evaluation.bootstrap import bootstrap_mean
from unfold_cascade.temporal.problem import OutcomeGoal
from unfold_cascade.temporal.search.outcome_guarantees import CohortConduct, Conduct, sum_outcome
from unfold_cascade.temporal.search.planner import SearchResult
from unfold_cascade.temporal.search.select import average_by_patient


def test_the_certificate_counts_patients_not_hours() -> None:
    """Repeating every hour of a patient leaves the patient's difference unchanged."""
    rng = np.random.default_rng(0)
    entity = index_entities(starts_from_sizes(rng.integers(1, 9, 30)))
    stage, baseline_stage, truth = rng.integers(0, 3, (3, len(entity)))
    single = average_by_patient(stage, baseline_stage, truth, entity)
    repeated = average_by_patient(*(np.repeat(a, 5) for a in (stage, baseline_stage, truth)), np.repeat(entity, 5))
    assert single == pytest.approx(repeated)
    assert len(single) == 30
    assert (np.abs(single) <= 1).all()


def test_the_certificate_holds_in_1000_resampled_calibrations() -> None:
    """If the average patient loses slightly more than certified, at most delta of 1,000 calibrations certify it.

    The hours of a patient agree with each other, so a certificate that counted hours would fail this test.
    """
    delta, epsilon, trials, patients = 0.1, 0.02, 1000, 300
    rng = np.random.default_rng(7)
    pool = _draw_population(rng, 4000, epsilon + 1e-4)
    tuning = pool[rng.integers(0, len(pool), patients)]
    rule = certificate.choose_rule(tuning, epsilon, patients, delta)
    calibrations = pool[rng.integers(0, len(pool), (trials, patients))]
    false = sum(certify_in_sequence(sample[None, :], epsilon, delta, rule) is not None for sample in calibrations)
    assert false <= int(binom.ppf(1 - 1e-4, trials, delta))


def _draw_population(rng: np.random.Generator, patients: int, mean: float) -> np.ndarray:
    """Draw patient differences with a mean of exactly ``mean``; a patient is easy or hard in all of its hours."""
    hours = rng.integers(4, 40, patients)
    hard = rng.random(patients) < 0.15
    truth = np.zeros(int(hours.sum()), dtype=np.int64)
    chance = np.repeat(np.where(hard, 0.5, 0.02), hours)
    stage = (rng.random(len(truth)) < chance).astype(np.int64)
    baseline_stage = (rng.random(len(truth)) < np.repeat(np.where(hard, 0.4, 0.02), hours)).astype(np.int64)
    means = average_by_patient(stage, baseline_stage, truth, np.repeat(np.arange(patients), hours))
    shifted: np.ndarray = np.clip(means + mean - means.mean(), -1.0, 1.0)
    return shifted + (mean - shifted.mean())


def test_points_are_tested_from_strong_evidence_to_low_cost() -> None:
    """Evidence and cost fall along the sequence, and the cheapest point of all is tested last."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        cost, tuning = rng.random(12), rng.normal(rng.normal(0, 0.05, (12, 1)), 0.1, (12, 80)).clip(-1, 1)
        evidence = measure_evidence(tuning, 0.01, tuning.shape[1])
        order = order_tests(cost, evidence)
        assert (np.diff(cost[order]) < 0).all()
        assert (np.diff(evidence[order]) <= 0).all()
        assert order[-1] == int(np.argmin(cost))


def test_a_patient_with_several_stays_counts_once(search: SearchResult) -> None:
    """Losses, costs and outcomes of grouped stays are those of the patient."""
    study, solution = search.study, search.baselines
    group = np.arange(study.calibrate.entities) // 2
    cohort = replace(study.calibrate, timeline=replace(study.calibrate.timeline, group=group))
    latched = solution.decode_both(cohort, study)[0]
    conduct = Conduct(latched.stage, latched.alert)
    goal = OutcomeGoal(name="", measure="", stage=2, per_100h=10.0)
    sums = [sum_outcome(goal, CohortConduct(each, conduct, [conduct])) for each in (study.calibrate, cohort)]
    assert sums[1].numerator == pytest.approx(np.bincount(group, sums[0].numerator))
    assert cohort.clusters == len(sums[1].denominator) == group.max() + 1
    low, high = bootstrap_mean(np.array([0.0, 0.0, 4.0, 4.0]), np.array([0, 0, 3, 3]), seed=0)
    assert (low, high) == (0.0, 4.0)
