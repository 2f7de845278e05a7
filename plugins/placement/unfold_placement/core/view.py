"""What a policy may read: who waits, who runs where, and whether some tasks would fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unfold_placement.core import kernel, kernel_calls
from unfold_placement.core.resources import Book
from unfold_placement.core.state import Flags, Small
from unfold_placement.core.types import QUEUE, Node, Task

Unit = tuple[Task, ...]
"""Tasks that start together: one, or a whole gang."""


@dataclass(slots=True)
class View:
    """The state of the cluster as policies see it; ``by`` is what gangs are grouped by, or empty."""

    book: Book
    by: str = ""
    members: dict[str, dict[str, Task]] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    gone: Counter[str] = field(default_factory=Counter)
    grouped: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    @property
    def now(self) -> float:
        """The time, in seconds."""
        return self.book.now

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every node that is up."""
        up = self.book.arena.up
        return self.book.nodes if up.all() else tuple(n for n, ok in zip(self.book.nodes, up, strict=True) if ok)

    def total(self, kind: str) -> int:
        """Return the capacity of a resource, in thousandths: of the nodes that are up, or of all while none is."""
        if not self.totals:
            nodes = self.nodes or self.book.nodes
            self.totals.update({k: sum(n.capacity.get(k, 0) for n in nodes) for k in self.book.kinds})
        return self.totals.get(kind, 0)

    def admit(self, task: Task) -> None:
        """Note that a task came, for ``unit``."""
        if self.by:
            self.members.setdefault(task.key(self.by), {})[task.name] = task

    def again(self, task: Task) -> None:
        """Let a gang that was stopped wait in the order in which it came, as its nodes are found in that order."""
        a, mates = self.book.arena, self.members.get(task.key(self.by), {}) if self.by else {}
        rows = [self.book.index[name] for name, mate in mates.items() if self.waits(mate)]
        queue = a.queue[: a.mark[kernel.QUEUED]]
        places = np.flatnonzero(np.isin(queue, rows))
        if places.size == len(rows):
            queue[places] = rows

    def leave(self, task: Task, *, done: bool) -> None:
        """Note that a task is over: done, so that its gang, if it starts again, does so without it; or taken back."""
        key = task.key(self.by)
        if not self.by or self.members.get(key, {}).pop(task.name, None) is None:
            return
        self.gone[key] += done
        if not self.members[key] and self.gone[key] >= task.size:
            # all of it is over: the next of its name is another
            del self.members[key], self.gone[key]

    def whole(self, unit: Unit) -> Unit | None:
        """Return the tasks of a unit that still wait, as a unit; nothing while it is not whole or none waits."""
        left = next((task for task in unit if self.waits(task)), None)
        return self.unit(left) if left is not None else None

    def unit(self, task: Task) -> Unit | None:
        """Return the tasks that must start together with this one; nothing while they do not all wait."""
        if not self.by:
            return (task,)
        found = self.members.get(task.key(self.by), {}).values()
        complete = len(found) + self.gone[task.key(self.by)] >= task.size and all(self.waits(item) for item in found)
        return tuple(found) if complete else None

    def waits(self, task: Task) -> bool:
        """Return whether a task waits."""
        return bool(self.book.arena.state[self.book.index[task.name]] == kernel.WAITING)

    def runs(self, task: Task) -> bool:
        """Return whether a task runs."""
        return bool(self.book.arena.state[self.book.index[task.name]] == kernel.RUNNING)

    def changes(self) -> tuple[int, int]:
        """Return two numbers of which one grows as something starts, ends or is created."""
        mark = self.book.arena.mark
        return int(mark[kernel.GROWN]), int(mark[kernel.PLACED])

    def quickest(self, task: Task) -> float:
        """Return the run time (s) of a task on the type of node that suits it best."""
        return float(self.book.arena.run[self.book.index[task.name]].min())

    def waiting(self) -> Iterator[Task]:
        """Yield the tasks that wait, in the order in which they came."""
        for row in self.queue():
            if self.book.arena.state[row] == kernel.WAITING:
                yield self.book.tasks[row]

    def queue(self) -> Small:
        """Return the rows of the tasks that wait, and of some that just started, in the order in which they came."""
        a = self.book.arena
        return a.queue[: a.mark[kernel.QUEUED]].copy()

    def running(self) -> list[tuple[Task, str, float]]:
        """Return the tasks that run, each with its node and the time of its start, by start."""
        a, book = self.book.arena, self.book
        rows = np.flatnonzero(a.state[: len(book.tasks)] == kernel.RUNNING)
        rows = rows[np.argsort(a.began[rows], kind="stable")]
        return [(book.tasks[row], book.nodes[a.place[row]].name, float(a.began[row])) for row in rows]

    def room(self, unit: Sequence[Task], phase: int, within: Iterable[str] | Flags | None = None) -> list[str] | None:
        """Return nodes on which the tasks would fit together, or nothing.

        Names count as far as policies of earlier phases than ``phase`` put them; ``within`` limits the nodes, by name
        or by marks.
        """
        a, book = self.book.arena, self.book
        allowed = a.up if within is None else within if isinstance(within, np.ndarray) else self._mask(within)
        if len(unit) == 1:
            row = kernel_calls.first(a, book.index[unit[0].name], phase, allowed)
            return None if row < 0 else [book.nodes[row].name]
        rows = np.array([book.index[task.name] for task in unit], np.int32)
        out = np.empty(len(unit), np.int32)
        return [book.nodes[row].name for row in out] if kernel_calls.assign(a, rows, phase, allowed, out) else None

    def fits(self, task: Task, phase: int) -> list[str]:
        """Return every node on which a task would fit."""
        return [self.book.nodes[row].name for row in np.flatnonzero(self.marks(task, phase))]

    def marks(self, task: Task, phase: int) -> Flags:
        """Return marks of the nodes on which a task would fit."""
        out = np.empty(len(self.book.nodes), np.uint8)
        kernel_calls.every(self.book.arena, self.book.index[task.name], phase, out)
        return out

    def tightest(self, task: Task, phase: int, label: str, kinds: Sequence[str]) -> Iterator[Flags]:
        """Yield each group of nodes that fit a task, where least is free of the first kind, then of the next.

        Groups are of a label, or ``node``: each by itself; as marks by node. What is free is a part of the cluster's.
        """
        a, rows, groups = self.book.arena, np.flatnonzero(self.marks(task, phase)), self._groups(label)
        found, at, place = np.unique(groups[rows], return_index=True, return_inverse=True)
        columns = [self.book.kinds.index(kind) for kind in reversed(kinds)]
        free = [
            np.bincount(place, a.free[rows, k], found.size) / (self.total(self.book.kinds[k]) or 1) for k in columns
        ]
        for group in found[np.lexsort((at, *free))]:
            yield np.asarray(groups == group, np.uint8)

    def _groups(self, label: str) -> NDArray[np.int64]:
        if label not in self.grouped:
            values = [node.name if label == "node" else node.labels.get(label, "") for node in self.book.nodes]
            numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
            self.grouped[label] = np.array([numbers[value] for value in values])
        return self.grouped[label]

    def ready(self, unit: Unit, phase: int) -> bool:
        """Return whether the cluster's names that the tasks ask for are there: their turn has come."""
        a, book = self.book.arena, self.book
        return all(kernel_calls.wide_fits(a, book.index[task.name], phase) for task in unit)

    def missing(self, unit: Unit, phase: int) -> int | None:
        """Return the number of a name of earlier phases that a unit asks for and that is nowhere, or nothing."""
        a, book = self.book.arena, self.book
        for row in [book.index[task.name] for task in unit]:
            for name, step in zip(a.ask[row].tolist(), a.step[row].tolist(), strict=True):
                if name < 0:
                    break
                if step < phase and not self.there(name):
                    return int(name)
        return None

    def there(self, name: int) -> bool:
        """Return whether the name of a number is anywhere."""
        return bool(self.book.arena.wide[name] > 0 or self.book.arena.column[name] >= 0)

    def free(self, node: str) -> dict[str, int]:
        """Return what is free on a node, in thousandths."""
        row = self.book.arena.free[self.book.place[node]]
        return dict(zip(self.book.kinds, row.tolist(), strict=True))

    def node(self, name: str) -> Node:
        """Return a node by name."""
        return self.book.nodes[self.book.place[name]]

    def placed(self, name: str) -> list[Node]:
        """Return the nodes on which a name is."""
        return [self.node(place) for place in self.book.entries.get(name, {}) if place]

    def alike(self, label: str, name: str) -> list[str]:
        """Return the nodes that have the same label as one of them; any label that no node has is shared by all."""
        value = self.node(name).labels.get(label)
        return [node.name for node in self.nodes if node.labels.get(label) == value]

    def counts(self, tasks: Iterable[Task]) -> dict[str, int]:
        """Return how many of the tasks run on each node that is up."""
        found = dict.fromkeys((node.name for node in self.nodes), 0)
        a, book = self.book.arena, self.book
        for task in tasks:
            row = book.index[task.name]
            if a.state[row] == kernel.RUNNING:
                found[book.nodes[a.place[row]].name] += 1
        return found

    def free_at(self, node: str, task: Task) -> float:
        """Return when a task would fit on a node if nothing new started there: by the known ends; or infinity."""
        a, book = self.book.arena, self.book
        place, need = book.place[node], a.need[book.index[task.name]]
        rows = np.flatnonzero((a.state[: len(book.tasks)] == kernel.RUNNING) & (a.place[: len(book.tasks)] == place))
        rows = rows[np.argsort(a.ends[rows], kind="stable")]
        free = a.free[place].copy()
        for row in (-1, *rows):
            free += a.need[row] if row >= 0 else 0
            if (need <= free).all():
                return float(a.ends[row]) if row >= 0 else self.now
        return np.inf

    def overdue(self, tasks: Sequence[Task]) -> float:
        """Return the first deadline before which the work of those that run and of some that wait does not fit, or 0.

        Work is amount x time on the quickest type, per resource, against the cluster's (the processor demand test).
        """
        a, book = self.book.arena, self.book
        wait = np.fromiter((book.index[task.name] for task in tasks), np.int64, len(tasks))
        due = np.fromiter((task.deadline for task in tasks), np.float64, len(tasks))
        wait, due = wait[np.argsort(due, kind="stable")], np.sort(due)
        runs = np.flatnonzero(a.state[: len(book.tasks)] == kernel.RUNNING)
        left = a.run[runs, a.kind[a.place[runs]]] + a.began[runs] - self.now
        spent = (a.need[runs] * left[:, None]).sum(axis=0) + np.cumsum(
            a.need[wait] * a.run[wait].min(axis=1)[:, None], 0
        )
        room = np.array([self.total(kind) for kind in book.kinds]) * (due - self.now)[:, None]
        late = ((spent > room + 1e-6) & (a.need[wait] > 0)).any(axis=1)
        return float(due[late.argmax()]) if late.any() else 0.0

    def victims(self, unit: Unit, candidates: Iterable[Task]) -> list[Task] | None:
        """Return the first of the candidates (and what starts together with them) without which ``unit`` would fit.

        Of these, whoever is not in its way after all is spared, the last candidates before the first. Whom the unit
        runs beside is none of them: without it there would be no place.
        """
        gone: dict[str, list[Task]] = {}
        try:
            for candidate in candidates:
                if self.room(unit, QUEUE) is not None:
                    break
                mates = self._together(candidate)
                if mates and mates[0].name not in gone and not any(_beside(unit, mate) for mate in mates):
                    self._lift(mates, kernel_calls.give)
                    gone[mates[0].name] = mates
            return self._needed(unit, gone) if self.room(unit, QUEUE) is not None else None
        finally:
            for mates in gone.values():
                self._lift(mates, kernel_calls.take)

    def _needed(self, unit: Unit, gone: dict[str, list[Task]]) -> list[Task]:
        for name in reversed(list(gone)):
            mates = gone.pop(name)
            self._lift(mates, kernel_calls.take)
            if self.room(unit, QUEUE) is None:
                self._lift(mates, kernel_calls.give)
                gone[name] = mates
        return [task for mates in reversed(gone.values()) for task in mates]

    def _lift(self, tasks: Iterable[Task], change: Callable[..., None]) -> None:
        for task in tasks:
            row = self.book.index[task.name]
            change(self.book.arena, row, self.book.arena.place[row], QUEUE)

    def _together(self, task: Task) -> list[Task]:
        mates = self.members.get(task.key(self.by), {}).values() if self.by else ()
        return [mate for mate in mates or (task,) if self.runs(mate)]

    def _mask(self, names: Iterable[str]) -> Flags:
        mask = np.zeros(len(self.book.nodes), np.uint8)
        mask[[self.book.place[name] for name in names]] = 1
        return mask


def _beside(unit: Unit, other: Task) -> bool:
    """Return whether some of a unit runs beside another task: whom it follows, or the server of its job."""
    return any(
        task.follows == other.job or (task.role == "worker" and (task.job, "server") == (other.job, other.role))
        for task in unit
    )
