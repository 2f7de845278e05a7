"""Stage barriers: a task starts only after every task of the jobs that it depends on has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.cluster_view import View
from unfold_placement.core.types import ENDED, MANY, STATIC, Ask, Event, Put, Task, Transactions


@dataclass(slots=True)
class Barrier:
    """Holds tasks with ``after: [JOB]`` until these jobs have ended; ``ended`` counts tasks of unfinished jobs."""

    ended: Counter[str] = field(default_factory=Counter)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({ENDED})

    def request(self, task: Task) -> Iterable[Ask]:
        """Request the end of each job in ``after``."""
        return [Ask(completion_resource(job), gated=True) for job in task.after]

    def react(self, event: Event, view: View) -> Transactions:
        """Create a job's completion resource when its last task ends."""
        del view
        if event.task is not None:
            self.ended[event.task.job] += 1
            if self.ended[event.task.job] == event.task.size:
                del self.ended[event.task.job]
                yield [Put(completion_resource(event.task.job), amount=MANY)]


def completion_resource(job: str) -> str:
    """Return the name of the ephemeral resource that exists once a job has ended."""
    return f"done-{job}"
