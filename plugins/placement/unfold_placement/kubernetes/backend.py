"""The backend on Kubernetes: the policies decide, names and gates say so, and kube-scheduler binds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unfold_placement.core.types import ANYWHERE, Ask, Resource, Task
from unfold_placement.kubernetes import leases, pods
from unfold_placement.kubernetes.api import MERGE, Api, Refused
from unfold_placement.kubernetes.codec import DRA, GATES, UNITS, Scope
from unfold_placement.kubernetes.dra import Counters
from unfold_placement.kubernetes.gate_queue import IN_FLIGHT, Turn, Turns
from unfold_placement.kubernetes.informer import Mirror
from unfold_placement.kubernetes.leases import Leader
from unfold_placement.kubernetes.writer import Writer
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Change, Snapshot, Start
from unfold_placement.live.state_store import Register
from unfoldkit.api import fail

PATIENCE = 10.0
AFRESH = 5.0
LULL = 0.02
NAMED = {kinds.CREATED, kinds.RESIZED, kinds.DELETED, kinds.EXPIRED}
FREED = {kinds.ENDED, kinds.FAILED, kinds.PREEMPTED, kinds.WITHDRAWN}


def _nothing(_task: Task) -> Iterable[Ask]:
    return ()


@dataclass(slots=True)
class Kubernetes:
    """One controller's or client's handle on a scope. What the leader decides is written at once before it listens.

    ``asks`` are the names that a task's pod asks for as extended resources; ``patience`` how long (s) an opened pod may
    stay without a node before its unit is taken back; ``template`` the pods of tasks that are submitted here; what
    happens within ``lull`` seconds of one another is told together.
    """

    api: Api
    scope: Scope
    register: Register
    mirror: Mirror
    writer: Writer
    leader: Leader
    turns: Turns
    asks: Callable[[Task], Iterable[Ask]] = _nothing
    patience: float = PATIENCE
    template: Mapping[str, Any] | None = None
    lull: float = LULL
    who: str = ""
    led: bool = False
    once: bool = False
    read: int = 0
    gangs: bool = False
    lost: list[tuple[str, str]] = field(default_factory=list)
    afresh: float = 0.0

    def now(self) -> float:
        """Return the seconds since the scope's ConfigMap was made."""
        return self.register.clock()

    def snapshot(self) -> Snapshot:
        """Return everything."""
        self.flush()
        if not self.led:
            self.renewed()
        self.mirror.shifted, self.afresh = False, time.monotonic() + AFRESH
        return self.register.snapshot()

    def watch(self, after: int, timeout: float) -> Sequence[Change] | None:
        """Write what was decided, then wait for changes; None also where others took or freed room on nodes."""
        end = time.monotonic() + timeout
        while True:
            self.flush()
            if self.led:
                self.tend()
            if self.mirror.shifted and time.monotonic() > self.afresh:
                return None
            found = self._heard(after, end)
            if found is None or found or time.monotonic() >= end:
                return self._together(found)

    def lead(self, who: str, ttl: float) -> bool:
        """Become or stay the leader; who becomes it mends what the one before left half done."""
        before = self.led
        self.who, self.led = who, self.leader.lead(who, ttl)
        if before != self.led:
            self._forget()
        if self.led and not before:
            self.once = True
            self.renewed()
            self.mend()
        return self.led

    def resign(self) -> None:
        """Lead no longer."""
        self.flush()
        self.led = False
        self._forget()
        self.leader.resign()

    def create(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, owner: str = "", ttl: float = math.inf,
        until: str = "",
    ) -> Resource:  # fmt: skip
        """Create a name."""
        self._sure(node)
        made = self.register.create(name, node, amount, owner=owner, ttl=ttl, until=until)
        self._named(node)
        return made

    def resize(self, name: str, node: str = ANYWHERE, amount: int = 1, *, epoch: int | None = None) -> Resource:
        """Set the amount of a name."""
        self._sure(node)
        made = self.register.resize(name, node, amount, epoch=epoch)
        self._named(node)
        return made

    def delete(
        self, name: str, node: str = ANYWHERE, *, force: bool = False, epoch: int | None = None
    ) -> tuple[str, ...]:
        """Delete a name."""
        self._sure(node)
        holders = self.register.delete(name, node, force=force, epoch=epoch, by=self.who)
        self._lose(holders, kinds.PREEMPTED)
        self._named(node)
        return holders

    def renew(self, owner: str, ttl: float) -> int:
        """Let an owner's names live on: one Lease for all of them."""
        count = self.register.renew(owner, ttl)
        if count:
            leases.renew(self.api, self.scope, owner, ttl)
        return count

    def submit(self, task: Task) -> None:
        """Make the pod of a task, gated."""
        taken = fail(f"task {task.name} is there already", hint="every task has a name of its own")
        if task.name in self.register.records:
            raise taken
        body = pods.gated(task, self.asks(task), self.scope, time.time(), self.template)
        try:
            self.mirror.pod(self.api.post(f"/api/v1/namespaces/{self.api.namespace}/pods", body))
        except Refused as refused:
            if refused.lost and refused.reason == "AlreadyExists":
                raise taken from refused
            raise fail(f"task {task.name} is refused: {refused.message}", key="workload") from refused

    def start(self, unit: Sequence[Start]) -> None:
        """Let a unit run: all of its gates are opened together, after this round's names, when it is its turn."""
        self.fence()
        records = self.register.start(unit, by=self.who)
        if not records:
            return
        self.mirror.opening.update(item.task for item in unit)
        self.turns.add(unit, records)
        self.gangs |= len(unit) > 1
        self._settle()

    def preempt(self, task: str) -> None:
        """Stop a running task and gate it again."""
        self.fence()
        living = {node for _, node in self.register.leases.get(task, ())}
        if self.register.preempt(task, by=self.who):
            self.mirror.dirty.update(living)
            self._lose((task,), kinds.PREEMPTED)
            self._settle()

    def refuse(self, task: str, reason: str) -> None:
        """Leave a task behind its gate for good; its pod says why."""
        self.fence()
        if self.register.refuse(task, reason, by=self.who):
            self.api.patch(self._pod(task), pods.refused(reason, self.who), MERGE)

    def withdraw(self, task: str) -> None:
        """Take a task back: its pod is deleted."""
        if self.register.withdraw(task):
            self.mirror.opening.discard(task)
            self.writer.remove(self.mirror.current[task])
            self._settle()

    def flush(self) -> None:
        """Write what was decided: places that are lost, then names, then gates as many as may be open at a time.

        Raises:
            UnfoldError: another controller leads, or wrote names that we thought were ours.
        """
        with self.register.changed:
            places = self._places()
            if self.led:
                self.lost += [(task, kinds.FAILED) for task in self.mirror.lost]
                self.mirror.lost = []
        if not (places or self.turns.queue or self.lost) or (self.once and not self.led):
            # who led and does no longer writes nothing
            return
        self.fence()
        self._regate()
        self.writer.names(places | ({ANYWHERE} if self.gangs else set()), self.turns.shared())
        self.gangs = False
        self._open(self.turns.take())

    def tend(self) -> None:
        """Look after units that were opened: wholly bound ones are done, others are taken back after a while."""
        self.writer.release()
        for first in self.turns.late(self.now() - self.patience):
            self._back(first, "the scheduler found no room")

    def mend(self) -> None:
        """Go on from what another controller left: units half opened are taken back, pods without a node watched."""
        self.turns.units = self.writer.units()
        for first, members in list(self.turns.units.items()):
            known = [self.register.records.get(task) for task in members]
            if any(r is not None and r.state == kinds.WAITING and r.attempt < members[r.task.name] for r in known):
                self._back(first, "its controller ended half-way")
        self._leftovers()
        if self.writer.counters is not None:
            self.writer.counters.read()
            self.mirror.dirty.add(ANYWHERE)
        inside = {task for members in self.turns.units.values() for task in members}
        for name, record in self.register.records.items():
            if record.state == kinds.RUNNING and name not in inside and not self.mirror.bound(name):
                self.turns.units[name] = {name: record.attempt}
        self.turns.since = dict.fromkeys(self.turns.units, self.now())
        self._orphans()

    def renewed(self) -> None:
        """Read the cluster's names, and let leased names live as long as the Leases of their owners say."""
        self.mirror.reread(ANYWHERE, self.writer.claim().get("data", {}).get("names", ""))
        alive = {owner: until - self.mirror.origin for owner, until in leases.owners(self.api, self.scope).items()}
        with self.register.changed:
            for place in [*self.mirror.nodes, ANYWHERE]:
                self.mirror.restore(place, alive)

    def fence(self) -> None:
        """Stop who led and does no longer.

        Raises:
            UnfoldError: our lease has ended.
        """
        if self.once and not (self.led and self.leader.leads):
            self.led = False
            self._forget()
            raise fail("another controller leads by now", hint="this one waits until it may lead again")

    def close(self) -> None:
        """Stop listening."""
        self.api.close()

    def _heard(self, after: int, end: float) -> Sequence[Change] | None:
        """Wait for changes, or for a unit whose turn has come."""
        with self.register.changed:
            left = max(0.0, end - time.monotonic())
            self.register.changed.wait_for(lambda: self.register.number > after or self.turns.room(), left)
        return self.register.watch(after, 0.0)

    def _together(self, found: Sequence[Change] | None) -> Sequence[Change] | None:
        """Wait a little for what happens at the same moment: the server tells of pods one by one."""
        end = time.monotonic() + 5 * self.lull
        while found and time.monotonic() < end:
            more = self.register.watch(found[-1].number, self.lull)
            if more is None:
                return None
            if not more:
                break
            found = [*found, *more]
        return found

    def _places(self) -> set[str]:
        """Return the nodes whose names are to be written: for a leader, all that changed since the last time."""
        places = set(self.mirror.dirty)
        if self.led:
            fresh = min(self.register.number - self.read, len(self.register.log))
            log = [self.register.log[len(self.register.log) - 1 - back] for back in range(fresh)]
            places |= {change.node for change in log if change.kind in NAMED | FREED} | self.mirror.drifted
        self.read = self.register.number
        return places

    def _sure(self, node: str) -> None:
        """Stop who leads no longer; who never led looks first at what is there now, as others write too."""
        self.fence()
        if self.led:
            return
        if node == ANYWHERE or node in self.mirror.nodes:
            self.writer.reread(node)

    def _named(self, node: str) -> None:
        self.mirror.dirty.add(node)
        self._settle()

    def _settle(self) -> None:
        """Write at once, unless we lead: then all decisions of a round are written together."""
        if not self.led:
            self.flush()

    def _lose(self, tasks: Iterable[str], kind: str) -> None:
        self.mirror.opening.update(tasks)
        self.lost += [(task, kind) for task in tasks]

    def _regate(self) -> None:
        """Make the pods of tasks that lost their place again; those that are refused are tried again with the next."""
        again = self.writer.again(self.lost, self.who)
        self.mirror.opening.difference_update({task for task, _ in self.lost} - {task for task, _ in again})
        self.lost = again

    def _open(self, turns: Sequence[Turn]) -> None:
        """Open the gates of some units; where one of a unit's cannot be opened, all of it is taken back."""
        bad: list[int] = []
        try:
            bad = self.writer.open([turn.unit for turn in turns], self.who)
        finally:
            self.turns.opened(turns, self.now())
        for place in bad:
            self._back(turns[place].first, "its pod could not be opened")

    def _back(self, first: str, reason: str) -> None:
        """Take the places of a whole unit back; its tasks wait again."""
        for task, attempt in self.turns.drop(first).items():
            if self.register.fail(task, attempt, reason):
                self._lose((task,), kinds.FAILED)

    def _forget(self) -> None:
        """Let go of what was decided and not written: tasks are where their pods are."""
        self.turns.clear()
        self.lost, self.gangs = [], False
        self.mirror.follow()

    def _leftovers(self) -> None:
        """Forget names that lived with tasks that are no more."""
        alive = {name for name, r in self.register.records.items() if r.state in {kinds.WAITING, kinds.RUNNING}}
        with self.register.changed:
            for where, item in list(self.register.names.items()):
                if item.until and item.until not in alive:
                    self.register.delete(*where)

    def _orphans(self) -> None:
        """Delete pods of attempts that a later one replaced."""
        for name, body in list(self.mirror.bodies.items()):
            if self.mirror.current.get(pods.name_of(body)) != name and not pods.over(body):
                self.writer.remove(name)

    def _pod(self, task: str) -> str:
        return f"/api/v1/namespaces/{self.api.namespace}/pods/{self.mirror.current[task]}"


