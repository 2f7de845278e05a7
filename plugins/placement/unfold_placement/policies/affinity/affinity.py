"""Task affinity: followers run where a task of the job that they follow runs, and wait until it does."""

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
    """A task says whom it follows: ``follows: JOB``."""

    places: Counter[tuple[str, str]] = field(default_factory=Counter)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({STARTED, ENDED, PREEMPTED})

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask to be near the leader."""
        return [Ask(f"near-{task.follows}")] if task.follows else []

    def react(self, event: Event, view: View) -> Transactions:
        """Put the name where a leader starts, and take it away with the last one that ends."""
        del view
        job = event.task.job if event.task is not None else ""
        self.places[job, event.node] += 1 if event.kind == STARTED else -1
        if self.places[job, event.node] > 0:
            yield [Put(f"near-{job}", event.node, MANY)]
        else:
            del self.places[job, event.node]
            yield [Drop(f"near-{job}", event.node)]
