"""Which families get a yes: they beat the commonest class, grow with their size, and meet the goal."""

from __future__ import annotations

import numpy as np
import pytest

from unfold_supernet.training.accuracy import PairedDifference, evaluate_commonest_class, evaluate_predictions
from unfold_supernet.training.verdict import FamilyVerdict, Goal, judge_family

ROWS = 600


def judge(
    accuracies: list[float],
    goal: Goal | None = None,
    majority: float = 0.5,
    gaps: list[PairedDifference] | None = None,
    seed: int = 0,
) -> FamilyVerdict:
    """Judge a family of random classifiers with these accuracies on two classes."""
    rng = np.random.default_rng(seed)
    y = (rng.random(ROWS) >= majority).astype(np.int64)
    qualities = {
        f"s{index}": evaluate_predictions(np.where(rng.random(ROWS) < accuracy, y, 1 - y), y, 2)
        for index, accuracy in enumerate(accuracies)
    }
    constant = evaluate_commonest_class(y, 2)
    return judge_family(qualities, list(range(len(qualities))), gaps or [], constant, goal or Goal())


def test_good_family_is_accepted() -> None:
    """Members beyond the commonest class and a rising front need no goal."""
    assert judge([0.8, 0.95]).is_met


def test_member_at_the_commonest_class_is_named() -> None:
    """A member that is no better than always predicting the commonest class turns the answer into a no."""
    verdict = judge([0.9, 0.99], majority=0.9)
    assert verdict.useless == ("s0",)
    assert not verdict.is_met
    assert verdict.constant == pytest.approx(90, abs=4)


def test_a_constant_of_either_class_is_useless() -> None:
    """Where other patients have another commonest class than the training rows, always predicting it is no skill."""
    y = (np.arange(ROWS) % 6 > 0).astype(np.int64)
    qualities = {f"s{label}": evaluate_predictions(np.full(ROWS, label), y, 2) for label in (0, 1)}
    verdict = judge_family(qualities, [1.0, 2.0], [], evaluate_commonest_class(y, 2), Goal())
    assert verdict.useless == ("s0", "s1")
    assert verdict.constant == pytest.approx(500 / 6)


def test_constant_classifier_never_beats_itself() -> None:
    """No seed makes a member of the majority's accuracy look useful more often than the test allows."""
    accepted = sum(not judge([0.9], majority=0.9, seed=seed).useless for seed in range(200))
    assert accepted <= 12


def test_family_without_growth_is_refused() -> None:
    """Several members of which none is significantly better than the smallest are not worth a family."""
    assert not judge([0.9, 0.9]).is_met
    assert judge([0.9]).is_met


@pytest.mark.parametrize(("goal", "is_met"), [(90.0, True), (94.9, False), (99.0, False)])
def test_accuracy_goal_is_met_by_its_lower_bound(goal: float, is_met: bool) -> None:
    """A goal within the interval of the best member is not promised."""
    assert judge([0.8, 0.95], Goal(score=goal)).is_met is is_met


@pytest.mark.parametrize(("points", "is_met"), [(-1.0, True), (0.4, False), (2.0, False)])
def test_sharing_goal_is_met_by_its_upper_bound(points: float, is_met: bool) -> None:
    """A gap that may exceed the limit by chance of the test rows is not promised."""
    gap = PairedDifference(points, 0.5, 10, 10)
    assert judge([0.8, 0.95], Goal(max_sharing_cost=0.5), gaps=[gap]).is_met is is_met


def test_sharing_goal_without_comparison_is_not_met() -> None:
    """Nothing was compared, so nothing can be promised."""
    assert not judge([0.8, 0.95], Goal(max_sharing_cost=0.5)).is_met


@pytest.mark.slow
def test_score_bound_holds_for_the_best_of_many() -> None:
    """The bound of the best of ten equal members exceeds their true accuracy in at most 5 % of the draws."""
    broken = sum(judge([0.9] * 10, seed=seed).score_bound > 90 for seed in range(200))
    assert broken <= 16
