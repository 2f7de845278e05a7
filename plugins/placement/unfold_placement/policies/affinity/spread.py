"""Load balancing: no node runs more than ``skew`` tasks of a group above the node that runs the fewest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import (
    JOINED,
    LEFT,
    PREEMPTED,
    STARTED,
    STATIC,
    SUBMITTED,
    Ask,
    Drop,
    Event,
    Put,
    Task,
    Transactions,
)
from unfold_placement.core.view import View
from unfold_placement.policies.shared.membership import COMES_AND_GOES, Groups


@dataclass(slots=True)
class Spread:
    """``soft`` leaves out of the count the nodes on which the task would not fit anyway."""

    by: str = "job"
    skew: int = 1
    soft: bool = False
    running: dict[str, dict[str, Task]] = field(default_factory=dict)
    last: dict[str, Task] = field(default_factory=dict)
    level: dict[str, int] = field(default_factory=dict)
    groups: Groups = field(default_factory=Groups)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = COMES_AND_GOES | {STARTED, PREEMPTED, JOINED, LEFT}

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for a place of the group's."""
        return [Ask(f"spread-{self.by}-{task.key(self.by)}")]

    def react(self, event: Event, view: View) -> Transactions:
        """Set the places of every node anew as the counts of a group, or the nodes, change."""
        if event.task is None:
            self.level.clear()
            yield [put for task in self.last.values() for put in self.places(task, view)]
            return
        key = event.task.key(self.by)
        self.groups.came(event.kind, key)
        if self.groups.went(event.kind, key):
            for known in (self.running, self.last, self.level):
                known.pop(key, None)
            yield [Drop(f"spread-{self.by}-{key}", node.name) for node in view.nodes_with(f"spread-{self.by}-{key}")]
            return
        group, self.last[key] = self.running.setdefault(key, {}), event.task
        if event.kind == STARTED:
            group[event.task.name] = event.task
        elif event.kind != SUBMITTED:
            group.pop(event.task.name, None)
        yield self.places(event.task, view)

    def places(self, task: Task, view: View) -> list[Put]:
        """Return on every node as many places as the fewest that run anywhere, and ``skew`` more; if that is news."""
        key, fewest = task.key(self.by), 0
        # fewer tasks than nodes leave one empty
        if self.soft or len(self.running[key]) >= len(view.nodes):
            counts = view.count_running(self.running[key].values())
            fewest = min((counts[node] for node in (view.fits(task, STATIC) if self.soft else counts)), default=0)
        if self.level.get(key) == fewest + self.skew:
            return []
        self.level[key] = fewest + self.skew
        return [Put(f"spread-{self.by}-{key}", node.name, self.level[key]) for node in view.nodes]
