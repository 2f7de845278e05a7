"""Quota with borrowing and reclaim: what a team does not use others may borrow, until it wants it back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import QUEUE, Ask, Drop, Event, Task, Transactions
from unfold_placement.core.view import Unit, View
from unfold_placement.policies.shared.fair_queue import EVENTS, AdmissionQueue, admission_resource


@dataclass(slots=True)
class Quota:
    """``quotas`` is how many of ``resource`` each team is owed; teams within theirs go first, and may take it back."""

    quotas: Mapping[str, float]
    resource: str = "gpu"
    by: str = "user"
    borrow: bool = True
    reclaim: bool = True
    backfill: bool = True
    queue: AdmissionQueue = field(init=False)
    phase: ClassVar[int] = QUEUE
    watches: ClassVar[frozenset[str]] = EVENTS

    def __post_init__(self) -> None:
        self.queue = AdmissionQueue(self.by)

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for a turn."""
        return self.queue.request(task)

    def react(self, event: Event, view: View) -> Transactions:
        """Give turns within quota, take back what was lent where one of these does not fit, then lend the rest."""
        if not self.queue.observe(event, view):
            return
        yield from self.within(view)
        owed = self.owed(view)
        if self.reclaim and (gone := self.back(view)):
            # what else is owed is taken back once it is told that these have stopped
            yield [Drop(admission_resource(task), force=True) for task in gone]
            yield from self.within(view)
        if self.borrow and not owed:
            yield from self.queue.admit(lambda user, unit: (self.over(user, unit), user), view, backfill=True)

    def within(self, view: View) -> Transactions:
        """Give turns to teams that stay within their quota; with ``backfill`` none of them waits for another's."""
        yield from self.queue.admit(
            lambda user, _: (self.queue.dominant_share(user, view), user), view, backfill=self.backfill,
            may=lambda user, unit: self.over(user, unit) <= 0,
        )  # fmt: skip

    def owed(self, view: View) -> list[str]:
        """Return the teams that wait for what is within their quota, the smallest share first."""
        busy = [user for user in self.queue.waiting_users() if self.over(user, self.queue.queues[user][0]) <= 0]
        return sorted(busy, key=lambda user: (self.queue.dominant_share(user, view), user))

    def back(self, view: View) -> list[Task]:
        """Return what was lent and makes room for the first team that is owed and gets room so; or nothing."""
        owed = self.owed(view) if self.backfill else self.owed(view)[:1]
        found = (view.victims(self.queue.queues[user][0], self.lent(view)) for user in owed)
        return next((gone for gone in found if gone), [])

    def lent(self, view: View) -> list[Task]:
        """Return the tasks that run on what is lent, latest first: of each team until it is back within its quota."""
        above = {user: self.over(user) for user in self.queue.used}
        found = []
        for task, _, _ in reversed(view.running()):
            amount = task.demand.get(self.resource, 0) / 1000
            if amount and above.get(task.key(self.by), 0.0) > 1e-9:
                above[task.key(self.by)] -= amount
                found.append(task)
        return found

    def over(self, user: str, unit: Unit = ()) -> float:
        """Return how far above its quota a team would be with a unit more."""
        wanted = sum(task.demand.get(self.resource, 0) for task in unit)
        held = self.queue.used.get(user, {}).get(self.resource, 0)
        return (held + wanted) / 1000 - self.quotas.get(user, 0.0)
