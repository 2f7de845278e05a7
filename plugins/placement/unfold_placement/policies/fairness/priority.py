"""First come, first served; and strict priority, which optionally preempts lower classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.cluster_view import Unit, View
from unfold_placement.core.types import ENDED, QUEUE, REFUSED, Ask, Drop, Event, Task, Transactions, Wait
from unfold_placement.policies.shared.admission_queue import (
    QUEUE_EVENTS,
    RESERVE,
    AdmissionQueue,
    admission_resource,
)
from unfold_placement.policies.shared.fair_queue import FairQueuePolicy


@dataclass(slots=True, kw_only=True)
class Fifo(FairQueuePolicy):
    """The oldest unit is next; others may pass it on nodes that are not reserved for it."""

    by: str = ""
    backfill: bool = True

    def rank(self, user: str, unit: Unit, view: View) -> int:
        """Rank all units alike: the oldest is first."""
        del user, unit, view
        return 0


@dataclass(slots=True)
class Priority:
    """Highest class first, in order of arrival within a class.

    Attributes:
        preempt: Preempt tasks of lower classes where that makes room; a gang only if all its members are lower.
        backfill: Any unit may pass one that does not fit.
        guard: Where units may pass, nodes are reserved for the oldest of the highest class (``reserve``), or not
            (``none``). Nothing protects a class from higher ones.
        max_preemptions: Preemptions after which a task runs to its end; None for no bound.
        queue: The pending units by class.
        preemptions: Number of preemptions of each task that has not ended.
        hopeless: A unit for which preemption made no room, and the change counters at that time.
    """

    preempt: bool = True
    backfill: bool = False
    guard: str = RESERVE
    max_preemptions: int | None = None
    queue: AdmissionQueue = field(init=False)
    preemptions: Counter[str] = field(default_factory=Counter)
    hopeless: tuple[Unit, tuple[int, int]] | None = None
    phase: ClassVar[int] = QUEUE
    watches: ClassVar[frozenset[str]] = QUEUE_EVENTS

    def __post_init__(self) -> None:
        self.queue = AdmissionQueue("priority", guard=self.guard)

    def request(self, task: Task) -> Iterable[Ask]:
        """Request the task's admission."""
        return self.queue.request(task)

    def react(self, event: Event, view: View) -> Transactions:
        """Admit units from the highest class down; preempt the lowest class, latest first, where that makes room."""
        if event.kind in {ENDED, REFUSED} and event.task is not None:
            self.preemptions.pop(event.task.name, None)
        if not self.queue.observe(event, view):
            return
        yield from self._admit_units(view)
        if not self.preempt or not self.queue.waiting_users():
            return
        level = max(self.queue.waiting_users(), key=int)
        attempt = unit, _ = self.queue.first_unit(level), view.change_counters()
        is_hopeless = attempt == self.hopeless
        victims = None if is_hopeless else view.victims(unit, self._candidates(int(level), view))
        self.hopeless = None if victims else attempt
        if victims:
            self.preemptions.update(task.name for task in victims)
            yield [Drop(admission_resource(task), force=True) for task in victims]
            # the victims are not in the queue yet: until they are, a lower class would take their room
            yield from self._admit_units(view, unit)

    def _admit_units(self, view: View, only: Unit = ()) -> Transactions:
        def is_allowed(_level: str, unit: Unit) -> bool:
            return unit == only or not only

        yield from self.queue.admit(
            _rank_class, view, backfill=self.backfill, is_allowed=is_allowed, guard_rank=_rank_class
        )

    def state(self) -> tuple[tuple[str, int], ...]:
        """Return what distinguishes two states for a search: preemptions as far as they are bounded."""
        return () if self.max_preemptions is None else tuple(sorted(self.preemptions.items()))

    def _candidates(self, level: int, view: View) -> Iterator[Task]:
        for task in self.queue.admitted_below(level):
            # a gang counts as its highest member: otherwise two of them could preempt each other for ever
            is_lower = all(mate.priority < level for mate in view.running_mates(task))
            if is_lower and (self.max_preemptions is None or self.preemptions[task.name] < self.max_preemptions):
                yield task

    def describe_wait(self, task: Task, view: View) -> Wait | None:
        """Return why a task is not admitted; None if it is."""
        return self.queue.describe_wait(task, view)


def _rank_class(level: str, _unit: Unit, _view: View) -> int:
    return -int(level)
