"""The gate queue: units that wait for the opening of their gates, a limited number of pods at a time.

If a thousand pods were opened at once, kube-scheduler would need longer than the bind timeout of a single pod.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from unfold_placement.kubernetes.informer import Informer
from unfold_placement.kubernetes.writer import OpeningUnits
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Record, Start

MAX_IN_FLIGHT = 64
"""Default number of opened pods that may be without a node."""


@dataclass(frozen=True, slots=True)
class GateRequest:
    """A unit that waits for the opening of its gates.

    Attributes:
        first_task: Its first task, by which the unit is known.
        unit: The starts of its tasks.
        attempts: The attempt that each task is to become.
    """

    first_task: str
    unit: Sequence[Start]
    attempts: Mapping[str, int]


@dataclass(slots=True)
class GateQueue:
    """Started units until all their pods are on nodes.

    Attributes:
        informer: The pods.
        max_in_flight: Opened pods that may be without a node at a time.
        units: Attempts of the tasks of each unit, by its first task.
        opened_at_s: When the gates of each opened unit were opened, in seconds.
        queue: Units with closed gates.
    """

    informer: Informer
    max_in_flight: int = MAX_IN_FLIGHT
    units: OpeningUnits = field(default_factory=dict)
    opened_at_s: dict[str, float] = field(default_factory=dict)
    queue: deque[GateRequest] = field(default_factory=deque)

    def add(self, unit: Sequence[Start], records: Sequence[Record]) -> None:
        """Enqueue a started unit."""
        attempts = {record.task.name: record.attempt for record in records}
        self.units[unit[0].task] = dict(attempts)
        self.queue.append(GateRequest(unit[0].task, unit, attempts))

    def take_ready(self) -> list[GateRequest]:
        """Remove and return the units to open now, without tasks that were stopped or withdrawn meanwhile."""
        in_flight = self.count_in_flight()
        ready: list[GateRequest] = []
        while self.queue and self._has_room(in_flight):
            request = self.queue.popleft()
            unit = [start for start in request.unit if not self._is_settled(start.task, request.attempts[start.task])]
            in_flight += len(unit)
            ready += [replace(request, unit=unit)] if unit else []
        return ready

    def mark_opened(self, requests: Sequence[GateRequest], now: float) -> None:
        """Record that the gates of units were opened."""
        self.informer.opening.difference_update(start.task for request in requests for start in request.unit)
        self.opened_at_s.update((request.first_task, now) for request in requests)

    def has_ready(self) -> bool:
        """Return whether the next unit may be opened."""
        return bool(self.queue) and self._has_room(self.count_in_flight())

    def count_in_flight(self) -> int:
        """Count opened pods without a node; units that are complete are removed."""
        count = 0
        for first_task in list(self.opened_at_s):
            unsettled = sum(not self._is_settled(*attempt) for attempt in self.units.get(first_task, {}).items())
            if not unsettled:
                self.drop(first_task)
            count += unsettled
        return count

    def find_late(self, before: float) -> list[str]:
        """Return the incomplete units that were opened before a time (s)."""
        self.count_in_flight()
        return [first_task for first_task, opened_at_s in self.opened_at_s.items() if opened_at_s < before]

    def drop(self, first_task: str) -> Mapping[str, int]:
        """Remove a unit, and return its tasks with their attempts."""
        self.opened_at_s.pop(first_task, None)
        return self.units.pop(first_task, {})

    def clear(self) -> None:
        """Remove all units."""
        self.units, self.opened_at_s = {}, {}
        self.queue.clear()

    def list_gangs(self) -> OpeningUnits:
        """Return the units with several tasks."""
        return {first_task: members for first_task, members in self.units.items() if len(members) > 1}

    def _has_room(self, in_flight: int) -> bool:
        return not in_flight or in_flight + len(self.queue[0].unit) <= self.max_in_flight

    def _is_settled(self, task: str, attempt: int) -> bool:
        """Return whether an attempt is on its node, or no longer runs."""
        record = self.informer.store.records.get(task)
        is_running = record is not None and record.state == kinds.RUNNING and record.attempt == attempt
        return not is_running or self.informer.is_bound(task)
