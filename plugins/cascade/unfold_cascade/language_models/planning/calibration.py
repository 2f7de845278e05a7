"""Calibrated scores: the probability that an answer is correct, by logistic regression on its confidence.

The slope may have either sign, so that a confidence which points the wrong way is inverted. The
transforms of log-probabilities follow Zellinger and Thomson (2025, Rational Tuning of LLM Cascades via Probabilistic
Modeling, TMLR, arXiv 2501.09345).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray

Transform = Literal["one-sided", "two-sided", "identity"]
Scale = Literal["logprob", "probability", "number"]
LOG_2 = math.log(2.0)
RIDGE = 1.0
"""Weight of the squared slope, as scikit-learn's default: a slope stays finite where one cut separates all rows."""
NEWTON_STEPS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Maps the recorded confidence of one model to the probability that its answer is correct.

    Attributes:
        scale: Unit of the recorded confidence.
        transform: Applied to its logarithm; ``identity`` for numbers that are no probabilities.
        low: Smallest transformed value of the tuning rows; values below count as this.
        high: The largest, likewise.
        slope: Of the logistic regression, of either sign.
        intercept: Of the logistic regression.
    """

    scale: Scale
    transform: Transform
    low: float
    high: float
    slope: float
    intercept: float

    def probabilities(self, confidence: FloatArray) -> FloatArray:
        """Compute the probability of a correct answer, minus infinity where there is no confidence.

        Args:
            confidence: (n,) recorded confidences; NaN or minus infinity where a model gave none.
        """
        value = np.clip(_transform(confidence, self.scale, self.transform), self.low, self.high)
        logit = self.intercept + self.slope * value
        probability = 0.5 * (1.0 + np.tanh(0.5 * logit))
        return np.where(has_confidence(confidence), probability, -np.inf)

    def probability(self, confidence: float | None) -> float:
        """Compute the probability for one confidence; minus infinity where there is none."""
        if confidence is None:
            return -math.inf
        return float(self.probabilities(np.array([confidence]))[0])

    def to_document(self) -> dict[str, Any]:
        """Write the calibration as plain data."""
        names = ("scale", "transform", "low", "high", "slope", "intercept")
        return {name: getattr(self, name) for name in names}


def parse_calibration(document: Mapping[str, Any]) -> Calibration:
    """Parse the data of ``Calibration.to_document``.

    Raises:
        KeyError, TypeError, ValueError: The data is no calibration.
    """
    scale, transform = document["scale"], document["transform"]
    if scale not in ("logprob", "probability", "number") or transform not in ("one-sided", "two-sided", "identity"):
        raise ValueError(f"unknown scale {scale!r} or transform {transform!r}")
    numbers = {name: float(document[name]) for name in ("low", "high", "slope", "intercept")}
    if not all(map(math.isfinite, numbers.values())) or numbers["low"] > numbers["high"]:
        raise ValueError("the numbers of a calibration must be finite")
    return Calibration(scale=scale, transform=transform, **numbers)


def has_confidence(confidence: FloatArray) -> BoolArray:
    """Mark the values that are a confidence; plus infinity is none, as no model can mean it."""
    return np.isfinite(confidence)


def detect_scale(confidence: FloatArray) -> Scale:
    """Detect the unit of recorded confidences: natural logarithms are never positive, probabilities never negative."""
    finite = confidence[np.isfinite(confidence)]
    if not finite.size:
        return "number"
    if finite.max() <= 0.0:
        return "logprob"
    return "probability" if finite.min() >= 0.0 and finite.max() <= 1.0 else "number"


def fit_calibration(confidence: FloatArray, is_correct: BoolArray, scale: Scale | None = None) -> Calibration:
    """Fit the calibration of one model on tuning rows; of both transforms the one of larger likelihood.

    Args:
        confidence: (n,) recorded confidences.
        is_correct: (n,) whether the answer was correct.
        scale: Unit of the confidences; detected if ``None``.
    """
    scale = scale or detect_scale(confidence)
    transforms: tuple[Transform, ...] = ("identity",) if scale == "number" else ("one-sided", "two-sided")
    usable = has_confidence(confidence)
    fits = [_fit(confidence[usable], is_correct[usable], scale, transform) for transform in transforms]
    return min(fits, key=lambda fit: fit[0])[1]


def _fit(
    confidence: FloatArray, is_correct: BoolArray, scale: Scale, transform: Transform
) -> tuple[float, Calibration]:
    """Return the negative log-likelihood of a fit, and the fit."""
    raw = _transform(confidence, scale, transform)
    finite = raw[np.isfinite(raw)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if low == high:
        # a judge that answers 0 or 1: no other value says how far apart they are
        low, high = low - float((raw == -np.inf).any()), high + float((raw == np.inf).any())
    value = np.clip(raw, low, high)
    deviation = float(value.std()) if value.size else 0.0
    if deviation == 0.0:
        share = (is_correct.sum() + 0.5) / (is_correct.size + 1.0)
        intercept = math.log(share / (1.0 - share))
        fit = Calibration(scale=scale, transform=transform, low=low, high=high, slope=0.0, intercept=intercept)
        return 0.0, fit
    mean = float(value.mean())
    features = np.column_stack([(value - mean) / deviation, np.ones_like(value)])
    (slope, intercept), likelihood = regress(features, is_correct.astype(np.float64))
    slope, intercept = float(slope) / deviation, float(intercept)
    fit = Calibration(
        scale=scale, transform=transform, low=low, high=high, slope=slope, intercept=intercept - slope * mean
    )
    return -likelihood, fit


def regress(x: FloatArray, y: FloatArray) -> tuple[FloatArray, float]:
    """Fit ``P(y = 1) = 1 / (1 + exp(-x w))`` by Newton steps with halving; return w and the penalized log-likelihood.

    Args:
        x: (n, k) features, the last of them constant; the ridge spares its weight.
        y: (n,) zeros and ones.
    """
    penalty = np.append(np.full(x.shape[1] - 1, RIDGE), 1e-6)
    weights = np.zeros(x.shape[1])

    def objective(candidate: FloatArray) -> float:
        logit = x @ candidate
        return float(y @ logit - np.logaddexp(0.0, logit).sum() - 0.5 * penalty @ candidate**2)

    value = objective(weights)
    for _ in range(NEWTON_STEPS):
        probability = 0.5 * (1.0 + np.tanh(0.5 * (x @ weights)))
        gradient = x.T @ (y - probability) - penalty * weights
        curvature = (x * (probability * (1.0 - probability))[:, None]).T @ x + np.diag(penalty)
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while (improved := objective(weights + size * step)) < value and size > 1e-6:
            size /= 2
        if improved <= value + 1e-10:
            break
        weights, value = weights + size * step, improved
    return weights, value


def _transform(confidence: FloatArray, scale: Scale, transform: Transform) -> FloatArray:
    """Transform confidences; infinite where a probability is exactly 0 or 1, NaN nowhere."""
    if transform == "identity":
        return np.nan_to_num(np.asarray(confidence, dtype=np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p = np.log(confidence) if scale == "probability" else np.asarray(confidence, dtype=np.float64)
        log_p = np.minimum(np.nan_to_num(log_p, nan=-np.inf, posinf=0.0, neginf=-np.inf), 0.0)
        # log(1 - p), accurate on both sides of p = 1/2
        log_q = np.where(log_p > -LOG_2, np.log(-np.expm1(log_p)), np.log1p(-np.exp(log_p)))
    two_sided: FloatArray = np.where(log_p > -LOG_2, -LOG_2 - log_q, LOG_2 + log_p)
    return -log_q if transform == "one-sided" else two_sided
