"""Strict priority: nobody starts while a task of a higher class waits; with ``preempt`` lower classes make room."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import QUEUE, Ask, Drop, Event, Ops, Task
from unfold_placement.core.view import Unit, View
from unfold_placement.policies.shared.fair_queue import EVENTS, Line, turn


@dataclass(slots=True)
class Priority:
    """Highest class first, first come first served within one."""

    preempt: bool = True
    backfill: bool = False
    line: Line = field(default_factory=lambda: Line("priority"))
    hopeless: tuple[Unit, tuple[int, int]] | None = None
    phase: ClassVar[int] = QUEUE
    watches: ClassVar[frozenset[str]] = EVENTS

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for a turn."""
        return self.line.request(task)

    def react(self, event: Event, view: View) -> Ops:
        """Give turns from the highest class down; take them from the lowest, latest first, where that makes room."""
        if not self.line.see(event, view):
            return
        yield from self.line.release(lambda level, _: -int(level), view, backfill=self.backfill)
        if not self.preempt or not self.line.busy():
            return
        level = max(self.line.busy(), key=int)
        news = self.line.queues[level][0], view.changes()
        gone = view.victims(news[0], self.line.below(int(level))) if news != self.hopeless else None
        self.hopeless = None if gone else news
        if gone:
            yield [Drop(turn(task), force=True) for task in gone]
            yield from self.line.release(lambda level, _: -int(level), view, backfill=self.backfill)
