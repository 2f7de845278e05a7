"""Heterogeneity-aware placement with a look ahead (after TetriSched: Tumanov et al., EuroSys 2016), greedily."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import CREATED, PACK, QUIET, Ask, Drop, Event, Put, Task, Transactions
from unfold_placement.core.view import View
from unfold_placement.policies.shared.earliest_finish import outlook_of
from unfold_placement.policies.shared.pending import Shapes


@dataclass(slots=True)
class Value:
    """A task starts where it would end first; it waits for a faster node where that ends sooner, ``ahead`` at most.

    The tasks of a gang, which start together, take in turn the nodes where each would end first.
    """

    ahead: float = 3600.0
    shapes: Shapes = field(default_factory=lambda: Shapes(PACK))
    phase: ClassVar[int] = PACK
    watches: ClassVar[frozenset[str]] = frozenset({CREATED, QUIET})

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for the node that is chosen."""
        return [Ask(f"plan-{task.name}", gated=True)]

    def react(self, event: Event, view: View) -> Transactions:
        """For each task in its turn, compare the ends of starting now and of waiting for a faster node."""
        del event
        outlook = outlook_of(view, self.shapes)
        for at, fits in outlook.asked(self.shapes):
            unit = view.unit(task := view.table.tasks[outlook.rows[at]])
            if unit is None or unit[0].name != task.name:
                continue
            node, end = outlook.soonest(at, fits)
            nodes = outlook.together(unit, PACK) if len(unit) > 1 else [node]
            if len(unit) > 1 or not outlook.better(at, fits, end, self.ahead):
                # a gang may be passed by another: what was chosen for it before is chosen anew
                old = [Drop(f"plan-{t.name}", n.name) for t in unit for n in view.nodes_with(f"plan-{t.name}")]
                yield [*old, *(Put(f"plan-{t.name}", n, until=t.name) for t, n in zip(unit, nodes, strict=False))]
