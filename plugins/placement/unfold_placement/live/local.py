"""The backend in this process: tasks take time and nothing else. For tests, and to try policies in real time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from unfold_placement.core.types import ANYWHERE, Resource, Task
from unfold_placement.live.backend import Change, Snapshot, Start
from unfold_placement.live.state_store import Register


@dataclass(slots=True)
class Local:
    """One controller's or client's handle on a register. Ends of tasks are kept in ``due``, which handles share."""

    register: Register
    due: list[tuple[float, str, int]] = field(default_factory=list)
    who: str = ""
    term: int = 0

    def now(self) -> float:
        """Return the time of the register's clock, in seconds."""
        return self.register.clock()

    def snapshot(self) -> Snapshot:
        """Return everything."""
        self.settle()
        return self.register.snapshot()

    def watch(self, after: int, timeout: float) -> Sequence[Change] | None:
        """Wait for changes, and let tasks end whose time has come."""
        self.settle()
        left = self.due[0][0] - self.now() if self.due else math.inf
        found = self.register.watch(after, max(0.0, min(timeout, left)))
        self.settle()
        return found or self.register.watch(after, 0.0)

    def settle(self) -> None:
        """End the tasks whose time has come."""
        while self.due and self.due[0][0] <= self.now():
            _, task, attempt = heapq.heappop(self.due)
            self.register.end(task, attempt)

    def lead(self, who: str, ttl: float) -> bool:
        """Become or stay the leader."""
        term = self.register.lead(who, ttl)
        self.who, self.term = who, term or self.term
        return term > 0

    def resign(self) -> None:
        """Lead no longer."""
        self.register.resign(self.term)

    def create(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, owner: str = "", ttl: float = math.inf,
        until: str = "",
    ) -> Resource:  # fmt: skip
        """Create a name."""
        self.register.fence(self.term)
        return self.register.create(name, node, amount, owner=owner, ttl=ttl, until=until)

    def resize(self, name: str, node: str = ANYWHERE, amount: int = 1, *, epoch: int | None = None) -> Resource:
        """Set the amount of a name."""
        self.register.fence(self.term)
        return self.register.resize(name, node, amount, epoch=epoch)

    def delete(
        self, name: str, node: str = ANYWHERE, *, force: bool = False, epoch: int | None = None
    ) -> tuple[str, ...]:
        """Delete a name."""
        self.register.fence(self.term)
        return self.register.delete(name, node, force=force, epoch=epoch, by=self.who)

    def renew(self, owner: str, ttl: float) -> int:
        """Let an owner's names live on."""
        return self.register.renew(owner, ttl)

    def submit(self, task: Task) -> None:
        """Take a task into the queue."""
        self.register.submit(task)

    def start(self, unit: Sequence[Start]) -> None:
        """Let a unit run, each task for as long as it takes on its node."""
        self.register.fence(self.term)
        for record in self.register.start(unit, by=self.who):
            seconds = record.task.seconds(self.register.nodes[record.node])
            heapq.heappush(self.due, (record.started + seconds, record.task.name, record.attempt))

    def preempt(self, task: str) -> None:
        """Stop a running task and gate it again."""
        self.register.fence(self.term)
        self.register.preempt(task, by=self.who)

    def refuse(self, task: str, reason: str) -> None:
        """Take a waiting task out of the queue for good."""
        self.register.fence(self.term)
        self.register.refuse(task, reason, by=self.who)

    def withdraw(self, task: str) -> None:
        """Take a task back."""
        self.register.withdraw(task)
