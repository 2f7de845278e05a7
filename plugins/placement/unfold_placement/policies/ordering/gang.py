"""Gang scheduling: all tasks of a job start at once, or none does."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.cluster_view import Unit, View
from unfold_placement.core.types import (
    CREATED,
    ENDED,
    GANG,
    PACK,
    PREEMPTED,
    QUIET,
    SUBMITTED,
    Ask,
    Drop,
    Event,
    Put,
    Task,
    Transactions,
)
from unfold_placement.policies.shared.pending import UnitShapes

MIN_FILTERED = 8
"""Waiting gangs from which on those that are not admitted are left out at once, not one by one."""


@dataclass(slots=True)
class Gang:
    """Starts gangs in the order in which they became complete.

    Attributes:
        by: Task field that names the gang.
        patience: Seconds for which others may pass a gang that does not fit. Then nodes are reserved for the oldest
            such gang, in whatever phase it waits; others start on other nodes only.
        complete_units: Complete gangs that wait, with the time (s) since which they do.
        shapes: Shapes of the gangs that did not fit, each until the gang changes, and which of them fit nowhere.
        slots: Slot resources (name, node) of each started gang, and its remaining members.
        is_placing: Slots of a gang are being created.
        has_missed_event: An event arrived meanwhile.
    """

    by: str = "job"
    patience: float = 0.0
    complete_units: dict[str, tuple[Unit, float]] = field(default_factory=dict)
    shapes: UnitShapes = field(default_factory=lambda: UnitShapes(GANG))
    slots: dict[str, tuple[list[tuple[str, str]], int]] = field(default_factory=dict)
    is_placing: bool = False
    has_missed_event: bool = False
    phase: ClassVar[int] = GANG
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED, ENDED, PREEMPTED, CREATED, QUIET})

    @property
    def patience_s(self) -> float:
        """Seconds for which others may pass a gang; the view reads it so that queue policies keep it too."""
        return self.patience

    @property
    def gathers(self) -> str:
        """Task field that names the gang; the view reads it so that other policies see gangs too."""
        return self.by

    def request(self, task: Task) -> Iterable[Ask]:
        """Request a slot of the gang for the task's role."""
        return [Ask(self._slot_name(task))]

    def react(self, event: Event, view: View) -> Transactions:
        """Create the slots of each gang that fits, in one transaction; delete them with the last member."""
        key = event.task.key(self.by) if event.task is not None else ""
        if event.kind in {ENDED, PREEMPTED} and key in self.slots:
            yield self._remove_member(key, view, is_preempted=event.kind == PREEMPTED)
        self.shapes.by_name.pop(key, None)
        if event.task is not None and (unit := view.unit(event.task)):
            # tasks of a gang may have been replaced while it waits
            _, since_s = self.complete_units.get(key, (unit, view.now))
            self.complete_units[key] = unit, since_s
        if event.kind in {CREATED, QUIET}:
            self.has_missed_event = True
            # events of a transaction arrive while it is applied: until all of a gang runs, its room is reserved
            while self.has_missed_event and not self.is_placing:
                self.has_missed_event = False
                yield from self._place_gangs(view)

    def _slot_name(self, task: Task) -> str:
        return f"gang-{task.key(self.by)}-{task.role}"

    def _place_gangs(self, view: View) -> Transactions:
        """Create the slots of every gang that fits, in the order in which gangs became complete."""
        view.check_reservation()
        for key in self._list_candidates(view) if self.complete_units else ():
            complete_unit, since_s = self.complete_units[key]
            if self._is_futile(key, since_s, view):
                continue
            unit = view.remaining_unit(complete_unit)
            if unit is None:
                del self.complete_units[key]
                self.shapes.by_name.pop(key, None)
                continue
            is_admitted = view.has_cluster_resources(unit, GANG)
            nodes = view.room(unit, GANG) if is_admitted else None
            if nodes:
                del self.complete_units[key]
                self.shapes.by_name.pop(key, None)
                counts = Counter((self._slot_name(task), node) for task, node in zip(unit, nodes, strict=True))
                self.slots[key] = list(counts), len(unit)
                self.is_placing = True
                yield [Put(name, node, count) for (name, node), count in counts.items()]
                self.is_placing = False
                if view.reserved_unit == unit:
                    view.release_reservation()
                    self.has_missed_event = True
                continue
            if is_admitted:
                self._remember_failure(key, unit, view)
            if not view.reserved_unit and view.now - since_s >= self.patience and self._lacks_only_room(unit, view):
                view.reserve(unit)

    def _list_candidates(self, view: View) -> list[str]:
        """List the gangs to try: admitted ones, and without freed capacity only those that were not tried before."""
        is_freed = self.shapes.revive(view) or not view.reserved_unit
        keys = [key for key in self.complete_units if is_freed or key not in self.shapes.by_name]
        if len(keys) < MIN_FILTERED:
            return keys
        first_tasks = (self.complete_units[key][0][0] for key in keys)
        return list(itertools.compress(keys, view.admitted_tasks(first_tasks, PACK)))

    def _is_futile(self, key: str, since_s: float, view: View) -> bool:
        """Return whether trying a gang changes nothing: a gang of its shape, or it on its reserved nodes, did not fit.

        One that has waited for the patience is tried nevertheless while no nodes are reserved, to reserve some.
        """
        shapes, reserved = self.shapes, view.reserved_unit
        if shapes.futile[0] == key and shapes.futile[1] == view.change_counters()[0]:
            return True
        shape = shapes.by_name.get(key)
        is_owner = self.complete_units[key][0][0].completes or (reserved and reserved[0].key(self.by) == key)
        if shape is None or not shapes.hopeless[shape, 0] or is_owner:
            return False
        return bool(reserved) or view.now - since_s < self.patience

    def _remember_failure(self, key: str, unit: Unit, view: View) -> None:
        """Remember that gangs of this shape do not fit.

        What an earlier phase chooses for a single task (``pack``, ``value``) frees nothing that ``revive`` would see.
        """
        rows = [view.table.task_rows[task.name] for task in unit]
        if (view.table.state.request_phase[rows] == PACK).any():
            return
        if unit == view.reserved_unit:
            self.shapes.futile = key, view.change_counters()[0]
            return
        shape = self.shapes.by_name.get(key)
        if shape is None:
            shape = self.shapes.by_name[key] = self.shapes.shape_number(rows, view)
        self.shapes.hopeless[shape, 0] = 1

    def _lacks_only_room(self, unit: Unit, view: View) -> bool:
        """Return whether a gang is admitted, and neither impossible nor without what earlier phases give at once."""
        is_admitted = view.has_cluster_resources(unit, PACK) and view.missing_resource(unit, PACK) is None
        lacks_room = is_admitted and not view.short_resources(unit, PACK) and not view.why_impossible(unit)
        return lacks_room and view.scarce_resource(unit) is None

    def _remove_member(self, key: str, view: View, *, is_preempted: bool) -> list[Put | Drop]:
        """Delete the slots of a gang with its last member, or when a member is preempted.

        After a change of controllers members may run where the gang has no slot: there one is created, so that its
        deletion stops them too.
        """
        slots, members = self.slots[key]
        self.slots[key] = slots, members - 1
        if not is_preempted:
            if members > 1:
                return []
            del self.slots[key]
            return [Drop(name, node) for name, node in slots]
        del self.slots[key]
        running = [task for task in view.members.get(key, {}).values() if view.is_running(task)]
        held = Counter((self._slot_name(task), view.node_of(task)) for task in running)
        strays = [Put(name, node, count) for (name, node), count in held.items() if (name, node) not in slots]
        return [*strays, *(Drop(name, node, force=True) for name, node in dict.fromkeys([*slots, *held]))]
