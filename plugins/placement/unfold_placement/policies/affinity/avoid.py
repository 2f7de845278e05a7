"""Asymmetric anti-affinity: a task with ``avoids: JOB`` never starts where that job runs; the job may join it."""

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
from unfold_placement.policies.shared.membership import MEMBERSHIP_EVENTS, GroupMembership


@dataclass(slots=True)
class Avoid:
    """Marks the nodes on which an avoided job does not run.

    Attributes:
        running: Running tasks by job and node.
        groups: Tasks that avoid each job.
    """

    running: Counter[tuple[str, str]] = field(default_factory=Counter)
    groups: GroupMembership = field(default_factory=GroupMembership)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = MEMBERSHIP_EVENTS | {STARTED, PREEMPTED, JOINED}

    def request(self, task: Task) -> Iterable[Ask]:
        """Request a node without the avoided job."""
        return [Ask(f"clear-of-{task.avoids}")] if task.avoids else []

    def react(self, event: Event, view: View) -> Transactions:
        """Keep the marks of every avoided job on the nodes on which it does not run."""
        task = event.task
        if task is None:
            yield self._mark_clear(self.groups.sizes, [event.node])
        elif event.kind in {STARTED, ENDED, PREEMPTED}:
            yield self._update_node(task, event)
        if task is not None and task.avoids and self.groups.add_member(event.kind, task.avoids):
            yield self._mark_clear([task.avoids], [node.name for node in view.nodes])
        elif task is not None and task.avoids and self.groups.remove_member(event.kind, task.avoids):
            mark = f"clear-of-{task.avoids}"
            yield [Drop(mark, node.name) for node in view.nodes_with(mark)]

    def _update_node(self, task: Task, event: Event) -> Iterable[Put | Drop]:
        self.running[task.job, event.node] += 1 if event.kind == STARTED else -1
        if self.running[task.job, event.node]:
            return [Drop(f"clear-of-{task.job}", event.node)]
        return self._mark_clear({task.job} & self.groups.sizes.keys(), [event.node])

    def _mark_clear(self, jobs: Iterable[str], nodes: Iterable[str]) -> list[Put]:
        return [Put(f"clear-of-{job}", node, MANY) for job in jobs for node in nodes if not self.running[job, node]]
