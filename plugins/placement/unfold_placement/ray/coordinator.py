"""The actor that keeps a Ray cluster's names, tasks and lead, and makes placement groups of them.

It is detached, so it outlives every controller; its groups are its own, so where it dies Ray removes them all. Then it
starts again with nothing: clients submit what they still wait for once more, and the controller adopts that.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from unfold_placement.core.types import ANYWHERE, EphemeralResource, Node, Task
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Change, Record, Snapshot, Start
from unfold_placement.live.state_store import Key, build_state_store
from unfold_placement.ray.placement_groups import (
    BUDGET,
    MAX_AMOUNT,
    PlacementGroups,
    Reservation,
    Shape,
    bundle_shape,
    parse_node,
)
from unfoldkit.api import UnfoldError, fail

RESERVATION_TIMEOUT_S = 5.0
"""Seconds that a reservation may take before its unit is given up and waits again."""
IDLE, CLIENT = 1.0, 15.0
"""Seconds that an idle reservation is kept, and that a client may be silent."""
SOON = 0.005
"""Seconds after which Ray is told of what nobody waits for: told at once, it would hold up the answer."""
LAG = 3.0
"""Seconds by which Ray's own view of what is free may be behind."""
RETRIES = 3
"""Starts after which a task whose worker dies is told to have failed."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a client is told: run this attempt of a task inside this group."""

    task: str
    attempt: int
    slot: Reservation


@dataclass(frozen=True, slots=True)
class Ended:
    """What a client tells: how an attempt ended; ``died`` where its worker did, not the function."""

    task: str
    attempt: int
    outcome: str = ""
    died: bool = False


@dataclass(slots=True)
class Client:
    """A process that submits tasks: what it is to be told, when it was heard, what is its, and whether it goes."""

    last_seen_s: float
    leaves: bool = False
    offers: deque[Offer] = field(default_factory=deque)
    closed: deque[Record] = field(default_factory=deque)
    tasks: set[str] = field(default_factory=set)


