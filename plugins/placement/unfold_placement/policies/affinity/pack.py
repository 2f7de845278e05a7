"""Packing: a task on the node with the least free capacity (best fit), a gang within one node, rack or other label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.cluster_view import Unit, View
from unfold_placement.core.types import (
    CREATED,
    PACK,
    PREEMPTED,
    QUIET,
    SUBMITTED,
    Ask,
    Event,
    Put,
    Task,
    Transactions,
    Wake,
    is_slot,
)
from unfold_placement.policies.shared.pending import PendingUnits, UnitShapes


@dataclass(slots=True)
class Pack:
    """Places units within one node or one group of nodes.

    Attributes:
        level: ``node``, or a label such as ``rack`` that groups nodes.
        fallback: Wider levels, each with the wait (s) after which it is allowed.
        pending: The waiting units.
    """

    level: str = "node"
    fallback: Mapping[str, float] = field(default_factory=dict)
    pending: PendingUnits = field(default_factory=lambda: PendingUnits(UnitShapes(PACK)))
    phase: ClassVar[int] = PACK
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED, PREEMPTED, CREATED, QUIET})

    def request(self, task: Task) -> Iterable[Ask]:
        """Request the chosen node."""
        return [Ask(f"pack-{task.name}", gated=True)]

    def react(self, event: Event, view: View) -> Transactions:
        """Choose nodes for every admitted unit, again at every change while it waits."""
        if event.task is not None and event.kind in {SUBMITTED, PREEMPTED} and (unit := view.unit(event.task)):
            self.pending.add(unit, view)
            yield [Wake(view.now + after_s) for after_s in self.fallback.values()]
        if event.kind not in {CREATED, QUIET}:
            return
        for index in self.pending.iter_candidates(view, tuple(self.fallback.values())):
            unit, since_s = self.pending.units[index]
            drops = [drop for task in unit for drop in view.drops(f"pack-{task.name}")]
            wider = [level for level, after_s in self.fallback.items() if view.now - since_s >= after_s]
            is_admitted = view.has_cluster_resources(unit, PACK)
            nodes = self.choose_nodes(unit, [self.level, *wider], view) if is_admitted else ()
            self.pending.record_result(index, len(wider), nodes=nodes)
            puts = [Put(f"pack-{t.name}", node, until=t.name) for t, node in zip(unit, nodes or (), strict=False)]
            yield [*drops, *puts]

    def choose_nodes(self, unit: Unit, levels: Iterable[str], view: View) -> list[str] | None:
        """Choose nodes within the tightest group of the narrowest level that has room, or None."""
        kinds = [kind for kind in view.table.resource_kinds if not is_slot(kind)]
        demanded = [kind for kind in reversed(kinds) if unit[0].demand.get(kind)]
        order = [*demanded, *(kind for kind in kinds if kind not in demanded)]
        for level in levels:
            for group in view.iter_tightest_groups(unit[0], PACK, level, order):
                if (nodes := view.room(unit, PACK, group)) is not None:
                    return nodes
        return None
