"""Historical fairness: next is whoever used least, where use counts half after every half-life."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import QUEUE, Ask, Event, Task, Transactions
from unfold_placement.core.view import View
from unfold_placement.policies.shared.fair_queue import EVENTS, AdmissionQueue, weight


@dataclass(slots=True)
class History:
    """Decayed dominant share-seconds by user: u' = share - u ln 2 / half-life, integrated exactly between events."""

    half_life: float = 86400.0
    by: str = "user"
    weights: Mapping[str, float] = field(default_factory=dict)
    backfill: bool = False
    past: dict[str, float] = field(default_factory=dict)
    told: float = 0.0
    queue: AdmissionQueue = field(init=False)
    phase: ClassVar[int] = QUEUE
    watches: ClassVar[frozenset[str]] = EVENTS

    def __post_init__(self) -> None:
        self.queue = AdmissionQueue(self.by)

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for a turn."""
        return self.queue.request(task)

    def react(self, event: Event, view: View) -> Transactions:
        """Bring the past up to now, then give turns to whoever used least."""
        self.age(view)
        if self.queue.observe(event, view):
            yield from self.queue.admit(lambda user, _: self.rank(user, view), view, backfill=self.backfill)

    def age(self, view: View) -> None:
        """Let the past fade, and add what was held since the last time."""
        fade = 0.5 ** ((view.now - self.told) / self.half_life)
        gain = (1 - fade) * self.half_life / math.log(2)
        for user in {*self.past, *self.queue.used}:
            self.past[user] = self.past.get(user, 0.0) * fade + self.queue.dominant_share(user, view) * gain
        self.told = view.now

    def rank(self, user: str, view: View) -> tuple[float, float, str]:
        """Return the weighted past, then what is held now."""
        scale = weight(self.weights, user)
        return self.past.get(user, 0.0) / scale, self.queue.dominant_share(user, view) / scale, user
