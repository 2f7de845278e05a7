"""Scores of labels and real values: against other programs, against resampling, and against constants."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import f1_score, mean_absolute_error, r2_score, roc_auc_score

from unfold_supernet.training.accuracy import select_front
from unfold_supernet.training.head_quality import HeadQuality, build_constant, evaluate_labels, evaluate_values
from unfold_supernet.training.verdict import Goal, judge_family


def draw_labels(seed: int, rows: int, skill: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels, and probabilities which know more about them the larger ``skill`` is; many are tied."""
    rng = np.random.default_rng(seed)
    y = (rng.random((rows, 3)) < (0.5, 0.2, 0.1)).astype(np.int64)
    y[0], y[1] = 1, 0
    scores = 1 / (1 + np.exp(-(rng.normal(size=y.shape) + skill * y)))
    return np.round(scores, 2), y


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(5, 200), st.floats(0, 3))
def test_scores_of_labels_equal_scikit_learn(seed: int, rows: int, skill: float) -> None:
    """Macro AUROC and macro F1 are those of scikit-learn, ties included."""
    scores, y = draw_labels(seed, rows, skill)
    quality = evaluate_labels(scores, y)
    assert quality.score == pytest.approx(roc_auc_score(y, scores, average="macro") * 100)
    expected = f1_score(y, scores >= 0.5, average="macro", zero_division=0)
    assert quality.measures["macro F1"] == pytest.approx(expected * 100)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(5, 200), st.integers(1, 3))
def test_scores_of_values_equal_scikit_learn(seed: int, rows: int, width: int) -> None:
    """R² around the rows' own mean and the absolute errors are those of scikit-learn."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(rows, width))
    outputs = y + rng.normal(size=y.shape)
    quality = evaluate_values(outputs, y, y.mean(axis=0))
    assert quality.score == pytest.approx(r2_score(y, outputs) * 100)
    assert [error for error, _ in quality.errors] == pytest.approx(
        mean_absolute_error(y, outputs, multioutput="raw_values").tolist()
    )


@pytest.mark.parametrize("task", ["labels", "values"])
def test_intervals_hold_at_their_confidence(task: str) -> None:
    """Over 400 samples, the 95 % interval holds the score of a very large sample in at least 92 %."""
    rng = np.random.default_rng(7)

    def draw(rows: int) -> HeadQuality:
        if task == "labels":
            y = (rng.random((rows, 2)) < (0.5, 0.3)).astype(np.int64)
            return evaluate_labels(rng.normal(size=y.shape) + y, y)
        y = rng.normal(size=(rows, 2))
        return evaluate_values(0.7 * y + 0.5 * rng.normal(size=y.shape), y, np.zeros(2))

    truth = draw(200_000).score
    inside = [low <= truth <= high for low, high in (draw(150).interval for _ in range(400))]
    assert np.mean(inside) > 0.92


@pytest.mark.parametrize(("applies", "shift"), [(1, 0.0), (3, 0.0), (3, 1.8), (10, 1.8), (10, 3.3), (100, 3.3)])
def test_rare_labels_are_not_promised_more_than_they_reach(applies: int, shift: float) -> None:
    """Few rows that are ranked without a mistake prove little: at most 8 % of the bounds lie above the true AUROC."""
    rng, rows = np.random.default_rng(applies), 50 + applies
    truth = 100 * norm.cdf(shift / math.sqrt(2))
    y = (np.arange(rows) < applies).astype(np.int64)[:, None]
    qualities = [evaluate_labels(norm.cdf(rng.normal(size=y.shape) + shift * y), y) for _ in range(300)]
    assert np.mean([quality.bound_below(1) > truth for quality in qualities]) <= 0.08
    chance = build_constant(50.0, qualities[0])
    beat = [quality.score > 50 and quality.compare(chance).is_significant for quality in qualities]
    assert np.mean(beat) <= 0.05 or shift > 0
    assert np.mean(beat) > 0.9 or applies < 10


def test_errors_count_groups_not_rows() -> None:
    """Rows repeated a hundred times within their group leave the interval as wide as it was."""
    scores, y = draw_labels(1, 60, 1.0)
    single = evaluate_labels(scores, y, np.arange(60))
    repeated = evaluate_labels(np.repeat(scores, 100, 0), np.repeat(y, 100, 0), np.repeat(np.arange(60), 100))
    assert repeated.score == pytest.approx(single.score)
    assert repeated.half_width == pytest.approx(single.half_width, rel=0.05)


def test_a_label_without_both_values_has_no_score() -> None:
    """A label that the test rows never or always show is left out, and named by NaN."""
    scores, y = draw_labels(2, 50, 1.0)
    y[:, 1] = 0
    quality = evaluate_labels(scores, y)
    assert math.isnan(quality.by_output[1])
    assert quality.score == pytest.approx(np.mean([quality.by_output[0], quality.by_output[2]]))


def test_members_without_skill_are_useless() -> None:
    """Chance in labels and the training mean in values do not beat their constant; skill does."""
    for skills, useless in (((0.0, 2.0), ("s0",)), ((1.5, 3.0), ())):
        qualities = {f"s{index}": evaluate_labels(*draw_labels(5, 400, skill)) for index, skill in enumerate(skills)}
        constant = build_constant(50.0, qualities["s0"])
        verdict = judge_family(qualities, [1.0, 2.0], [], constant, Goal(score=99.9), "labels")
        assert (verdict.useless, verdict.misses_score) == (useless, True)
    y = np.random.default_rng(0).normal(size=(200, 1))
    mean = evaluate_values(np.zeros_like(y), y, np.zeros(1))
    assert mean.score == pytest.approx(0)
    assert not mean.compare(build_constant(0.0, mean)).is_significant


def test_front_of_heads_takes_significant_gains_only() -> None:
    """A member that repeats its smaller one is not on the front; a better one is."""
    small, large = (evaluate_labels(*draw_labels(9, 500, skill)) for skill in (0.5, 2.5))
    assert select_front([1.0, 2.0, 3.0], [small, small, large]) == [0, 2]
