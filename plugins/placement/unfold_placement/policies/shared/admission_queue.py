"""The admission queue: pending units by user, what each user holds, and admission of units while they fit."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unfold_placement.core import kernel
from unfold_placement.core.types import (
    ENDED,
    PODS,
    PREEMPTED,
    QUEUE,
    QUIET,
    REFUSED,
    SUBMITTED,
    Ask,
    Event,
    Put,
    Task,
    Transactions,
)
from unfold_placement.core.view import Unit, View
from unfold_placement.policies.shared.pending import UnitShapes

QUEUE_EVENTS = frozenset({SUBMITTED, ENDED, PREEMPTED, REFUSED, QUIET})
"""Event kinds that a policy with an admission queue watches."""


def admission_resource(task: Task) -> str:
    """Return the name of the ephemeral resource with which a task is admitted."""
    return f"turn-{task.name}"


def _allow_all(_user: str, _unit: Unit) -> bool:
    return True


def _ignore(_user: str, _unit: Unit) -> None:
    return None


@dataclass(frozen=True, slots=True)
class HeapEntry:
    """What is known of the first unit of a user while ranks are static.

    Attributes:
        row: Row of the unit's first task.
        shape: Its shape number.
        number: The number of its entry in the heap; entries with other numbers are outdated.
    """

    row: int
    shape: int
    number: int


@dataclass(slots=True)
class AdmissionQueue:
    """Pending units by user; each user's units are in order of arrival.

    Attributes:
        group_by: Task field that names the user.
        static_rank: Order of units that never changes. It requires that each unit is a user of its own.
        heap: With ``static_rank``: rank, entry number and user.
        entry_count: Number of heap entries ever made.
        shapes: Shapes of units, with ``static_rank``.
        heap_entries: With ``static_rank``: the current heap entry of each user.
        queues: Pending units by user.
        parked: Units that request a resource which exists nowhere, such as the end of a stage, by its id. Neither room
            nor admission helps them, so they block no other unit.
        used: Amounts held by admitted tasks, by user and kind.
        admitted: Admitted tasks by user, in order of admission.
    """

    group_by: str
    static_rank: Callable[[Unit], Any] | None = None
    heap: list[tuple[Any, int, str]] = field(default_factory=list)
    entry_count: int = 0
    shapes: UnitShapes = field(default_factory=lambda: UnitShapes(QUEUE))
    heap_entries: dict[str, HeapEntry] = field(default_factory=dict)
    queues: dict[str, deque[Unit]] = field(default_factory=dict)
    parked: dict[int, list[Unit]] = field(default_factory=dict)
    used: dict[str, dict[str, int]] = field(default_factory=dict)
    admitted: dict[str, dict[str, Task]] = field(default_factory=dict)

    def request(self, task: Task) -> list[Ask]:
        """Return the request for the task's admission."""
        return [Ask(admission_resource(task), gated=True)]

    def observe(self, event: Event, view: View) -> bool:
        """Update queues and holdings after an event; return whether it is time to admit units."""
        task = event.task
        if task is None:
            self._unpark(view)
            return event.kind == QUIET
        if event.kind != SUBMITTED and self.admitted.get(task.key(self.group_by), {}).pop(task.name, None) is not None:
            self._count_holding(task, -1)
        if event.kind in {SUBMITTED, PREEMPTED}:
            unit = view.unit(task)
            # of a preempted gang, the event of the last member enqueues the unit
            if unit is not None and not any(self._is_admitted(member) for member in unit):
                self._enqueue(unit, view)
        return False

    def iter_waiting(self) -> Iterator[Task]:
        """Yield the tasks that wait for admission, parked ones included."""
        for units in (*self.queues.values(), *self.parked.values()):
            for unit in units:
                yield from unit

    def waiting_users(self) -> list[str]:
        """Return the users with pending units."""
        return list(self.queues)

    def first_unit(self, user: str) -> Unit:
        """Return the first pending unit of a user."""
        return self.queues[user][0]

    def admit(
        self,
        rank: Callable[[str, Unit], object],
        view: View,
        *,
        backfill: bool = False,
        is_allowed: Callable[[str, Unit], bool] = _allow_all,
        on_admit: Callable[[str, Unit], None] = _ignore,
    ) -> Transactions:
        """Admit first units of users, the lowest rank first, while they fit.

        Args:
            rank: Order of user and first unit.
            view: The cluster.
            backfill: Other users may pass one if its unit does not fit.
            is_allowed: A user is skipped while it is false.
            on_admit: Called with every admitted unit.
        """
        if backfill and self.static_rank is not None:
            yield from self._admit_all_fitting(view)
            return
        passed: set[str] = set()
        while users := [
            user for user in self._candidates() if user not in passed and is_allowed(user, self.first_unit(user))
        ]:
            user = min(users, key=lambda name: rank(name, self.first_unit(name)))  # type: ignore[arg-type, return-value]
            unit = self.first_unit(user)
            if not all(view.is_waiting(task) for task in unit):
                self._skip(user, unit, view)
                continue
            if view.room(unit, QUEUE) is None:
                missing = view.missing_resource(unit, QUEUE)
                if missing is not None:
                    self.remove_first(user)
                    self.parked.setdefault(missing, []).append(unit)
                    continue
                if not backfill:
                    return
                passed.add(user)
                continue
            yield self._admit_unit(user, unit, on_admit)
            self._unpark(view)

    def admitted_below(self, level: int) -> Iterator[Task]:
        """Yield the admitted tasks of classes below a level: lowest class first, latest admission first."""
        for lower in sorted((key for key in self.admitted if int(key) < level), key=int):
            yield from reversed(self.admitted[lower].values())

    def remove_first(self, user: str) -> None:
        """Remove the first unit of a user."""
        self.queues[user].popleft()
        if not self.queues[user]:
            del self.queues[user]
            self.heap_entries.pop(user, None)

    def dominant_share(self, user: str, view: View) -> float:
        """Return the largest fraction of any kind that a user holds (Ghodsi et al., NSDI 2011)."""
        used = self.used.get(user, {})
        shares = (amount / total for kind, amount in used.items() if (total := view.total_capacity(kind)))
        return max(shares, default=0.0)

    def dominant_resource(self, unit: Unit, view: View) -> str:
        """Return the kind of which a unit demands the largest fraction; empty if it demands nothing."""
        demand = Counter[str]()
        for task in unit:
            demand.update({kind: amount for kind, amount in task.demand.items() if kind != PODS})
        return max(demand, key=lambda kind: demand[kind] / (view.total_capacity(kind) or 1), default="")

    def _is_admitted(self, task: Task) -> bool:
        return task.name in self.admitted.get(task.key(self.group_by), {})

    def _enqueue(self, unit: Unit, view: View) -> None:
        user = unit[0].key(self.group_by)
        self.queues.setdefault(user, deque()).append(unit)
        self._push_rank(user, view)

    def _unpark(self, view: View) -> None:
        for resource in [resource for resource in self.parked if view.exists(resource)]:
            for unit in self.parked.pop(resource):
                self._enqueue(unit, view)

    def _admit_all_fitting(self, view: View) -> Transactions:
        """Admit all units that fit, by static rank; each shape that does not fit is tried once."""
        users = self._users_by_rank()
        rows = np.array([self.heap_entries[user].row for user in users], np.int32)
        shapes = np.array([self.heap_entries[user].shape for user in users], np.int32)
        for index in np.flatnonzero(view.table.state.status[rows] != kernel.WAITING).tolist():
            self._skip(users[index], self.first_unit(users[index]), view)
        zeros = np.zeros(rows.size, np.int32)
        for index in self.shapes.iter_candidates(view, rows, shapes, zeros, zeros.astype(np.uint8)):
            unit = self.first_unit(users[index])
            if not all(view.is_waiting(task) for task in unit):
                self._skip(users[index], unit, view)
            elif view.room(unit, QUEUE) is None:
                self.shapes.hopeless[shapes[index], 0] = 1
            else:
                yield self._admit_unit(users[index], unit)

    def _admit_unit(self, user: str, unit: Unit, on_admit: Callable[[str, Unit], None] = _ignore) -> list[Put]:
        self.remove_first(user)
        for task in unit:
            self._add_admitted(task)
        on_admit(user, unit)
        return [Put(admission_resource(task), until=task.name) for task in unit]

    def _skip(self, user: str, unit: Unit, view: View) -> None:
        # on a live cluster tasks are withdrawn, and a restarted controller finds some running
        self.remove_first(user)
        if remaining := view.remaining_unit(unit):
            self.queues.setdefault(user, deque()).appendleft(remaining)
            self._push_rank(user, view)
        for task in unit:
            if view.is_running(task):
                self._add_admitted(task)

    def _push_rank(self, user: str, view: View) -> None:
        if self.static_rank is not None:
            self.entry_count += 1
            unit = self.first_unit(user)
            heapq.heappush(self.heap, (self.static_rank(unit), self.entry_count, user))
            rows = [view.table.task_rows[task.name] for task in unit]
            self.heap_entries[user] = HeapEntry(rows[0], self.shapes.shape_number(rows, view), self.entry_count)

    def _users_by_rank(self) -> list[str]:
        # a sorted list is a heap
        self.heap = sorted(entry for entry in self.heap if self._is_current(entry))
        return [user for _, _, user in self.heap]

    def _candidates(self) -> list[str]:
        """Return the users of which one may be next: with static ranks the first alone."""
        if self.static_rank is None:
            return self.waiting_users()
        while self.heap and not self._is_current(self.heap[0]):
            heapq.heappop(self.heap)
        return [user for _, _, user in self.heap[:1]]

    def _is_current(self, entry: tuple[Any, int, str]) -> bool:
        _, number, user = entry
        current = self.heap_entries.get(user)
        return current is not None and current.number == number

    def _add_admitted(self, task: Task) -> None:
        self.admitted.setdefault(task.key(self.group_by), {})[task.name] = task
        self._count_holding(task, 1)

    def _count_holding(self, task: Task, sign: int) -> None:
        used = self.used.setdefault(task.key(self.group_by), {})
        for kind, amount in task.demand.items():
            if kind != PODS:
                used[kind] = used.get(kind, 0) + sign * amount
