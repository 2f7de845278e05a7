"""Gangs: all tasks of a job start at once, or none does."""

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
    """In the order in which they are ready; one that does not fit may be passed for ``patience`` seconds."""

    by: str = "job"
    patience: float = 0.0
    ready: dict[str, tuple[Unit, float]] = field(default_factory=dict)
    names: dict[str, tuple[list[tuple[str, str]], int]] = field(default_factory=dict)
    placing: bool = False
    missed: bool = False
    phase: ClassVar[int] = GANG
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED, ENDED, PREEMPTED, CREATED, QUIET})

    @property
    def gathers(self) -> str:
        """What tasks are gathered by, so that other policies see gangs too."""
        return self.by

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for a place of the gang's, for one's role."""
        return [Ask(f"gang-{task.key(self.by)}-{task.role}")]

    def react(self, event: Event, view: View) -> Transactions:
        """Put the places of every gang that fits as a whole, in one transaction; drop them with the last member."""
        key = event.task.key(self.by) if event.task is not None else ""
        if event.kind in {ENDED, PREEMPTED} and key in self.names:
            yield self.left(key, force=event.kind == PREEMPTED)
        if event.task is not None and (unit := view.unit(event.task)):
            self.ready.setdefault(key, (unit, view.now))
        if event.kind in {CREATED, QUIET}:
            self.missed = True
            # what starts under a transaction is told at once: until all of a gang runs, its room is nobody else's
            while self.missed and not self.placing:
                self.missed = False
                yield from self.place(view)

    def place(self, view: View) -> Transactions:
        """Put the places of every gang that fits as a whole, in the order in which they became ready."""
        for name, (known, since) in list(self.ready.items()):
            unit = view.remaining_unit(known)
            if unit is None:
                del self.ready[name]
                continue
            nodes = view.room(unit, GANG) if view.has_cluster_resources(unit, GANG) else []
            if nodes:
                del self.ready[name]
                places = Counter((self.request(t)[0].name, node) for t, node in zip(unit, nodes, strict=True))  # type: ignore[index]
                self.names[name] = list(places), len(unit)
                self.placing = True
                yield [Put(place, node, count) for (place, node), count in places.items()]
                self.placing = False
            elif nodes is None and view.now - since >= self.patience:
                break

    def left(self, key: str, *, force: bool) -> list[Drop]:
        """Return what to delete as a member goes: everything with the last one, or when one is preempted."""
        places, members = self.names[key]
        self.names[key] = places, members - 1
        if not force and members > 1:
            return []
        del self.names[key]
        return [Drop(name, node, force=force) for name, node in places]
