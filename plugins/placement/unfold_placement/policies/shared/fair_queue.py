"""What policies that order the queue share: waiting units by user, what each user holds, and release while it fits."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
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
from unfold_placement.policies.shared.pending import Shapes

EVENTS = frozenset({SUBMITTED, ENDED, PREEMPTED, REFUSED, QUIET})


def admission_resource(task: Task) -> str:
    """Return the name that a task waits for until it is its turn."""
    return f"turn-{task.name}"


def _anybody(_user: str, _unit: Unit) -> bool:
    return True


def _nothing(_user: str, _unit: Unit) -> None:
    return None


@dataclass(slots=True)
class AdmissionQueue:
    """Waiting units by ``by``, each queue in the order in which they came.

    ``out`` are the tasks that were released, in that order, and ``used`` is what they hold. Where a unit's place never
    changes, and each is a user of its own, ``rank`` tells it, ``heap`` keeps the users by it, and ``known`` the row of
    the first task of each, its shape, and its number in the heap. ``aside``, by name, are units that ask for one
    that is nowhere, such as the end of a stage: no room and no turn helps them, so that they hold up nobody.
    """

    group_by: str
    rank: Callable[[Unit], Any] | None = None
    heap: list[tuple[Any, int, str]] = field(default_factory=list)
    joined: int = 0
    shapes: Shapes = field(default_factory=lambda: Shapes(QUEUE))
    known: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    queues: dict[str, deque[Unit]] = field(default_factory=dict)
    parked: dict[int, list[Unit]] = field(default_factory=dict)
    used: dict[str, dict[str, int]] = field(default_factory=dict)
    admitted: dict[str, dict[str, Task]] = field(default_factory=dict)

    def request(self, task: Task) -> list[Ask]:
        """Return the name of the task's turn."""
        return [Ask(admission_resource(task), gated=True)]

    def observe(self, event: Event, view: View) -> bool:
        """Take note of an event: a unit that waits as a whole joins its queue. Return whether it is time to release."""
        task = event.task
        if task is None:
            self._rejoin(view)
            return event.kind == QUIET
        if event.kind != SUBMITTED and self.admitted.get(task.key(self.group_by), {}).pop(task.name, None) is not None:
            self._count(task, -1)
        if event.kind in {SUBMITTED, PREEMPTED}:
            unit = view.unit(task)
            # of a gang that was stopped the last to be told of joins for all
            if unit is not None and not any(
                mate.name in self.admitted.get(mate.key(self.group_by), {}) for mate in unit
            ):
                self._join(unit, view)
        return False

    def _join(self, unit: Unit, view: View) -> None:
        user = unit[0].key(self.group_by)
        self.queues.setdefault(user, deque()).append(unit)
        self._ranked(user, view)

    def _rejoin(self, view: View) -> None:
        for name in [name for name in self.parked if view.exists(name)]:
            for unit in self.parked.pop(name):
                self._join(unit, view)

    def iter_waiting(self) -> Iterator[Task]:
        """Yield the tasks that wait for their turn, or for what must be there before."""
        for units in (*self.queues.values(), *self.parked.values()):
            for unit in units:
                yield from unit

    def waiting_users(self) -> list[str]:
        """Return the users who have something waiting."""
        return list(self.queues)

    def admit(
        self,
        order: Callable[[str, Unit], object],
        view: View,
        *,
        backfill: bool = False,
        may: Callable[[str, Unit], bool] = _anybody,
        done: Callable[[str, Unit], None] = _nothing,
    ) -> Transactions:
        """Give the first by ``order`` its turn while it fits; with ``backfill`` others may pass one that does not."""
        if backfill and self.rank is not None:
            yield from self._pass(view)
            return
        passed: set[str] = set()
        while busy := [user for user in self._asked() if user not in passed and may(user, self.queues[user][0])]:
            user = min(busy, key=lambda name: order(name, self.queues[name][0]))  # type: ignore[arg-type, return-value]
            unit = self.queues[user][0]
            if not all(view.is_waiting(task) for task in unit):
                self._skip(user, unit, view)
                continue
            if view.room(unit, QUEUE) is None:
                missing = view.missing_resource(unit, QUEUE)
                if missing is not None:
                    self.leave(user)
                    self.parked.setdefault(missing, []).append(unit)
                    continue
                if not backfill:
                    return
                passed.add(user)
                continue
            yield self._turns(user, unit, done)
            self._rejoin(view)

    def _pass(self, view: View) -> Transactions:
        """Give all that fit their turns, by rank; of those that are alike and do not fit, one is asked."""
        users = self._in_order()
        rows, shape, _ = np.array([self.known[user] for user in users], np.int32).reshape(-1, 3).T.copy()
        for at in np.flatnonzero(view.table.state.status[rows] != kernel.WAITING).tolist():
            self._skip(users[at], self.queues[users[at]][0], view)
        none = np.zeros(rows.size, np.int32)
        for at in self.shapes.hopeful(view, rows, shape, none, none.astype(np.uint8)):
            unit = self.queues[users[at]][0]
            if not all(view.is_waiting(task) for task in unit):
                self._skip(users[at], unit, view)
            elif view.room(unit, QUEUE) is None:
                self.shapes.dead[shape[at], 0] = 1
            else:
                yield self._turns(users[at], unit)

    def _turns(self, user: str, unit: Unit, done: Callable[[str, Unit], None] = _nothing) -> list[Put]:
        self.leave(user)
        for task in unit:
            self._take(task)
        done(user, unit)
        return [Put(admission_resource(task), until=task.name) for task in unit]

    def _skip(self, user: str, unit: Unit, view: View) -> None:
        # on a live cluster tasks are taken back, and found running by a controller that was started again
        self.leave(user)
        if rest := view.remaining_unit(unit):
            self.queues.setdefault(user, deque()).appendleft(rest)
            self._ranked(user, view)
        for task in unit:
            if view.is_running(task):
                self._take(task)

    def _ranked(self, user: str, view: View) -> None:
        if self.rank is not None:
            self.joined += 1
            unit = self.queues[user][0]
            heapq.heappush(self.heap, (self.rank(unit), self.joined, user))
            rows = [view.table.task_rows[task.name] for task in unit]
            self.known[user] = rows[0], self.shapes.number(rows, view), self.joined

    def _in_order(self) -> list[str]:
        """Return the users by rank."""
        # what is sorted is a heap
        self.heap = sorted(entry for entry in self.heap if self._holds(entry))
        return [user for _, _, user in self.heap]

    def _asked(self) -> list[str]:
        """Return the users of whom one may be next: where ranks never change, the first alone."""
        if self.rank is None:
            return self.waiting_users()
        while self.heap and not self._holds(self.heap[0]):
            heapq.heappop(self.heap)
        return [user for _, _, user in self.heap[:1]]

    def _holds(self, entry: tuple[Any, int, str]) -> bool:
        found = self.known.get(entry[2])
        return found is not None and found[2] == entry[1]

    def below(self, level: int) -> Iterator[Task]:
        """Yield the tasks of lower classes whose turn has come, the lowest first, of a class the latest."""
        for lower in sorted((key for key in self.admitted if int(key) < level), key=int):
            yield from reversed(self.admitted[lower].values())

    def leave(self, user: str) -> None:
        """Take the first unit out of a user's queue."""
        self.queues[user].popleft()
        if not self.queues[user]:
            del self.queues[user]
            self.known.pop(user, None)

    def dominant_share(self, user: str, view: View) -> float:
        """Return a user's dominant share: the largest part of any resource that it holds (Ghodsi et al., NSDI 2011)."""
        used = self.used.get(user, {})
        return max(
            (amount / total for kind, amount in used.items() if (total := view.total_capacity(kind))), default=0.0
        )

    def dominant_resource(self, unit: Unit, view: View) -> str:
        """Return the resource of which a unit asks the largest part, or the empty text if it asks for none."""
        wanted = Counter[str]()
        for task in unit:
            wanted.update({kind: amount for kind, amount in task.demand.items() if kind != PODS})
        return max(wanted, key=lambda kind: wanted[kind] / (view.total_capacity(kind) or 1), default="")

    def _take(self, task: Task) -> None:
        self.admitted.setdefault(task.key(self.group_by), {})[task.name] = task
        self._count(task, 1)

    def _count(self, task: Task, sign: int) -> None:
        used = self.used.setdefault(task.key(self.group_by), {})
        for kind, amount in task.demand.items():
            if kind != PODS:
                used[kind] = used.get(kind, 0) + sign * amount


def weight(weights: Mapping[str, float], user: str) -> float:
    """Return a user's weight, 1 where none is written."""
    return weights.get(user, 1.0)
