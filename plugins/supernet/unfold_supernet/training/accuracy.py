"""Quality of subnets with confidence intervals, paired comparisons, and the accuracy front. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from unfold_supernet._types import BoolArray, FloatArray, IntArray

Z_95, Z_ONE_SIDED = 1.96, 1.645


CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class ClusteredDifference:
    """Difference of two members' scores on the same rows.

    Attributes:
        points: Difference in points.
        error: Paired standard error, in points.
        clusters: Groups of rows, or rows, from which the error was estimated.
    """

    points: float
    error: float
    clusters: int

    @property
    def is_significant(self) -> bool:
        """Whether the 95 % interval (Student's t) leaves zero out."""
        return abs(self.points) > compute_quantile(1 - (1 - CONFIDENCE) / 2, self.clusters) * self.error

    @property
    def bound_above(self) -> float:
        """Upper bound of the difference at 95 % (one-sided), in points."""
        return self.points + compute_quantile(CONFIDENCE, self.clusters) * self.error


def sum_groups(influence: FloatArray, groups: IntArray | None) -> FloatArray:
    """Sum the influence of rows (n) on a score by their groups; rows without groups, or of a single one, stay apart."""
    # a single group has no spread: its rows are all that is known
    if groups is None or len(np.unique(groups)) < 2:
        return influence
    _, index = np.unique(groups, return_inverse=True)
    return np.asarray(np.bincount(index, weights=influence), np.float64)


def compute_error(influence: FloatArray) -> float:
    """Compute the standard error of a score from the influence of its groups; unknown for a single one."""
    count = len(influence)
    return math.sqrt(count / (count - 1) * float((influence**2).sum())) if count > 1 else math.inf


def compute_quantile(level: float, clusters: int) -> float:
    """Compute the quantile of Student's t for errors that were estimated from groups."""
    from scipy.stats import t

    return float(t.ppf(level, max(1, clusters - 1)))


class Difference(Protocol):
    """Difference of two subnets' scores on the same rows."""

    @property
    def points(self) -> float:
        """Score of the first subnet less that of the second, in percentage points."""

    @property
    def error(self) -> float:
        """Paired standard error, in points."""

    @property
    def is_significant(self) -> bool:
        """Whether the difference is not chance at 95 %."""

    @property
    def bound_above(self) -> float:
        """Upper bound of the difference at 95 % (one-sided), in points."""


class Quality(Protocol):
    """Quality of a subnet on the test rows, by the score of its task; more is better."""

    @property
    def score(self) -> float:
        """Accuracy, macro AUROC or R², in percent."""

    @property
    def half_width(self) -> float:
        """Half width of the 95 % interval, in points."""

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval, in percent."""

    def bound_below(self, choices: int) -> float:
        """Bound the score from below at 95 %, in percent; the best of ``choices`` subnets is corrected for it."""

    def compare(self, reference: Any) -> Difference:
        """Subtract the score of another subnet on the same rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetQuality:
    """Quality of one classifier on the test rows.

    Attributes:
        correct: Whether each row is classified correctly.
        accuracy: In percent.
        half_width: Half width of its 95 % interval, in points.
        macro_f1: In percent.
        sensitivity: By class, between 0 and 1; NaN for a class without rows.
        groups: Group of each row, if known; intervals then count groups, and are never narrower than those of rows.
    """

    correct: BoolArray
    accuracy: float
    half_width: float
    macro_f1: float
    sensitivity: tuple[float, ...]
    groups: IntArray | None = None

    @property
    def score(self) -> float:
        """Accuracy in percent."""
        return self.accuracy

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval in percent: Wilson's, or Student's t over groups where it is wider."""
        from scipy.stats import binomtest

        bounds = binomtest(int(self.correct.sum()), len(self.correct)).proportion_ci(CONFIDENCE, method="wilson")
        reach = _compute_clustered_reach(self.correct, self.groups, 1 - (1 - CONFIDENCE) / 2)
        low, high = 100 * float(bounds.low), 100 * float(bounds.high)
        return max(0.0, min(low, self.accuracy - reach)), min(100.0, max(high, self.accuracy + reach))

    def bound_below(self, choices: int) -> float:
        """Bound the accuracy from below at 95 %, corrected for a choice among ``choices`` subnets.

        The bound is Clopper and Pearson's, or that of Student's t over groups where it is lower.
        """
        from scipy.stats import binomtest

        level = 1 - 2 * (1 - CONFIDENCE) / choices
        interval = binomtest(int(self.correct.sum()), len(self.correct)).proportion_ci(level, "exact")
        reach = _compute_clustered_reach(self.correct, self.groups, 1 - (1 - CONFIDENCE) / choices)
        return max(0.0, min(float(interval.low) * 100, self.accuracy - reach))

    def compare(self, reference: SubnetQuality) -> Difference:
        """Subtract the accuracy of another subnet on the same rows."""
        return compare_paired(self.correct, reference.correct, self.groups)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Accuracy difference of two subnets on the same rows.

    Attributes:
        points: Difference in points.
        error: Paired standard error, in points.
        better: Rows that only the first subnet classifies correctly.
        worse: Rows that only the second one classifies correctly.
    """

    points: float
    error: float
    better: int
    worse: int

    @property
    def is_significant(self) -> bool:
        """Whether McNemar's exact test rejects equality at 95 %; it holds for small samples too."""
        from scipy.stats import binomtest

        discordant = self.better + self.worse
        return discordant > 0 and bool(binomtest(self.better, discordant).pvalue < 1 - CONFIDENCE)

    @property
    def bound_above(self) -> float:
        """Upper bound of the difference at 95 % (one-sided), in points."""
        return self.points + Z_ONE_SIDED * self.error


def evaluate_predictions(
    predictions: IntArray, y: IntArray, classes: int, groups: IntArray | None = None
) -> SubnetQuality:
    """Evaluate predictions against labels.

    The interval is Wilson's at 95 %, its longer side, or that of Student's t over groups where it is wider.

    Args:
        predictions: Predicted classes (n).
        y: Classes (n).
        classes: Number of classes.
        groups: Group of each row (n); rows are independent without it.
    """
    correct = predictions == y
    accuracy = float(correct.mean())
    true_positives, actual, predicted = (
        np.bincount(labels, minlength=classes).astype(np.float64) for labels in (y[correct], y, predictions)
    )
    present = actual > 0
    f1 = 2 * true_positives[present] / (actual + predicted)[present]
    recall = np.divide(true_positives, actual, out=np.full(classes, np.nan), where=present)
    return SubnetQuality(
        correct=correct,
        accuracy=accuracy * 100,
        half_width=max(
            _compute_wilson_reach(accuracy, len(y)) * 100,
            _compute_clustered_reach(correct, groups, 1 - (1 - CONFIDENCE) / 2),
        ),
        macro_f1=float(f1.mean()) * 100,
        sensitivity=tuple(float(value) for value in recall),
        groups=groups,
    )


def evaluate_commonest_class(labels: IntArray, classes: int, groups: IntArray | None = None) -> SubnetQuality:
    """Evaluate the best classifier that always predicts one class: the commonest one of the test rows.

    That of the training rows may be rare among them, so that any other constant would beat it.

    Args:
        labels: Classes of the test rows (n).
        classes: Number of classes.
        groups: Group of each row (n); rows are independent without it.
    """
    commonest = np.full(len(labels), np.bincount(labels).argmax(), np.int64)
    return evaluate_predictions(commonest, labels, classes, groups)


def _compute_clustered_reach(correct: BoolArray, groups: IntArray | None, level: float) -> float:
    """Compute how far the accuracy of other groups may lie on one side at a level, in points; 0 without groups."""
    if groups is None:
        return 0.0
    influence = sum_groups((correct - correct.mean()) / len(correct) * 100, groups)
    return compute_quantile(level, len(influence)) * compute_error(influence)


def _compute_wilson_reach(proportion: float, count: int) -> float:
    """Compute how far Wilson's interval extends from a proportion; above 0 even if all of a few rows are correct."""
    term = Z_95**2 / count
    centre = (proportion + term / 2) / (1 + term)
    half = math.sqrt(proportion * (1 - proportion) / count + term**2 / (4 * Z_95**2))
    return abs(centre - proportion) + Z_95 * half / (1 + term)


def compare_paired(correct: BoolArray, reference: BoolArray, groups: IntArray | None = None) -> Difference:
    """Compare a subnet's correct rows with those of a reference on the same rows; known groups count instead."""
    difference = correct.astype(np.float64) - reference
    if groups is not None:
        influence = sum_groups((difference - difference.mean()) / len(difference) * 100, groups)
        return ClusteredDifference(float(difference.mean()) * 100, compute_error(influence), len(influence))
    error = float(difference.std()) / math.sqrt(len(difference)) * 100
    better, worse = int((correct & ~reference).sum()), int((reference & ~correct).sum())
    return PairedDifference(float(difference.mean()) * 100, error, better, worse)


def select_front(costs: Sequence[float], qualities: Sequence[Quality]) -> list[int]:
    """Select the accuracy front: from cheap to expensive, each subnet significantly better than the previous one.

    Returns:
        Indices of the subnets, cheapest first.
    """
    order = sorted(range(len(qualities)), key=lambda index: (costs[index], -qualities[index].score))
    front = order[:1]
    for index in order[1:]:
        difference = qualities[index].compare(qualities[front[-1]])
        if difference.points > 0 and difference.is_significant:
            front.append(index)
    return front


def compute_percentiles(seconds: FloatArray) -> tuple[float, float]:
    """Compute the median and the 99th percentile."""
    return float(np.median(seconds)), float(np.quantile(seconds, 0.99))
