"""Which estimators a spec may name: short names, defaults, and what each supports. It needs no numpy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHORT_NAMES: Mapping[str, str] = {
    "decision-tree": "sklearn.tree.DecisionTreeClassifier",
    "extra-trees": "sklearn.ensemble.ExtraTreesClassifier",
    "gaussian-nb": "sklearn.naive_bayes.GaussianNB",
    "hist-gradient-boosting": "sklearn.ensemble.HistGradientBoostingClassifier",
    "knn": "sklearn.neighbors.KNeighborsClassifier",
    "lda": "sklearn.discriminant_analysis.LinearDiscriminantAnalysis",
    "linear-svc": "sklearn.svm.LinearSVC",
    "logistic-regression": "sklearn.linear_model.LogisticRegression",
    "mlp": "sklearn.neural_network.MLPClassifier",
    "qda": "sklearn.discriminant_analysis.QuadraticDiscriminantAnalysis",
    "random-forest": "sklearn.ensemble.RandomForestClassifier",
    "svc": "sklearn.svm.SVC",
    "xgboost": "xgboost.XGBClassifier",
}
SCALED = frozenset({"knn", "linear-svc", "logistic-regression", "mlp", "svc"})
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "logistic-regression": {"max_iter": 1000},
    "mlp": {"max_iter": 500},
    "random-forest": {"n_jobs": 1},
    "extra-trees": {"n_jobs": 1},
    "xgboost": {"n_jobs": 1, "tree_method": "hist"},
}
TREES = ("decision-tree", "sklearn.tree.DecisionTreeClassifier")
FORESTS = (
    "random-forest",
    "extra-trees",
    "sklearn.ensemble.RandomForestClassifier",
    "sklearn.ensemble.ExtraTreesClassifier",
)
BOOSTED = ("xgboost", "xgboost.XGBClassifier")
INSPECTABLE: Mapping[str, tuple[str, ...]] = {"evidential": (*TREES, *FORESTS), "ensemble": (*FORESTS, *BOOSTED)}
"""The estimators with internals that each confidence can read, by the names that a spec may use."""
LIBRARIES = ("sklearn.", "xgboost.")
NOT_A_CLASSIFIER = "is not a classifier with confidences"


def is_classifier(estimator: str) -> bool:
    """Whether the class at a dotted path is a classifier with confidences; assumed if it cannot be imported."""
    import pkgutil

    from sklearn.base import ClassifierMixin

    try:
        cls = pkgutil.resolve_name(estimator)
    except (ImportError, AttributeError, ValueError):
        return True
    is_trusted = not estimator.startswith(LIBRARIES) or issubclass(cls, ClassifierMixin)
    return is_trusted and any(hasattr(cls, name) for name in ("predict_proba", "decision_function"))


def select_inspection(confidence: str | None, estimator: str) -> str | None:
    """Return ``confidence`` if it reads the internals of this estimator, ``None`` if its probabilities are used."""
    return confidence if estimator in INSPECTABLE.get(confidence or "", ()) else None
