"""Models learn from the rows of their stage only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plugins.cascade.tests.runs import CONFIGS, run_in, spec_of
from unfold_cascade.learners import estimators
from unfold_cascade.learners.estimators import Recipe
from unfold_cascade.temporal.build import build_temporal_problem
from unfold_cascade.temporal.data.features import build_layout
from unfold_cascade.temporal.early_warning_metrics import compute_utility
from unfold_cascade.temporal.models.study import load_study
from unfold_cascade.temporal.models.training_sets import build_slots, select_rows_in_stage
from unfold_cascade.verbs import temporal

SEEDS = range(20)


@pytest.mark.parametrize("seed", SEEDS)
def test_models_learn_only_from_rows_of_their_stage(seed: int) -> None:
    """A gated stage learns from no earlier and no later stage, and not long after its entry."""
    rng = np.random.default_rng(seed)
    highest = rng.integers(0, 4, 300)
    since = rng.normal(0, 10, (300, 3))
    for s in range(3):
        own = select_rows_in_stage(highest, since, s, is_parallel=False, fresh_h=5.0)
        assert np.isin(highest[own], (s, s + 1)).all()
        assert (since[own, s] < 5.0).all()
        assert select_rows_in_stage(highest, since, s, is_parallel=True, fresh_h=np.inf).all()


@pytest.mark.e2e
def test_learning_the_utility_weighs_rows_by_their_gain(tmp_path: Path) -> None:
    """Labels say whether an alert pays, weights how much; hours without a difference are left out."""
    spec, run = spec_of(CONFIGS / "wards.yaml", "stages[1].learn=utility"), run_in(tmp_path)
    temporal.train(spec, run)
    problem = build_temporal_problem(spec, run)
    stored = load_study(problem, run)
    utility = compute_utility(stored.hours.since[:, -1])
    gain = utility.alert - utility.silence
    for slot in build_slots(problem, stored.hours, build_layout(problem.features)):
        if slot.stage == "sepsis":
            assert slot.rows.weight is not None
            assert np.array_equal(slot.rows.mask, gain != 0)
            assert np.array_equal(slot.rows.labels == 1, gain > 0)
            assert np.array_equal(slot.rows.weight, np.abs(gain))
        else:
            assert slot.rows.weight is None


@pytest.mark.parametrize("estimator", ["decision-tree", "xgboost", "logistic-regression"])
def test_a_weight_of_two_equals_a_repeated_row(estimator: str) -> None:
    """A row of weight 2 equals two rows of weight 1, also behind a scaler."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(300, 2)).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=300) > 0).astype(np.int64)
    weight = np.where(np.arange(300) < 100, 2.0, 1.0)
    recipe = Recipe(estimator, {"max_depth": 2} if "log" not in estimator else {}, scale=False)
    weighted = estimators.fit_estimator(recipe, x, y, 0, weight)
    repeated = estimators.fit_estimator(recipe, np.concatenate([x, x[:100]]), np.concatenate([y, y[:100]]), 0)
    p = [estimators.predict_probabilities(model, x, 2) for model in (weighted, repeated)]
    np.testing.assert_allclose(p[0], p[1], atol=0.02)
