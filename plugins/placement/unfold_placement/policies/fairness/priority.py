"""Strict priority: no task starts while one of a higher class waits; optionally lower classes are preempted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import QUEUE, Ask, Drop, Event, Task, Transactions
from unfold_placement.core.view import Unit, View
from unfold_placement.policies.shared.admission_queue import QUEUE_EVENTS, AdmissionQueue, admission_resource


@dataclass(slots=True)
class Priority:
    """Highest class first, in order of arrival within a class.

    Attributes:
        preempt: Preempt tasks of lower classes where that makes room.
        backfill: Lower classes may pass a unit that does not fit.
        queue: The pending units by class.
        hopeless: A unit for which preemption made no room, and the change counters at that time.
    """

    preempt: bool = True
    backfill: bool = False
    queue: AdmissionQueue = field(default_factory=lambda: AdmissionQueue("priority"))
    hopeless: tuple[Unit, tuple[int, int]] | None = None
    phase: ClassVar[int] = QUEUE
    watches: ClassVar[frozenset[str]] = QUEUE_EVENTS

    def request(self, task: Task) -> Iterable[Ask]:
        """Request the task's admission."""
        return self.queue.request(task)

    def react(self, event: Event, view: View) -> Transactions:
        """Admit units from the highest class down; preempt the lowest class, latest first, where that makes room."""
        if not self.queue.observe(event, view):
            return
        yield from self._admit_units(view)
        if not self.preempt or not self.queue.waiting_users():
            return
        level = max(self.queue.waiting_users(), key=int)
        attempt = unit, _ = self.queue.first_unit(level), view.change_counters()
        is_hopeless = attempt == self.hopeless
        victims = None if is_hopeless else view.victims(unit, self.queue.admitted_below(int(level)))
        self.hopeless = None if victims else attempt
        if victims:
            yield [Drop(admission_resource(task), force=True) for task in victims]
            yield from self._admit_units(view)

    def _admit_units(self, view: View) -> Transactions:
        yield from self.queue.admit(lambda level, _: -int(level), view, backfill=self.backfill)
