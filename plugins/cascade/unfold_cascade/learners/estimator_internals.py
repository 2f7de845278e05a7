"""Which estimators a confidence can look into, by the name that a spec gives them."""

from __future__ import annotations

from collections.abc import Mapping

TREE = ("decision-tree", "sklearn.tree.DecisionTreeClassifier")
FORESTS = (
    "random-forest",
    "extra-trees",
    "sklearn.ensemble.RandomForestClassifier",
    "sklearn.ensemble.ExtraTreesClassifier",
)
BOOSTED = ("xgboost", "xgboost.XGBClassifier")
INSIDE: Mapping[str, tuple[str, ...]] = {"evidential": (*TREE, *FORESTS), "ensemble": (*FORESTS, *BOOSTED)}


def inside(confidence: str | None, estimator: str) -> str | None:
    """Return the confidence if it looks into such a model; ``None`` where the model's probabilities are read."""
    return confidence if estimator in INSIDE.get(confidence or "", ()) else None
