"""Confidences that look into a model: how much it has seen of such cases, and whether its parts agree (section 1.4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray, Matrix

MEMBERS = 8


def inspect_model(confidence: str, model: Any, x: Matrix) -> FloatArray:
    """Return the (n,) confidence that a look into a fitted model gives, behind its scaling and its filling of gaps.

    Args:
        confidence: ``evidential`` or ``ensemble``.
        model: as ``estimators.fit`` returns it.
        x: (n, d) features.

    Raises:
        TypeError: there is nothing to look into.
    """
    steps = [step for _, step in model.steps] if hasattr(model, "steps") else [model]
    for step in steps[:-1]:
        x = step.transform(x)
    return evidential(steps[-1], x) if confidence == "evidential" else ensemble(steps[-1], x)


def shrink_to_uniform(probability: FloatArray, confidence: FloatArray) -> FloatArray:
    """Return (n, C) probabilities drawn to 1/C by what is lacking in (n,) confidence.

    With the evidential confidence that is the mean of the Dirichlet distribution, ``(e_k + 1) / (sum of e + C)``.
    """
    even = 1.0 / probability.shape[1]
    result: FloatArray = even + (probability - even) * confidence[:, None]
    return result


def evidential(model: Any, x: Matrix) -> FloatArray:
    """Return ``1 - u`` for the vacuity ``u = C / sum_k (e_k + 1)`` of a Dirichlet distribution over C classes.

    The evidence ``e_k`` is how many training rows of class k lie in the leaves that a case falls into, on average over
    the trees. A case in small leaves is one that the model has hardly seen the like of.

    Args:
        model: a fitted decision tree or forest of scikit-learn.
        x: (n, d) features.

    Returns:
        (n,) confidence in [0, 1).

    Raises:
        TypeError: the model has no leaves that count rows.
    """
    trees = _trees(model)
    leaves = [tree.tree_.weighted_n_node_samples[tree.apply(np.asarray(x, dtype=np.float32))] for tree in trees]
    evidence, classes = np.mean(leaves, axis=0), len(model.classes_)
    confidence: FloatArray = 1.0 - classes / (evidence + classes)
    return confidence


def ensemble(model: Any, x: Matrix) -> FloatArray:
    """Return one minus the mean distance of the members' probabilities to those of the whole.

    The members of a forest are its trees. Those of a boosted model are virtual: what it says after a few numbers of its
    rounds, in its second half (Malinin et al. 2021, virtual ensembles).

    Args:
        model: a fitted forest of scikit-learn, or an ``XGBClassifier``.
        x: (n, d) features.

    Returns:
        (n,) confidence in [0, 1]; 1 where all members say the same.

    Raises:
        TypeError: the model has no members.
    """
    said = np.stack(list(_members(model, x)))
    spread = 0.5 * np.abs(said - said.mean(axis=0)).sum(axis=2).mean(axis=0)
    confidence: FloatArray = 1.0 - spread
    return confidence


def _trees(model: Any) -> list[Any]:
    trees = [model] if hasattr(model, "tree_") else list(np.ravel(getattr(model, "estimators_", [])))
    if not trees or not all(hasattr(tree, "tree_") for tree in trees) or hasattr(model, "init_"):
        raise TypeError(f"{type(model).__name__} has no leaves that count rows; a decision tree or a forest has")
    return trees


def _members(model: Any, x: Matrix) -> Iterator[FloatArray]:
    if hasattr(model, "get_booster"):
        rounds = model.get_booster().num_boosted_rounds()
        for end in np.unique(np.linspace(max(rounds // 2, 1), rounds, MEMBERS).astype(int)):
            yield np.asarray(model.predict_proba(x, iteration_range=(0, int(end))), dtype=np.float64)
        return
    trees = list(np.ravel(getattr(model, "estimators_", [])))
    if not trees or hasattr(model, "init_") or not hasattr(trees[0], "predict_proba"):
        raise TypeError(f"{type(model).__name__} has no members; a forest or XGBClassifier has")
    for tree in trees:
        yield np.asarray(tree.predict_proba(x), dtype=np.float64)
