"""Units whose gates are to be opened: some pods at a time, each unit's patience counted from its own opening.

Opened all at once, a thousand pods would wait for kube-scheduler longer than anybody is patient with one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from unfold_placement.kubernetes.informer import Informer
from unfold_placement.kubernetes.writer import OpeningUnits
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Record, Start

IN_FLIGHT = 64


@dataclass(frozen=True, slots=True)
class GateRequest:
    """A unit that waits for its gates to be opened, and the attempt that each of its tasks is to become."""

    first: str
    unit: Sequence[Start]
    attempts: Mapping[str, int]


@dataclass(slots=True)
class GateQueue:
    """What was decided and is not wholly on its nodes; at most ``most`` pods are open and without a node at a time.

    ``units`` are by the first of their tasks, those that are open with the time (s) since when in ``since``.
    """

    informer: Informer
    max_in_flight: int = IN_FLIGHT
    units: OpeningUnits = field(default_factory=dict)
    since: dict[str, float] = field(default_factory=dict)
    queue: deque[GateRequest] = field(default_factory=deque)

    def add(self, unit: Sequence[Start], records: Sequence[Record]) -> None:
        """Let a unit wait for its turn."""
        attempts = {record.task.name: record.attempt for record in records}
        self.units[unit[0].task] = dict(attempts)
        self.queue.append(GateRequest(unit[0].task, unit, attempts))

    def take_ready(self) -> list[GateRequest]:
        """Return the units whose turn it is, without what was stopped or taken back meanwhile."""
        flying, chosen = self.count_in_flight(), list[GateRequest]()
        while self.queue and (not flying or flying + len(self.queue[0].unit) <= self.max_in_flight):
            turn = self.queue.popleft()
            unit = [item for item in turn.unit if not self._settled(item.task, turn.attempts[item.task])]
            flying += len(unit)
            chosen += [replace(turn, unit=unit)] if unit else []
        return chosen

    def mark_opened(self, turns: Sequence[GateRequest], now: float) -> None:
        """Note that the gates of some units were opened."""
        self.informer.opening.difference_update(item.task for turn in turns for item in turn.unit)
        self.since.update((turn.first, now) for turn in turns)

    def has_ready(self) -> bool:
        """Return whether a unit waits whose turn it is."""
        if not self.queue:
            return False
        flying = self.count_in_flight()
        return not flying or flying + len(self.queue[0].unit) <= self.max_in_flight

    def count_in_flight(self) -> int:
        """Return how many pods are open and without a node; units that are done are forgotten."""
        count = 0
        for first in list(self.since):
            left = sum(not self._settled(*item) for item in self.units.get(first, {}).items())
            if not left:
                self.drop(first)
            count += left
        return count

    def find_late(self, before: float) -> list[str]:
        """Return the units that were opened before a time and are not done."""
        self.count_in_flight()
        return [first for first, since in self.since.items() if since < before]

    def drop(self, first: str) -> Mapping[str, int]:
        """Forget a unit, and return its tasks with their attempts."""
        self.since.pop(first, None)
        return self.units.pop(first, {})

    def clear(self) -> None:
        """Forget everything."""
        self.units, self.since = {}, {}
        self.queue.clear()

    def list_gangs(self) -> OpeningUnits:
        """Return the units of several tasks."""
        return {first: members for first, members in self.units.items() if len(members) > 1}

    def _settled(self, task: str, attempt: int) -> bool:
        record = self.informer.store.records.get(task)
        runs = record is not None and record.state == kinds.RUNNING and record.attempt == attempt
        return not runs or self.informer.is_bound(task)
