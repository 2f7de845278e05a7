"""Task affinity: a task with ``follows: JOB`` runs only where a task of that job runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import (
    ENDED,
    MANY,
    PREEMPTED,
    STARTED,
    STATIC,
    Ask,
    Drop,
    Event,
    Put,
    Task,
    Transactions,
)
from unfold_placement.core.view import View


@dataclass(slots=True)
class Affinity:
    """Marks the nodes on which each job runs; ``running`` counts its tasks by job and node."""

    running: Counter[tuple[str, str]] = field(default_factory=Counter)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({STARTED, ENDED, PREEMPTED})

    def request(self, task: Task) -> Iterable[Ask]:
        """Request a node of the followed job."""
        return [Ask(f"near-{task.follows}")] if task.follows else []

    def react(self, event: Event, view: View) -> Transactions:
        """Create a job's mark where its first task starts; delete it with the last one there."""
        del view
        job = event.task.job if event.task is not None else ""
        self.running[job, event.node] += 1 if event.kind == STARTED else -1
        if self.running[job, event.node] > 0:
            yield [Put(f"near-{job}", event.node, MANY)]
        else:
            del self.running[job, event.node]
            yield [Drop(f"near-{job}", event.node)]
