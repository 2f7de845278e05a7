"""Stage barriers: a task starts only when every job that it comes after has ended as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import ENDED, MANY, STATIC, Ask, Event, Put, Task, Transactions
from unfold_placement.core.view import View


@dataclass(slots=True)
class Barrier:
    """A task says what it comes after: ``after: [JOB]``."""

    ended: Counter[str] = field(default_factory=Counter)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({ENDED})

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for the end of each job before."""
        return [Ask(done(job), gated=True) for job in task.after]

    def react(self, event: Event, view: View) -> Transactions:
        """Put the name as a job's last task ends."""
        del view
        if event.task is not None:
            self.ended[event.task.job] += 1
            if self.ended[event.task.job] == event.task.size:
                yield [Put(done(event.task.job), amount=MANY)]


def done(job: str) -> str:
    """Return the name that is there once a job has ended."""
    return f"done-{job}"
