"""Anti-affinity: at most ``density`` tasks of a group on one node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.facts import JOINED, STATIC, SUBMITTED, Ask, Event, Ops, Put, Task
from unfold_placement.view import View


@dataclass(slots=True)
class AntiAffinity:
    """Tasks of one ``by`` keep apart."""

    by: str = "job"
    density: int = 1
    groups: dict[str, None] = field(default_factory=dict)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED, JOINED})

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for one of the places that a node has for the group."""
        return [Ask(f"apart-{self.by}-{task.key(self.by)}")]

    def react(self, event: Event, view: View) -> Ops:
        """Put the places on every node as the group's first task comes, and on every node that comes later."""
        if event.kind == JOINED:
            yield [Put(f"apart-{self.by}-{group}", event.node, self.density) for group in self.groups]
        elif event.task is not None and event.task.key(self.by) not in self.groups:
            self.groups[event.task.key(self.by)] = None
            yield [Put(f"apart-{self.by}-{event.task.key(self.by)}", node.name, self.density) for node in view.nodes]
