"""What accuracy hides where nearly all cases have one label: how many of the others are answered right."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from unfold_cascade._types import BoolArray, IntArray
from unfold_cascade.planner.planner import Plan
from unfold_cascade.planner.policy import Outcome

MOST = 0.9


def lines(plan: Plan, outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Yield a line of a report if at least 90 % of the test rows have one label; ``outcome`` is that of these rows."""
    given, rows = plan.given, plan.given.rows.test
    labels = given.labels[rows]
    counts = np.bincount(labels, minlength=len(given.names))
    most = int(counts.argmax())
    others = labels != most
    if counts[most] < MOST * len(labels) or not others.any():
        return
    right = [("the cascade", outcome.answer)] * (plan.policy is not None) + [(plan.base.name, plan.base.answer[rows])]
    found = ", ".join(f"{name} {_right(answer, labels, others)}" for name, answer in right)
    share = f'{100 * counts[most] / len(labels):.1f} % of the test cases are "{given.names[most]}"'
    yield "skew", f"{share}; answered right of the {others.sum():,} others: {found}"


def _right(answer: IntArray, labels: IntArray, others: BoolArray) -> str:
    return f"{int((answer == labels)[others].sum()):,}"
