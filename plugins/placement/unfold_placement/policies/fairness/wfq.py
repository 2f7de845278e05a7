"""Weighted fair queueing by virtual time (WF2Q: Bennett and Zhang, INFOCOM 1996); a task counts as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import QUEUE, Ask, Event, Task, Transactions
from unfold_placement.core.view import Unit, View
from unfold_placement.policies.shared.fair_queue import EVENTS, AdmissionQueue, weight


@dataclass(slots=True)
class Wfq:
    """Of the users whose next task would have begun under ideal sharing, the one whose task would end first."""

    by: str = "user"
    weights: Mapping[str, float] = field(default_factory=dict)
    backfill: bool = False
    clock: float = 0.0
    ends: dict[str, float] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    queue: AdmissionQueue = field(init=False)
    phase: ClassVar[int] = QUEUE
    watches: ClassVar[frozenset[str]] = EVENTS

    def __post_init__(self) -> None:
        self.queue = AdmissionQueue(self.by)

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for a turn."""
        return self.queue.request(task)

    def react(self, event: Event, view: View) -> Transactions:
        """Give turns by the smallest finish tag among those that are eligible."""
        self.known &= set(self.queue.waiting_users())
        if self.queue.observe(event, view):
            yield from self.queue.admit(self.tag, view, backfill=self.backfill, done=self.served)

    def tag(self, user: str, unit: Unit) -> tuple[bool, float, str]:
        """Return what the queue is ordered by: not yet eligible, virtual finish, name."""
        if user not in self.known:
            self.known.add(user)
            self.ends[user] = max(self.clock, self.ends.get(user, 0.0))
        begin = self.ends[user]
        return begin > self.clock + 1e-9, begin + len(unit) / weight(self.weights, user), user

    def served(self, user: str, unit: Unit) -> None:
        """Advance the user's tag and the virtual clock."""
        self.ends[user] += len(unit) / weight(self.weights, user)
        busy = {*self.queue.waiting_users(), user}
        ideal = self.clock + len(unit) / sum(weight(self.weights, name) for name in busy)
        self.clock = max(ideal, min(self.ends[name] for name in busy))
