"""Load balancing: no node runs more than ``skew`` tasks of a group above the node that runs the fewest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.cluster_view import View
from unfold_placement.core.types import (
    JOINED,
    LEFT,
    PREEMPTED,
    STARTED,
    STATIC,
    SUBMITTED,
    Ask,
    Event,
    Put,
    Task,
    Transactions,
)
from unfold_placement.policies.shared.membership import MEMBERSHIP_EVENTS, GroupMembership


@dataclass(slots=True)
class Spread:
    """Gives every node equally many slots of a group, and more as the least loaded node fills.

    Attributes:
        by: Task field that names the group.
        skew: Allowed difference to the least loaded node.
        soft: Nodes on which the task does not fit do not count as least loaded.
        running: Running tasks by group and name.
        sample_tasks: Task of each group's last event.
        slots_per_node: Current slots of each group.
        groups: Membership of the groups.
    """

    by: str = "job"
    skew: int = 1
    soft: bool = False
    running: dict[str, dict[str, Task]] = field(default_factory=dict)
    sample_tasks: dict[str, Task] = field(default_factory=dict)
    slots_per_node: dict[str, int] = field(default_factory=dict)
    groups: GroupMembership = field(default_factory=GroupMembership)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = MEMBERSHIP_EVENTS | {STARTED, PREEMPTED, JOINED, LEFT}

    def request(self, task: Task) -> Iterable[Ask]:
        """Request a slot of the task's group."""
        return [Ask(f"spread-{self.by}-{task.key(self.by)}")]

    def react(self, event: Event, view: View) -> Transactions:
        """Set the slots of every node when the counts of a group, or the nodes, change."""
        if event.task is None:
            self.slots_per_node.clear()
            yield [put for task in self.sample_tasks.values() for put in self.set_slots(task, view)]
            return
        key = event.task.key(self.by)
        self.groups.add_member(event.kind, key)
        if self.groups.remove_member(event.kind, key):
            for by_group in (self.running, self.sample_tasks, self.slots_per_node):
                by_group.pop(key, None)
            yield view.drops(f"spread-{self.by}-{key}")
            return
        group, self.sample_tasks[key] = self.running.setdefault(key, {}), event.task
        if event.kind == STARTED:
            group[event.task.name] = event.task
        elif event.kind != SUBMITTED:
            group.pop(event.task.name, None)
        yield self.set_slots(event.task, view)

    def set_slots(self, task: Task, view: View) -> list[Put]:
        """Set each node's slots to the fewest running on any node plus ``skew``; empty if nothing changes."""
        key, fewest = task.key(self.by), 0
        # fewer tasks than nodes leave a node empty
        if self.soft or len(self.running[key]) >= len(view.nodes):
            counts = view.count_running(self.running[key].values())
            nodes = view.fits(task, STATIC) if self.soft else counts
            fewest = min((counts[node] for node in nodes), default=0)
        if self.slots_per_node.get(key) == fewest + self.skew:
            return []
        self.slots_per_node[key] = fewest + self.skew
        return view.puts(f"spread-{self.by}-{key}", self.slots_per_node[key])
