"""Hierarchical fair share: at every level of the tree the child with the smallest weighted share is next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.facts import QUEUE, Ask, Event, Ops, Task
from unfold_placement.policies.line import EVENTS, Line, weight
from unfold_placement.view import View


@dataclass(slots=True)
class Hierarchy:
    """Users are paths such as ``research/vision``; weights are by path."""

    weights: Mapping[str, float] = field(default_factory=dict)
    backfill: bool = False
    line: Line = field(default_factory=lambda: Line("user"))
    phase: ClassVar[int] = QUEUE
    watches: ClassVar[frozenset[str]] = EVENTS

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for a turn."""
        return self.line.request(task)

    def react(self, event: Event, view: View) -> Ops:
        """Give turns down the tree."""
        if self.line.see(event, view):
            yield from self.line.release(lambda user, _: self.rank(user, view), view, backfill=self.backfill)

    def rank(self, user: str, view: View) -> list[tuple[float, str]]:
        """Return the share of each group on the path to a user, from the root: compared level by level."""
        parts = user.split("/")
        paths = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
        return [(self.held(path, view) / weight(self.weights, path), path) for path in paths]

    def held(self, path: str, view: View) -> float:
        """Return the dominant share of everybody below a path."""
        below = [used for user, used in self.line.used.items() if f"{user}/".startswith(f"{path}/")]
        return max((sum(used.get(k, 0) for used in below) / (view.total(k) or 1) for k in view.book.kinds), default=0.0)
