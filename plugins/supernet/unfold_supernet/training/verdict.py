"""What a trained family must show before the answer is yes: the goal is met, and every member is worth having.

A member must beat the best constant: the commonest class of the test rows, any constant probability for several labels,
or the mean of the test rows for real values. Of several members, a larger one must have a significantly better score
than the smallest. A goal counts as met where its 95 % bound meets it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unfold_supernet._types import Task
from unfold_supernet.training.accuracy import Difference, Quality, select_front


@dataclass(frozen=True, slots=True)
class Goal:
    """What the family must reach.

    Attributes:
        score: Accuracy, macro AUROC or R² of the best subnet, in percent; ``None`` without a target.
        max_sharing_cost: Largest weight-sharing gap, in points; ``None`` without a limit.
    """

    score: float | None = None
    max_sharing_cost: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyVerdict:
    """What the test rows say of a family.

    Attributes:
        task: What the outputs are.
        constant: Score of the constant that a subnet must beat, in percent.
        useless: Subnets that do not significantly beat it.
        grows: Whether a larger subnet is significantly better than the smallest; true for a single one.
        score_bound: Lower 95 % bound of the best subnet's score, in percent.
        sharing_bound: Upper 95 % bound of the largest weight-sharing gap, in points; ``None`` without comparison.
        goal: What was required.
    """

    task: Task = "classes"
    constant: float
    useless: tuple[str, ...]
    grows: bool
    score_bound: float
    sharing_bound: float | None
    goal: Goal

    @property
    def misses_score(self) -> bool:
        """Whether the score that can be promised is below the goal."""
        return self.goal.score is not None and self.score_bound < self.goal.score

    @property
    def misses_sharing(self) -> bool:
        """Whether the weight-sharing gap may be larger than the goal allows."""
        limit = self.goal.max_sharing_cost
        return limit is not None and (self.sharing_bound is None or self.sharing_bound > limit)

    @property
    def is_met(self) -> bool:
        """Whether nothing speaks against the family."""
        return self.grows and not (self.useless or self.misses_score or self.misses_sharing)


def judge_family(
    qualities: Mapping[str, Quality],
    macs: Sequence[float],
    gaps: Sequence[Difference],
    constant: Quality,
    goal: Goal,
    task: Task = "classes",
) -> FamilyVerdict:
    """Judge a family by its test rows.

    Args:
        qualities: Quality of each subnet on the test rows, cheapest first.
        macs: Multiply-accumulates of each subnet.
        gaps: Weight-sharing gaps of the subnets that were compared.
        constant: Quality of the constant that every subnet must beat, on the same rows.
        goal: What the family must reach.
        task: What the outputs are.
    """
    differences = {name: quality.compare(constant) for name, quality in qualities.items()}
    useless = [name for name, gap in differences.items() if gap.points <= 0 or not gap.is_significant]
    return FamilyVerdict(
        task=task,
        constant=constant.score,
        useless=tuple(useless),
        grows=len(qualities) == 1 or len(select_front(macs, list(qualities.values()))) > 1,
        score_bound=max(quality.bound_below(len(qualities)) for quality in qualities.values()),
        sharing_bound=max((gap.bound_above for gap in gaps), default=None),
        goal=goal,
    )
