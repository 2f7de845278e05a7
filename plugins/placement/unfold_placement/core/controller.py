"""The controller: passes events to policies and applies their operations, identically on every backend."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import GeneratorType
from typing import Any, Protocol

from unfold_placement.core import bulk_changes, kernel, types
from unfold_placement.core.cluster_view import View
from unfold_placement.core.operation_checks import are_sound, current_line, find_fault, is_amount
from unfold_placement.core.policy import (
    MAX_OPERATIONS,
    MAX_TRANSACTIONS,
    POLICY_FAILURES,
    InstantBudget,
    Policy,
    exception_error,
    policy_error,
)
from unfold_placement.core.resources import ResourceTable
from unfold_placement.core.state import MAX_REQUESTS, grow_log
from unfold_placement.core.types import Ask, Drop, Event, NodeChange, Operation, Put, Refuse, Task, Transactions, Wake
from unfoldkit.api import UnfoldError

NO_CHANGE = kernel.ALL_PHASES
LOGGED_KINDS = (types.SUBMITTED, types.STARTED, types.ENDED, types.PREEMPTED, types.REFUSED)
"""Event kinds by their code in the log."""
DEPARTURES = frozenset({types.ENDED, types.PREEMPTED})
NO_LIMIT = 1 << 30
NO_MORE: Any = object()
"""Stands for the end of a policy's response; a policy may yield anything else."""


class DecisionSink(Protocol):
    """Receives the controller's decisions to carry them out on a real cluster."""

    def put(self, name: str, node: str, amount: int) -> None:
        """Create an ephemeral resource or set its amount."""

    def drop(self, name: str, node: str) -> None:
        """Delete an ephemeral resource."""

    def start(self, task: Task, node: str) -> None:
        """Start a task on its node."""

    def stop(self, task: Task) -> None:
        """Preempt a task."""

    def refuse(self, task: Task, reason: str) -> None:
        """Reject a task for good."""


