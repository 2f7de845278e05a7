"""Parameter servers: those of a job on nodes of their own, its workers beside them or away from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import (
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
class Servers:
    """Tasks of ``role: server`` take one node each; those of ``role: worker`` wait for the first server."""

    near: bool = True
    where: dict[str, dict[str, str]] = field(default_factory=dict)
    groups: Groups = field(default_factory=Groups)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = COMES_AND_GOES | {STARTED, PREEMPTED, JOINED}

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for a server's place, or for one that suits a worker."""
        return [Ask(f"{task.role}-{task.job}")] if task.role in {"server", "worker"} else []

    def react(self, event: Event, view: View) -> Transactions:
        """Put servers' places everywhere, and workers' where the servers of their job are, or are not."""
        task = event.task
        if task is None:
            yield [Put(f"server-{job}", event.node) for job in self.where]
            yield from (self.beside(job, view) for job in self.where)
        elif task.role == "server":
            yield from self.noted(event.kind, task, event.node, view)

    def noted(self, kind: str, task: Task, node: str, view: View) -> Transactions:
        """Take in what became of a server."""
        if self.groups.came(kind, task.job):
            self.where[task.job] = {}
            yield [Put(f"server-{task.job}", item.name) for item in view.nodes]
        elif kind == STARTED:
            self.where[task.job][task.name] = node
        else:
            self.where[task.job].pop(task.name, None)
        yield self.beside(task.job, view)
        if self.groups.went(kind, task.job):
            del self.where[task.job]
            yield [Drop(f"server-{task.job}", item.name) for item in view.nodes_with(f"server-{task.job}")]

    def beside(self, job: str, view: View) -> list[Put | Drop]:
        """Return the workers' places: where the servers of their job are, or are not."""
        taken = set(self.where[job].values())
        free = {node.name for node in view.nodes if bool(taken) and (node.name in taken) == self.near}
        drops = [Drop(f"worker-{job}", item.name) for item in view.nodes_with(f"worker-{job}") if item.name not in free]
        return [*drops, *(Put(f"worker-{job}", node, MANY) for node in sorted(free))]
