"""What a trained family must show before the answer is yes: the goal is met, and every member is worth having.

A member must beat the classifier that always predicts the commonest class of the training rows. Of several members, a
larger one must be significantly more accurate than the smallest. A goal counts as met where its 95 % bound meets it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_supernet._types import IntArray
from unfold_supernet.training.accuracy import (
    CONFIDENCE,
    PairedDifference,
    SubnetQuality,
    compare_paired,
    select_front,
)

Z_ONE_SIDED = 1.645


@dataclass(frozen=True, slots=True)
class Goal:
    """What the family must reach.

    Attributes:
        accuracy: Of the most accurate subnet, in percent; ``None`` without a target.
        max_sharing_cost: Largest weight-sharing gap, in points; ``None`` without a limit.
    """

    accuracy: float | None = None
    max_sharing_cost: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyVerdict:
    """What the test rows say of a family.

    Attributes:
        majority: Accuracy of the classifier that always predicts the commonest class, in percent.
        useless: Subnets that do not significantly beat it.
        grows: Whether a larger subnet is significantly more accurate than the smallest; true for a single one.
        accuracy_bound: Lower 95 % bound of the most accurate subnet's accuracy, in percent.
        sharing_bound: Upper 95 % bound of the largest weight-sharing gap, in points; ``None`` without comparison.
        goal: What was required.
    """

    majority: float
    useless: tuple[str, ...]
    grows: bool
    accuracy_bound: float
    sharing_bound: float | None
    goal: Goal

    @property
    def misses_accuracy(self) -> bool:
        """Whether the accuracy that can be promised is below the goal."""
        return self.goal.accuracy is not None and self.accuracy_bound < self.goal.accuracy

    @property
    def misses_sharing(self) -> bool:
        """Whether the weight-sharing gap may be larger than the goal allows."""
        limit = self.goal.max_sharing_cost
        return limit is not None and (self.sharing_bound is None or self.sharing_bound > limit)

    @property
    def is_met(self) -> bool:
        """Whether nothing speaks against the family."""
        return self.grows and not (self.useless or self.misses_accuracy or self.misses_sharing)


def judge_family(
    qualities: Mapping[str, SubnetQuality],
    macs: Sequence[float],
    gaps: Sequence[PairedDifference],
    train_labels: IntArray,
    test_labels: IntArray,
    goal: Goal,
) -> FamilyVerdict:
    """Judge a family by its test rows.

    Args:
        qualities: Quality of each subnet on the test rows, cheapest first.
        macs: Multiply-accumulates of each subnet.
        gaps: Weight-sharing gaps of the subnets that were compared.
        train_labels: Classes of the training rows.
        test_labels: Classes of the test rows.
        goal: What the family must reach.
    """
    constant = test_labels == np.bincount(train_labels).argmax()
    differences = {name: compare_paired(quality.correct, constant) for name, quality in qualities.items()}
    useless = [name for name, gap in differences.items() if gap.points <= 0 or not gap.is_significant]
    return FamilyVerdict(
        majority=float(constant.mean()) * 100,
        useless=tuple(useless),
        grows=len(qualities) == 1 or len(select_front(macs, list(qualities.values()))) > 1,
        accuracy_bound=max(_bound_accuracy(quality, len(qualities)) for quality in qualities.values()),
        sharing_bound=max((gap.points + Z_ONE_SIDED * gap.error for gap in gaps), default=None),
        goal=goal,
    )


def _bound_accuracy(quality: SubnetQuality, count: int) -> float:
    """Bound an accuracy from below (Clopper–Pearson); the best of ``count`` subnets is corrected for the choice."""
    from scipy.stats import binomtest

    level = 1 - 2 * (1 - CONFIDENCE) / count
    interval = binomtest(int(quality.correct.sum()), len(quality.correct)).proportion_ci(level, "exact")
    return float(interval.low) * 100
