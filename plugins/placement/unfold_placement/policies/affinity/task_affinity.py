"""Placement relative to other tasks: affinity, anti-affinity, and its asymmetric form ``avoid``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.cluster_view import View
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
from unfold_placement.policies.shared.membership import MEMBERSHIP_EVENTS, GroupMembership


@dataclass(slots=True)
class Affinity:
    """A task with ``follows: JOB`` runs only where a task of that job runs.

    The policy marks the nodes on which each job runs; ``running`` counts its tasks by job and node.
    """

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


@dataclass(slots=True)
class AntiAffinity:
    """At most ``density`` tasks of a group run on one node; the task field ``by`` names the group."""

    by: str = "job"
    density: int = 1
    groups: GroupMembership = field(default_factory=GroupMembership)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = MEMBERSHIP_EVENTS | {JOINED}

    def request(self, task: Task) -> Iterable[Ask]:
        """Request one of the group's slots on a node."""
        return [Ask(self._slot_name(task.key(self.by)))]

    def react(self, event: Event, view: View) -> Transactions:
        """Create a group's slots with its first task, also on nodes that join; delete them with its last task."""
        group = event.task.key(self.by) if event.task is not None else ""
        if event.kind == JOINED:
            yield [Put(self._slot_name(name), event.node, self.density) for name in self.groups.sizes]
        elif self.groups.add_member(event.kind, group):
            yield view.puts(self._slot_name(group), self.density)
        elif self.groups.remove_member(event.kind, group):
            yield view.drops(self._slot_name(group))

    def _slot_name(self, group: str) -> str:
        return f"apart-{self.by}-{group}"


@dataclass(slots=True)
class Avoid:
    """A task with ``avoids: JOB`` never starts where that job runs, but the job may join it.

    The policy marks the nodes on which an avoided job does not run.

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
            yield view.drops(f"clear-of-{task.avoids}")

    def _update_node(self, task: Task, event: Event) -> Iterable[Put | Drop]:
        self.running[task.job, event.node] += 1 if event.kind == STARTED else -1
        if self.running[task.job, event.node]:
            return [Drop(f"clear-of-{task.job}", event.node)]
        return self._mark_clear({task.job} & self.groups.sizes.keys(), [event.node])

    def _mark_clear(self, jobs: Iterable[str], nodes: Iterable[str]) -> list[Put]:
        return [Put(f"clear-of-{job}", node, MANY) for job in jobs for node in nodes if not self.running[job, node]]
