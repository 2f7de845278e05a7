"""Laws of the classifier: scikit-learn's own, budgets, and routes that add up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks
from xgboost import XGBClassifier

from unfold_cascade.classifier import CascadeClassifier
from unfold_cascade.gates.evidential import ensemble_confidence, evidential_confidence

TINY = [
    ("stump", DecisionTreeClassifier(max_depth=2, random_state=0)),
    ("forest", RandomForestClassifier(8, random_state=0)),
]


# older scikit-learn gives a generator, which pytest no longer takes
CHECKS = parametrize_with_checks([CascadeClassifier(TINY, folds=2, random_state=0)]).mark


@pytest.mark.parametrize(CHECKS.args[0], list(CHECKS.args[1]), **CHECKS.kwargs)
@pytest.mark.filterwarnings("ignore")
def test_the_classifier_passes_scikit_learn_checks(estimator: Any, check: Any) -> None:
    """Every check that scikit-learn has for a classifier passes."""
    check(estimator)


@pytest.fixture(scope="module")
def fitted() -> tuple[CascadeClassifier, Any, Any]:
    x, y = load_breast_cancer(return_X_y=True)
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    models = [("tree", DecisionTreeClassifier(max_depth=2, random_state=0)), ("linear", linear), TINY[1]]
    names = np.array(["malignant", "benign"])[y]
    model = CascadeClassifier(models, prices=[1.0, 4.0, 20.0], random_state=0).fit(x[::2], names[::2])
    return model, x[1::2], names[1::2]


def test_a_larger_budget_buys_no_less_accuracy(fitted: Any) -> None:
    """Along the front, out-of-fold loss falls as the budget grows, and what is estimated is not above the budget."""
    model, _, _ = fitted
    front = model.front_.front
    points = [model.point(budget) for budget in np.linspace(front.cost.min(), front.cost.max(), 20)]
    assert all(a >= b for a, b in zip(front.loss[points], front.loss[points[1:]], strict=False))
    for budget in (1.0, 2.0, 6.0):
        assert front.cost[model.point(budget)] <= budget
    assert front.loss[model.point()] == front.loss.min()


def test_an_unattainable_budget_is_an_error(fitted: Any) -> None:
    """Below the cheapest cascade there is an error that names its cost."""
    with pytest.raises(ValueError, match="the cheapest needs 1 a case"):
        fitted[0].predict(fitted[1], budget=0.5)


@pytest.mark.parametrize("budget", [1.0, 1.8, 3.0, None])
def test_routes_add_up(fitted: Any, budget: float | None) -> None:
    """Each step before the last is below its threshold, the last one answers, and prices add up to the cost."""
    model, x, _ = fitted
    labels, costs = model.predict(x, budget=budget), model.cost(x, budget=budget)
    probability = model.predict_proba(x, budget=budget)
    for row, steps in enumerate(model.route(x, budget=budget)):
        assert [step.verdict for step in steps] == ["asks on"] * (len(steps) - 1) + ["answers"]
        assert all(step.confidence < step.threshold for step in steps[:-1])
        assert steps[-1].threshold is None or steps[-1].confidence >= steps[-1].threshold
        assert sum(step.price for step in steps) == pytest.approx(costs[row])
        assert steps[-1].probability == probability[row].max()
        assert labels[row] == model.classes_[probability[row].argmax()]


def test_the_cascade_saves_within_its_loss(fitted: Any) -> None:
    """On cases that it has not seen, a small budget keeps nearly the accuracy of the costliest model alone."""
    model, x, y = fitted
    cheap = float((model.predict(x, budget=4.0) == y).mean())
    dear = float((model.classes_[model.estimators_[2].predict(x)] == y).mean())
    assert cheap > dear - 0.03
    assert model.cost(x, budget=4.0).mean() < 6.0


def test_single_rows_and_batches_get_equal_answers(fitted: Any) -> None:
    """What a case is answered does not depend on the cases beside it."""
    model, x, _ = fitted
    alone = np.concatenate([model.predict_proba(x[row : row + 1], budget=3.0) for row in range(30)])
    np.testing.assert_allclose(alone, model.predict_proba(x[:30], budget=3.0), atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"confidence": "hope"}, "confidence must be one of"),
        ({"max_models": 9}, "max_models must be an integer from 1 to 5"),
        ({"max_models": 2.5}, "max_models must be an integer from 1 to 5"),
        ({"bins": 1}, "bins must be an integer of at least 2 or None"),
        ({"prices": [1.0]}, "2 estimators need as many prices"),
        ({"estimators": [TINY[0], TINY[0]]}, "different names"),
    ],
)
def test_invalid_parameters_are_errors_in_fit(changes: Any, expected: str) -> None:
    """An invalid parameter is a ValueError that names valid values."""
    x, y = load_breast_cancer(return_X_y=True)
    with pytest.raises(ValueError, match=expected):
        CascadeClassifier(**({"estimators": TINY} | changes)).fit(x[:80], y[:80])


@pytest.mark.parametrize("budget", ["5", float("nan"), True, [3]])
def test_a_budget_that_is_no_number_is_an_error(budget: Any) -> None:
    """A budget such as "5" from a configuration file is refused, not taken for the cheapest cascade."""
    x, y = load_breast_cancer(return_X_y=True)
    model = CascadeClassifier(TINY, prices=[1, 20]).fit(x[:80], y[:80])
    with pytest.raises((TypeError, ValueError), match="budget must be a number or None, not"):
        model.predict(x[:5], budget=budget)


def test_evidence_is_small_where_training_data_is_sparse() -> None:
    """The vacuity is that of the formula: a case in a leaf of few training rows is less sure."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (190, 1)), rng.normal(9, 0.1, (10, 1))])
    y = np.concatenate([np.zeros(190), np.ones(10)])
    tree = DecisionTreeClassifier(max_depth=1).fit(x, y)
    many, few = evidential_confidence(tree, np.array([[0.0], [9.0]]))
    assert (many, few) == pytest.approx((1 - 2 / 192, 1 - 2 / 12))
    with pytest.raises(TypeError, match="no leaves that count rows"):
        evidential_confidence(LogisticRegression().fit(x, y), x)


