"""Dominant resource fairness (Ghodsi et al., NSDI 2011): next is whoever has the smallest weighted dominant share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import QUEUE, Ask, Event, Task, Transactions
from unfold_placement.core.view import View
from unfold_placement.policies.shared.fair_queue import EVENTS, AdmissionQueue, weight


@dataclass(slots=True)
class Drf:
    """Progressive filling by user, or whatever ``by`` names."""

    by: str = "user"
    weights: Mapping[str, float] = field(default_factory=dict)
    backfill: bool = False
    queue: AdmissionQueue = field(init=False)
    phase: ClassVar[int] = QUEUE
    watches: ClassVar[frozenset[str]] = EVENTS

    def __post_init__(self) -> None:
        self.queue = AdmissionQueue(self.by)

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for a turn."""
        return self.queue.request(task)

    def react(self, event: Event, view: View) -> Transactions:
        """Give turns to the user with the smallest share while they fit."""
        if self.queue.observe(event, view):
            yield from self.queue.admit(lambda user, _: self.rank(user, view), view, backfill=self.backfill)

    def rank(self, user: str, view: View) -> tuple[float, str]:
        """Return the user's weighted dominant share."""
        return self.queue.dominant_share(user, view) / weight(self.weights, user), user
