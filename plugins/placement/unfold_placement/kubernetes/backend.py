"""The backend on Kubernetes: the policies decide, names and gates say so, and kube-scheduler binds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unfold_placement.core.types import ANYWHERE, Ask, EphemeralResource, Task
from unfold_placement.kubernetes import leases, pods
from unfold_placement.kubernetes.api import MERGE, Api, ApiError
from unfold_placement.kubernetes.codec import DRA, GATES, UNITS, Scope
from unfold_placement.kubernetes.dra import Counters
from unfold_placement.kubernetes.gate_queue import IN_FLIGHT, GateQueue, GateRequest
from unfold_placement.kubernetes.informer import Informer
from unfold_placement.kubernetes.leases import LeaderElection
from unfold_placement.kubernetes.writer import Writer
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Change, Snapshot, Start
from unfold_placement.live.state_store import StateStore
from unfoldkit.api import fail

PATIENCE = 10.0
AFRESH = 5.0
LULL = 0.02
NAMED = {kinds.CREATED, kinds.RESIZED, kinds.DELETED, kinds.EXPIRED}
FREED = {kinds.ENDED, kinds.FAILED, kinds.PREEMPTED, kinds.WITHDRAWN}


def _nothing(_task: Task) -> Iterable[Ask]:
    return ()


@dataclass(slots=True)
class KubernetesBackend:
    """One controller's or client's handle on a scope. What the leader decides is written at once before it listens.

    ``asks`` are the names that a task's pod asks for as extended resources; ``patience`` how long (s) an opened pod may
    stay without a node before its unit is taken back; ``template`` the pods of tasks that are submitted here; what
    happens within ``lull`` seconds of one another is told together.
    """

    api: Api
    scope: Scope
    store: StateStore
    informer: Informer
    writer: Writer
    leader: LeaderElection
    gate_queue: GateQueue
    asks: Callable[[Task], Iterable[Ask]] = _nothing
    bind_timeout_s: float = PATIENCE
    template: Mapping[str, Any] | None = None
    settle_s: float = LULL
    holder: str = ""
    is_leader: bool = False
    once: bool = False
    read: int = 0
    gangs: bool = False
    lost_tasks: list[tuple[str, str]] = field(default_factory=list)
    next_snapshot_s: float = 0.0

    def now(self) -> float:
        """Return the seconds since the scope's ConfigMap was made."""
        return self.store.clock()

    def snapshot(self) -> Snapshot:
        """Return everything."""
        self.flush()
        if not self.is_leader:
            self.read_leases()
        self.informer.foreign_changed, self.next_snapshot_s = False, time.monotonic() + AFRESH
        return self.store.snapshot()

    def watch(self, after: int, timeout: float) -> Sequence[Change] | None:
        """Write what was decided, then wait for changes; None also where others took or freed room on nodes."""
        end = time.monotonic() + timeout
        while True:
            self.flush()
            if self.is_leader:
                self.check_openings()
            if self.informer.foreign_changed and time.monotonic() > self.next_snapshot_s:
                return None
            found = self._heard(after, end)
            if found is None or found or time.monotonic() >= end:
                return self._together(found)

    def lead(self, who: str, ttl: float) -> bool:
        """Become or stay the leader; who becomes it mends what the one before left half done."""
        before = self.is_leader
        self.holder, self.is_leader = who, self.leader.lead(who, ttl)
        if before != self.is_leader:
            self._forget()
        if self.is_leader and not before:
            self.once = True
            self.read_leases()
            self.repair()
        return self.is_leader

    def resign(self) -> None:
        """Lead no longer."""
        self.flush()
        self.is_leader = False
        self._forget()
        self.leader.resign()

    def create(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, owner: str = "", ttl: float = math.inf,
        until: str = "",
    ) -> EphemeralResource:  # fmt: skip
        """Create a name."""
        self._sure(node)
        made = self.store.create(name, node, amount, owner=owner, ttl=ttl, until=until)
        self._named(node)
        return made

    def resize(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, epoch: int | None = None
    ) -> EphemeralResource:
        """Set the amount of a name."""
        self._sure(node)
        made = self.store.resize(name, node, amount, epoch=epoch)
        self._named(node)
        return made

    def delete(
        self, name: str, node: str = ANYWHERE, *, force: bool = False, epoch: int | None = None
    ) -> tuple[str, ...]:
        """Delete a name."""
        self._sure(node)
        holders = self.store.delete(name, node, force=force, epoch=epoch, by=self.holder)
        self._lose(holders, kinds.PREEMPTED)
        self._named(node)
        return holders

    def renew(self, owner: str, ttl: float) -> int:
        """Let an owner's names live on: one Lease for all of them."""
        count = self.store.renew(owner, ttl)
        if count:
            leases.renew_owner(self.api, self.scope, owner, ttl)
        return count

    def submit(self, task: Task) -> None:
        """Make the pod of a task, gated."""
        taken = fail(f"task {task.name} is there already", hint="every task has a name of its own")
        if task.name in self.store.records:
            raise taken
        body = pods.gated_pod(task, self.asks(task), self.scope, time.time(), self.template)
        try:
            self.informer.pod(self.api.post(f"/api/v1/namespaces/{self.api.namespace}/pods", body))
        except ApiError as refused:
            if refused.is_conflict and refused.reason == "AlreadyExists":
                raise taken from refused
            raise fail(f"task {task.name} is refused: {refused.message}", key="workload") from refused

    def start(self, unit: Sequence[Start]) -> None:
        """Let a unit run: all of its gates are opened together, after this round's names, when it is its turn."""
        self.check_leadership()
        records = self.store.start(unit, by=self.holder)
        if not records:
            return
        self.informer.opening.update(item.task for item in unit)
        self.gate_queue.add(unit, records)
        self.gangs |= len(unit) > 1
        self._settle()

    def preempt(self, task: str) -> None:
        """Stop a running task and gate it again."""
        self.check_leadership()
        living = {node for _, node in self.store.task_bound.get(task, ())}
        if self.store.preempt(task, by=self.holder):
            self.informer.dirty.update(living)
            self._lose((task,), kinds.PREEMPTED)
            self._settle()

    def refuse(self, task: str, reason: str) -> None:
        """Leave a task behind its gate for good; its pod says why."""
        self.check_leadership()
        if self.store.refuse(task, reason, by=self.holder):
            self.api.patch(self._pod(task), pods.rejection_patch(reason, self.holder), MERGE)

    def withdraw(self, task: str) -> None:
        """Take a task back: its pod is deleted."""
        if self.store.withdraw(task):
            self.informer.opening.discard(task)
            self.writer.remove(self.informer.current[task])
            self._settle()

    def flush(self) -> None:
        """Write what was decided: places that are lost, then names, then gates as many as may be open at a time.

        Raises:
            UnfoldError: another controller leads, or wrote names that we thought were ours.
        """
        with self.store.changed:
            places = self._places()
            if self.is_leader:
                self.lost_tasks += [(task, kinds.FAILED) for task in self.informer.lost_tasks]
                self.informer.lost_tasks = []
        if not (places or self.gate_queue.queue or self.lost_tasks) or (self.once and not self.is_leader):
            # who led and does no longer writes nothing
            return
        self.check_leadership()
        self._regate()
        self.writer.write_resources(places | ({ANYWHERE} if self.gangs else set()), self.gate_queue.list_gangs())
        self.gangs = False
        self._open(self.gate_queue.take_ready())

    def check_openings(self) -> None:
        """Look after units that were opened: wholly bound ones are done, others are taken back after a while."""
        self.writer.release()
        for first in self.gate_queue.find_late(self.now() - self.bind_timeout_s):
            self._back(first, "the scheduler found no room")

    def repair(self) -> None:
        """Go on from what another controller left: units half opened are taken back, pods without a node watched."""
        self.gate_queue.units = self.writer.opening_units()
        for first, members in list(self.gate_queue.units.items()):
            known = [self.store.records.get(task) for task in members]
            if any(r is not None and r.state == kinds.WAITING and r.attempt < members[r.task.name] for r in known):
                self._back(first, "its controller ended half-way")
        self._leftovers()
        if self.writer.counters is not None:
            self.writer.counters.read()
            self.informer.dirty.add(ANYWHERE)
        inside = {task for members in self.gate_queue.units.values() for task in members}
        for name, record in self.store.records.items():
            if record.state == kinds.RUNNING and name not in inside and not self.informer.is_bound(name):
                self.gate_queue.units[name] = {name: record.attempt}
        self.gate_queue.since = dict.fromkeys(self.gate_queue.units, self.now())
        self._orphans()

    def read_leases(self) -> None:
        """Read the cluster's names, and let leased names live as long as the Leases of their owners say."""
        self.informer.read_resources(ANYWHERE, self.writer.read_config().get("data", {}).get("names", ""))
        alive = {
            owner: until - self.informer.origin for owner, until in leases.read_owners(self.api, self.scope).items()
        }
        with self.store.changed:
            for place in [*self.informer.nodes, ANYWHERE]:
                self.informer.restore(place, alive)

    def check_leadership(self) -> None:
        """Stop who led and does no longer.

        Raises:
            UnfoldError: our lease has ended.
        """
        if self.once and not (self.is_leader and self.leader.is_leader):
            self.is_leader = False
            self._forget()
            raise fail("another controller leads by now", hint="this one waits until it may lead again")

    def close(self) -> None:
        """Stop listening."""
        self.api.close()

    def _heard(self, after: int, end: float) -> Sequence[Change] | None:
        """Wait for changes, or for a unit whose turn has come."""
        with self.store.changed:
            left = max(0.0, end - time.monotonic())
            self.store.changed.wait_for(lambda: self.store.last_number > after or self.gate_queue.has_ready(), left)
        return self.store.watch(after, 0.0)

    def _together(self, found: Sequence[Change] | None) -> Sequence[Change] | None:
        """Wait a little for what happens at the same moment: the server tells of pods one by one."""
        end = time.monotonic() + 5 * self.settle_s
        while found and time.monotonic() < end:
            more = self.store.watch(found[-1].number, self.settle_s)
            if more is None:
                return None
            if not more:
                break
            found = [*found, *more]
        return found

    def _places(self) -> set[str]:
        """Return the nodes whose names are to be written: for a leader, all that changed since the last time."""
        places = set(self.informer.dirty)
        if self.is_leader:
            fresh = min(self.store.last_number - self.read, len(self.store.log))
            log = [self.store.log[len(self.store.log) - 1 - back] for back in range(fresh)]
            places |= {change.node for change in log if change.kind in NAMED | FREED} | self.informer.drifted
        self.read = self.store.last_number
        return places

    def _sure(self, node: str) -> None:
        """Stop who leads no longer; who never led looks first at what is there now, as others write too."""
        self.check_leadership()
        if self.is_leader:
            return
        if node == ANYWHERE or node in self.informer.nodes:
            self.writer.reread(node)

    def _named(self, node: str) -> None:
        self.informer.dirty.add(node)
        self._settle()

    def _settle(self) -> None:
        """Write at once, unless we lead: then all decisions of a round are written together."""
        if not self.is_leader:
            self.flush()

    def _lose(self, tasks: Iterable[str], kind: str) -> None:
        self.informer.opening.update(tasks)
        self.lost_tasks += [(task, kind) for task in tasks]

    def _regate(self) -> None:
        """Make the pods of tasks that lost their place again; those that are refused are tried again with the next."""
        again = self.writer.recreate_pods(self.lost_tasks, self.holder)
        self.informer.opening.difference_update({task for task, _ in self.lost_tasks} - {task for task, _ in again})
        self.lost_tasks = again

    def _open(self, turns: Sequence[GateRequest]) -> None:
        """Open the gates of some units; where one of a unit's cannot be opened, all of it is taken back."""
        bad: list[int] = []
        try:
            bad = self.writer.open_gates([turn.unit for turn in turns], self.holder)
        finally:
            self.gate_queue.mark_opened(turns, self.now())
        for place in bad:
            self._back(turns[place].first, "its pod could not be opened")

    def _back(self, first: str, reason: str) -> None:
        """Take the places of a whole unit back; its tasks wait again."""
        for task, attempt in self.gate_queue.drop(first).items():
            if self.store.fail(task, attempt, reason):
                self._lose((task,), kinds.FAILED)

    def _forget(self) -> None:
        """Let go of what was decided and not written: tasks are where their pods are."""
        self.gate_queue.clear()
        self.lost_tasks, self.gangs = [], False
        self.informer.revert_unwritten()

    def _leftovers(self) -> None:
        """Forget names that lived with tasks that are no more."""
        alive = {name for name, r in self.store.records.items() if r.state in {kinds.WAITING, kinds.RUNNING}}
        with self.store.changed:
            for where, item in list(self.store.resources.items()):
                if item.until and item.until not in alive:
                    self.store.delete(*where)

    def _orphans(self) -> None:
        """Delete pods of attempts that a later one replaced."""
        for name, body in list(self.informer.bodies.items()):
            if self.informer.current.get(pods.task_name(body)) != name and not pods.is_over(body):
                self.writer.remove(name)

    def _pod(self, task: str) -> str:
        return f"/api/v1/namespaces/{self.api.namespace}/pods/{self.informer.current[task]}"


