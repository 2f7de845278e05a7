"""Calibrated confidences: one temperature for each subnet, and the error that remains.

Training with smoothed labels makes a subnet less sure than it should be. How much follows from the smoothing alone, and
a temperature undoes it without any label. Beyond that, one is fitted on validation rows. It can fit the log loss and
still worsen the confidences of a weak subnet: one that is surely wrong about some rows is made unsure of all. It is
therefore kept at 1 unless it helps on rows it was not fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_supernet._types import Float32Array, FloatArray, IntArray

BINS = 15
"""Equal-width bins of the expected calibration error, as in Guo et al. (ICML 2017)."""
MAX_LOG_TEMPERATURE = 3.0
PRIOR_DEVIATION = 1.0
"""Standard deviation of the log temperature before any row is seen: rows that are all correct prove no certainty."""
TYPICAL_DEVIATION = 0.5
"""Standard deviation of the log temperature among members; estimates that vary more between folds shrink towards it."""
FOLDS = 5
MIN_GROUPS = 3
"""Fewer groups say nothing of how a temperature does on others."""
RESAMPLES, CONFIDENCE = 100, 0.95
EVIDENCE = 0.8
"""Probability from which a temperature is taken to help; at 0.95, few groups left errors of 20 points as they were."""


@dataclass(frozen=True, slots=True)
class CalibrationError:
    """Calibration of a subnet on the test rows, in points.

    Attributes:
        before: Expected calibration error without the temperature.
        after: The same with the temperature.
        excess: Mean confidence less accuracy, with the temperature; below 0 where confidences are too low.
        half_width: Half width of the 95 % interval of ``excess``, in which groups count instead of rows: a
            temperature can be right in the mean of all groups and wrong for those at hand. NaN for a single one.
    """

    before: float
    after: float
    excess: float
    half_width: float


def fit_temperature(logits: Float32Array, targets: IntArray, groups: IntArray | None = None) -> float:
    """Fit the temperature that divides the logits, and keep it only if it helps rows that it was not fitted on.

    Each of five folds is scored with the temperature of the other four. The temperature is kept where the log loss
    and the expected calibration error both fall with a probability of 80 % (one-sided). Its logarithm is shrunk as far
    as the temperatures of the folds disagree (jackknife).

    Args:
        logits: Of validation rows (n, classes), or of labels (n, labels).
        targets: Their classes (n), or labels of 0 and 1 (n, labels).
        groups: Group of each row (n); whole ones are left out of a fit, and the test counts them instead of rows.

    Returns:
        The temperature; 1 without rows, with fewer than three groups, or where it does not help.
    """
    from scipy.stats import t

    if len(targets) < 2 * FOLDS:
        return 1.0
    values = logits.astype(np.float64)
    units = np.arange(len(targets)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(units.max()) + 1
    if count < MIN_GROUPS:
        return 1.0
    parts = min(FOLDS, count)
    folds = np.random.default_rng(0).permutation(count)[units] % parts
    logs = np.log([minimize_log_loss(values[folds != fold], targets[folds != fold]) for fold in range(parts)])
    exponents = logs * _compute_shrinkage(logs)
    scaled = values * np.exp(-exponents)[folds][:, None]
    gains = np.bincount(units, weights=_compute_log_losses(values, targets) - _compute_log_losses(scaled, targets))
    helps = gains.mean() > float(t.ppf(EVIDENCE, count - 1)) * gains.std(ddof=1) / math.sqrt(count)
    if not helps or not _falls_beyond_chance(values, scaled, targets, units):
        return 1.0
    return math.exp(math.log(minimize_log_loss(values, targets)) * _compute_shrinkage(logs))


def _compute_shrinkage(logs: FloatArray) -> float:
    """Compute the factor of a log temperature from those without each fold (folds): empirical Bayes around 0.

    Of f folds, the jackknife's variance is f - 1 times that of the logarithms; it is raised to f + 1, since few folds
    are left.
    """
    variance = (len(logs) + 1) * float(logs.var())
    return TYPICAL_DEVIATION**2 / (TYPICAL_DEVIATION**2 + variance)


def _falls_beyond_chance(before: FloatArray, after: FloatArray, targets: IntArray, units: IntArray) -> bool:
    """Check that the calibration error of ``after`` is lower in at least 80 % of the bootstrap samples of units."""
    rng = np.random.default_rng(1)
    count = int(units.max()) + 1
    falls, predictions = 0, [_list_predictions(logits, targets) for logits in (before, after)]
    for _ in range(RESAMPLES):
        weights = np.bincount(rng.integers(count, size=count), minlength=count)[units]
        first, second = (_average_errors(each, weights) for each in predictions)
        falls += second < first
    return falls >= EVIDENCE * RESAMPLES


def undo_smoothing(logits: Float32Array, smoothing: float, shift: Float32Array | None = None) -> float:
    """Find the temperature that undoes label smoothing; it needs no labels.

    With a smoothing of e over K classes, the loss is least where shares of p are put out as (1 - e) p + e / K. The
    temperature is the one at which the shares come closest to p (Kullback-Leibler divergence, mean over the rows).

    Args:
        logits: Of any rows like those that are served (n, classes).
        smoothing: Of the labels in training.
        shift: What was added to the logits (classes) since they were trained; 0 by default.

    Returns:
        The temperature; 1 without rows or smoothing.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax, softmax

    if not len(logits) or not 0 < smoothing < 1:
        return 1.0
    values, added = logits.astype(np.float64), np.zeros(logits.shape[1]) if shift is None else shift
    smoothed = softmax(values - added, axis=1)
    shares = np.maximum(smoothed - smoothing / logits.shape[1], 0) * np.exp(added)
    shares /= shares.sum(axis=1, keepdims=True)

    def compute_divergence(log_temperature: float) -> float:
        return -float((shares * log_softmax(values * math.exp(-log_temperature), axis=1)).sum())

    bounds = (-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE)
    return math.exp(float(minimize_scalar(compute_divergence, bounds=bounds, method="bounded").x))


