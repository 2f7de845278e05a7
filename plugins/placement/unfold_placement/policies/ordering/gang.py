"""Gang scheduling: all tasks of a job start at once, or none does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import (
    CREATED,
    ENDED,
    GANG,
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
from unfold_placement.core.view import Unit, View


@dataclass(slots=True)
class Gang:
    """Starts gangs in the order in which they became complete.

    Attributes:
        by: Task field that names the gang.
        patience: Seconds for which others may pass a gang that does not fit.
        complete_units: Complete gangs that wait, with the time (s) since which they do.
        slots: Slot resources (name, node) of each started gang, and its remaining members.
        is_placing: Slots of a gang are being created.
        has_missed_event: An event arrived meanwhile.
    """

    by: str = "job"
    patience: float = 0.0
    complete_units: dict[str, tuple[Unit, float]] = field(default_factory=dict)
    slots: dict[str, tuple[list[tuple[str, str]], int]] = field(default_factory=dict)
    is_placing: bool = False
    has_missed_event: bool = False
    phase: ClassVar[int] = GANG
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED, ENDED, PREEMPTED, CREATED, QUIET})

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
            yield self._remove_member(key, is_preempted=event.kind == PREEMPTED)
        if event.task is not None and (unit := view.unit(event.task)):
            self.complete_units.setdefault(key, (unit, view.now))
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
        for key, (complete_unit, since_s) in list(self.complete_units.items()):
            unit = view.remaining_unit(complete_unit)
            if unit is None:
                del self.complete_units[key]
                continue
            nodes = view.room(unit, GANG) if view.has_cluster_resources(unit, GANG) else []
            if nodes:
                del self.complete_units[key]
                counts = Counter((self._slot_name(task), node) for task, node in zip(unit, nodes, strict=True))
                self.slots[key] = list(counts), len(unit)
                self.is_placing = True
                yield [Put(name, node, count) for (name, node), count in counts.items()]
                self.is_placing = False
            elif nodes is None and view.now - since_s >= self.patience:
                break

    def _remove_member(self, key: str, *, is_preempted: bool) -> list[Drop]:
        """Delete the slots of a gang with its last member, or when a member is preempted."""
        slots, members = self.slots[key]
        self.slots[key] = slots, members - 1
        if not is_preempted and members > 1:
            return []
        del self.slots[key]
        return [Drop(name, node, force=is_preempted) for name, node in slots]
