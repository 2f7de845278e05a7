"""Membership of task groups, for policies with ephemeral resources that exist while a group has tasks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from unfold_placement.core.types import ENDED, REFUSED, SUBMITTED

MEMBERSHIP_EVENTS = frozenset({SUBMITTED, ENDED, REFUSED})
"""Event kinds that change a membership."""


@dataclass(slots=True)
class GroupMembership:
    """The number of waiting and running tasks of each group."""

    sizes: Counter[str] = field(default_factory=Counter)

    def add_member(self, kind: str, group: str) -> bool:
        """Count a submitted task; return whether it is the first of its group. Other event kinds change nothing."""
        if kind != SUBMITTED:
            return False
        self.sizes[group] += 1
        return self.sizes[group] == 1

    def remove_member(self, kind: str, group: str) -> bool:
        """Remove an ended or rejected task; return whether it was the last of its group."""
        if kind not in {ENDED, REFUSED} or group not in self.sizes:
            return False
        self.sizes[group] -= 1
        if self.sizes[group] > 0:
            return False
        del self.sizes[group]
        return True
