"""Asymmetric anti-affinity: a task never starts where a task of the job that it avoids runs; the other may join it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import (
    ENDED,
    JOINED,
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
from unfold_placement.policies.shared.membership import COMES_AND_GOES, Groups


@dataclass(slots=True)
class Avoid:
    """A task says whom it avoids: ``avoids: JOB``."""

    places: Counter[tuple[str, str]] = field(default_factory=Counter)
    groups: Groups = field(default_factory=Groups)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = COMES_AND_GOES | {STARTED, PREEMPTED, JOINED}

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for a node that is clear of the other."""
        return [Ask(f"clear-of-{task.avoids}")] if task.avoids else []

    def react(self, event: Event, view: View) -> Transactions:
        """Keep the name on every node on which the avoided job does not run, as long as a task asks for it."""
        task = event.task
        if task is None:
            yield self.clear(self.groups.alive, [event.node])
        elif event.kind in {STARTED, ENDED, PREEMPTED}:
            yield self.moved(task, event)
        if task is not None and task.avoids and self.groups.came(event.kind, task.avoids):
            yield self.clear([task.avoids], [node.name for node in view.nodes])
        elif task is not None and task.avoids and self.groups.went(event.kind, task.avoids):
            yield [Drop(f"clear-of-{task.avoids}", node.name) for node in view.nodes_with(f"clear-of-{task.avoids}")]

    def moved(self, task: Task, event: Event) -> Iterable[Put | Drop]:
        """Take in where a task runs, or no longer does."""
        self.places[task.job, event.node] += 1 if event.kind == STARTED else -1
        if self.places[task.job, event.node]:
            return [Drop(f"clear-of-{task.job}", event.node)]
        return self.clear({task.job} & self.groups.alive.keys(), [event.node])

    def clear(self, jobs: Iterable[str], nodes: Iterable[str]) -> list[Put]:
        """Return the names of jobs on those of some nodes on which they do not run."""
        return [Put(f"clear-of-{job}", node, MANY) for job in jobs for node in nodes if not self.places[job, node]]
