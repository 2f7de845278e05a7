"""The records of a cluster that has no store of its own: resources, leases, epochs, tasks, leader and changes.

One object with one lock. The Ray backend keeps it in an actor, the in-process backend beside the controller.
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
from unfoldkit.api import user_error

MAX_ENDED = 1000
"""Ended tasks that are kept, for stage barriers and for fairness over time."""
MAX_CHANGES = 20_000
"""Changes that are kept; an observer that is further behind takes a snapshot."""
ALIVE = (kinds.WAITING, kinds.RUNNING)
ResourceKey = tuple[str, str]
"""Name and node of an ephemeral resource."""


@dataclass(slots=True)
class StateStore:
    """The shared records of a cluster's controllers and clients.

    Attributes:
        clock: Returns seconds.
        nodes: Nodes by name.
        resources: Ephemeral resources by name and node.
        records: Tasks by name.
        task_bound: Resources that are deleted with each task.
        log: The latest changes.
        ended: Names of ended tasks, oldest first.
        last_number: Number of the last change.
        epoch: Version of the last resource change.
        leader: Process that leads or led last.
        term: Counts leaders.
        leads_until: End of the leadership in seconds.
        changed: Lock of the store, notified at every change.
    """

    clock: Callable[[], float]
    nodes: dict[str, Node] = field(default_factory=dict)
    resources: dict[ResourceKey, EphemeralResource] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    task_bound: dict[str, set[ResourceKey]] = field(default_factory=dict)
    log: deque[Change] = field(default_factory=lambda: deque(maxlen=MAX_CHANGES))
    ended: deque[str] = field(default_factory=deque)
    last_number: int = 0
    epoch: int = 0
    leader: str = ""
    term: int = 0
    leads_until: float = -math.inf
    changed: threading.Condition = field(default_factory=threading.Condition)

    def snapshot(self) -> Snapshot:
        """Return the cluster at this moment."""
        with self.changed:
            self.expire_leases()
            resources = tuple(self.resources[key] for key in sorted(self.resources))
            return Snapshot(self.last_number, tuple(self.nodes.values()), resources, tuple(self.records.values()))

    def watch(self, after: int, timeout: float) -> Sequence[Change] | None:
        """Wait up to ``timeout`` seconds for changes after a number; None where they are no longer kept."""
        with self.changed:
            self.expire_leases()
            self.changed.wait_for(lambda: self.last_number > after, timeout)
            missed = self.last_number - after
            if missed > len(self.log):
                return None
            return tuple(self.log[index] for index in range(len(self.log) - missed, len(self.log)))

    def lead(self, holder: str, ttl: float) -> int:
        """Make a process leader for ``ttl`` seconds; return its term, or 0 while another leads."""
        with self.changed:
            now = self.clock()
            if self.leader != holder and now < self.leads_until:
                return 0
            if self.leader != holder or now >= self.leads_until:
                self.term += 1
            self.leader, self.leads_until = holder, now + ttl
            return self.term

    def resign(self, term: int) -> None:
        """End the leadership if it still is this term's."""
        with self.changed:
            if term == self.term:
                self.leads_until = -math.inf

    def check_term(self, term: int) -> None:
        """Check that a term still leads; term 0 belongs to handles that never led and passes.

        Raises:
            UnfoldError: Another process leads, or the leadership has ended.
        """
        if term and (term != self.term or self.clock() >= self.leads_until):
            raise user_error("another controller leads now", hint="this one waits until it may lead again")

    def join(self, node: Node) -> None:
        """Add a node."""
        with self.changed:
            self.nodes[node.name] = node
            self.record_change(kinds.JOINED, node=node.name)

    def leave(self, name: str) -> None:
        """Remove a node with its resources; tasks that run there wait again."""
        with self.changed:
            del self.nodes[name]
            self.record_change(kinds.LEFT, node=name)
            for key in [key for key in self.resources if key[1] == name]:
                self._erase(key, kinds.DELETED)
            running = [record for record in self.records.values() if record.state == kinds.RUNNING]
            for record in running:
                if record.node == name:
                    self.fail(record.task.name, record.attempt, f"{name} has left the cluster")

    def create(
        self, name: str, node: str, amount: int, *, owner: str = "", ttl: float = math.inf, until: str = ""
    ) -> EphemeralResource:
        """Create an ephemeral resource."""
        with self.changed:
            self.expire_leases()
            if (name, node) in self.resources:
                raise user_error(f"{name} already exists on {node or 'the cluster'}", hint="resize it")
            if node != ANYWHERE and node not in self.nodes:
                raise user_error(f"there is no node {node}")
            now = self.clock()
            return self._write(EphemeralResource(name, node, amount, owner, 0, now, now + ttl, until), kinds.CREATED)

    def resize(self, name: str, node: str, amount: int, *, epoch: int | None = None) -> EphemeralResource:
        """Set the amount of a resource."""
        with self.changed:
            return self._write(replace(self._find(name, node, epoch), amount=amount), kinds.RESIZED)

    def delete(
        self, name: str, node: str, *, force: bool = False, epoch: int | None = None, by: str = ""
    ) -> tuple[str, ...]:
        """Delete a resource; with ``force``, gate its holders again and return them."""
        with self.changed:
            self._find(name, node, epoch)
            holders = self.holders(name, node) if force else ()
            self._erase((name, node), kinds.DELETED)
            for task in holders:
                self.preempt(task, by=by)
            return holders

    def holders(self, name: str, node: str = ANYWHERE) -> tuple[str, ...]:
        """Return the running tasks that hold a resource."""
        return tuple(
            record.task.name
            for record in self.records.values()
            if record.state == kinds.RUNNING
            and any(ask.name == name for ask in record.asks)
            and node in {ANYWHERE, record.node}
        )

    def renew(self, owner: str, ttl: float) -> int:
        """Extend the leases of an owner's resources; return their number."""
        with self.changed:
            self.expire_leases()
            leased = [
                key
                for key, resource in self.resources.items()
                if resource.owner == owner and math.isfinite(resource.expires)
            ]
            for key in leased:
                self.resources[key] = replace(self.resources[key], expires=self.clock() + ttl)
            return len(leased)

    def expire_leases(self) -> list[EphemeralResource]:
        """Delete and return the resources with an ended lease."""
        now = self.clock()
        expired = [key for key, resource in self.resources.items() if resource.expires <= now]
        return [self._erase(key, kinds.EXPIRED) for key in expired]

    def submit(self, task: Task) -> Record:
        """Enqueue a task; its arrival becomes now, and its deadline counts from now."""
        with self.changed:
            if task.name in self.records:
                raise user_error(f"task {task.name} already exists", hint="task names must be unique")
            now = self.clock()
            record = Record(replace(task, arrival=now, deadline=now + task.deadline))
            return self.write_record(record, kinds.SUBMITTED)

    def start(self, unit: Sequence[Start], *, by: str = "") -> list[Record]:
        """Start a unit; if a task does not wait or a node has left, all its waiting tasks fail."""
        with self.changed:
            known = [(start, self.records[start.task]) for start in unit if start.task in self.records]
            waiting = [(start, record) for start, record in known if record.state == kinds.WAITING]
            if len(waiting) < len(unit) or any(start.node not in self.nodes for start in unit):
                for _, record in waiting:
                    self.gate_again(replace(record, attempt=record.attempt + 1), kinds.FAILED, "")
                return []
            now = self.clock()
            return [
                self.write_record(_started_record(record, start, now), kinds.STARTED, by) for start, record in waiting
            ]

    def end(self, task: str, attempt: int, outcome: str = "") -> bool:
        """Record the end of an attempt; return whether it was the running one."""
        with self.changed:
            record = self.records.get(task)
            if record is None or record.state != kinds.RUNNING or record.attempt != attempt:
                return False
            self._close(record, kinds.DONE, kinds.ENDED, outcome)
            return True

    def fail(self, task: str, attempt: int, reason: str) -> bool:
        """Gate a task again which could not start or was stopped from outside."""
        with self.changed:
            record = self.records.get(task)
            if record is None or record.state != kinds.RUNNING or record.attempt != attempt:
                return False
            self.gate_again(replace(record, outcome=reason), kinds.FAILED, "")
            return True

    def preempt(self, task: str, *, by: str = "") -> bool:
        """Gate a running task again; return whether it ran."""
        with self.changed:
            record = self.records.get(task)
            if record is None or record.state != kinds.RUNNING:
                return False
            self.gate_again(record, kinds.PREEMPTED, by)
            return True

    def refuse(self, task: str, reason: str, *, by: str = "") -> bool:
        """Reject a waiting task for good; return whether it waited."""
        with self.changed:
            record = self.records.get(task)
            if record is None or record.state != kinds.WAITING:
                return False
            self._close(record, kinds.REFUSED, kinds.DECLINED, reason, by)
            return True

    def withdraw(self, task: str, reason: str = "") -> bool:
        """Withdraw a waiting or running task; return whether there was one."""
        with self.changed:
            record = self.records.get(task)
            if record is None or record.state not in ALIVE:
                return False
            self._close(record, kinds.GONE, kinds.WITHDRAWN, reason)
            return True

    def notify(self) -> None:
        """Wake those that wait for a change."""
        with self.changed:
            self.changed.notify_all()

    def record_change(self, kind: str, *, task: str = "", node: str = ANYWHERE, name: str = "", by: str = "") -> None:
        """Append a change and notify observers."""
        self.last_number += 1
        record = self.records.get(task)
        self.log.append(Change(self.last_number, kind, self.clock(), task, node, name, by, record))
        self.changed.notify_all()

    def write_record(self, record: Record, kind: str, by: str = "") -> Record:
        """Store a task's record and append the change."""
        self.records[record.task.name] = record
        self.record_change(kind, task=record.task.name, node=record.node, by=by)
        return record

    def gate_again(self, record: Record, kind: str, by: str) -> None:
        """Let a task wait again, and delete the resources bound to it."""
        self._delete_task_bound(record.task.name)
        self.write_record(replace(record, state=kinds.WAITING, asks=(), started=math.inf), kind, by)

    def _find(self, name: str, node: str, epoch: int | None) -> EphemeralResource:
        self.expire_leases()
        current = self.resources.get((name, node))
        if current is None:
            raise user_error(f"{name} does not exist on {node or 'the cluster'}")
        if epoch is not None and current.epoch != epoch:
            raise epoch_conflict(current, epoch)
        return current

    def _write(self, resource: EphemeralResource, kind: str) -> EphemeralResource:
        self.epoch += 1
        written = self.resources[resource.name, resource.node] = replace(resource, epoch=self.epoch)
        if written.until:
            self.task_bound.setdefault(written.until, set()).add((written.name, written.node))
        self.record_change(kind, node=written.node, name=written.name, by=written.owner)
        return written

    def _erase(self, key: ResourceKey, kind: str) -> EphemeralResource:
        resource = self.resources.pop(key)
        if resource.until:
            self.task_bound.get(resource.until, set()).discard(key)
        self.record_change(kind, node=resource.node, name=resource.name, by=resource.owner)
        return resource

    def _delete_task_bound(self, task: str) -> None:
        for key in self.task_bound.pop(task, ()):
            self._erase(key, kinds.DELETED)

    def _close(self, record: Record, state: str, kind: str, outcome: str, by: str = "") -> None:
        self._delete_task_bound(record.task.name)
        self.write_record(replace(record, state=state, ended=self.clock(), outcome=outcome), kind, by)
        self.ended.append(record.task.name)
        while len(self.ended) > MAX_ENDED:
            oldest = self.records.get(self.ended.popleft())
            # a task that came again under its name lives on
            if oldest is not None and oldest.state not in ALIVE:
                del self.records[oldest.task.name]


def _started_record(record: Record, start: Start, now: float) -> Record:
    return replace(
        record,
        state=kinds.RUNNING,
        node=start.node,
        asks=start.asks,
        started=now,
        attempt=record.attempt + 1,
        outcome="",
    )


def build_state_store(clock: Callable[[], float], nodes: Iterable[Node] = ()) -> StateStore:
    """Build the records of a cluster with some nodes."""
    store = StateStore(clock)
    for node in nodes:
        store.join(node)
    return store
