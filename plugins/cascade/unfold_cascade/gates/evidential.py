"""Confidences from the internals of a model: the evidence for a case, and the agreement of ensemble members.

Evidential confidence after Sensoy, Kaplan and Kandemir (NeurIPS 2018), virtual ensembles after Malinin, Prokhorenkova
and Ustimenko (ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray, Matrix

MEMBERS = 8


def inspect_model(confidence: str, model: Any, x: Matrix) -> FloatArray:
    """Compute the (n,) confidence from the internals of a fitted model, after its scaling and imputation.

    Args:
        confidence: ``evidential_confidence`` or ``ensemble_confidence``.
        model: As ``estimators.fit_estimator`` returns it.
        x: (n, d) features.

    Raises:
        TypeError: The model has no such internals.
    """
    steps = [step for _, step in model.steps] if hasattr(model, "steps") else [model]
    for step in steps[:-1]:
        x = step.transform(x)
    return evidential_confidence(steps[-1], x) if confidence == "evidential" else ensemble_confidence(steps[-1], x)


def shrink_to_uniform(probability: FloatArray, confidence: FloatArray) -> FloatArray:
    """Shrink (n, C) probabilities towards 1/C in proportion to 1 minus the (n,) confidence.

    With the evidential confidence this is the mean of the Dirichlet distribution, ``(e_k + 1) / (sum of e + C)``.
    """
    uniform = 1.0 / probability.shape[1]
    result: FloatArray = uniform + (probability - uniform) * confidence[:, None]
    return result


def evidential_confidence(model: Any, x: Matrix) -> FloatArray:
    """Compute ``1 - u`` for the vacuity ``u = C / sum_k (e_k + 1)`` of a Dirichlet distribution over C classes.

    The evidence ``e_k`` is the number of training rows of class k in the leaves of a case, averaged over trees. Small
    leaves mean that the model was trained on few similar cases.

    Args:
        model: A fitted decision tree or forest of scikit-learn.
        x: (n, d) features.

    Returns:
        (n,) confidence in [0, 1).

    Raises:
        TypeError: The model has no leaves that count rows.
    """
    trees, rows = _list_trees(model), _drop_names(x)
    leaves = [tree.tree_.weighted_n_node_samples[tree.apply(rows)] for tree in trees]
    evidence, classes = np.mean(leaves, axis=0), len(model.classes_)
    confidence: FloatArray = 1.0 - classes / (evidence + classes)
    return confidence


def ensemble_confidence(model: Any, x: Matrix) -> FloatArray:
    """Compute one minus the mean total variation distance of the members of an ensemble to their mean.

    The members of a forest are its trees. Those of a boosted model are virtual: the model truncated after several
    numbers of rounds in its second half (Malinin et al. 2021).

    Args:
        model: A fitted forest of scikit-learn, or an ``XGBClassifier``.
        x: (n, d) features.

    Returns:
        (n,) confidence in [0, 1]; 1 where all members agree.

    Raises:
        TypeError: The model has no members.
    """
    members = np.stack(list(_predict_members(model, x)))
    spread = 0.5 * np.abs(members - members.mean(axis=0)).sum(axis=2).mean(axis=0)
    confidence: FloatArray = 1.0 - spread
    return confidence


def _list_trees(model: Any) -> list[Any]:
    trees = [model] if hasattr(model, "tree_") else list(np.ravel(getattr(model, "estimators_", [])))
    if not trees or not all(hasattr(tree, "tree_") for tree in trees) or hasattr(model, "init_"):
        raise TypeError(f"{type(model).__name__} has no leaves that count rows; a decision tree or a forest has")
    return trees


def _predict_members(model: Any, x: Matrix) -> Iterator[FloatArray]:
    if hasattr(model, "get_booster"):
        rounds = model.get_booster().num_boosted_rounds()
        for end in np.unique(np.linspace(max(rounds // 2, 1), rounds, MEMBERS).astype(int)):
            yield np.asarray(model.predict_proba(x, iteration_range=(0, int(end))), dtype=np.float64)
        return
    trees = list(np.ravel(getattr(model, "estimators_", [])))
    if not trees or hasattr(model, "init_") or not hasattr(trees[0], "predict_proba"):
        raise TypeError(f"{type(model).__name__} has no members; a forest or XGBClassifier has")
    rows = _drop_names(x)
    for tree in trees:
        yield np.asarray(tree.predict_proba(rows), dtype=np.float64)


def _drop_names(x: Any) -> Any:
    """Convert a data frame to the array that the trees of a forest were fitted on; sparse matrices stay."""
    from scipy.sparse import issparse

    return x if issparse(x) else np.asarray(x, dtype=np.float32)
