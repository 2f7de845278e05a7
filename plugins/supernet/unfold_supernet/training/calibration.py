"""Calibrated confidences: one temperature for each subnet, fitted on validation rows, and the error that remains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from unfold_supernet._types import Float32Array, FloatArray, IntArray

BINS = 15
"""Equal-width bins of the expected calibration error, as in Guo et al. (ICML 2017)."""
MAX_LOG_TEMPERATURE = 3.0
PRIOR_DEVIATION = 1.0
"""Standard deviation of the log temperature before any row is seen: rows that are all correct prove no certainty."""


@dataclass(frozen=True, slots=True)
class CalibrationError:
    """Expected calibration error of a subnet on the test rows, in points."""

    before: float
    after: float


def fit_temperature(logits: Float32Array, labels: IntArray) -> float:
    """Fit the temperature that divides the logits (Guo et al., ICML 2017, section 4.2).

    The estimate is the maximum a posteriori under a log-normal prior around 1.

    Args:
        logits: Of validation rows (n, classes).
        labels: Their classes (n).

    Returns:
        The temperature; 1 without rows.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels):
        return 1.0
    values = logits.astype(np.float64)

    def compute_loss(log_temperature: float) -> float:
        scaled = values * math.exp(-log_temperature)
        prior = 0.5 * (log_temperature / PRIOR_DEVIATION) ** 2
        return float(_compute_log_loss(scaled, labels)) + prior

    bounds = (-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE)
    return math.exp(float(minimize_scalar(compute_loss, bounds=bounds, method="bounded").x))


def _compute_log_loss(logits: FloatArray, labels: IntArray) -> float:
    from scipy.special import logsumexp

    return float((logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]).sum())


def compute_calibration_error(confidence: FloatArray | Float32Array, correct: np.ndarray) -> float:
    """Compute the expected calibration error: the mean distance of confidence and accuracy over bins, in points.

    Args:
        confidence: Of each prediction, between 0 and 1 (n).
        correct: Whether each prediction is correct (n).
    """
    bins = np.minimum((np.asarray(confidence, np.float64) * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, weights=np.asarray(confidence, np.float64) - correct, minlength=BINS)
    return float(np.abs(gaps).sum() / len(correct) * 100)


def measure_calibration(
    logits: Mapping[str, Float32Array], temperatures: Mapping[str, float], labels: IntArray
) -> dict[str, CalibrationError]:
    """Measure the calibration error of each member on the test rows, without and with its temperature.

    Args:
        logits: By member, its logits (n, classes), already divided by its temperature.
        temperatures: By member.
        labels: True classes (n).
    """
    errors = {}
    for name, values in logits.items():
        correct = values.argmax(1) == labels
        before, after = (
            compute_calibration_error(compute_confidence(values, divisor), correct)
            for divisor in (1 / temperatures[name], 1.0)
        )
        errors[name] = CalibrationError(before, after)
    return errors


def compute_confidence(logits: Float32Array, temperature: float) -> FloatArray:
    """Compute the softmax share of the predicted class (n) of logits (n, classes) at a temperature."""
    from scipy.special import softmax

    shares: FloatArray = softmax(logits.astype(np.float64) / temperature, axis=1).max(axis=1)
    return shares
