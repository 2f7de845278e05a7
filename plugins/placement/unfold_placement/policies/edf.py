"""Earliest deadline first (Liu and Layland, 1973), with a test at admission."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.facts import QUEUE, SUBMITTED, Ask, Event, Ops, Refuse, Task
from unfold_placement.policies.line import EVENTS, Line
from unfold_placement.view import Unit, View


def _rank(unit: Unit) -> tuple[float, float]:
    return unit[0].deadline, unit[0].arrival


@dataclass(slots=True)
class Edf:
    """The unit whose deadline is nearest is next; with ``admit`` one that cannot be on time is refused as it comes."""

    admit: bool = True
    backfill: bool = False
    line: Line = field(default_factory=lambda: Line("name", _rank))
    phase: ClassVar[int] = QUEUE
    watches: ClassVar[frozenset[str]] = EVENTS

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for a turn."""
        return self.line.request(task)

    def react(self, event: Event, view: View) -> Ops:
        """Refuse what comes too late, then give turns by deadline."""
        if self.line.see(event, view):
            yield from self.line.release(lambda _, unit: _rank(unit), view, backfill=self.backfill)
        unit = view.unit(event.task) if event.task is not None and event.kind == SUBMITTED else None
        if unit and self.admit and (late := self.late(unit, view)):
            self.line.leave(unit[0].name)
            yield [Refuse(task.name, f"the work due by {late:g} s does not fit before it") for task in unit]

    def late(self, unit: Unit, view: View) -> float:
        """Return the first deadline before which the work due does not fit, or 0 (the processor demand test)."""
        if alone := [task.deadline for task in unit if view.now + view.quickest(task) > task.deadline + 1e-9]:
            return min(alone)
        if all(math.isinf(task.deadline) for task in unit):
            return 0.0
        return view.overdue([task for task in self.line.waiting() if math.isfinite(task.deadline)])
