"""The cost of one call of a fitted model: arithmetic operations or measured time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from unfold_cascade._types import Matrix
from unfoldkit.api import UnfoldError, user_error

REPEATS = 7


def count_flops(model: Any, features: int) -> float:
    """Count the arithmetic operations of one prediction (add, multiply, compare and exp count as one each).

    Trees count one comparison per level, over the mean depth of training rows.

    Raises:
        UnfoldError: The operations of this estimator are unknown.
    """
    total = 0.0
    for step in _list_steps(model):
        count = _COUNTERS.get(type(step).__name__)
        if count is None:
            hint = "cost: {by: latency} measures time instead"
            raise user_error(f"the operations of {type(step).__name__} are not known", key="cost.by", hint=hint)
        total += count(step, features)
    return total


def count_flops_if_known(model: Any, features: int) -> float | None:
    """Count the operations of one prediction as :func:`count_flops` does; ``None`` if they are unknown."""
    try:
        return count_flops(model, features)
    except UnfoldError:
        return None


def measure_latency_us(predict: Callable[[Any], Any], x: Matrix, batch: int, clock: Callable[[], float]) -> float:
    """Measure the median time of one row, in µs, when ``batch`` rows are predicted together."""
    return measure_call_us(predict, x[np.resize(np.arange(len(x)), batch)], clock) / batch


def measure_call_us(predict: Callable[[Any], Any], x: Any, clock: Callable[[], float]) -> float:
    """Measure the median time of one call on ``x``, in µs, after a call that warms up."""
    predict(x)
    times = []
    for _ in range(REPEATS):
        start = clock()
        predict(x)
        times.append(clock() - start)
    return float(np.median(times)) * 1e6


def _list_steps(model: Any) -> list[Any]:
    return [step for _, step in model.steps] if hasattr(model, "steps") else [model]


def _count_linear(model: Any, features: int) -> float:
    return 2.0 * features * float(np.atleast_2d(model.coef_).shape[0])


def _count_kernel(model: Any, features: int) -> float:
    vectors, classes = model.support_vectors_.shape[0], len(model.classes_)
    return float(vectors * (3 * features + 1) + 2 * vectors * max(1, classes - 1))


def _count_forest(model: Any, _features: int) -> float:
    trees = [tree.tree_ for tree in np.ravel(model.estimators_)]
    return float(sum(_mean_tree_depth(tree) for tree in trees) + len(trees) * len(model.classes_))


def _count_tree(model: Any, _features: int) -> float:
    return _mean_tree_depth(model.tree_)


def _mean_tree_depth(tree: Any) -> float:
    is_inner = tree.children_left != -1
    return float(tree.weighted_n_node_samples[is_inner].sum() / tree.weighted_n_node_samples[0])


def _count_neighbours(model: Any, features: int) -> float:
    return float(model.n_samples_fit_ * (3 * features + 1))


def _count_layers(model: Any, _features: int) -> float:
    return float(sum(2 * weight.size + weight.shape[1] for weight in model.coefs_))


def _count_bayes(model: Any, features: int) -> float:
    return 4.0 * features * len(model.classes_)


def _count_quadratic(model: Any, features: int) -> float:
    return 2.0 * features * features * len(model.classes_)


def _count_histogram(model: Any, _features: int) -> float:
    total = 0.0
    for predictor in [tree for round_ in model._predictors for tree in round_]:  # noqa: SLF001
        nodes = predictor.nodes
        total += nodes["count"][nodes["is_leaf"] == 0].sum() / nodes["count"][0] + 1
    return float(total)


def _count_boosted(model: Any, _features: int) -> float:
    dumps = model.get_booster().get_dump(with_stats=True, dump_format="json")
    return float(sum(_mean_boosted_depth(json.loads(text)) + 1 for text in dumps))


def _mean_boosted_depth(root: Mapping[str, Any]) -> float:
    inner_cover, stack = 0.0, [root]
    while stack:
        node = stack.pop()
        if "children" in node:
            inner_cover += node["cover"]
            stack += node["children"]
    return inner_cover / root["cover"] if root["cover"] else 0.0


_COUNTERS: Mapping[str, Callable[[Any, int], float]] = {
    "StandardScaler": lambda _, features: 2.0 * features,
    "SimpleImputer": lambda _, features: float(features),
    "LogisticRegression": _count_linear,
    "LinearSVC": _count_linear,
    "LinearDiscriminantAnalysis": _count_linear,
    "RidgeClassifier": _count_linear,
    "SGDClassifier": _count_linear,
    "SVC": _count_kernel,
    "NuSVC": _count_kernel,
    "RandomForestClassifier": _count_forest,
    "ExtraTreesClassifier": _count_forest,
    "DecisionTreeClassifier": _count_tree,
    "ExtraTreeClassifier": _count_tree,
    "KNeighborsClassifier": _count_neighbours,
    "MLPClassifier": _count_layers,
    "GaussianNB": _count_bayes,
    "QuadraticDiscriminantAnalysis": _count_quadratic,
    "HistGradientBoostingClassifier": _count_histogram,
    "XGBClassifier": _count_boosted,
}