def open_backend(
    api: Api,
    name: str,
    *,
    asks: Callable[[Task], Iterable[Ask]] = _nothing,
    units: Mapping[str, str] | None = None,
    patience: float = PATIENCE,
    template: Mapping[str, Any] | None = None,
    in_flight: int = IN_FLIGHT,
    counters: str = GATES,
) -> KubernetesBackend:
    """Return a handle on the scope ``name`` of a cluster; it listens until it is closed.

    Raises:
        UnfoldError: the server refuses, or does not answer.
    """
    scope = Scope(name, api.namespace, UNITS if units is None else units, counters)
    register = StateStore(lambda: time.time() - mirror.origin)
    mirror = Informer(api, scope, register, 0.0)
    writer = Writer(api, scope, mirror, Counters(api, scope) if counters == DRA else None)
    try:
        writer.read_config()
        if writer.counters is not None:
            writer.counters.start()
        mirror.origin = writer.origin
        mirror.start()
    except ApiError as refused:
        hint = "unfold plan SPEC --format kubernetes writes the roles that are needed"
        raise fail(f"the cluster refuses: {refused.message}", key="cluster.kubernetes", hint=hint) from refused
    leader = LeaderElection(api, scope.record)
    turns = GateQueue(mirror, in_flight)
    return KubernetesBackend(api, scope, register, mirror, writer, leader, turns, asks, patience, template)