@dataclass(slots=True)
class Controller:
    """Runs policies over the table of one cluster.

    Attributes:
        table: Nodes, tasks and ephemeral resources.
        policies: The policies, in order of phase.
        view: What policies read.
        sink: Receives decisions; None in simulations.
        knows_end_times: The table knows when tasks end (simulation).
        starts_tasks: The controller matches; off while it replays history.
        log_cursor: First log entry that was not read.
        pending_events: Events to dispatch.
        departures: Ends and preemptions to dispatch first.
        timers: Heap of timer times in seconds.
        node_changes: Changes of nodes that are to come, in order of time (simulation).
        past_node_changes: Those that have happened.
        rejections: Reasons of rejected tasks by name.
        owners: Class of the policy that created a resource, by resource name.
        watched_kinds: Event kinds that some policy watches.
        has_begun: ``begin`` was called.
        budget: What has happened within the instant.
        active_policy: The policy of the operations that are applied now.
        deferred_phase: While departures are dispatched: the earliest phase that changed something.
        inspect: Called after each step of a policy with its line, 0 where that is unknown; None for no inspection.
    """

    table: ResourceTable
    policies: tuple[Policy, ...]
    view: View
    sink: DecisionSink | None = None
    knows_end_times: bool = True
    starts_tasks: bool = True
    log_cursor: int = 0
    pending_events: deque[Event] = field(default_factory=deque)
    departures: deque[Event] = field(default_factory=deque)
    timers: list[float] = field(default_factory=list)
    node_changes: deque[NodeChange] = field(default_factory=deque)
    past_node_changes: list[NodeChange] = field(default_factory=list)
    rejections: dict[str, str] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    watched_kinds: frozenset[str] = frozenset()
    has_begun: bool = False
    budget: InstantBudget = field(default_factory=InstantBudget)
    active_policy: Policy | None = None
    deferred_phase: int | None = None
    inspect: Callable[[Policy, int], None] | None = None

    @property
    def next_wakeup_s(self) -> float:
        """Time of the next timer or lease end, or infinity."""
        return min(self.timers[0] if self.timers else math.inf, self.table.next_expiry_s)

    @property
    def next_change_s(self) -> float:
        """Time of the next change of a node, or infinity."""
        return self.node_changes[0].at if self.node_changes else math.inf

    @property
    def stop_mask(self) -> int:
        """Bits of the event kinds at which the compiled event loop must stop."""
        kinds = self.watched_kinds | (DEPARTURES if self.watched_kinds - {types.BEGAN} else set())
        kinds |= {types.SUBMITTED} if types.QUIET in self.watched_kinds else set()
        return sum(1 << code for code, kind in enumerate(LOGGED_KINDS) if kind in kinds)

    def begin(self) -> None:
        """Dispatch ``began`` and process what follows."""
        self.has_begun = True
        self.dispatch(Event(types.BEGAN, self.table.now))
        self.process_events()

    def process_events(self) -> None:
        """Dispatch all events and start tasks until nothing more can start."""
        while True:
            self.read_log()
            had_events = bool(self.pending_events or self.departures)
            while self.pending_events or self.departures:
                if self.departures:
                    self._process_departures()
                else:
                    self.dispatch(self.pending_events.popleft())
            if had_events and types.QUIET in self.watched_kinds:
                self.dispatch(Event(types.QUIET, self.table.now))
            if not self.pending_events and not self.departures and not self.start_fitting():
                return

    def fire_timers(self) -> None:
        """Expire leases, dispatch a timer event if a timer is due, and process what follows."""
        is_due = False
        while self.timers and self.timers[0] <= self.table.now:
            heapq.heappop(self.timers)
            is_due = True
        self.budget.count_wake(self.table.now, self.active_policy)
        for expired in self.table.expire_leases():
            if self.sink is not None:
                self.sink.drop(expired.name, expired.node)
        if is_due:
            self.pending_events.append(Event(types.TIMER, self.table.now))
        self.process_events()

    def read_log(self) -> None:
        """Read new log entries: starts are dispatched at once, other events are queued."""
        while (entry := self.log_cursor) < int(self.table.state.counters[kernel.LOGGED]):
            state = self.table.state
            self.log_cursor += 1
            task = self.table.tasks[state.log_task[entry]]
            node_row = state.log_node[entry]
            node = self.table.nodes[node_row].name if node_row >= 0 else types.ANYWHERE
            event = Event(LOGGED_KINDS[state.log_kind[entry]], float(state.log_time[entry]), task, node)
            if event.kind != types.STARTED:
                (self.departures if event.kind in DEPARTURES else self.pending_events).append(event)
                continue
            if self.sink is not None and self.starts_tasks:
                self.sink.start(task, node)
            if types.STARTED in self.watched_kinds:
                self._notify(event)

    def dispatch(self, event: Event) -> None:
        """Update the view, then pass an event to every policy that watches its kind, in order of phase."""
        if event.task is not None and event.kind == types.SUBMITTED:
            self.view.add_member(event.task)
        if event.task is not None and event.kind in DEPARTURES:
            self._release_task_bound(event.task)
        if event.task is not None and event.kind == types.ENDED:
            self.view.remove_member(event.task, has_finished=True)
        self._notify(event)

    def start_fitting(self) -> bool:
        """Start tasks that fit, one at a time where starts are watched; return whether any task started."""
        counters = self.table.state.counters
        if not self.starts_tasks or not (counters[kernel.RECHECKS] or counters[kernel.DIRTY]):
            return False
        self.reserve_log()
        max_starts = 1 if types.STARTED in self.watched_kinds else NO_LIMIT
        has_started = kernel.call_start_fitting(self.table.state, max_starts, self.knows_end_times) > 0
        if has_started:
            self.read_log()
        return has_started

    def apply(self, operations: Iterable[Operation], policy: Policy, source: object = None) -> None:
        """Apply one transaction, notify later phases and start what can start now.

        Args:
            operations: The operations.
            policy: The policy that yielded them.
            source: The generator that yielded them, for the line in errors.

        Raises:
            UnfoldError: The policy yielded something that is not a list of operations, or operations without a sense.
        """
        transaction, self.active_policy = self._list_operations(operations, policy, source), policy
        if bulk_changes.is_uniform(transaction):
            changes = [self._apply_bulk(transaction, policy)]
        else:
            changes = [self._apply_one(operation, policy) for operation in transaction]
        if not any(changes):
            return
        if self.deferred_phase is not None:
            self.deferred_phase = min(self.deferred_phase, policy.phase)
        else:
            self._notify_created(policy.phase)

    def preempt(self, task: Task) -> None:
        """Stop a running task and enqueue it again.

        Raises:
            UnfoldError: A policy stops and starts the task for ever at this instant.
        """
        self.budget.count_stop(self.table.now, task, self.active_policy)
        self.reserve_log()
        state, row = self.table.state, self.table.task_rows[task.name]
        kernel.call_finish_task(state, row, kernel.LOG_PREEMPTED)
        self._keep_checkpoint(task, row)
        self._enqueue_again(row)
        self.view.requeue_gang(task)
        if self.sink is not None:
            self.sink.stop(task)
        self.read_log()

    def _enqueue_again(self, row: int) -> None:
        """Append a stopped task to the queue; one that has only just started is still in it."""
        state = self.table.state
        if row not in state.queue[: state.counters[kernel.QUEUED]]:
            kernel.enqueue(state, row)
            return
        state.status[row] = kernel.WAITING
        if state.recheck[row] != kernel.ALL_NODES:
            state.recheck[row] = kernel.ALL_NODES
            state.counters[kernel.RECHECKS] += 1

    def _keep_checkpoint(self, task: Task, row: int) -> None:
        """Shorten the next run of a preempted task by what its last checkpoint keeps."""
        state = self.table.state
        run_s = float(state.run_s[row, state.node_type[state.task_node[row]]])
        if task.checkpoint_every and run_s > 0:
            kept_s = task.kept_seconds(self.table.now - float(state.start_s[row]))
            state.run_s[row] *= max(0.0, 1 - kept_s / run_s)

    def reserve_log(self) -> None:
        """Make room in the log for the entries that one step can write."""
        counters = self.table.state.counters.tolist()
        arriving = self.table.state.arrival_order.size - counters[kernel.ARRIVED]
        size = counters[kernel.LOGGED] + counters[kernel.HEAPED] + counters[kernel.QUEUED] + arriving + 64
        self.table.state = grow_log(self.table.state, size)

    def set_node_up(self, node: str, *, is_up: bool) -> None:
        """Add a node to the cluster again, or remove it and preempt what runs there."""
        self.change_nodes([NodeChange(self.table.now, node, types.UP if is_up else types.DOWN)])

    def change_nodes(self, changes: Sequence[NodeChange]) -> None:
        """Change nodes at once: tasks of a lost node are preempted, those of a cordoned one continue."""
        self._set_nodes(changes)
        self.process_events()

    def _set_nodes(self, changes: Sequence[NodeChange]) -> None:
        self.reserve_log()
        self.active_policy = None
        state = self.table.state
        for change in changes:
            row = self.table.node_rows[change.node]
            state.is_up[row] = change.change == types.UP
            kernel.call_mark_dirty(state, row)
        self.view.empty_cluster.rules_version += 1
        self.view.totals.clear()
        state.counters[kernel.FREED] += 1
        lost = {change.node for change in changes if change.change == types.DOWN}
        for task in [task for task, node, _ in self.view.running() if node in lost]:
            self.preempt(task)
        # nodes of a reservation that has lost one are free for every policy at this instant
        self.view.check_reservation()
        for change in changes:
            kind = types.JOINED if change.change == types.UP else types.LEFT
            self.pending_events.append(Event(kind, self.table.now, node=change.node))

    def apply_node_changes(self) -> None:
        """Carry out the next changes of nodes, all of one instant; tasks end before and arrive after them.

        Policies decide once they know all of it: otherwise an older task would take a new node from a more urgent one.
        """
        at_s = self.node_changes[0].at
        changes = []
        while self.node_changes and self.node_changes[0].at == at_s:
            changes.append(self.node_changes.popleft())
        self.reserve_log()
        self.table.state.clock[0] = max(self.table.now, at_s)
        kernel.call_end_due_tasks(self.table.state, at_s)
        self.past_node_changes += changes
        self._set_nodes(changes)
        kernel.call_submit_due_tasks(self.table.state, at_s)
        self.process_events()

    def remove_waiting(self, row: int) -> None:
        """Remove a waiting task from the queue for good."""
        state = self.table.state
        state.status[row] = kernel.REFUSED
        kernel.log_event(state, kernel.LOG_REFUSED, row, -1)
        if state.recheck[row] != kernel.ALL_NODES:
            # the next pass over the queue removes it
            state.recheck[row] = kernel.ALL_NODES
            state.counters[kernel.RECHECKS] += 1

    def _process_departures(self) -> None:
        """Dispatch all departures before anything starts.

        Hence no policy counts tasks that have left, and no preemption is reported after its task runs again.
        """
        self.deferred_phase = NO_CHANGE
        while self.departures:
            self.dispatch(self.departures.popleft())
        phase, self.deferred_phase = self.deferred_phase, None
        if phase != NO_CHANGE:
            self._notify_created(phase)

    def _notify_created(self, phase: int) -> None:
        event = Event(types.CREATED, self.table.now)
        for policy in self.policies:
            if policy.phase > phase and types.CREATED in policy.watches:
                self.call_react(policy, event)
        while self.start_fitting():
            pass

    def _notify(self, event: Event) -> None:
        for policy in self.policies:
            if event.kind in policy.watches:
                self.call_react(policy, event)

    def call_react(self, policy: Policy, event: Event) -> None:
        """Pass an event to a policy and apply its transactions.

        Raises:
            UnfoldError: The policy raised, returned something that makes no sense, or responds without end.
        """
        transactions = iter(call_policy(policy, event, self.view))
        bound = MAX_TRANSACTIONS + 10 * (len(self.table.tasks) + len(self.table.nodes))
        for step in range(bound):  # noqa: B007 - the watchdog reads it from the frame
            try:
                # most responses are empty, and an exception for each end would be slow
                operations = next(transactions, NO_MORE)
            except UnfoldError:
                raise
            except POLICY_FAILURES as error:
                raise exception_error(policy, "react", error) from error
            if operations is NO_MORE:
                if self.inspect is not None:
                    self.inspect(policy, 0)
                return
            if self.inspect is not None:
                self.inspect(policy, current_line(transactions))
            self.apply(operations, policy, transactions)
        raise policy_error(policy, "react", f"it responds to {event.kind} at {event.time:g} s without end")

    def _list_operations(self, operations: Iterable[Operation], policy: Policy, source: object) -> list[Operation]:
        """Return the operations of a transaction once each of them makes sense."""
        if not isinstance(operations, (list, Iterable)):
            raise _misuse_error(policy, "react", operations, "a list of operations: yield [Put(name, node)]")
        bound = MAX_OPERATIONS + 10 * (len(self.table.tasks) + len(self.table.nodes))
        try:
            transaction = list(islice(operations, bound + 1))
        except UnfoldError:
            raise
        except POLICY_FAILURES as error:
            raise exception_error(policy, "react", error) from error
        if len(transaction) > bound:
            message = f"one transaction has more than {bound:,} operations"
            raise policy_error(policy, "react", message, line=current_line(source))
        if len(transaction) >= bulk_changes.MIN_BULK and are_sound(transaction, self.table):
            return transaction
        for operation in transaction:
            if fault := find_fault(operation, self.table):
                hint = f"it yielded {str(operation)[:80]}"
                raise policy_error(policy, "react", fault, line=current_line(source), hint=hint)
        return transaction

    def _apply_one(self, operation: Operation, policy: Policy) -> bool:
        if isinstance(operation, Put):
            return self._put(operation, policy)
        if isinstance(operation, Drop):
            return self._drop(operation, policy)
        if isinstance(operation, Wake):
            heapq.heappush(self.timers, float(operation.at))
        elif isinstance(operation, Refuse):
            self._reject(operation)
        else:
            raise _misuse_error(policy, "react", operation, "a Put, Drop, Wake or Refuse: yield [Put(name, node)]")
        return False

    def _apply_bulk(self, operations: Sequence[Put | Drop], policy: Policy) -> bool:
        first, nodes = operations[0], [operation.node for operation in operations]
        return (
            self._put_all(first, nodes, policy) if isinstance(first, Put) else self._drop_all(first.name, nodes, policy)
        )

    def _put_all(self, operation: Put, nodes: Sequence[str], policy: Policy) -> bool:
        owner = self._owner(operation.name, policy)
        changed = bulk_changes.set_amounts(self.table, operation.name, nodes, operation.amount, owner=owner)
        self.table.state.counters[kernel.FREED] += len(changed) if policy.phase < types.PACK else 0
        self.view.empty_cluster.rules_version += bool(changed) and policy.phase == types.STATIC
        if self.sink is not None:
            for node in changed:
                self.sink.put(operation.name, node, operation.amount)
        return bool(changed)

    def _drop_all(self, name: str, nodes: Sequence[str], policy: Policy) -> bool:
        deleted = bulk_changes.delete_resources(self.table, name, nodes)
        self.view.empty_cluster.rules_version += bool(deleted) and policy.phase == types.STATIC
        if name not in self.table.entries:
            self.owners.pop(name, None)
        if self.sink is not None:
            for node in deleted:
                self.sink.drop(name, node)
        return bool(deleted)

    def _owner(self, name: str, policy: Policy) -> str:
        return self.owners.setdefault(name, type(policy).__name__)

    def _put(self, operation: Put, policy: Policy) -> bool:
        name, node, amount = operation.name, operation.node, operation.amount
        owner = self._owner(name, policy)
        has_changed = self.table.set_amount(name, node, amount, owner=owner, until=operation.until)
        # the admission of a task makes room for no other
        makes_room = has_changed and policy.phase < types.PACK and bool(node or not operation.until)
        self.table.state.counters[kernel.FREED] += makes_room
        self.view.empty_cluster.rules_version += has_changed and policy.phase == types.STATIC
        if has_changed and self.sink is not None:
            self.sink.put(name, node, amount)
        return has_changed

    def _drop(self, operation: Drop, policy: Policy) -> bool:
        if operation.node not in self.table.entries.get(operation.name, {}):
            return False
        self.view.empty_cluster.rules_version += policy.phase == types.STATIC
        holders = self.table.delete(operation.name, operation.node, force=operation.force)
        if operation.name not in self.table.entries:
            self.owners.pop(operation.name, None)
        if self.sink is not None:
            self.sink.drop(operation.name, operation.node)
        for task in holders:
            self.preempt(task)
        return True

    def _reject(self, operation: Refuse) -> None:
        row = self.table.task_rows[operation.task]
        if self.table.state.status[row] == kernel.REFUSED:
            return
        self.remove_waiting(row)
        self.rejections[operation.task] = operation.reason
        if self.sink is not None:
            self.sink.refuse(self.table.tasks[row], operation.reason)

    def _release_task_bound(self, task: Task) -> None:
        for name, node in self.table.task_bound.get(task.name, ()):
            self.owners.pop(name, None)
            if self.sink is not None and node in self.table.entries.get(name, {}):
                self.sink.drop(name, node)
        self.table.release_task_bound(task)


