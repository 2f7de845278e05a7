"""Parameter servers: each on a node of its own, with the job's workers on these nodes or on others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.cluster_view import View
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
from unfold_placement.policies.shared.membership import MEMBERSHIP_EVENTS, GroupMembership


@dataclass(slots=True)
class Servers:
    """Gives ``role: server`` tasks one node each; ``role: worker`` tasks wait for the job's first server.

    Attributes:
        near: Workers run on the servers' nodes; otherwise on other nodes.
        server_nodes: Node of each running server, by job and task.
        groups: Servers of each job.
    """

    near: bool = True
    server_nodes: dict[str, dict[str, str]] = field(default_factory=dict)
    groups: GroupMembership = field(default_factory=GroupMembership)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = MEMBERSHIP_EVENTS | {STARTED, PREEMPTED, JOINED}

    def request(self, task: Task) -> Iterable[Ask]:
        """Request a server slot, or a node that suits a worker."""
        return [Ask(f"{task.role}-{task.job}")] if task.role in {"server", "worker"} else []

    def react(self, event: Event, view: View) -> Transactions:
        """Create server slots on every node, and worker slots with or without the job's servers."""
        task = event.task
        if task is None:
            yield [Put(f"server-{job}", event.node) for job in self.server_nodes]
            yield from (self._place_workers(job, view) for job in self.server_nodes)
        elif task.role == "server":
            yield from self._update_server(event.kind, task, event.node, view)

    def _update_server(self, kind: str, task: Task, node: str, view: View) -> Transactions:
        slot = f"server-{task.job}"
        if self.groups.add_member(kind, task.job):
            self.server_nodes[task.job] = {}
            yield view.puts(slot)
        elif kind == STARTED:
            self.server_nodes[task.job][task.name] = node
        else:
            self.server_nodes[task.job].pop(task.name, None)
        yield self._place_workers(task.job, view)
        if self.groups.remove_member(kind, task.job):
            del self.server_nodes[task.job]
            yield view.drops(slot)

    def _place_workers(self, job: str, view: View) -> list[Put | Drop]:
        """Create the worker slots of a job where they belong, and delete the others."""
        slot, with_server = f"worker-{job}", set(self.server_nodes[job].values())
        allowed = {node.name for node in view.nodes if with_server and (node.name in with_server) == self.near}
        return [*view.drops(slot, keep=allowed), *view.puts(slot, MANY, sorted(allowed))]
