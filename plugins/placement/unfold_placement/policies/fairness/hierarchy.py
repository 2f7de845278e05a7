"""Hierarchical fair share: at every level of the tree the child with the smallest weighted share is next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import QUEUE, Ask, Event, Task, Transactions
from unfold_placement.core.view import Unit, View
from unfold_placement.policies.shared.fair_queue import EVENTS, AdmissionQueue, weight


@dataclass(slots=True)
class Hierarchy:
    """Users are paths such as ``research/vision``; weights are by path.

    A group is judged by the resource of which the next task of its user asks the largest part, so that nobody starves
    because a sibling has taken all of another resource (the case that H-DRF is for: Bhattacharya et al., SoCC 2013).
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    backfill: bool = False
    queue: AdmissionQueue = field(default_factory=lambda: AdmissionQueue("user"))
    phase: ClassVar[int] = QUEUE
    watches: ClassVar[frozenset[str]] = EVENTS

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for a turn."""
        return self.queue.request(task)

    def react(self, event: Event, view: View) -> Transactions:
        """Give turns down the tree."""
        if self.queue.observe(event, view):
            yield from self.queue.admit(lambda user, unit: self.rank(user, unit, view), view, backfill=self.backfill)

    def rank(self, user: str, unit: Unit, view: View) -> list[tuple[float, str]]:
        """Return the share of each group on the path to a user, then the user's own: compared level by level."""
        parts = user.split("/")
        paths = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
        kind = self.queue.dominant_resource(unit, view)
        held = [*(self.held(path, kind, view) for path in paths[:-1]), self.queue.dominant_share(user, view)]
        return [(share / weight(self.weights, path), path) for share, path in zip(held, paths, strict=True)]

    def held(self, path: str, kind: str, view: View) -> float:
        """Return the part of a resource that everybody below a path holds."""
        below = (used for user, used in self.queue.used.items() if f"{user}/".startswith(f"{path}/"))
        return sum(used.get(kind, 0) for used in below) / (view.total_capacity(kind) or 1)
