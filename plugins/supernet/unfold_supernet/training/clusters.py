"""Errors of scores where rows of one group, such as a patient, are not independent: groups count instead of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from unfold_supernet._types import FloatArray, IntArray

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
