"""Anti-affinity: at most ``density`` tasks of a group on one node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import JOINED, STATIC, Ask, Drop, Event, Put, Task, Transactions
from unfold_placement.core.view import View
from unfold_placement.policies.shared.membership import COMES_AND_GOES, Groups


@dataclass(slots=True)
class AntiAffinity:
    """Tasks of one ``by`` keep apart."""

    by: str = "job"
    density: int = 1
    groups: Groups = field(default_factory=Groups)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = COMES_AND_GOES | {JOINED}

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for one of the places that a node has for the group."""
        return [Ask(self.name(task.key(self.by)))]

    def react(self, event: Event, view: View) -> Transactions:
        """Put the places on every node, those that come later too, from the group's first task until its last ends."""
        group = event.task.key(self.by) if event.task is not None else ""
        if event.kind == JOINED:
            yield [Put(self.name(known), event.node, self.density) for known in self.groups.alive]
        elif self.groups.came(event.kind, group):
            yield [Put(self.name(group), node.name, self.density) for node in view.nodes]
        elif self.groups.went(event.kind, group):
            yield [Drop(self.name(group), node.name) for node in view.nodes_with(self.name(group))]

    def name(self, group: str) -> str:
        """Return the name of a group's places."""
        return f"apart-{self.by}-{group}"
