"""The bookkeeping of a cluster without a store of its own: names, leases, epochs, tasks, the leader, what happened.

One object, one lock. The Ray backend keeps it in an actor, the in-process backend beside the controller.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from unfold_placement.core.types import ANYWHERE, EphemeralResource, Node, Task, epoch_conflict
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Change, Record, Snapshot, Start
from unfoldkit.api import fail

MAX_ENDED = 1000
"""Ended tasks that are remembered, for stages and for fairness over time."""
MAX_CHANGES = 20_000
"""Changes that are remembered; who is further behind takes a snapshot."""
ALIVE = (kinds.WAITING, kinds.RUNNING)
Key = tuple[str, str]


@dataclass(slots=True)
class StateStore:
    """What a cluster's controllers and clients agree on. ``term`` counts leaders; ``clock`` gives seconds."""

    clock: Callable[[], float]
    nodes: dict[str, Node] = field(default_factory=dict)
    resources: dict[Key, EphemeralResource] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    task_bound: dict[str, set[Key]] = field(default_factory=dict)
    log: deque[Change] = field(default_factory=lambda: deque(maxlen=MAX_CHANGES))
    ended: deque[str] = field(default_factory=deque)
    last_number: int = 0
    epoch: int = 0
    leader: str = ""
    term: int = 0
    leads_until: float = -math.inf
    changed: threading.Condition = field(default_factory=threading.Condition)

    def snapshot(self) -> Snapshot:
        """Return everything at this moment."""
        with self.changed:
            self.expire_leases()
            names = tuple(self.resources[key] for key in sorted(self.resources))
            return Snapshot(self.last_number, tuple(self.nodes.values()), names, tuple(self.records.values()))

    def watch(self, after: int, timeout: float) -> Sequence[Change] | None:
        """Return what happened after a change, at the latest after ``timeout`` seconds; None where it is forgotten."""
        with self.changed:
            self.expire_leases()
            self.changed.wait_for(lambda: self.last_number > after, timeout)
            missed = self.last_number - after
            if missed > len(self.log):
                return None
            return tuple(self.log[index] for index in range(len(self.log) - missed, len(self.log)))

    def lead(self, who: str, ttl: float) -> int:
        """Return the term of who leads from now on, or 0 while another does."""
        with self.changed:
            now = self.clock()
            if self.leader != who and now < self.leads_until:
                return 0
            if self.leader != who or now >= self.leads_until:
                self.term += 1
            self.leader, self.leads_until = who, now + ttl
            return self.term

    def resign(self, term: int) -> None:
        """Let go of the lead, if it is still this term's."""
        with self.changed:
            if term == self.term:
                self.leads_until = -math.inf

    def check_term(self, term: int) -> None:
        """Hold up who led and does no longer; term 0 is nobody's and passes.

        Raises:
            UnfoldError: another leads, or the lease has ended.
        """
        if term and (term != self.term or self.clock() >= self.leads_until):
            raise fail("another controller leads by now", hint="this one waits until it may lead again")

    def join(self, node: Node) -> None:
        """Add a node, or let it come back."""
        with self.changed:
            self.nodes[node.name] = node
            self.record_change(kinds.JOINED, node=node.name)

    def leave(self, name: str) -> None:
        """Take a node away: what runs there waits again, names there are gone."""
        with self.changed:
            del self.nodes[name]
            self.record_change(kinds.LEFT, node=name)
            for key in [key for key in self.resources if key[1] == name]:
                self._erase(key, kinds.DELETED)
            for record in [r for r in self.records.values() if r.state == kinds.RUNNING and r.node == name]:
                self.fail(record.task.name, record.attempt, f"{name} is gone")

    def create(
        self, name: str, node: str, amount: int, *, owner: str = "", ttl: float = math.inf, until: str = ""
    ) -> EphemeralResource:
        """Create a name."""
        with self.changed:
            self.expire_leases()
            if (name, node) in self.resources:
                raise fail(f"{name} is there already on {node or 'the cluster'}", hint="resize it")
            if node != ANYWHERE and node not in self.nodes:
                raise fail(f"there is no node {node}")
            now = self.clock()
            return self._set(EphemeralResource(name, node, amount, owner, 0, now, now + ttl, until), kinds.CREATED)

    def resize(self, name: str, node: str, amount: int, *, epoch: int | None = None) -> EphemeralResource:
        """Set the amount of a name."""
        with self.changed:
            return self._set(replace(self._checked(name, node, epoch), amount=amount), kinds.RESIZED)

    def delete(
        self, name: str, node: str, *, force: bool = False, epoch: int | None = None, by: str = ""
    ) -> tuple[str, ...]:
        """Delete a name; with ``force``, gate its holders again and return them."""
        with self.changed:
            self._checked(name, node, epoch)
            holders = self.holders(name, node) if force else ()
            self._erase((name, node), kinds.DELETED)
            for task in holders:
                self.preempt(task, by=by)
            return holders

    def holders(self, name: str, node: str = ANYWHERE) -> tuple[str, ...]:
        """Return the running tasks that hold a name."""
        return tuple(
            r.task.name for r in self.records.values()
            if r.state == kinds.RUNNING and any(ask.name == name for ask in r.asks) and node in {ANYWHERE, r.node}
        )  # fmt: skip

    def renew(self, owner: str, ttl: float) -> int:
        """Let an owner's names live on."""
        with self.changed:
            self.expire_leases()
            mine = [key for key, item in self.resources.items() if item.owner == owner and math.isfinite(item.expires)]
            for key in mine:
                self.resources[key] = replace(self.resources[key], expires=self.clock() + ttl)
            return len(mine)

    def expire_leases(self) -> list[EphemeralResource]:
        """Delete what has outlived its lease, and return it."""
        now = self.clock()
        gone = [key for key, item in self.resources.items() if item.expires <= now]
        return [self._erase(key, kinds.EXPIRED) for key in gone]

    def submit(self, task: Task) -> Record:
        """Take a task into the queue."""
        with self.changed:
            if task.name in self.records:
                raise fail(f"task {task.name} is there already", hint="every task has a name of its own")
            now = self.clock()
            record = Record(replace(task, arrival=now, deadline=now + task.deadline))
            return self._record(record, kinds.SUBMITTED)

    def start(self, unit: Sequence[Start], *, by: str = "") -> list[Record]:
        """Let a unit run; where one of its tasks does not wait, or a node is gone, all are told to have failed."""
        with self.changed:
            known = [(item, self.records[item.task]) for item in unit if item.task in self.records]
            waiting = [(item, record) for item, record in known if record.state == kinds.WAITING]
            if len(waiting) < len(unit) or any(item.node not in self.nodes for item in unit):
                for _, record in waiting:
                    self._regate(replace(record, attempt=record.attempt + 1), kinds.FAILED, "")
                return []
            now = self.clock()
            return [self._record(_started(record, item, now), kinds.STARTED, by) for item, record in waiting]

    def end(self, task: str, attempt: int, outcome: str = "") -> bool:
        """Note that an attempt ended; return whether it was the last one."""
        with self.changed:
            record = self.records.get(task)
            if record is None or record.state != kinds.RUNNING or record.attempt != attempt:
                return False
            self._close(record, kinds.DONE, kinds.ENDED, outcome)
            return True

    def fail(self, task: str, attempt: int, reason: str) -> bool:
        """Let a task wait again that could not start, or was stopped from outside."""
        with self.changed:
            record = self.records.get(task)
            if record is None or record.state != kinds.RUNNING or record.attempt != attempt:
                return False
            self._regate(replace(record, outcome=reason), kinds.FAILED, "")
            return True

    def preempt(self, task: str, *, by: str = "") -> bool:
        """Gate a running task again."""
        with self.changed:
            record = self.records.get(task)
            if record is None or record.state != kinds.RUNNING:
                return False
            self._regate(record, kinds.PREEMPTED, by)
            return True

    def refuse(self, task: str, reason: str, *, by: str = "") -> bool:
        """Take a waiting task out of the queue for good."""
        with self.changed:
            record = self.records.get(task)
            if record is None or record.state != kinds.WAITING:
                return False
            self._close(record, kinds.REFUSED, kinds.DECLINED, reason, by)
            return True

    def withdraw(self, task: str, reason: str = "") -> bool:
        """Take a task back."""
        with self.changed:
            record = self.records.get(task)
            if record is None or record.state not in ALIVE:
                return False
            self._close(record, kinds.GONE, kinds.WITHDRAWN, reason)
            return True

    def record_change(self, kind: str, *, task: str = "", node: str = ANYWHERE, name: str = "", by: str = "") -> None:
        """Add a change to what happened, and wake who watches."""
        self.last_number += 1
        record = self.records.get(task)
        self.log.append(Change(self.last_number, kind, self.clock(), task, node, name, by, record))
        self.changed.notify_all()

    def _checked(self, name: str, node: str, epoch: int | None) -> EphemeralResource:
        self.expire_leases()
        found = self.resources.get((name, node))
        if found is None:
            raise fail(f"{name} is not there on {node or 'the cluster'}")
        if epoch is not None and found.epoch != epoch:
            raise epoch_conflict(found, epoch)
        return found

    def _set(self, item: EphemeralResource, kind: str) -> EphemeralResource:
        self.epoch += 1
        made = self.resources[item.name, item.node] = replace(item, epoch=self.epoch)
        if made.until:
            self.task_bound.setdefault(made.until, set()).add((made.name, made.node))
        self.record_change(kind, node=made.node, name=made.name, by=made.owner)
        return made

    def _erase(self, key: Key, kind: str) -> EphemeralResource:
        gone = self.resources.pop(key)
        if gone.until:
            self.task_bound.get(gone.until, set()).discard(key)
        self.record_change(kind, node=gone.node, name=gone.name, by=gone.owner)
        return gone

    def _record(self, record: Record, kind: str, by: str = "") -> Record:
        self.records[record.task.name] = record
        self.record_change(kind, task=record.task.name, node=record.node, by=by)
        return record

    def _release(self, task: str) -> None:
        for key in self.task_bound.pop(task, ()):
            self._erase(key, kinds.DELETED)

    def _regate(self, record: Record, kind: str, by: str) -> None:
        self._release(record.task.name)
        self._record(replace(record, state=kinds.WAITING, asks=(), started=math.inf), kind, by)

    def _close(self, record: Record, state: str, kind: str, outcome: str, by: str = "") -> None:
        self._release(record.task.name)
        self._record(replace(record, state=state, ended=self.clock(), outcome=outcome), kind, by)
        self.ended.append(record.task.name)
        while len(self.ended) > MAX_ENDED:
            del self.records[self.ended.popleft()]


def _started(record: Record, item: Start, now: float) -> Record:
    attempt = record.attempt + 1
    return replace(
        record, state=kinds.RUNNING, node=item.node, asks=item.asks, started=now, attempt=attempt, outcome=""
    )


def build_state_store(clock: Callable[[], float], nodes: Iterable[Node] = ()) -> StateStore:
    """Return the bookkeeping of a cluster that has some nodes."""
    made = StateStore(clock)
    for node in nodes:
        made.join(node)
    return made