def build_controller(table: ResourceTable, policies: Sequence[Policy]) -> Controller:
    """Build the controller of a table; policies run in order of phase, and within a phase as listed."""
    ordered = tuple(sorted(policies, key=lambda policy: policy.phase))
    gang_keys = (str(getattr(policy, "gathers", "")) for policy in ordered)
    gang_key = next((key for key in gang_keys if key), "")
    watched = frozenset(kind for policy in ordered for kind in policy.watches)
    patience_s = max((float(getattr(policy, "patience_s", 0.0)) for policy in ordered), default=0.0)
    never_preempt = frozenset(name for policy in ordered for name in getattr(policy, "never_preempt", ()))
    view = View(table, gang_key, patience_s=patience_s, never_preempt=never_preempt)
    return Controller(table, ordered, view, watched_kinds=watched)


def collect_requests(policies: Iterable[Policy], task: Task) -> list[tuple[Ask, int]]:
    """Collect the requests that policies make for a task, each with the phase of its policy.

    Raises:
        UnfoldError: A policy requests something that is no ``Ask``.
    """
    requests: list[tuple[Ask, int]] = []
    for policy in policies:
        try:
            asks = list(islice(policy.request(task), MAX_REQUESTS + 1))
        except UnfoldError:
            raise
        except POLICY_FAILURES as error:
            raise exception_error(policy, "request", error) from error
        requests += [(_check_ask(ask, policy), policy.phase) for ask in asks]
        if len(requests) > MAX_REQUESTS:
            message = f"task {task.name} requests more than {MAX_REQUESTS} ephemeral resources"
            raise policy_error(policy, "request", message)
    return requests


def _check_ask(ask: object, policy: Policy) -> Ask:
    if not isinstance(ask, Ask):
        raise _misuse_error(policy, "request", ask, "an Ask: return [Ask(name)]")
    if not isinstance(ask.name, str) or not ask.name or not is_amount(ask.amount):
        raise policy_error(policy, "request", "a request has a name and a whole amount", hint=f"it is {str(ask)[:80]}")
    return ask


def _misuse_error(policy: Policy, method: str, value: object, expected: str) -> UnfoldError:
    hint = f"{type(policy).__name__}.{method} returned {str(value)[:60]!r}"
    return policy_error(policy, method, f"{method} of a policy must return {expected}", hint=hint)


def call_policy(policy: Policy, event: Event, view: View) -> Transactions:
    """Return the transactions with which a policy responds to an event.

    Raises:
        UnfoldError: It raised, or returned no transactions.
    """
    try:
        transactions = policy.react(event, view)
    except UnfoldError:
        raise
    except POLICY_FAILURES as error:
        raise exception_error(policy, "react", error) from error
    if not isinstance(transactions, (GeneratorType, Iterable)):
        raise _misuse_error(policy, "react", transactions, "lists of operations: yield [Put(name, node)]")
    return transactions
