"""Parameter servers: those of a job on nodes of their own, its workers beside them or away from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.facts import ENDED, MANY, PREEMPTED, STARTED, STATIC, SUBMITTED, Ask, Drop, Event, Ops, Put, Task
from unfold_placement.view import View


@dataclass(slots=True)
class Servers:
    """Tasks of ``role: server`` take one node each; those of ``role: worker`` wait for the first server."""

    near: bool = True
    where: dict[str, dict[str, str]] = field(default_factory=dict)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED, STARTED, ENDED, PREEMPTED})

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for a server's place, or for one that suits a worker."""
        return [Ask(f"{task.role}-{task.job}")] if task.role in {"server", "worker"} else []

    def react(self, event: Event, view: View) -> Ops:
        """Put servers' places everywhere, and workers' where the servers of their job are, or are not."""
        task = event.task
        if task is None or task.role != "server":
            return
        if event.kind == SUBMITTED and task.job not in self.where:
            self.where[task.job] = {}
            yield [Put(f"server-{task.job}", node.name) for node in view.nodes]
        elif event.kind == STARTED:
            self.where[task.job][task.name] = event.node
        else:
            self.where[task.job].pop(task.name, None)
        taken = set(self.where[task.job].values())
        free = {node.name for node in view.nodes if bool(taken) and (node.name in taken) == self.near}
        yield [Drop(f"worker-{task.job}", node.name) for node in view.nodes if node.name not in free]
        yield [Put(f"worker-{task.job}", node, MANY) for node in sorted(free)]
