"""Groups of tasks that come and go, for policies that put names for each: with its last task a group's names go too."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from unfold_placement.core.types import ENDED, REFUSED, SUBMITTED

COMES_AND_GOES = frozenset({SUBMITTED, ENDED, REFUSED})


@dataclass(slots=True)
class Groups:
    """How many tasks of each group wait or run."""

    alive: Counter[str] = field(default_factory=Counter)

    def came(self, kind: str, group: str) -> bool:
        """Take in an event of a task; return whether the group was not there before."""
        if kind == SUBMITTED:
            self.alive[group] += 1
        return kind == SUBMITTED and self.alive[group] == 1

    def went(self, kind: str, group: str) -> bool:
        """Take in an event of a task; return whether it was the last of its group."""
        if kind not in {ENDED, REFUSED} or group not in self.alive:
            return False
        self.alive[group] -= 1
        if self.alive[group] > 0:
            return False
        del self.alive[group]
        return True
