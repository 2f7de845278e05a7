"""A gate before the first model: requests that seem too hard for the cheap models skip them.

A model's probability of a correct answer is predicted from features of the prompt. A request enters a chain at the
model of largest ``P(correct | prompt) - price * cost``; with an infinite price all enter at the cheapest. The price is
searched together with the cuts of the chain. [design] Tuning rows are scored by models that did not see them
(cross-fitting), all other rows by one that saw the tuning rows only, so that certifying rows play no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.language_models.planning.calibration import regress
from unfold_cascade.language_models.planning.prompt_features import LENGTH

FOLDS = 5
PRICES = (0.002, 0.01, 0.03, 0.1, 0.25, 0.6, 2.0)
"""Prices of an entry that are searched, as accuracy per cost of the reference."""


@dataclass(frozen=True, slots=True)
class EntryRule:
    """The price of an entry: accuracy that a model must add per dollar, and the mean cost of every model."""

    price: float
    costs: tuple[float, ...]

    def find_entries(self, probability: FloatArray, chain: Sequence[int]) -> IntArray:
        """Find the (n,) positions at which requests enter a chain.

        Args:
            probability: (n, M) of a correct answer of each model, from the prompt.
            chain: The models.
        """
        models = list(chain)
        positions: IntArray = (probability[:, models] - self.price * np.array(self.costs)[models]).argmax(axis=1)
        return positions


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptScorer:
    """Predicts for each model whether it answers a prompt correctly.

    Attributes:
        mean: (F,) of the features on tuning rows.
        deviation: (F,) by which features are divided, positive: their standard deviation on tuning rows; those of an
            embedding together weigh as much as one other feature.
        weights: (M, F + 1) of logistic regressions; the last one is the intercept.
    """

    mean: FloatArray
    deviation: FloatArray
    weights: FloatArray

    def probabilities(self, features: FloatArray) -> FloatArray:
        """Compute the (n, M) probabilities of correct answers from (n, F) features."""
        standard = np.column_stack([(features - self.mean) / self.deviation, np.ones(len(features))])
        return 0.5 * (1.0 + np.tanh(0.5 * standard @ self.weights.T))

    def to_document(self) -> dict[str, Any]:
        """Write the scorer as plain data; it holds no text of a prompt."""
        return {"mean": self.mean.tolist(), "deviation": self.deviation.tolist(), "weights": self.weights.tolist()}


def parse_scorer(document: Mapping[str, Any], size: int) -> PromptScorer:
    """Parse the data of ``PromptScorer.to_document``.

    Args:
        document: The data.
        size: Number of features.

    Raises:
        KeyError, TypeError, ValueError: The data is no scorer.
    """
    arrays = {name: np.array(document[name], dtype=np.float64) for name in ("mean", "deviation", "weights")}
    is_shaped = arrays["mean"].shape == arrays["deviation"].shape == (size,)
    if not is_shaped or arrays["weights"].ndim != 2 or arrays["weights"].shape[1] != size + 1:
        raise ValueError("the scorer of prompts has another shape")
    if not all(np.isfinite(array).all() for array in arrays.values()) or arrays["deviation"].min() <= 0.0:
        raise ValueError("the numbers of the scorer of prompts must be finite")
    return PromptScorer(**arrays)


def fit_scorer(features: FloatArray, is_correct: BoolArray) -> PromptScorer:
    """Fit one logistic regression per model.

    The columns of an embedding share the prior of one column: 64 slopes of their own would fit a few hundred rows by
    chance.

    Args:
        features: (n, F) of prompts: those of ``LENGTH``, then any number of an embedding.
        is_correct: (n, M) whether each model answered correctly.
    """
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation = np.where(deviation > 1e-9, deviation, 1.0)
    deviation[len(LENGTH) :] *= np.sqrt(max(features.shape[1] - len(LENGTH), 1))
    standard = np.column_stack([(features - mean) / deviation, np.ones(len(features))])
    weights = [regress(standard, column.astype(np.float64))[0] for column in is_correct.T]
    return PromptScorer(mean=mean, deviation=deviation, weights=np.array(weights))


def cross_fit(features: FloatArray, is_correct: BoolArray, unit: IntArray) -> FloatArray:
    """Compute (n, M) probabilities of rows by scorers that did not see their unit."""
    _, number = np.unique(unit, return_inverse=True)
    scores = np.empty(is_correct.shape)
    for fold in range(FOLDS):
        is_held_out = number % FOLDS == fold
        if is_held_out.any():
            scorer = fit_scorer(features[~is_held_out], is_correct[~is_held_out])
            scores[is_held_out] = scorer.probabilities(features[is_held_out])
    return scores
