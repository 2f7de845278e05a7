"""Heterogeneity-aware placement with a look ahead (after TetriSched: Tumanov et al., EuroSys 2016), greedily."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from unfold_placement.facts import CREATED, PACK, QUIET, Ask, Event, Ops, Put, Task
from unfold_placement.outlook import Outlook
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
        rows = view.queue()
        shape, none = self.shapes.single(rows, view), np.zeros(rows.size, np.int32)
        outlook = Outlook(view, rows, shape, np.zeros(len(view.book.nodes)))
        runs = view.book.arena.run[rows]
        choosy = runs.min(1) < runs.max(1)
        for at in self.shapes.hopeful(view, rows, shape, none, none.astype(np.uint8)):
            task, fits = view.book.tasks[rows[at]], view.marks(view.book.tasks[rows[at]], PACK)
            if not fits.any():
                self.shapes.dead[shape[at], 0] = 1
                continue
            # who ends everywhere alike never waits, so that nobody's promises matter until another comes
            if choosy[at:].any():
                outlook.reach(at, PACK)
            ends = np.where(fits, view.now + runs[at, view.book.arena.kind], np.inf)
            soon = int(ends.argmin())
            if not (choosy[at] and outlook.better(at, fits, float(ends[soon]), self.ahead)):
                yield [Put(f"plan-{task.name}", view.book.nodes[soon].name, until=task.name)]
