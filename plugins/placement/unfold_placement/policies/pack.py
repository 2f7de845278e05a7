"""Packing: a task on the node that it fills best, a gang within one node or rack, with timed fallback."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.facts import (
    CREATED,
    PACK,
    PREEMPTED,
    QUIET,
    SEATS,
    SUBMITTED,
    Ask,
    Drop,
    Event,
    Ops,
    Put,
    Task,
    Wake,
)
from unfold_placement.view import Unit, View


@dataclass(slots=True)
class Pack:
    """Within one ``level`` (``node`` or a label such as ``rack``); ``fallback`` maps wider levels to seconds."""

    level: str = "node"
    fallback: Mapping[str, float] = field(default_factory=dict)
    units: dict[str, tuple[Unit, float]] = field(default_factory=dict)
    phase: ClassVar[int] = PACK
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED, PREEMPTED, CREATED, QUIET})

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for the place that is chosen."""
        return [Ask(f"pack-{task.name}", gated=True)]

    def react(self, event: Event, view: View) -> Ops:
        """Choose places for every unit that is ready, again as long as it waits."""
        if event.task is not None and event.kind in {SUBMITTED, PREEMPTED} and (unit := view.unit(event.task)):
            self.units[unit[0].name] = unit, view.now
            yield [Wake(view.now + after) for after in self.fallback.values()]
        for key, (unit, since) in list(self.units.items()) if event.kind in {CREATED, QUIET} else ():
            if not view.waits(unit[0]):
                del self.units[key]
                continue
            old = [Drop(f"pack-{task.name}", node.name) for task in unit for node in view.placed(f"pack-{task.name}")]
            nodes = self.choose(unit, view.now - since, view) if view.ready(unit, PACK) else None
            new = [Put(f"pack-{t.name}", node, until=t.name) for t, node in zip(unit, nodes or (), strict=False)]
            yield [*old, *new]

    def choose(self, unit: Unit, waited: float, view: View) -> list[str] | None:
        """Return nodes for the tasks: of the narrowest level that has room, where least is free."""
        for level in [self.level, *(name for name, after in self.fallback.items() if waited >= after)]:
            groups: dict[str, list[str]] = defaultdict(list)
            for name in view.fits(unit[0], PACK):
                groups[name if level == "node" else view.node(name).labels.get(level, "")].append(name)
            for _, names in sorted(groups.items(), key=lambda item: self.spare(unit[0], item[1], view)):
                allowed = names if level == "node" else view.alike(level, names[0])
                if (nodes := view.room(unit, PACK, allowed)) is not None:
                    return nodes
        return None

    def spare(self, task: Task, names: Iterable[str], view: View) -> tuple[float, ...]:
        """Return what is free on some nodes as parts of the cluster, first of what the task asks for."""
        kinds = [kind for kind in view.book.kinds if kind != SEATS]
        free = {kind: sum(view.free(name)[kind] for name in names) / (view.total(kind) or 1) for kind in kinds}
        wanted = [kind for kind in reversed(kinds) if task.demand.get(kind)]
        return tuple(free[kind] for kind in [*wanted, *(kind for kind in free if kind not in wanted)])
