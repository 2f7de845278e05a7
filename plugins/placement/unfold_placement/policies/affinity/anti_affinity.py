"""Anti-affinity: at most ``density`` tasks of a group on one node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import JOINED, STATIC, Ask, Drop, Event, Put, Task, Transactions
from unfold_placement.core.view import View
from unfold_placement.policies.shared.membership import MEMBERSHIP_EVENTS, GroupMembership


@dataclass(slots=True)
class AntiAffinity:
    """Gives every node ``density`` slots for each group, which is named by the task field ``by``."""

    by: str = "job"
    density: int = 1
    groups: GroupMembership = field(default_factory=GroupMembership)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = MEMBERSHIP_EVENTS | {JOINED}

    def request(self, task: Task) -> Iterable[Ask]:
        """Request one of the group's slots on a node."""
        return [Ask(self._slot_name(task.key(self.by)))]

    def react(self, event: Event, view: View) -> Transactions:
        """Create a group's slots with its first task, also on nodes that join; delete them with its last task."""
        group = event.task.key(self.by) if event.task is not None else ""
        if event.kind == JOINED:
            yield [Put(self._slot_name(name), event.node, self.density) for name in self.groups.sizes]
        elif self.groups.add_member(event.kind, group):
            yield [Put(self._slot_name(group), node.name, self.density) for node in view.nodes]
        elif self.groups.remove_member(event.kind, group):
            yield [Drop(self._slot_name(group), node.name) for node in view.nodes_with(self._slot_name(group))]

    def _slot_name(self, group: str) -> str:
        return f"apart-{self.by}-{group}"
