"""Strict priority: nobody starts while a task of a higher class waits; with ``preempt`` lower classes make room."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import QUEUE, Ask, Drop, Event, Task, Transactions
from unfold_placement.core.view import Unit, View
from unfold_placement.policies.shared.fair_queue import EVENTS, AdmissionQueue, admission_resource


@dataclass(slots=True)
class Priority:
    """Highest class first, first come first served within one."""

    preempt: bool = True
    backfill: bool = False
    queue: AdmissionQueue = field(default_factory=lambda: AdmissionQueue("priority"))
    hopeless: tuple[Unit, tuple[int, int]] | None = None
    phase: ClassVar[int] = QUEUE
    watches: ClassVar[frozenset[str]] = EVENTS

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for a turn."""
        return self.queue.request(task)

    def react(self, event: Event, view: View) -> Transactions:
        """Give turns from the highest class down; take them from the lowest, latest first, where that makes room."""
        if not self.queue.observe(event, view):
            return
        yield from self.queue.admit(lambda level, _: -int(level), view, backfill=self.backfill)
        if not self.preempt or not self.queue.waiting_users():
            return
        level = max(self.queue.waiting_users(), key=int)
        news = self.queue.queues[level][0], view.change_counters()
        gone = view.victims(news[0], self.queue.below(int(level))) if news != self.hopeless else None
        self.hopeless = None if gone else news
        if gone:
            yield [Drop(admission_resource(task), force=True) for task in gone]
            yield from self.queue.admit(lambda level, _: -int(level), view, backfill=self.backfill)