class Coordinator:
    """See the module. Methods run in threads; ``lock`` is the register's; groups are made and removed outside of it.

    ``described`` says what Ray does not know of nodes, whose labels never change there; only these are used then.
    ``clock`` (s) is what tasks, leases and timers go by; processes and reservations go by this machine's.
    ``patience`` is how long (s) a reservation may take.
    """

    def __init__(
        self,
        described: Sequence[Node] = (),
        clock: Callable[[], float] = time.monotonic,
        patience: float = RESERVATION_TIMEOUT_S,
    ) -> None:
        self.described = {node.name: node for node in described}
        self.patience = patience
        origin = clock()
        self.register = build_state_store(lambda: clock() - origin)
        self.register.last_number = time.time_ns() // 1_000_000
        self.lock = self.register.changed
        self.groups = PlacementGroups()
        self.named: dict[Key, list[Any]] = {}
        self.lent: set[Key] = set()
        self.dying: list[Any] = []
        self.unused: dict[Any, float] = {}
        self.slots: dict[str, Reservation] = {}
        self.clients: dict[str, Client] = {}
        self.owner: dict[str, str] = {}
        self.deaths: Counter[str] = Counter()
        self.pool = ThreadPoolExecutor(16)
        self._nodes()
        threading.Thread(target=self._tend, daemon=True).start()

    def now(self) -> float:
        """Return the time, in seconds since this actor began."""
        return self.register.clock()

    def snapshot(self) -> Snapshot:
        """Return everything."""
        return self.register.snapshot()

    def watch(self, after: int, timeout: float) -> Sequence[Change] | None:
        """Wait for changes."""
        return self.register.watch(after, timeout)

    def lead(self, who: str, ttl: float) -> int:
        """Return the term of who leads, or 0."""
        return self.register.lead(who, ttl)

    def resign(self, term: int) -> None:
        """Let go of the lead."""
        self.register.resign(term)

    def create(
        self, term: int, name: str, node: str, amount: int, owner: str, ttl: float, until: str
    ) -> EphemeralResource:
        """Create a name: on a node a group of that amount, for the cluster an entry."""
        with self.lock:
            self.register.check_term(term)
            made = self.register.create(name, node, amount, owner=owner, ttl=ttl, until=until)
        if node != ANYWHERE:
            self._carve(made)
        return made

    def resize(self, term: int, name: str, node: str, amount: int, epoch: int | None) -> EphemeralResource:
        """Set a name's amount: groups cannot be resized, so a further one or a new one is made."""
        with self.lock:
            self.register.check_term(term)
            made = self.register.resize(name, node, amount, epoch=epoch)
            old = self.named.pop((name, node), []) if node != ANYWHERE else []
            kept = old if (name, node) in self.lent else []
        if node != ANYWHERE:
            self._carve(made)
            with self.lock:
                self.named[name, node] += kept
        self._remove([group for group in old if group not in kept])
        return made

    def delete(self, term: int, who: str, name: str, node: str, force: bool, epoch: int | None) -> tuple[str, ...]:
        """Delete a name, with its group; what runs in the group by itself is ended only by force."""
        with self.lock:
            self.register.check_term(term)
            holders = self.register.delete(name, node, force=force, epoch=epoch, by=who)
            gone = self._left(force=force)
            freed = [self.slots.pop(task) for task in holders if task in self.slots]
        if force:
            self._remove([*gone, *(slot.group for slot in freed)])
        else:
            # nothing runs in these and nothing will: nobody waits for Ray to be told
            self.pool.submit(self._remove, gone, SOON)
        return holders

    def renew(self, owner: str, ttl: float) -> int:
        """Let an owner's names live on."""
        return self.register.renew(owner, ttl)

    def within(self, name: str, node: str) -> Any:
        """Return the group of a name, for a task that asks for this one name."""
        with self.lock:
            if (name, node) not in self.named:
                raise fail(f"{name} is not there on {node or 'the cluster'}")
            self.lent.add((name, node))
            return self.named[name, node][0]

    def start(self, term: int, who: str, unit: Sequence[Start]) -> None:
        """Let a unit run once there is a reservation for every task of it."""
        with self.lock:
            self.register.check_term(term)
            records = self.register.start(unit, by=who)
            if records and self.groups.ready(_wanted(records)):
                self._commit(records, self.groups.reserve(_wanted(records), self.patience) or [])
                return
        if records:
            self.pool.submit(self._prepare, records)

    def preempt(self, term: int, who: str, task: str) -> None:
        """Stop a task by removing its group, and gate it again."""
        with self.lock:
            self.register.check_term(term)
            self.register.preempt(task, by=who)
        self._free(task)

    def refuse(self, term: int, who: str, task: str, reason: str) -> None:
        """Take a waiting task out of the queue for good."""
        with self.lock:
            self.register.check_term(term)
            if self.register.refuse(task, reason, by=who):
                self._close(task)

    def withdraw(self, task: str, reason: str = "") -> None:
        """Take a task back; what runs of it is stopped."""
        with self.lock:
            if self.register.withdraw(task, reason):
                self._close(task)
        self._free(task)

    def report(self, client: str, tasks: Sequence[Task], ended: Sequence[Ended]) -> dict[str, str]:
        """Hear of a client's new tasks and of those that ended; return the tasks that are not taken, and why."""
        refused: dict[str, str] = {}
        with self.lock:
            mine = self._client(client)
            for item in ended:
                self._ended(item)
            for task in tasks:
                try:
                    self.register.submit(task)
                    self.owner[task.name] = client
                    mine.tasks.add(task.name)
                except UnfoldError as error:
                    refused[task.name] = error.diagnostics[0].message
        return refused

    def offers(self, client: str, timeout: float) -> tuple[list[Offer], list[Record]]:
        """Wait for what a client is to run, or for its tasks that will not run any more."""
        with self.lock:
            mine = self._client(client)
            self.lock.wait_for(lambda: mine.offers or mine.closed or mine.leaves, timeout)
            told = list(mine.offers), list(mine.closed)
            mine.offers.clear()
            mine.closed.clear()
            mine.last_seen_s = time.monotonic()
            return told

    def leave(self, client: str) -> None:
        """Let a client that goes wait for nothing any more; its tasks are taken back some seconds later."""
        with self.lock:
            self._client(client).leaves = True
            self.lock.notify_all()

    def _client(self, name: str) -> Client:
        found = self.clients.setdefault(name, Client(time.monotonic()))
        found.last_seen_s = time.monotonic()
        return found

    def _close(self, task: str, *, told: bool = True) -> None:
        client = self.clients.get(self.owner.pop(task, ""))
        if client is not None:
            client.tasks.discard(task)
            if told:
                client.closed.append(self.register.records[task])
                self.lock.notify_all()

    def _ended(self, item: Ended) -> None:
        record = self.register.records.get(item.task)
        if record is None or record.state != kinds.RUNNING or record.attempt != item.attempt:
            return
        slot = self.slots.pop(item.task, None)
        self.deaths[item.task] += item.died
        if item.died and slot is not None:
            self.pool.submit(self._remove, [slot.group])
        elif slot is not None:
            self.groups.keep(slot, time.monotonic())
        if item.died and self.deaths[item.task] <= RETRIES:
            self.register.fail(item.task, item.attempt, item.outcome)
        else:
            self.register.end(item.task, item.attempt, item.outcome)
            self._close(item.task, told=item.died)
            del self.deaths[item.task]

    def _carve(self, item: EphemeralResource) -> None:
        shape: Shape = ((BUDGET, float(max(1, min(item.amount, MAX_AMOUNT)))),)
        group = self.groups.make(item.node, shape)
        if not group.wait(self.patience):
            self.groups.remove(group)
            with self.lock, contextlib.suppress(UnfoldError):
                self.register.delete(item.name, item.node)
            raise fail(f"node {item.node} has no {BUDGET!r} left for {item.name}", hint="start it with more")
        with self.lock:
            self.named.setdefault((item.name, item.node), []).append(group)

    def _prepare(self, records: Sequence[Record]) -> None:
        slots = self.groups.reserve(_wanted(records), self.patience)
        if slots is not None:
            with self.lock:
                self._commit(records, slots)
            return
        # two that gave up at the same moment do not meet again
        time.sleep(random.uniform(0.05, 0.25))  # noqa: S311
        with self.lock:
            for record in records:
                self.register.fail(record.task.name, record.attempt, f"no room on {record.node} for all of its unit")

    def _commit(self, records: Sequence[Record], slots: Sequence[Reservation]) -> None:
        for record, slot in zip(records, slots, strict=True):
            name = record.task.name
            now = self.register.records.get(name)
            client = self.clients.get(self.owner.get(name, ""))
            if now is None or client is None or (now.state, now.attempt) != (kinds.RUNNING, record.attempt):
                self.groups.keep(slot, time.monotonic())
                continue
            self.slots[name] = slot
            client.offers.append(Offer(name, record.attempt, slot))
        self.lock.notify_all()

    def _free(self, task: str) -> None:
        with self.lock:
            slot = self.slots.pop(task, None)
        if slot is not None:
            self.groups.remove(slot.group)

    def _remove(self, groups: Sequence[Any], after: float = 0.0) -> None:
        time.sleep(after)
        for group in groups:
            self.groups.remove(group)

    def _left(self, *, force: bool = False) -> list[Any]:
        gone: list[Any] = []
        for key in [key for key in self.named if key not in self.register.resources]:
            (gone if force or key not in self.lent else self.dying).extend(self.named.pop(key))
            self.lent.discard(key)
        return gone

    def _tend(self) -> None:
        while True:
            time.sleep(0.25)
            self._sweep()
            self._nodes()
            if self.dying:
                self._bury()

    def _sweep(self) -> None:
        with self.lock:
            self.register.expire_leases()
            now = time.monotonic()
            silent = [name for name, client in self.clients.items() if now - client.last_seen_s > CLIENT]
            lost = [task for name in silent for task in self.clients.pop(name).tasks]
            gone = self._left()
        self.groups.prune(now - IDLE)
        for task in lost:
            self.withdraw(task, "its client is gone")
        self._remove(gone)

    def _bury(self) -> None:
        # Ray's view is a second or two behind: unused now and unused three seconds later is unused
        now, idle = time.monotonic(), set(self.groups.unused(self.dying))
        self.unused = {group: self.unused.get(group, now) for group in self.dying if group in idle}
        gone = [group for group, since in self.unused.items() if now - since > LAG]
        self.dying = [group for group in self.dying if group not in gone]
        self._remove(gone)

    def _nodes(self) -> None:
        import ray

        told = [item for item in ray.nodes() if item["Alive"] and item["Resources"].get(BUDGET)]
        every = {parse_node(item).name: (parse_node(item), item["NodeID"]) for item in told}
        found = {name: (self._seen(node), key) for name, (node, key) in every.items() if self._wants(name)}
        with self.lock:
            for name in self.register.nodes.keys() - found.keys():
                self._lose(name)
            for name in found.keys() - self.register.nodes.keys():
                self.groups.ids[name] = found[name][1]
                self.register.join(found[name][0])

    def _wants(self, name: str) -> bool:
        return not self.described or name in self.described

    def _seen(self, node: Node) -> Node:
        told = self.described.get(node.name, node)
        return replace(told, capacity=told.capacity or node.capacity)

    def _lose(self, name: str) -> None:
        tasks = [task for task, slot in self.slots.items() if slot.node == name]
        groups = [self.slots.pop(task).group for task in tasks]
        self.groups.prune(node=name)
        self.register.leave(name)
        self.pool.submit(self._remove, [*groups, *self._left()])


def _wanted(records: Sequence[Record]) -> list[tuple[str, Shape]]:
    return [(record.node, bundle_shape(record.task, len(record.asks))) for record in records]
