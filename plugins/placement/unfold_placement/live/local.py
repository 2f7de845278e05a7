"""The in-process backend: tasks take time and do nothing. For tests, and to try policies in real time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from unfold_placement.core.policy import Policy
from unfold_placement.core.types import ANYWHERE, EphemeralResource, Task
from unfold_placement.live.backend import Change, Snapshot, Start
from unfold_placement.live.state_store import StateStore


@dataclass(slots=True)
class LocalBackend:
    """One controller's or client's handle on a store.

    Attributes:
        store: The records, which handles share.
        end_times: Heap of end (s), task and attempt, which handles share.
        holder: Name of this process once it stood for leadership.
        term: Its last term, 0 if it never led.
    """

    store: StateStore
    end_times: list[tuple[float, str, int]] = field(default_factory=list)
    holder: str = ""
    term: int = 0

    def now(self) -> float:
        """Return the time of the store's clock in seconds."""
        return self.store.clock()

    def describe_wait(self) -> str:
        """Return nothing: it never waits for another."""
        return ""

    def describe_refusal(self) -> str:
        """Return nothing: it refuses nothing."""
        return ""

    def constraints(self, tasks: Sequence[Task]) -> Sequence[Policy]:
        """Return nothing: the cluster has no rules besides the policies."""
        del tasks
        return ()

    def snapshot(self) -> Snapshot:
        """End due tasks, then return the cluster."""
        self.end_due_tasks()
        return self.store.snapshot()

    def has_node(self, name: str) -> bool:
        """Return whether a node is in the cluster."""
        return name in self.store.nodes

    def watch(self, after: int, timeout: float) -> Sequence[Change] | None:
        """Wait for changes, and end tasks that become due."""
        self.end_due_tasks()
        until_next_s = self.end_times[0][0] - self.now() if self.end_times else math.inf
        changes = self.store.watch(after, max(0.0, min(timeout, until_next_s)))
        self.end_due_tasks()
        return changes or self.store.watch(after, 0.0)

    def end_due_tasks(self) -> None:
        """End the tasks that have run for their run time."""
        while self.end_times and self.end_times[0][0] <= self.now():
            _, task, attempt = heapq.heappop(self.end_times)
            self.store.end(task, attempt)

    def lead(self, holder: str, ttl: float) -> bool:
        """Become or stay leader."""
        term = self.store.lead(holder, ttl)
        self.holder, self.term = holder, term or self.term
        return term > 0

    def resign(self) -> None:
        """Give up leadership."""
        self.store.resign(self.term)

    def create(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, owner: str = "", ttl: float = math.inf,
        until: str = "",
    ) -> EphemeralResource:  # fmt: skip
        """Create an ephemeral resource."""
        self.store.check_term(self.term)
        return self.store.create(name, node, amount, owner=owner, ttl=ttl, until=until)

    def resize(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, epoch: int | None = None
    ) -> EphemeralResource:
        """Set the amount of a resource."""
        self.store.check_term(self.term)
        return self.store.resize(name, node, amount, epoch=epoch)

    def delete(
        self, name: str, node: str = ANYWHERE, *, force: bool = False, epoch: int | None = None
    ) -> tuple[str, ...]:
        """Delete a resource."""
        self.store.check_term(self.term)
        return self.store.delete(name, node, force=force, epoch=epoch, by=self.holder)

    def renew(self, owner: str, ttl: float) -> int:
        """Extend the leases of an owner's resources."""
        return self.store.renew(owner, ttl)

    def submit(self, task: Task) -> None:
        """Enqueue a task."""
        self.store.submit(task)

    def start(self, unit: Sequence[Start]) -> None:
        """Start a unit; each task runs for its run time on its node."""
        self.store.check_term(self.term)
        for record in self.store.start(unit, by=self.holder):
            run_s = record.task.run_seconds(self.store.nodes[record.node])
            heapq.heappush(self.end_times, (record.started + run_s, record.task.name, record.attempt))

    def preempt(self, task: str) -> None:
        """Stop a running task and gate it again."""
        self.store.check_term(self.term)
        self.store.preempt(task, by=self.holder)

    def refuse(self, task: str, reason: str) -> None:
        """Reject a waiting task for good."""
        self.store.check_term(self.term)
        self.store.refuse(task, reason, by=self.holder)

    def withdraw(self, task: str) -> None:
        """Withdraw a task."""
        self.store.withdraw(task)
