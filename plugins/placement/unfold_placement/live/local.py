"""The backend in this process: tasks take time and nothing else. For tests, and to try policies in real time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from unfold_placement.core.types import ANYWHERE, EphemeralResource, Task
from unfold_placement.live.backend import Change, Snapshot, Start
from unfold_placement.live.state_store import StateStore


@dataclass(slots=True)
class LocalBackend:
    """One controller's or client's handle on a register. Ends of tasks are kept in ``due``, which handles share."""

    store: StateStore
    end_times: list[tuple[float, str, int]] = field(default_factory=list)
    holder: str = ""
    term: int = 0

    def now(self) -> float:
        """Return the time of the register's clock, in seconds."""
        return self.store.clock()

    def snapshot(self) -> Snapshot:
        """Return everything."""
        self.end_due_tasks()
        return self.store.snapshot()

    def watch(self, after: int, timeout: float) -> Sequence[Change] | None:
        """Wait for changes, and let tasks end whose time has come."""
        self.end_due_tasks()
        left = self.end_times[0][0] - self.now() if self.end_times else math.inf
        found = self.store.watch(after, max(0.0, min(timeout, left)))
        self.end_due_tasks()
        return found or self.store.watch(after, 0.0)

    def end_due_tasks(self) -> None:
        """End the tasks whose time has come."""
        while self.end_times and self.end_times[0][0] <= self.now():
            _, task, attempt = heapq.heappop(self.end_times)
            self.store.end(task, attempt)

    def lead(self, who: str, ttl: float) -> bool:
        """Become or stay the leader."""
        term = self.store.lead(who, ttl)
        self.holder, self.term = who, term or self.term
        return term > 0

    def resign(self) -> None:
        """Lead no longer."""
        self.store.resign(self.term)

    def create(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, owner: str = "", ttl: float = math.inf,
        until: str = "",
    ) -> EphemeralResource:  # fmt: skip
        """Create a name."""
        self.store.check_term(self.term)
        return self.store.create(name, node, amount, owner=owner, ttl=ttl, until=until)

    def resize(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, epoch: int | None = None
    ) -> EphemeralResource:
        """Set the amount of a name."""
        self.store.check_term(self.term)
        return self.store.resize(name, node, amount, epoch=epoch)

    def delete(
        self, name: str, node: str = ANYWHERE, *, force: bool = False, epoch: int | None = None
    ) -> tuple[str, ...]:
        """Delete a name."""
        self.store.check_term(self.term)
        return self.store.delete(name, node, force=force, epoch=epoch, by=self.holder)

    def renew(self, owner: str, ttl: float) -> int:
        """Let an owner's names live on."""
        return self.store.renew(owner, ttl)

    def submit(self, task: Task) -> None:
        """Take a task into the queue."""
        self.store.submit(task)

    def start(self, unit: Sequence[Start]) -> None:
        """Let a unit run, each task for as long as it takes on its node."""
        self.store.check_term(self.term)
        for record in self.store.start(unit, by=self.holder):
            seconds = record.task.run_seconds(self.store.nodes[record.node])
            heapq.heappush(self.end_times, (record.started + seconds, record.task.name, record.attempt))

    def preempt(self, task: str) -> None:
        """Stop a running task and gate it again."""
        self.store.check_term(self.term)
        self.store.preempt(task, by=self.holder)

    def refuse(self, task: str, reason: str) -> None:
        """Take a waiting task out of the queue for good."""
        self.store.check_term(self.term)
        self.store.refuse(task, reason, by=self.holder)

    def withdraw(self, task: str) -> None:
        """Take a task back."""
        self.store.withdraw(task)
