"""Heterogeneity-aware placement with a look ahead (after TetriSched: Tumanov et al., EuroSys 2016), greedily."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.facts import CREATED, PACK, QUIET, Ask, Event, Ops, Put, Task
from unfold_placement.outlook import outlook_of
from unfold_placement.view import View
from unfold_placement.waiting import Shapes


@dataclass(slots=True)
class Value:
    """A task starts where it would end first; it waits for a faster node where that ends sooner, ``ahead`` at most."""

    ahead: float = 3600.0
    shapes: Shapes = field(default_factory=lambda: Shapes(PACK))
    phase: ClassVar[int] = PACK
    watches: ClassVar[frozenset[str]] = frozenset({CREATED, QUIET})

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for the node that is chosen."""
        return [Ask(f"plan-{task.name}", gated=True)]

    def react(self, event: Event, view: View) -> Ops:
        """For each task in its turn, compare the ends of starting now and of waiting for a faster node."""
        del event
        outlook = outlook_of(view, self.shapes)
        for at, fits in outlook.asked(self.shapes):
            node, end = outlook.soonest(at, fits)
            if not outlook.better(at, fits, end, self.ahead):
                task = view.book.tasks[outlook.rows[at]]
                yield [Put(f"plan-{task.name}", node, until=task.name)]
