"""The one meaning of ephemeral resources: create, resize, delete, lease, compare and set, watch, snapshot.

The simulator matches by this book.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from unfold_placement.core import bulk, kernel, kernel_calls, state_arrays
from unfold_placement.core.state import Arena
from unfold_placement.core.types import ANYWHERE, MILLI, Ask, Node, Resource, Task, stale
from unfoldkit.api import fail

Watcher = Callable[[str, Resource], None]


@dataclass(slots=True)
class Book:
    """Nodes, tasks, names, and who holds what. Times are seconds of ``now``; amounts of names are whole units."""

    nodes: tuple[Node, ...]
    kinds: tuple[str, ...]
    arena: Arena
    tasks: list[Task] = field(default_factory=list)
    index: dict[str, int] = field(default_factory=dict)
    place: dict[str, int] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    entries: dict[str, dict[str, Resource]] = field(default_factory=dict)
    leases: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    epoch: int = 0
    soonest: float = np.inf
    watchers: list[Watcher] = field(default_factory=list)

    @property
    def now(self) -> float:
        """The time, in seconds."""
        return float(self.arena.clock[0])

    def add(self, tasks: Sequence[Task], asks: Sequence[Sequence[tuple[Ask, int]]]) -> None:
        """Take tasks into the book, with the names that they ask for and the phase of who asks.

        Raises:
            UnfoldError: a task asks for a resource that no node has, or its name is there already.
        """
        self.arena = state_arrays.with_tasks(self, tasks, asks)
        for task in tasks:
            self.index[task.name] = len(self.tasks)
            self.tasks.append(task)

    def name_id(self, name: str) -> int:
        """Return the number of a name; numbers are never used again."""
        found = self.ids.get(name)
        if found is None:
            found = self.ids[name] = len(self.ids)
            self.arena = state_arrays.with_names(self.arena, len(self.ids))
        return found

    def create(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, owner: str = "", ttl: float = np.inf, until: str = ""
    ) -> Resource:
        """Create a name; it is gone after ``ttl`` seconds unless it is renewed.

        Raises:
            UnfoldError: the name is there already, or there is no such node.
        """
        if node in self.entries.get(name, {}):
            raise fail(f"{name} is there already on {node or 'the cluster'}", hint="resize it")
        now = self.now
        return self._set(Resource(name, node, amount, owner, self.epoch + 1, now, now + ttl, until))

    def resize(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, epoch: int | None = None, ttl: float | None = None
    ) -> Resource:
        """Set the amount of a name that is there: below what is held, nothing new matches until holders end.

        Raises:
            UnfoldError: the name is not there, or its epoch is not ``epoch`` (compare and set).
        """
        found = self._checked(name, node, epoch)
        expires = found.expires if ttl is None else self.now + ttl
        return self._set(replace(found, amount=amount, expires=expires, epoch=self.epoch + 1))

    def put(self, name: str, node: str = ANYWHERE, amount: int = 1, *, owner: str = "", until: str = "") -> bool:
        """Create a name or set its amount; return whether anything changed."""
        found = self.entries.get(name, {}).get(node)
        if found is None:
            self.create(name, node, amount, owner=owner, until=until)
        elif found.amount != amount:
            self.resize(name, node, amount)
        return found is None or found.amount != amount

    def put_all(self, name: str, nodes: Sequence[str], amount: int, *, owner: str = "") -> list[str]:
        """Do as ``put`` does on each of some nodes; return those on which anything changed.

        Raises:
            UnfoldError: there is no such node.
        """
        places, now = self.entries.get(name, {}), self.now
        news = [node for node in nodes if node not in places or places[node].amount != amount]
        if not news:
            return news
        bulk.put(self, name, news, amount)
        places = self.entries.setdefault(name, places)
        for at, node in enumerate(news, self.epoch + 1):
            found = places.get(node)
            made = replace(found, amount=amount, epoch=at) if found else Resource(name, node, amount, owner, at, now)
            places[node] = made
            if self.watchers:
                self._tell("resized" if found else "created", made)
        self.epoch += len(news)
        return news

    def delete_all(self, name: str, nodes: Sequence[str]) -> list[str]:
        """Do as ``delete`` does on each of some nodes where the name is, which are returned."""
        places = self.entries.get(name, {})
        gone = [node for node in nodes if node in places]
        if gone:
            bulk.erase(self, name, gone)
            left = [places.pop(node) for node in gone]
            if not places:
                del self.entries[name]
            state_arrays.free_column(self, name)
            for item in left if self.watchers else ():
                self._tell("deleted", item)
        return gone

    def delete(
        self, name: str, node: str = ANYWHERE, *, force: bool = False, epoch: int | None = None
    ) -> tuple[Task, ...]:
        """Delete a name: no new match; what is held is reclaimed as holders end. Return the holders.

        With ``force`` the holders are what the caller has to preempt.

        Raises:
            UnfoldError: the name is not there, or its epoch is not ``epoch``.
        """
        found = self._checked(name, node, epoch)
        holders = self.holders(name, node) if force else ()
        del self.entries[name][node]
        if not self.entries[name]:
            del self.entries[name]
        self._erase(found)
        self._tell("deleted", found)
        return holders

    def expire(self) -> list[Resource]:
        """Delete what has outlived its lease, and return it."""
        gone = [item for places in self.entries.values() for item in places.values() if item.expires <= self.now]
        for item in gone:
            self.delete(item.name, item.node)
        every = (item.expires for places in self.entries.values() for item in places.values())
        self.soonest = min(every, default=np.inf)
        return gone

    def release(self, task: Task) -> None:
        """Delete the names that live as long as a task."""
        for name, node in self.leases.pop(task.name, ()):
            if node in self.entries.get(name, {}):
                self.delete(name, node)
        state_arrays.reclaim(self, task)

    def holders(self, name: str, node: str = ANYWHERE) -> tuple[Task, ...]:
        """Return the running tasks that hold a name on a node (or, for a cluster's name, anywhere)."""
        number = self.ids.get(name)
        if number is None:
            return ()
        a = self.arena
        rows = np.flatnonzero(
            (a.state[: len(self.tasks)] == kernel.RUNNING) & (a.ask[: len(self.tasks)] == number).any(1)
        )
        here = rows if node == ANYWHERE else rows[a.place[rows] == self.place[node]]
        return tuple(self.tasks[row] for row in here)

    def snapshot(self) -> tuple[Resource, ...]:
        """Return every name that is there, in the order of names and nodes."""
        return tuple(places[node] for _, places in sorted(self.entries.items()) for node in sorted(places))

    def watch(self, watcher: Watcher) -> None:
        """Call ``watcher(change, resource)`` at every ``created``, ``resized`` and ``deleted``."""
        self.watchers.append(watcher)

    def held(self, name: str, node: str = ANYWHERE) -> int:
        """Return how much of a name is held, in whole units."""
        number, a = self.ids.get(name), self.arena
        if number is None or (node and a.column[number] < 0):
            return 0
        if node == ANYWHERE:
            entry = self.entries.get(name, {}).get(node)
            return (entry.amount if entry else 0) - int(a.pool[number]) // MILLI
        row, column = self.place[node], a.column[number]
        return int(a.cap[row, column] - a.left[row, column]) // MILLI

    def _checked(self, name: str, node: str, epoch: int | None) -> Resource:
        found = self.entries.get(name, {}).get(node)
        if found is None:
            raise fail(f"{name} is not there on {node or 'the cluster'}")
        if epoch is not None and found.epoch != epoch:
            raise stale(found, epoch)
        return found

    def _set(self, item: Resource) -> Resource:
        before = self.entries.get(item.name, {}).get(item.node)
        self.epoch = item.epoch
        self.soonest = min(self.soonest, item.expires)
        if item.node == ANYWHERE:
            self._pool(item, before)
        else:
            self._column(item, before)
        self.entries.setdefault(item.name, {})[item.node] = item
        if item.until and before is None:
            self.leases.setdefault(item.until, []).append((item.name, item.node))
        self._tell("resized" if before else "created", item)
        return item

    def _pool(self, item: Resource, before: Resource | None) -> None:
        number = self.name_id(item.name)
        a = self.arena
        a.wide[number] = kernel.PRIVATE if item.until else kernel.WIDE
        a.pool[number] += (item.amount - (before.amount if before else 0)) * MILLI
        self.wake(number, item.until)

    def wake(self, number: int, until: str) -> None:
        """Let those look at every node again who ask for a name, or the one task with which it lives."""
        a, task = self.arena, self.index.get(until)
        if task is None:
            kernel_calls.wake(a, number)
        elif a.state[task] == kernel.WAITING and a.fresh[task] != kernel.NEW:
            a.fresh[task] = kernel.NEW
            a.mark[kernel.FRESH] += 1

    def _column(self, item: Resource, before: Resource | None) -> None:
        if item.node not in self.place:
            raise fail(f"there is no node {item.node}")
        number = self.name_id(item.name)
        if self.arena.column[number] < 0:
            state_arrays.new_column(self, item.name)
            self.wake(number, item.until)
        a, row = self.arena, self.place[item.node]
        column = a.column[number]
        grown = item.amount * MILLI - (a.cap[row, column] if before or a.dying[row, column] else 0)
        if a.dying[row, column]:
            # what holders of the deleted name still hold counts against the new one
            a.left[row, column] = item.amount * MILLI - a.cap[row, column]
            a.dying[row, column] = 0
        else:
            a.left[row, column] += grown
        a.cap[row, column] += grown
        kernel_calls.touch(a, row)

    def _erase(self, item: Resource) -> None:
        number, a = self.ids[item.name], self.arena
        if item.node == ANYWHERE:
            a.pool[number] -= item.amount * MILLI
            return
        row, column = self.place[item.node], a.column[number]
        a.cap[row, column] -= a.left[row, column]
        a.left[row, column] = 0
        a.dying[row, column] = a.cap[row, column] > 0
        state_arrays.free_column(self, item.name)

    def _tell(self, change: str, item: Resource) -> None:
        for watcher in self.watchers:
            watcher(change, item)


def book(nodes: Sequence[Node], extra: Iterable[str] = ()) -> Book:
    """Return an empty book of a cluster; ``extra`` are resources that tasks may ask for and no node has."""
    kinds = tuple(sorted({kind for node in nodes for kind in node.capacity} | set(extra)))
    made = Book(tuple(nodes), kinds, state_arrays.empty(nodes, kinds))
    made.place.update({node.name: row for row, node in enumerate(nodes)})
    return made
