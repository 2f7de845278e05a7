"""Quality of members that predict several labels or real values: scores with intervals, and paired comparisons.

Each score comes with the influence of every test row, from which standard errors of scores and of differences follow
without resampling: DeLong's components for the AUROC (Biometrics, 1988), and the linearized ratio for R². Rows of one
group (a patient) are summed before, so that errors count groups and not rows. A few rows that are all ranked correctly
have no spread, so one more row of either kind, ranked last, counts towards the error of an AUROC.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from unfold_supernet._types import BoolArray, FloatArray, IntArray
from unfold_supernet.training.accuracy import (
    CONFIDENCE,
    ClusteredDifference,
    compute_error,
    compute_quantile,
    sum_groups,
)

CHANCE_AUROC = 50.0
THRESHOLD = 0.5
"""Probability from which a label counts as predicted, for the F1 score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadQuality:
    """Quality of one member on the test rows.

    Attributes:
        score: Macro AUROC or R², in percent.
        influence: What each group of rows adds to the error of the score, in points (groups).
        by_output: Score of each label or value, in percent; NaN where the test rows do not define it.
        measures: Other measures by name, of all outputs.
        errors: Mean absolute and root mean squared error of each value, in its unit; empty for labels.
        misranked: What two more rows of each label would add to the error, in points (2 labels); empty for values.
    """

    score: float
    influence: FloatArray
    by_output: tuple[float, ...]
    measures: dict[str, float]
    errors: tuple[tuple[float, float], ...] = ()
    misranked: FloatArray = field(default_factory=lambda: np.zeros(0))

    @property
    def half_width(self) -> float:
        """Half width of the 95 % interval (Student's t), in points."""
        return self._reach(1 - (1 - CONFIDENCE) / 2)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval, in percent."""
        return self.score - self.half_width, min(100.0, self.score + self.half_width)

    def bound_below(self, choices: int) -> float:
        """Bound the score from below at 95 %, corrected for a choice among ``choices`` members."""
        return self.score - self._reach(1 - (1 - CONFIDENCE) / choices)

    def compare(self, reference: HeadQuality) -> ClusteredDifference:
        """Subtract the score of another member on the same rows."""
        error = _add_errors(self.influence - reference.influence, self.misranked - reference.misranked)
        return ClusteredDifference(self.score - reference.score, error, len(self.influence))

    def _reach(self, level: float) -> float:
        return compute_quantile(level, len(self.influence)) * _add_errors(self.influence, self.misranked)


def evaluate_labels(probabilities: FloatArray, y: IntArray, groups: IntArray | None = None) -> HeadQuality:
    """Evaluate the probabilities of labels: macro AUROC, mean average precision and macro F1.

    Args:
        probabilities: Of each label (n, labels).
        y: Whether each label applies, 0 or 1 (n, labels).
        groups: Group of each row (n); rows are independent without it.
    """
    from sklearn.metrics import average_precision_score

    outputs, influence = [], np.zeros(len(y))
    precisions, f1, misranked = [], [], []
    for scores, truth in zip(probabilities.T, y.T.astype(bool), strict=True):
        area, parts = _compute_auroc(scores, truth)
        outputs.append(area)
        if math.isnan(area):
            continue
        influence += parts
        misranked += [area / (1 + _count_groups(rows, groups)) for rows in (truth, ~truth)]
        precisions.append(float(average_precision_score(truth, scores)))
        predicted = scores >= THRESHOLD
        f1.append(2 * float((predicted & truth).sum()) / float(predicted.sum() + truth.sum()))
    defined = max(1, len(f1))
    return HeadQuality(
        score=float(np.nanmean(outputs)) * 100 if f1 else math.nan,
        influence=sum_groups(influence / defined * 100, groups),
        by_output=tuple(area * 100 for area in outputs),
        measures={
            "mean average precision": float(np.sum(precisions)) / defined * 100,
            "macro F1": float(np.sum(f1)) / defined * 100,
        },
        misranked=np.array(misranked) / defined * 100,
    )


def evaluate_values(
    outputs: FloatArray, y: FloatArray, constant: FloatArray, groups: IntArray | None = None
) -> HeadQuality:
    """Evaluate real values: R² against a constant, mean absolute and root mean squared error.

    Args:
        outputs: Predicted values (n, values).
        y: True values (n, values).
        constant: The values that a constant predicts: the means of the training rows (values).
        groups: Group of each row (n); rows are independent without it.
    """
    residuals = outputs.astype(np.float64) - y
    squares, spread = residuals**2, (y.astype(np.float64) - constant) ** 2
    totals = spread.sum(axis=0)
    is_defined = totals > 0
    ratios = np.divide(squares.sum(axis=0), totals, out=np.full(len(totals), np.nan), where=is_defined)
    parts = -(squares - ratios * spread)[:, is_defined] / totals[is_defined]
    by_output = (1 - ratios) * 100
    return HeadQuality(
        score=float(by_output[is_defined].mean()) if is_defined.any() else math.nan,
        influence=sum_groups(parts.sum(axis=1) / max(1, int(is_defined.sum())) * 100, groups),
        by_output=tuple(by_output.tolist()),
        measures={},
        errors=tuple(zip(np.abs(residuals).mean(axis=0).tolist(), np.sqrt(squares.mean(axis=0)).tolist(), strict=True)),
    )


def build_constant(score: float, quality: HeadQuality) -> HeadQuality:
    """Build the quality of a constant on the rows of another: its score, and no error."""
    outputs = tuple(score for _ in quality.by_output)
    influence, misranked = (np.zeros_like(values) for values in (quality.influence, quality.misranked))
    return HeadQuality(score=score, influence=influence, by_output=outputs, measures={}, misranked=misranked)


def _add_errors(influence: FloatArray, misranked: FloatArray) -> float:
    """Compute the standard error of a score from the influence of its groups and of the misranked rows."""
    return math.hypot(compute_error(influence), *misranked)


def _count_groups(rows: BoolArray, groups: IntArray | None) -> int:
    """Count the groups with any of the selected rows (n), or these rows if there are no groups."""
    return int(rows.sum()) if groups is None else len(np.unique(groups[rows]))


def _compute_auroc(scores: FloatArray, truth: np.ndarray) -> tuple[float, FloatArray]:
    """Compute the area under the ROC curve and each row's influence on it (DeLong); NaN with one kind of rows only."""
    from scipy.stats import rankdata

    positives, negatives = int(truth.sum()), int((~truth).sum())
    influence = np.zeros(len(truth))
    if not positives or not negatives:
        return math.nan, influence
    ranks = rankdata(scores)
    above = (ranks[truth] - rankdata(scores[truth])) / negatives
    below = 1 - (ranks[~truth] - rankdata(scores[~truth])) / positives
    area = float(above.mean())
    influence[truth] = (above - area) / positives
    influence[~truth] = (below - area) / negatives
    return area, influence
