"""Concurrency limits and licences: a group runs at most ``most`` tasks at a time in the whole cluster."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from unfold_placement.core.types import STATIC, SUBMITTED, Ask, Event, Put, Task, Transactions
from unfold_placement.core.view import View


@dataclass(slots=True)
class Limit:
    """Licences by group.

    Attributes:
        most: Number of licences of each group.
        by: Task field that names the group; empty makes one group of all tasks.
        jobs: Only these jobs need licences; empty means all.
        name: Prefix of the licences' name.
    """

    most: int
    by: str = "job"
    jobs: tuple[str, ...] = ()
    name: str = "limit"
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED})

    def request(self, task: Task) -> Iterable[Ask]:
        """Request one licence."""
        if self.jobs and task.job not in self.jobs:
            return []
        return [Ask(f"{self.name}-{self.by}-{task.key(self.by)}", gated=True, counted=True)]

    def react(self, event: Event, view: View) -> Transactions:
        """Create a group's licences when its first task is submitted."""
        del view
        yield [Put(ask.name, amount=self.most) for ask in self.request(event.task)] if event.task is not None else []
