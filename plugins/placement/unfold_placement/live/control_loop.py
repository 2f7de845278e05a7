"""The control loop of a live cluster: the policies of the simulator, driven by the changes of a backend."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from unfold_placement.core import kernel
from unfold_placement.core.controller import Controller, build_controller
from unfold_placement.core.explain import History, record_history
from unfold_placement.core.resources import build_resource_table
from unfold_placement.core.types import DOWN, NodeChange, Task
from unfold_placement.core.watchdog import find_call, stall_error
from unfold_placement.live import backend as kinds
from unfold_placement.live.actuator import Actuator
from unfold_placement.live.backend import Backend, Change, Snapshot
from unfold_placement.live.last_decision import DecisionRecorder
from unfold_placement.live.recovery import (
    DEPARTED,
    adopt_cluster,
    end_task,
    has_departed_runs,
    list_torn,
    lost_nodes,
    submit_task,
)
from unfold_placement.live.state_store import ALIVE
from unfold_placement.policies.registry import PolicyFactory
from unfoldkit.api import UnfoldError
from unfoldkit.kubernetes.api import FORBIDDEN, ApiError

MAX_ROWS = 20_000
"""Tasks that a controller keeps before it starts over from a snapshot."""
MAX_FAILURES = 20
"""Consecutive errors after which the loop gives up."""
STALL_S = 10.0
"""A step that takes longer and waits for a policy or for the cluster is reported."""
STARTING_S = 5.0
"""A server that starts denies everything until it has read its roles: what it denies for less is not logged."""
DENIAL_PERIOD_S = 10.0
"""A denial that comes so long after the first may be of a server that starts again."""
ELECTIONS_PER_TERM = 4
PAUSES_PER_TERM = 20


@dataclass(slots=True)
class ControlLoop:
    """Runs policies against a backend while it leads.

    Attributes:
        backend: The cluster.
        make_policies: Builds new policies.
        process_id: Name of this process in elections.
        owner: Owner of the ephemeral resources, shared by all processes of a spec.
        leader_ttl_s: How long (s) leadership lasts without a renewal.
        lease_s: How long (s) ephemeral resources live without a renewal.
        actuator: The controller's actuator; None until the cluster is adopted.
        last_change: Number of the last change that was processed.
        is_leader: Whether this process leads.
        next_election_s: When leadership is next renewed or claimed.
        failures: Consecutive errors.
        last_error: The last of them; empty once a decision was made, or another process leads.
        logged_error: The last of them that was logged; likewise.
        denied_since_s: When the server first denied a request within that period, by the monotonic clock.
        thread_id: The thread that makes decisions.
        step_began_s: When its present step began, by the monotonic clock; infinity between steps.
        history: Changes of ephemeral resources, for explanations.
        recorder: Keeps what the last decision left on the cluster.
        lock: Guards the controller against readers of its status.
    """

    backend: Backend
    make_policies: PolicyFactory
    process_id: str
    owner: str
    leader_ttl_s: float = 5.0
    lease_s: float = 15.0
    actuator: Actuator | None = None
    last_change: int = 0
    is_leader: bool = False
    next_election_s: float = -math.inf
    failures: int = 0
    last_error: str = ""
    logged_error: str = ""
    denied_since_s: float = -math.inf
    thread_id: int = 0
    step_began_s: float = math.inf
    history: History = field(default_factory=History)
    recorder: DecisionRecorder = field(default_factory=DecisionRecorder)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def step(self, timeout: float = 1.0) -> bool:
        """Process changes for up to ``timeout`` seconds; return whether this process leads.

        Raises:
            Exception: The backend or a policy failed too often in succession.
        """
        self.thread_id, self.step_began_s = threading.get_ident(), time.monotonic()
        try:
            if self._renew_leadership():
                self.actuator = self._adopt() if self.actuator is None else self._watch(self.actuator, timeout)
                self.failures = 0
                if self.actuator is not None:
                    self.recorder.decided_s = time.monotonic()
            if self.actuator is not None or not self.is_leader:
                self.last_error = self.logged_error = ""
        except Exception as error:
            # another process leads, a policy failed, or the controller's state is outdated: continue from a snapshot
            self._record_error(error)
            self.actuator, self.next_election_s, self.failures = None, -math.inf, self.failures + 1
            if self.failures > MAX_FAILURES:
                raise
        finally:
            self.step_began_s = math.inf
        return self.is_leader

    def find_stall(self) -> str:
        """Return what a step has waited for too long: a policy, with file and line, or an answer; empty for none."""
        elapsed_s = time.monotonic() - self.step_began_s
        if elapsed_s <= STALL_S:
            return ""
        if (call := find_call(self.thread_id)) is not None:
            return str(stall_error(call, elapsed_s))
        awaited = self.backend.describe_wait()
        return f"no decision for {elapsed_s:.0f} s: {awaited}" if awaited else ""

    def _record_error(self, error: Exception) -> None:
        """Record an error for the status, and log it where it is another than before."""
        text = str(error) if isinstance(error, (UnfoldError, ApiError)) else f"{type(error).__name__}: {error}"
        if text != self.logged_error and not self._may_be_starting(error):
            has_traceback = not isinstance(error, (UnfoldError, ApiError))
            logging.getLogger("unfoldkit").warning("no decision: %s", text, exc_info=error if has_traceback else None)
            self.logged_error = text
        self.last_error = text

    def _may_be_starting(self, error: Exception) -> bool:
        """Return whether an error may come from a server that has just started, rather than from a lack of rights."""
        if not (isinstance(error, ApiError) and error.status == FORBIDDEN):
            return False
        now_s = time.monotonic()
        if now_s - self.denied_since_s > DENIAL_PERIOD_S:
            self.denied_since_s = now_s
        return now_s - self.denied_since_s < STARTING_S

    def stop(self) -> None:
        """Give up leadership. Running tasks continue; ephemeral resources live on for their lease."""
        self.actuator = None
        if self.is_leader:
            self.is_leader = False
            self.backend.resign()

    def _renew_leadership(self) -> bool:
        now, period_s = self.backend.now(), self.leader_ttl_s / ELECTIONS_PER_TERM
        # a clock that was set back must not delay it
        if not self.next_election_s - period_s <= now < self.next_election_s:
            was_leader, self.is_leader = self.is_leader, self.backend.lead(self.process_id, self.leader_ttl_s)
            self.next_election_s = now + period_s
            if self.is_leader:
                self.backend.renew(self.owner, self.lease_s)
            if not self.is_leader or not was_leader:
                self.actuator = None
            if not self.is_leader:
                # the process that leads knows what runs
                self.recorder.last = None
        return self.is_leader

    def _adopt(self) -> Actuator:
        snapshot = self.backend.snapshot()
        self.recorder.record_snapshot(snapshot)
        self.last_change = snapshot.after
        controller = self._new_controller(snapshot)
        self.history = record_history(controller)
        failures = adopt_cluster(controller, snapshot.records, self.backend.now())
        waiting = {record.task.name for record in snapshot.records if record.state == kinds.WAITING}
        for name in waiting & failures.keys():
            self.backend.refuse(name, failures[name])
        attempts = {record.task.name: record.attempt for record in snapshot.records}
        actuator = Actuator(self.backend, controller, self.owner, self.lease_s, attempts=attempts)
        controller.sink = actuator
        nodes = {node.name for node in snapshot.nodes}
        actuator.reconcile(snapshot.names, nodes)
        if lost := lost_nodes(snapshot):
            now = controller.table.now
            controller.change_nodes([NodeChange(now, node.name, DOWN) for node in lost])
        for task in list_torn(controller.view.gang_key, snapshot.records, nodes):
            # what is stopped with its node is stopped already
            if controller.view.is_running(task):
                controller.preempt(task)
        controller.process_events()
        actuator.flush()
        return actuator

    def _new_controller(self, snapshot: Snapshot) -> Controller:
        departed = [DEPARTED] if has_departed_runs(snapshot) else []
        nodes = sorted([*snapshot.nodes, *lost_nodes(snapshot), *departed], key=lambda node: node.name)
        alive = [record.task for record in snapshot.records if record.state in ALIVE]
        policies = [*self.make_policies(), *self.backend.constraints(alive)]
        # what no node has now, one that joins may have: such a task is set aside, not rejected
        demanded = {kind for task in alive for kind in task.demand}
        table = build_resource_table(nodes, demanded)
        for node in departed:
            table.state.is_up[table.node_rows[node.name]] = False
        controller = build_controller(table, policies)
        controller.knows_end_times = False
        return controller

    def _watch(self, actuator: Actuator, timeout: float) -> Actuator | None:
        """Wait for changes and process them; None where the controller must start over."""
        controller, table = actuator.controller, actuator.controller.table
        now = self.backend.now()
        wait_s = max(0.0, min(timeout, controller.next_wakeup_s - now, self.next_election_s - now))
        changes = self.backend.watch(self.last_change, wait_s)
        if changes is None or len(table.tasks) > MAX_ROWS:
            return None
        left = {change.node for change in changes if change.kind == kinds.LEFT}
        submissions = Counter(change.task for change in changes if change.kind == kinds.SUBMITTED)
        is_repeated = max(submissions.values(), default=0) > 1
        if is_repeated or any(self._requires_snapshot(controller, change, left) for change in changes):
            return None
        now = self.backend.now()
        with self.lock:
            self.recorder.record_controller(controller)
            table.state.clock[0] = max(table.now, now)
            for change in changes:
                self.last_change = change.number
                self._apply_change(actuator, change)
            if controller.next_wakeup_s <= table.now:
                controller.fire_timers()
            else:
                controller.process_events()
        actuator.flush()
        return actuator

    def _requires_snapshot(self, controller: Controller, change: Change, left: set[str]) -> bool:
        if change.kind == kinds.SUBMITTED and change.record is not None:
            task, kinds_known = change.record.task, controller.table.resource_kinds
            needed = self.backend.constraints([task])
            has_policies = {type(policy) for policy in needed} <= {type(policy) for policy in controller.policies}
            # a task that is submitted again, while it waits or after its end, has other attributes now
            is_known = task.name in controller.table.task_rows
            return is_known or not (has_policies and task.demand.keys() <= set(kinds_known))
        has_own_expiry = change.kind == kinds.EXPIRED and change.by == self.owner
        # a node that comes, or comes back, has none of the resources that it had
        is_up = change.node in {node.name for node in controller.view.nodes} - left
        return has_own_expiry or (change.kind == kinds.JOINED and not is_up)

    def _apply_change(self, actuator: Actuator, change: Change) -> None:
        controller, table = actuator.controller, actuator.controller.table
        if change.kind in {kinds.JOINED, kinds.LEFT}:
            is_up = change.kind == kinds.JOINED
            if table.state.is_up[table.node_rows[change.node]] != is_up:
                controller.set_node_up(change.node, is_up=is_up)
        elif change.kind == kinds.SUBMITTED and change.record is not None:
            self._submit(controller, change.record.task)
        elif change.task in table.task_rows and change.by != self.process_id:
            self._apply_task_change(actuator, change)

    def _submit(self, controller: Controller, task: Task) -> None:
        try:
            submit_task(controller, task)
        except UnfoldError as error:
            self.backend.refuse(task.name, error.diagnostics[0].message)

    def _apply_task_change(self, actuator: Actuator, change: Change) -> None:
        controller = actuator.controller
        row = controller.table.task_rows[change.task]
        if change.kind in {kinds.ENDED, kinds.WITHDRAWN}:
            end_task(controller, change.task, has_finished=change.kind == kinds.ENDED)
        elif change.kind in {kinds.FAILED, kinds.PREEMPTED} and self._is_current_attempt(actuator, change):
            actuator.gated.add(change.task)
            controller.preempt(controller.table.tasks[row])

    def _is_current_attempt(self, actuator: Actuator, change: Change) -> bool:
        table = actuator.controller.table
        is_running = table.state.status[table.task_rows[change.task]] == kernel.RUNNING
        is_current = change.record is not None and change.record.attempt == actuator.attempts.get(change.task)
        return bool(is_running) and is_current


def run_until_stopped(loop: ControlLoop, is_stopped: Callable[[], bool], pause: Callable[[float], object]) -> None:
    """Step a control loop until it is stopped.

    Args:
        loop: The loop.
        is_stopped: Returns whether to stop.
        pause: Waits for up to so many seconds.
    """
    try:
        while not is_stopped():
            if not loop.step() or loop.actuator is None:
                pause(loop.leader_ttl_s / PAUSES_PER_TERM)
    finally:
        loop.stop()
