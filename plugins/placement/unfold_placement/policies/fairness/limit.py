"""Concurrency limits and licences: at most ``most`` tasks of a group run at any time in the whole cluster."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from unfold_placement.core.types import STATIC, SUBMITTED, Ask, Event, Put, Task, Transactions
from unfold_placement.core.view import View


@dataclass(slots=True)
class Limit:
    """For each ``by`` (or, where it is empty, for all together); ``jobs`` limits it to some jobs."""

    most: int
    by: str = "job"
    jobs: tuple[str, ...] = ()
    name: str = "limit"
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED})

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for one of the licences."""
        mine = not self.jobs or task.job in self.jobs
        return [Ask(f"{self.name}-{self.by}-{task.key(self.by)}", gated=True, counted=True)] if mine else []

    def react(self, event: Event, view: View) -> Transactions:
        """Put the licences as the first task asks for them."""
        del view
        yield [Put(ask.name, amount=self.most) for ask in self.request(event.task)] if event.task is not None else []
