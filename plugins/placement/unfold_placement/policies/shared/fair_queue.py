"""The common part of fair-share policies: a policy is its rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.cluster_view import Unit, View
from unfold_placement.core.types import QUEUE, Ask, Event, Task, Transactions, Wait
from unfold_placement.policies.shared.admission_queue import QUEUE_EVENTS, RESERVE, AdmissionQueue


@dataclass(slots=True, kw_only=True)
class FairQueuePolicy:
    """Admits the first unit of the user with the lowest rank while it fits.

    Attributes:
        by: Task field that names the user.
        backfill: Any unit may pass one that does not fit.
        guard: Where units may pass, nodes are reserved for the one that waits longest (``reserve``), or not (``none``).
        queue: The pending units.
    """

    by: str = "user"
    backfill: bool = False
    guard: str = RESERVE
    queue: AdmissionQueue = field(init=False)
    phase: ClassVar[int] = QUEUE
    watches: ClassVar[frozenset[str]] = QUEUE_EVENTS

    def __post_init__(self) -> None:
        self.queue = AdmissionQueue(self.by, guard=self.guard)

    def request(self, task: Task) -> Iterable[Ask]:
        """Request the task's admission."""
        return self.queue.request(task)

    def react(self, event: Event, view: View) -> Transactions:
        """Admit units by rank once all events of an instant are known."""
        self.update(view)
        if self.queue.observe(event, view):
            yield from self.admit_units(view)

    def admit_units(self, view: View) -> Transactions:
        """Admit units by rank."""
        yield from self.queue.admit(self.rank, view, backfill=self.backfill, on_admit=self.record_admission)

    def describe_wait(self, task: Task, view: View) -> Wait | None:
        """Return why a task is not admitted; None if it is."""
        return self.queue.describe_wait(task, view)

    def rank(self, user: str, unit: Unit, view: View) -> object:
        """Return the order of a user with its next unit: the lowest is admitted first, of equal ones the oldest."""
        raise NotImplementedError

    def update(self, view: View) -> None:
        """Update the policy's state before an event; by default there is none."""

    def record_admission(self, user: str, unit: Unit) -> None:
        """Update the policy's state after an admission; by default there is none."""


def weight_of(weights: Mapping[str, float], user: str) -> float:
    """Return a user's weight, which is 1 unless set."""
    return weights.get(user, 1.0)