def test_agreeing_ensembles_have_full_confidence() -> None:
    """Members that all agree give 1; where trees of a forest differ, the confidence is that of the formula."""
    x, y = load_breast_cancer(return_X_y=True)
    forest = RandomForestClassifier(5, max_depth=3, random_state=0).fit(x, y)
    said = np.stack([tree.predict_proba(x) for tree in forest.estimators_])
    expected = 1 - np.abs(said[:, :, 1] - said[:, :, 1].mean(axis=0)).mean(axis=0)
    np.testing.assert_allclose(ensemble_confidence(forest, x), expected)
    boosted = XGBClassifier(n_estimators=20, max_depth=2).fit(x, y)
    found = ensemble_confidence(boosted, x)
    assert ((found > 0.5) & (found <= 1)).all()
    assert ensemble_confidence(XGBClassifier(n_estimators=1).fit(x, y), x).min() == 1.0
    with pytest.raises(TypeError, match="has no members"):
        ensemble_confidence(LogisticRegression(max_iter=5000).fit(x, y), x)


@pytest.mark.parametrize("confidence", ["evidential", "ensemble"])
def test_gates_can_read_confidences_from_model_internals(confidence: str) -> None:
    """A cascade gated by evidence or agreement keeps routes that add up, and names models that have neither."""
    x, y = load_breast_cancer(return_X_y=True)
    models = [("few", RandomForestClassifier(4, max_depth=3, random_state=0)), ("many", TINY[1][1])]
    model = CascadeClassifier(models, prices=[1, 20], confidence=confidence, random_state=0).fit(x[::2], y[::2])
    for steps in model.route(x[1::2], budget=5):
        assert steps[-1].threshold is None or steps[-1].confidence >= steps[-1].threshold
    assert model.score(x[1::2], y[1::2]) > 0.9
    with pytest.raises(ValueError, match=f"confidence {confidence}: LogisticRegression has no"):
        CascadeClassifier([("line", LogisticRegression(max_iter=5000)), TINY[1]], confidence=confidence).fit(x, y)
