"""Accuracy front, significance and intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_supernet.training.accuracy import compare_paired, evaluate_predictions, select_front


def proportion(right: int, rows: int) -> tuple[float, float]:
    """Find the proportions that lie 1.96 of their own deviations from the observed one, by bisection."""
    seen, ends = right / rows, list[float]()
    for side in (0.0, 1.0):
        inner, outer = seen, side
        for _ in range(200):
            middle = (inner + outer) / 2
            far = abs(seen - middle) > 1.96 * math.sqrt(middle * (1 - middle) / rows)
            inner, outer = (inner, middle) if far else (middle, outer)
        ends.append(outer)
    return ends[0], ends[1]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 8))
def test_front_rises_significantly_at_every_step(seed: int, count: int) -> None:
    """Each subnet of the front costs more than the previous one and is significantly more accurate."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 400)
    said = [np.where(rng.random(400) < share, y, (y + 1) % 3) for share in rng.uniform(0.5, 1, count)]
    found = [evaluate_predictions(one, y, 3) for one in said]
    costs = rng.random(count)
    front = select_front(list(costs), found)
    for one, other in itertools.pairwise(front):
        gap = compare_paired(found[other].correct, found[one].correct)
        assert costs[other] >= costs[one]
        assert gap.points > 1.96 * gap.error
    assert front[0] == int(np.argmin(costs))


@pytest.mark.parametrize(("better", "worse", "sure"), [(5, 0, False), (6, 0, True), (8, 1, True), (7, 1, False)])
def test_significance_is_that_of_the_exact_mcnemar_test(better: int, worse: int, sure: bool) -> None:
    """Significance follows McNemar's exact test, whatever the number of rows."""
    for rows in (60, 5000):
        one, other = np.ones(rows, bool), np.ones(rows, bool)
        other[:better] = False
        one[better : better + worse] = False
        chance = 2 * sum(math.comb(better + worse, k) for k in range(worse + 1)) / 2 ** (better + worse)
        assert (
            compare_paired(one, other).is_significant
            is compare_paired(other, one).is_significant
            is sure
            is (chance < 0.05)
        )
    assert not compare_paired(one, one).is_significant


@pytest.mark.parametrize(("right", "rows"), [(360, 360), (359, 360), (0, 20), (180, 360), (8700, 9000)])
def test_interval_is_that_of_wilson(right: int, rows: int) -> None:
    """The interval is Wilson's, also if all or no rows are correct."""
    found = evaluate_predictions(np.zeros(rows, np.int64), (np.arange(rows) >= right).astype(np.int64), 2)
    low, high = proportion(right, rows)
    assert found.half_width == pytest.approx(max(high - right / rows, right / rows - low) * 100, rel=1e-6)
    assert found.half_width > 0


def draw_patients(rng: np.random.Generator, count: int, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw which of 200 rows of each patient are correct; patients differ by 10 points. Return these and the groups."""
    groups = np.repeat(np.arange(count), 200)
    shares = np.clip(mean + rng.normal(0, 0.1, count), 0, 1)
    return rng.random(len(groups)) < shares[groups], groups


def test_intervals_count_patients_and_not_rows() -> None:
    """Of 200 test sets of 11 patients, 95 % cover the accuracy on all patients; by row, most do not."""
    rng = np.random.default_rng(2)
    covered, by_row, promised = 0, 0, 0
    for _ in range(200):
        correct, groups = draw_patients(rng, 11, 0.8)
        zeros = np.zeros(len(groups), np.int64)
        found, rows = (evaluate_predictions(zeros, 1 - correct.astype(np.int64), 2, each) for each in (groups, None))
        covered += found.interval[0] <= 80 <= found.interval[1]
        by_row += rows.interval[0] <= 80 <= rows.interval[1]
        promised += found.bound_below(1) > 80
        assert found.half_width >= rows.half_width
    assert covered >= 182
    assert by_row < 120
    assert promised <= 20


def test_two_members_differ_only_if_patients_agree() -> None:
    """What one of 11 patients loses is chance, however many rows it has; what each of them loses is not."""
    groups, right = np.repeat(np.arange(11), 200), np.ones(2200, bool)
    one_patient, each_patient = (np.where(wrong, False, right) for wrong in (groups == 0, np.arange(2200) % 10 == 0))
    for wrong, is_sure in ((one_patient, False), (each_patient, True)):
        assert compare_paired(right, wrong, groups).is_significant is is_sure
        assert compare_paired(right, wrong).is_significant
    assert compare_paired(right, one_patient, groups).bound_above > compare_paired(right, one_patient).bound_above
    assert not compare_paired(right, right, groups).is_significant


def test_a_single_patient_counts_by_row() -> None:
    """Where all rows are of one group, nothing is known of others: rows are counted."""
    correct = np.arange(100) < 90
    found = evaluate_predictions(np.zeros(100, np.int64), 1 - correct.astype(np.int64), 2, np.zeros(100, np.int64))
    assert found.half_width < 10


def test_many_classes_are_evaluated_in_little_memory() -> None:
    """No matrix of all pairs of classes is built: it would take terabytes."""
    y = np.arange(1_000_000)
    quality = evaluate_predictions(np.where(y < 500_000, y, 0), y, len(y))
    assert (quality.accuracy, len(quality.sensitivity)) == (50, len(y))
    assert quality.macro_f1 == pytest.approx(50, abs=1e-3)
