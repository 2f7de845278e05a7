"""The controller of a live cluster: the policies of the simulator, driven by what happens on a backend."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from unfold_placement.core import kernel
from unfold_placement.core.controller import Controller, build_controller
from unfold_placement.core.explain import History, record_history
from unfold_placement.core.policy import Policy
from unfold_placement.core.resources import build_resource_table
from unfold_placement.core.types import Task
from unfold_placement.live import backend as kinds
from unfold_placement.live.actuator import Actuator, build_actuator
from unfold_placement.live.backend import Backend, Change, Snapshot
from unfold_placement.live.recovery import adopt_cluster, end_task, submit_task
from unfoldkit.api import UnfoldError

ROWS = 20_000
"""Tasks that a loop keeps in mind before it starts afresh from a snapshot."""
FAILURES = 20
"""Errors in a row after which a controller gives up."""


@dataclass(slots=True)
class ControlLoop:
    """Runs policies against a backend while it leads; ``who`` is this process, ``owner`` whose the names are.

    ``ttl`` is how long (s) it leads, and ``lease`` how long its names live, without a sign of life.
    """

    backend: Backend
    make_policies: Callable[[], Sequence[Policy]]
    process_id: str
    owner: str
    leader_ttl_s: float = 5.0
    lease_s: float = 15.0
    actuator: Actuator | None = None
    last_change: int = 0
    is_leader: bool = False
    next_election_s: float = 0.0
    failures: int = 0
    history: History = field(default_factory=History)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def step(self, timeout: float = 1.0) -> bool:
        """Deal with what happens within ``timeout`` seconds at most; return whether this one leads.

        Raises:
            UnfoldError: the same again and again, whatever the backend is asked.
        """
        try:
            if self._leading():
                self.actuator = self._adopted() if self.actuator is None else self._listened(self.actuator, timeout)
                self.failures = 0
        except UnfoldError:
            # somebody else leads, or what this one knows has passed: a snapshot tells
            self.actuator, self.next_election_s, self.failures = None, 0.0, self.failures + 1
            if self.failures > FAILURES:
                raise
        return self.is_leader

    def stop(self) -> None:
        """Let another lead. What runs goes on; names live on for their lease, for whoever adopts them."""
        self.actuator = None
        if self.is_leader:
            self.is_leader = False
            self.backend.resign()

    def _leading(self) -> bool:
        now = self.backend.now()
        if now >= self.next_election_s:
            led, self.is_leader = self.is_leader, self.backend.lead(self.process_id, self.leader_ttl_s)
            self.next_election_s = now + self.leader_ttl_s / 4
            if self.is_leader:
                self.backend.renew(self.owner, self.lease_s)
            if not self.is_leader or not led:
                self.actuator = None
        return self.is_leader

    def _adopted(self) -> Actuator:
        seen = self.backend.snapshot()
        self.last_change = seen.after
        loop = self._fresh(seen)
        self.history = record_history(loop)
        refused = adopt_cluster(loop, seen.records, self.backend.now())
        waiting = {record.task.name for record in seen.records if record.state == kinds.WAITING}
        for task in waiting & refused.keys():
            self.backend.refuse(task, refused[task])
        attempts = [(record.task.name, record.attempt) for record in seen.records]
        loop.sink = made = build_actuator(self.backend, loop, self.owner, self.lease_s, attempts)
        made.reconcile(seen.names)
        loop.process_events()
        made.flush()
        return made

    def _fresh(self, seen: Snapshot) -> Controller:
        made = build_controller(
            build_resource_table(sorted(seen.nodes, key=lambda node: node.name)), self.make_policies()
        )
        made.knows_end_times = False
        return made

    def _listened(self, mine: Actuator, timeout: float) -> Actuator | None:
        loop = mine.controller
        now = self.backend.now()
        changes = self.backend.watch(
            self.last_change, max(0.0, min(timeout, loop.next_wakeup_s - now, self.next_election_s - now))
        )
        if changes is None or len(loop.table.tasks) > ROWS or any(self._strange(loop, change) for change in changes):
            return None
        now = self.backend.now()
        with self.lock:
            loop.table.state.clock[0] = max(loop.table.now, now)
            for change in changes:
                self.last_change = change.number
                self._hear(mine, change)
            loop.fire_timers() if loop.next_wakeup_s <= loop.table.now else loop.process_events()
        mine.flush()
        return mine

    def _strange(self, loop: Controller, change: Change) -> bool:
        expired = change.kind == kinds.EXPIRED and change.by == self.owner
        return expired or (change.kind == kinds.JOINED and change.node not in loop.table.node_rows)

    def _hear(self, mine: Actuator, change: Change) -> None:
        loop = mine.controller
        if change.kind in {kinds.JOINED, kinds.LEFT}:
            up = change.kind == kinds.JOINED
            if loop.table.state.is_up[loop.table.node_rows[change.node]] != up:
                loop.set_node_up(change.node, is_up=up)
        elif change.kind == kinds.SUBMITTED and change.record is not None:
            self._come(loop, change.record.task)
        elif change.task in loop.table.task_rows and change.by != self.process_id:
            self._happened(mine, change)

    def _come(self, loop: Controller, task: Task) -> None:
        try:
            submit_task(loop, task)
        except UnfoldError as error:
            self.backend.refuse(task.name, error.diagnostics[0].message)

    def _happened(self, mine: Actuator, change: Change) -> None:
        loop, row = mine.controller, mine.controller.table.task_rows[change.task]
        if change.kind in {kinds.ENDED, kinds.WITHDRAWN}:
            end_task(loop, change.task, done=change.kind == kinds.ENDED)
        elif change.kind in {kinds.FAILED, kinds.PREEMPTED} and self._last(mine, change):
            mine.gated.add(change.task)
            loop.preempt(loop.table.tasks[row])

    def _last(self, mine: Actuator, change: Change) -> bool:
        runs = mine.controller.table.state.status[mine.controller.table.task_rows[change.task]] == kernel.RUNNING
        return bool(runs) and change.record is not None and change.record.attempt == mine.attempts.get(change.task)


def run_until_stopped(live: ControlLoop, stopped: Callable[[], bool], pause: Callable[[float], object]) -> None:
    """Step until it is to stop; ``pause`` waits for so many seconds, or less."""
    try:
        while not stopped():
            if not live.step() or live.actuator is None:
                pause(live.leader_ttl_s / 20)
    finally:
        live.stop()
