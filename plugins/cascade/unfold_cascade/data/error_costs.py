"""Costs of errors: all equal, by the true label, or by the true and the predicted label (cost-sensitive decisions)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates.confidence import max_probability
from unfoldkit.api import did_you_mean, user_error

KEY = "goal.errors"
ErrorWeights = Literal["balanced"] | Mapping[str, float | Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class ErrorCosts:
    """``matrix[t, a]`` (C, C + 1) is the cost of predicting a where t is true; the last column is for unknown labels.

    The matrix is scaled so that the most expensive prediction costs 1 on average over all cases: a mean loss is then
    a share of the worst possible one. ``None`` means that each error costs 1, so a mean loss is the error rate.
    """

    matrix: FloatArray | None = None

    @property
    def maximum(self) -> float:
        """The cost of the most expensive error."""
        return 1.0 if self.matrix is None else float(self.matrix.max())

    def losses(self, answer: IntArray, truth: IntArray) -> FloatArray:
        """Compute the cost of each prediction; ``answer`` and ``truth`` are label numbers that broadcast."""
        if self.matrix is None:
            errors: FloatArray = (answer != truth).astype(np.float64)
            return errors
        costs: FloatArray = self.matrix[truth, answer]
        return costs

    def decide(self, probability: FloatArray) -> IntArray:
        """Choose the (n,) labels of least expected cost from (n, C) probabilities; the first of ties."""
        expected = -probability if self.matrix is None else _expected_costs(probability, self.matrix)
        best: IntArray = expected.argmin(axis=1)
        return best

    def confidence(self, probability: FloatArray) -> FloatArray:
        """Compute (n,) 1 minus the expected cost of the chosen label, as a share of the most expensive error.

        Where each error costs 1 this is the largest probability.
        """
        if self.matrix is None:
            return max_probability(probability)
        minimum: FloatArray = _expected_costs(probability, self.matrix).min(axis=1)
        return 1.0 - minimum / self.maximum


EQUAL_COSTS = ErrorCosts()
"""Each error costs 1."""


def build_error_costs(weights: ErrorWeights | None, names: Sequence[str], labels: IntArray) -> ErrorCosts:
    """Build the cost matrix of a goal.

    Args:
        weights: As in the spec; ``None`` for equal costs.
        names: (C,) labels.
        labels: (n,) numbers of the true labels of all cases.

    Raises:
        UnfoldError: A label is not in the data, or no error costs anything.
    """
    if weights is None:
        return EQUAL_COSTS
    frequency = np.bincount(labels, minlength=len(names)) / len(labels)
    matrix = _balanced_matrix(frequency) if weights == "balanced" else _weighted_matrix(weights, names)
    mean = float(frequency @ matrix.max(axis=1))
    if mean <= 0.0:
        raise user_error("no error costs anything", key=KEY, hint="errors: {LABEL: 10}")
    return ErrorCosts(matrix / mean)


def _expected_costs(probability: FloatArray, matrix: FloatArray) -> FloatArray:
    expected: FloatArray = np.asarray(probability, dtype=np.float64) @ matrix[:, :-1]
    return expected


def _balanced_matrix(frequency: FloatArray) -> FloatArray:
    return _clear_diagonal(np.repeat(1.0 / frequency[:, None], len(frequency) + 1, axis=1))


def _weighted_matrix(weights: Mapping[str, float | Mapping[str, float]], names: Sequence[str]) -> FloatArray:
    number = {name: index for index, name in enumerate(names)}
    matrix = np.ones((len(names), len(names) + 1))
    for label, weight in weights.items():
        row = number[_check_label(label, names)]
        if not isinstance(weight, Mapping):
            matrix[row] = weight
            continue
        for answer, pair_weight in weight.items():
            matrix[row, number[_check_label(answer, names)]] = pair_weight
        # a prediction that is not a label is as bad as the worst one
        matrix[row, -1] = np.delete(matrix[row, :-1], row).max()
    return _clear_diagonal(matrix)


def _clear_diagonal(matrix: FloatArray) -> FloatArray:
    matrix[np.arange(len(matrix)), np.arange(len(matrix))] = 0.0
    return matrix


def _check_label(label: str, names: Sequence[str]) -> str:
    if label not in names:
        raise user_error(f'the data have no label "{label}"', key=KEY, hint=did_you_mean(label, names))
    return label
