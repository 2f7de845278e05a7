"""Asymmetric anti-affinity: a task never starts where a task of the job that it avoids runs; the other may join it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.facts import (
    ENDED,
    JOINED,
    MANY,
    PREEMPTED,
    STARTED,
    STATIC,
    SUBMITTED,
    Ask,
    Drop,
    Event,
    Ops,
    Put,
    Task,
)
from unfold_placement.view import View


@dataclass(slots=True)
class Avoid:
    """A task says whom it avoids: ``avoids: JOB``."""

    places: Counter[tuple[str, str]] = field(default_factory=Counter)
    known: dict[str, None] = field(default_factory=dict)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED, STARTED, ENDED, PREEMPTED, JOINED})

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for a node that is clear of the other."""
        return [Ask(f"clear-of-{task.avoids}")] if task.avoids else []

    def react(self, event: Event, view: View) -> Ops:
        """Keep the name on every node on which the avoided job does not run."""
        task = event.task
        if task is None:
            clear = [job for job in self.known if not self.places[job, event.node]]
            yield [Put(f"clear-of-{job}", event.node, MANY) for job in clear]
            return
        if event.kind == SUBMITTED and task.avoids and task.avoids not in self.known:
            self.known[task.avoids] = None
            clear = [node.name for node in view.nodes if not self.places[task.avoids, node.name]]
            yield [Put(f"clear-of-{task.avoids}", node, MANY) for node in clear]
        if event.kind != SUBMITTED:
            self.places[task.job, event.node] += 1 if event.kind == STARTED else -1
            if self.places[task.job, event.node]:
                yield [Drop(f"clear-of-{task.job}", event.node)]
            elif task.job in self.known:
                yield [Put(f"clear-of-{task.job}", event.node, MANY)]
