"""Heterogeneity-aware placement with lookahead: a greedy form of TetriSched (Tumanov et al., EuroSys 2016)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.cluster_view import View
from unfold_placement.core.types import CREATED, PACK, QUIET, Ask, Event, Put, Task, Transactions
from unfold_placement.policies.shared.earliest_finish import build_forecast
from unfold_placement.policies.shared.pending import UnitShapes


@dataclass(slots=True)
class Value:
    """Each task runs where it ends first, waiting for a faster node included.

    The tasks of a gang start together, each in order on the node where it ends first.

    Attributes:
        ahead: How long (s) a task waits for a faster node at most.
        shapes: Shapes of the waiting tasks.
    """

    ahead: float = 3600.0
    shapes: UnitShapes = field(default_factory=lambda: UnitShapes(PACK))
    phase: ClassVar[int] = PACK
    watches: ClassVar[frozenset[str]] = frozenset({CREATED, QUIET})

    def request(self, task: Task) -> Iterable[Ask]:
        """Request the chosen node."""
        return [Ask(f"plan-{task.name}", gated=True)]

    def react(self, event: Event, view: View) -> Transactions:
        """For each task in queue order, compare its end if it starts now with its end on a faster node later."""
        del event
        forecast = build_forecast(view, self.shapes)
        for index, mask in forecast.iter_fitting(self.shapes):
            task = view.table.tasks[forecast.rows[index]]
            unit = view.unit(task)
            if unit is None or unit[0].name != task.name:
                continue
            node, end_now_s = forecast.earliest_end_now(index, mask)
            nodes = forecast.place_unit(unit, PACK) if len(unit) > 1 else [node]
            if len(unit) > 1 or not forecast.reserve_if_earlier(index, mask, end_now_s, self.ahead):
                # another gang may have passed this one: the previous choice is replaced
                drops = [drop for t in unit for drop in view.drops(f"plan-{t.name}")]
                puts = [Put(f"plan-{t.name}", new, until=t.name) for t, new in zip(unit, nodes, strict=False)]
                yield [*drops, *puts]