def minimize_log_loss(logits: FloatArray, targets: IntArray) -> float:
    """Find the temperature with the smallest log loss (Guo et al., ICML 2017, section 4.2).

    The estimate is the maximum a posteriori under a log-normal prior around 1.
    """
    from scipy.optimize import minimize_scalar

    def compute_loss(log_temperature: float) -> float:
        prior = 0.5 * (log_temperature / PRIOR_DEVIATION) ** 2
        return float(_compute_log_losses(logits * math.exp(-log_temperature), targets).sum()) + prior

    bounds = (-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE)
    return math.exp(float(minimize_scalar(compute_loss, bounds=bounds, method="bounded").x))


def _compute_log_losses(logits: FloatArray, targets: IntArray) -> FloatArray:
    """Compute the log loss of each row (n): of its class, or summed over its labels."""
    from scipy.special import logsumexp

    if targets.ndim > 1:
        # log(1 + exp(-z)) for a label of 1, log(1 + exp(z)) for 0
        losses: FloatArray = np.logaddexp(0, np.where(targets > 0, -logits, logits)).sum(axis=1)
        return losses
    of_class: FloatArray = logsumexp(logits, axis=1) - logits[np.arange(len(targets)), targets]
    return of_class


def _list_predictions(
    logits: Float32Array | FloatArray, targets: IntArray
) -> list[tuple[FloatArray | Float32Array, np.ndarray]]:
    """List confidences (n) and whether they came true (n): of the predicted class, or of each label."""
    from scipy.special import expit

    if targets.ndim == 1:
        return [(compute_confidence(logits, 1.0), logits.argmax(1) == targets)]
    return [*zip(expit(logits.astype(np.float64)).T, targets.T, strict=True)]


def _average_errors(
    predictions: list[tuple[FloatArray | Float32Array, np.ndarray]], weights: IntArray | None = None
) -> float:
    """Average the expected calibration error over predictions, in points; ``weights`` count rows (n)."""
    return float(np.mean([compute_calibration_error(*each, weights) for each in predictions]))


def compute_calibration_error(
    confidence: FloatArray | Float32Array, correct: np.ndarray, weights: IntArray | None = None
) -> float:
    """Compute the expected calibration error: the mean distance of confidence and accuracy over bins, in points.

    Args:
        confidence: Of each prediction, between 0 and 1 (n).
        correct: Whether each prediction is correct (n).
        weights: How often each prediction counts (n); once by default.
    """
    counts = np.ones(len(correct)) if weights is None else weights
    bins = np.minimum((np.asarray(confidence, np.float64) * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, weights=(np.asarray(confidence, np.float64) - correct) * counts, minlength=BINS)
    return float(np.abs(gaps).sum() / counts.sum() * 100)


def measure_calibration(
    logits: Mapping[str, Float32Array],
    temperatures: Mapping[str, float],
    targets: Any,
    groups: IntArray | None = None,
) -> dict[str, CalibrationError]:
    """Measure the calibration error of each member on the test rows, without and with its temperature.

    Args:
        logits: By member, its logits (n, classes or labels), already divided by its temperature.
        temperatures: By member.
        targets: True classes (n), or labels of 0 and 1 (n, labels).
        groups: Group of each row (n); rows are independent without it.
    """
    errors = {}
    for name, values in logits.items():
        excess, half_width = _average_clustered(_compute_excess(values, targets) * 100, groups)
        errors[name] = CalibrationError(
            before=_average_errors(_list_predictions(values * np.float32(temperatures[name]), targets)),
            after=_average_errors(_list_predictions(values, targets)),
            excess=excess,
            half_width=half_width,
        )
    return errors


def _compute_excess(logits: Float32Array, targets: IntArray) -> FloatArray:
    """Compute the confidence of each row less what came true (n): of its class, or in the mean over its labels."""
    from scipy.special import expit

    if targets.ndim > 1:
        of_labels: FloatArray = (expit(logits.astype(np.float64)) - targets).mean(axis=1)
        return of_labels
    of_class: FloatArray = compute_confidence(logits, 1.0) - (logits.argmax(1) == targets)
    return of_class


def _average_clustered(values: FloatArray, groups: IntArray | None) -> tuple[float, float]:
    """Average values (n); return the mean and the half width of its 95 % interval, with groups as independent units."""
    from scipy.stats import t

    index = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    mean, count = float(values.mean()), int(index.max()) + 1
    if count < 2:
        return mean, math.nan
    residuals = np.bincount(index, weights=values - mean)
    error = math.sqrt(count / (count - 1) * float((residuals**2).sum())) / len(values)
    return mean, float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error


def compute_confidence(logits: Float32Array | FloatArray, temperature: float) -> FloatArray:
    """Compute the softmax share of the predicted class (n) of logits (n, classes) at a temperature."""
    from scipy.special import softmax

    shares: FloatArray = softmax(logits.astype(np.float64) / temperature, axis=1).max(axis=1)
    return shares
