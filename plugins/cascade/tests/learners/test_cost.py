"""Counted operations equal what the fitted models really do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.datasets import load_iris

from plugins.cascade.tests.runs import CONFIGS, spec_of
from unfold_cascade.learners import cost, estimators
from unfold_cascade.learners.estimator_names import SHORT_NAMES
from unfold_cascade.learners.estimators import Recipe
from unfold_cascade.temporal.models.predictions import Predictions, check_operations
from unfold_cascade.temporal.models.training_sets import ModelSlot, TrainingRows
from unfoldkit.api import UnfoldError

X, Y = load_iris(return_X_y=True)
WARDS = CONFIGS / "wards.yaml"


def _fitted(name: str, **params: object) -> object:
    return estimators.fit_estimator(Recipe(name, params, scale=False), X, Y, 0)


def test_a_linear_model_multiplies_and_adds_each_feature_for_each_class() -> None:
    """Logistic regression on 4 features and 3 classes takes 2 · 4 · 3 operations."""
    assert cost.count_flops(_fitted("logistic-regression"), 4) == 24


def test_a_tree_costs_the_mean_depth_of_its_training_rows() -> None:
    """The counted comparisons of a tree equal the mean length of the decision paths of the rows it was fitted on."""
    model = _fitted("decision-tree")
    paths = np.asarray(model.decision_path(X).sum(axis=1)).ravel() - 1
    assert cost.count_flops(model, 4) == pytest.approx(paths.mean())


def test_a_network_costs_its_weights_twice() -> None:
    """A network of 4-5-3 takes two operations a weight and one a unit."""
    assert cost.count_flops(_fitted("mlp", hidden_layer_sizes=[5], max_iter=5), 4) == 2 * (20 + 15) + 5 + 3


def test_neighbours_cost_every_stored_row() -> None:
    """A nearest-neighbour model looks at all 150 rows."""
    assert cost.count_flops(_fitted("knn"), 4) == 150 * (3 * 4 + 1)


def test_boosted_trees_cost_at_most_their_depth() -> None:
    """Ten rounds of three trees of depth 2 take between one and three operations a tree."""
    value = cost.count_flops(_fitted("xgboost", n_estimators=10, max_depth=2), 4)
    assert 30 < value <= 10 * 3 * 3


def test_unknown_operations_suggest_measured_latency() -> None:
    """A model with unknown operations points to measured latency."""
    with pytest.raises(UnfoldError, match="latency"):
        cost.count_flops(_fitted("sklearn.gaussian_process.GaussianProcessClassifier"), 4)


@pytest.mark.e2e
@pytest.mark.parametrize("name", sorted(SHORT_NAMES))
def test_every_short_name_is_fitted_stored_and_loaded_without_change(name: str) -> None:
    """A model gives the same probabilities after it was stored and loaded."""
    params = {"mlp": {"max_iter": 50}, "xgboost": {"n_estimators": 3}, "random-forest": {"n_estimators": 3}}
    recipe = Recipe(name, {**params.get(name, {}), **({"n_estimators": 3} if name == "extra-trees" else {})})
    model = estimators.fit_estimator(recipe, X, Y, 0)
    data = estimators.to_bytes(recipe, model)
    loaded = estimators.from_bytes(data, ubjson=estimators.file_suffix(recipe) == ".ubj", file="x")
    assert estimators.predict_probabilities(loaded, X, 3) == pytest.approx(
        estimators.predict_probabilities(model, X, 3)
    )


def test_code_outside_the_two_libraries_requires_permission() -> None:
    """A dotted path outside scikit-learn and XGBoost is refused unless code is allowed."""
    with pytest.raises(UnfoldError, match="allow-code"):
        estimators.check_recipe(Recipe("os.system", {}), key="k", allow_code=False)


@pytest.mark.parametrize("by", ["price", "price+flops"])
def test_a_free_baseline_over_time_is_an_error(by: str) -> None:
    """A cost over time is a share of the baseline's, so a baseline with only free features is a mistake in the spec."""
    free = [f"cost.by={by}", "features.bedside.price=0", "features.labs.price=0"]
    with pytest.raises(UnfoldError, match=r"cost\.by: the baseline costs nothing: no feature that it reads"):
        spec_of(WARDS, *free)
    assert spec_of(WARDS, f"cost.by={by}", "features.bedside.price=0")
    assert spec_of(WARDS, "cost.by=flops", *free[1:])


def test_unknown_operations_over_time_are_errors_where_they_matter() -> None:
    """A model with unknown operations is named where cascades are compared by them, and is good elsewhere."""
    nothing = np.zeros(1, dtype=np.int64)
    recipe = Recipe("sklearn.ensemble.AdaBoostClassifier", {})
    slot = ModelSlot(
        key="stages[0].models[0].estimator",
        stage="sirs",
        model="ward",
        recipe=recipe,
        feature_sets=None,
        columns=nothing,
        rows=TrainingRows(nothing > 0, nothing),
        made_from="",
    )
    log = Predictions(np.zeros((1, 2), dtype=np.float32), math.nan, 1.0, 1.0)
    with pytest.raises(UnfoldError, match=r"models\[0\].estimator: the operations of .*AdaBoost.* are not known"):
        check_operations(spec_of(WARDS).cost.by, [slot], [log])
    check_operations("price", [slot], [log])
