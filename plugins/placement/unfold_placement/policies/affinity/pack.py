"""Packing: a task on the node that it fills best, a gang within one node or rack, with timed fallback."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import (
    CREATED,
    PACK,
    PODS,
    PREEMPTED,
    QUIET,
    SUBMITTED,
    Ask,
    Drop,
    Event,
    Put,
    Task,
    Transactions,
    Wake,
)
from unfold_placement.core.view import Unit, View
from unfold_placement.policies.shared.pending import Shapes, Waiting


@dataclass(slots=True)
class Pack:
    """Within one ``level`` (``node`` or a label such as ``rack``); ``fallback`` maps wider levels to seconds."""

    level: str = "node"
    fallback: Mapping[str, float] = field(default_factory=dict)
    waiting: Waiting = field(default_factory=lambda: Waiting(Shapes(PACK)))
    phase: ClassVar[int] = PACK
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED, PREEMPTED, CREATED, QUIET})

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for the place that is chosen."""
        return [Ask(f"pack-{task.name}", gated=True)]

    def react(self, event: Event, view: View) -> Transactions:
        """Choose places for every unit that is ready, again as long as it waits."""
        if event.task is not None and event.kind in {SUBMITTED, PREEMPTED} and (unit := view.unit(event.task)):
            self.waiting.add(unit, view)
            yield [Wake(view.now + after) for after in self.fallback.values()]
        if event.kind not in {CREATED, QUIET}:
            return
        for at in self.waiting.asked(view, tuple(self.fallback.values())):
            unit, since = self.waiting.units[at]
            old = [
                Drop(f"pack-{task.name}", node.name) for task in unit for node in view.nodes_with(f"pack-{task.name}")
            ]
            wider = [name for name, after in self.fallback.items() if view.now - since >= after]
            nodes = self.choose(unit, [self.level, *wider], view) if view.has_cluster_resources(unit, PACK) else ()
            self.waiting.told(at, len(wider), fits=nodes)
            new = [Put(f"pack-{t.name}", node, until=t.name) for t, node in zip(unit, nodes or (), strict=False)]
            yield [*old, *new]

    def choose(self, unit: Unit, levels: Iterable[str], view: View) -> list[str] | None:
        """Return nodes for the tasks: of the narrowest level that has room, where least is free."""
        kinds = [kind for kind in view.table.resource_kinds if kind != PODS]
        wanted = [kind for kind in reversed(kinds) if unit[0].demand.get(kind)]
        order = [*wanted, *(kind for kind in kinds if kind not in wanted)]
        for level in levels:
            for group in view.iter_tightest_groups(unit[0], PACK, level, order):
                if (nodes := view.room(unit, PACK, group)) is not None:
                    return nodes
        return None
