"""Quality of subnets with confidence intervals, paired comparisons, and the accuracy front. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfold_supernet._types import BoolArray, FloatArray, IntArray

Z_95 = 1.96
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetQuality:
    """Quality of one subnet on the test rows.

    Attributes:
        correct: Whether each row is classified correctly.
        accuracy: In percent.
        half_width: Half width of its 95 % interval, in points.
        macro_f1: In percent.
        sensitivity: By class, between 0 and 1; NaN for a class without rows.
    """

    correct: BoolArray
    accuracy: float
    half_width: float
    macro_f1: float
    sensitivity: tuple[float, ...]


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


def evaluate_predictions(predictions: IntArray, y: IntArray, classes: int) -> SubnetQuality:
    """Evaluate predictions against labels; the interval is Wilson's at 95 %, its longer side."""
    correct = predictions == y
    accuracy = float(correct.mean())
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (y, predictions), 1)
    true_positives, actual, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    present = actual > 0
    f1 = 2 * true_positives[present] / (actual + predicted)[present]
    recall = np.divide(true_positives, actual, out=np.full(classes, np.nan), where=present)
    return SubnetQuality(
        correct=correct,
        accuracy=accuracy * 100,
        half_width=_compute_wilson_reach(accuracy, len(y)) * 100,
        macro_f1=float(f1.mean()) * 100,
        sensitivity=tuple(float(value) for value in recall),
    )


def _compute_wilson_reach(proportion: float, count: int) -> float:
    """Compute how far Wilson's interval extends from a proportion; above 0 even if all of a few rows are correct."""
    term = Z_95**2 / count
    centre = (proportion + term / 2) / (1 + term)
    half = math.sqrt(proportion * (1 - proportion) / count + term**2 / (4 * Z_95**2))
    return abs(centre - proportion) + Z_95 * half / (1 + term)


def compare_paired(correct: BoolArray, reference: BoolArray) -> PairedDifference:
    """Compare a subnet's correct rows with those of a reference on the same rows."""
    difference = correct.astype(np.float64) - reference
    error = float(difference.std()) / math.sqrt(len(difference)) * 100
    better, worse = int((correct & ~reference).sum()), int((reference & ~correct).sum())
    return PairedDifference(float(difference.mean()) * 100, error, better, worse)


def select_front(costs: Sequence[float], qualities: Sequence[SubnetQuality]) -> list[int]:
    """Select the accuracy front: from cheap to expensive, each subnet significantly better than the previous one.

    Returns:
        Indices of the subnets, cheapest first.
    """
    order = sorted(range(len(qualities)), key=lambda index: (costs[index], -qualities[index].accuracy))
    front = order[:1]
    for index in order[1:]:
        difference = compare_paired(qualities[index].correct, qualities[front[-1]].correct)
        if difference.points > 0 and difference.is_significant:
            front.append(index)
    return front


def compute_percentiles(seconds: FloatArray) -> tuple[float, float]:
    """Compute the median and the 99th percentile."""
    return float(np.median(seconds)), float(np.quantile(seconds, 0.99))