def kubernetes(
    api: Api,
    name: str,
    *,
    asks: Callable[[Task], Iterable[Ask]] = _nothing,
    units: Mapping[str, str] | None = None,
    patience: float = PATIENCE,
    template: Mapping[str, Any] | None = None,
    in_flight: int = IN_FLIGHT,
    counters: str = GATES,
) -> Kubernetes:
    """Return a handle on the scope ``name`` of a cluster; it listens until it is closed.

    Raises:
        UnfoldError: the server refuses, or does not answer.
    """
    scope = Scope(name, api.namespace, UNITS if units is None else units, counters)
    register = Register(lambda: time.time() - mirror.origin)
    mirror = Mirror(api, scope, register, 0.0)
    writer = Writer(api, scope, mirror, Counters(api, scope) if counters == DRA else None)
    try:
        writer.claim()
        if writer.counters is not None:
            writer.counters.begin()
        mirror.origin = writer.origin
        mirror.begin()
    except Refused as refused:
        hint = "unfold plan SPEC --format kubernetes writes the roles that are needed"
        raise fail(f"the cluster refuses: {refused.message}", key="cluster.kubernetes", hint=hint) from refused
    leader = Leader(api, scope.record)
    turns = Turns(mirror, in_flight)
    return Kubernetes(api, scope, register, mirror, writer, leader, turns, asks, patience, template)
