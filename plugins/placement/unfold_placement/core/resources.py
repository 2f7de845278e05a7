"""The table of ephemeral resources: create, resize, delete, lease, compare-and-set, subscribe and snapshot.

It defines the semantics of ephemeral resources, and the simulator matches tasks against it. The table keeps the
records; :class:`StateArrays` keeps the amounts that compiled code reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from unfold_placement._types import Int64Array
from unfold_placement.core import kernel
from unfold_placement.core.devices import device_need, has_shares, track_devices
from unfold_placement.core.state import (
    MAX_REQUESTS,
    StateArrays,
    allocate_state,
    grow_columns,
    grow_log,
    grow_resources,
    grow_tasks,
    list_node_types,
)
from unfold_placement.core.types import ANYWHERE, MILLI, Ask, EphemeralResource, Node, Task, epoch_conflict
from unfoldkit.api import did_you_mean, user_error

Listener = Callable[[str, EphemeralResource], None]
"""Called with ``created``, ``resized`` or ``deleted`` and the resource."""
Requests = Sequence[tuple[Ask, int]]
"""Requests of a task, each with the phase of the policy that makes it."""


@dataclass(slots=True)
class ResourceTable:
    """Nodes, tasks and ephemeral resources of a cluster. Times are in seconds, resource amounts in whole units.

    Attributes:
        nodes: The nodes, in matching order.
        resource_kinds: Kinds of demand: the columns of ``state.demand``.
        state: The arrays.
        tasks: Tasks by row; a policy cannot reorder them.
        task_rows: Rows of tasks by name.
        node_rows: Rows of nodes by name.
        name_ids: Ids of ephemeral resources by name; an id is never reused.
        columns: The resource of each column in ``state.available``; empty where the column is free.
        entries: Resources by name, then by node.
        task_bound: Name and node of the resources that are deleted with each task.
        epoch: Version of the last change.
        next_expiry_s: Earliest end of a lease.
        listeners: Called at every change.
    """

    nodes: tuple[Node, ...]
    resource_kinds: tuple[str, ...]
    state: StateArrays
    tasks: tuple[Task, ...] = ()
    task_rows: dict[str, int] = field(default_factory=dict)
    node_rows: dict[str, int] = field(default_factory=dict)
    name_ids: dict[str, int] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    entries: dict[str, dict[str, EphemeralResource]] = field(default_factory=dict)
    task_bound: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    epoch: int = 0
    next_expiry_s: float = np.inf
    listeners: list[Listener] = field(default_factory=list)

    @property
    def now(self) -> float:
        """The current time in seconds."""
        return float(self.state.clock[0])

    @property
    def demand_by_kind(self) -> Int64Array:
        """The [tasks, kinds] demand of the kinds, without the columns for devices."""
        return self.state.demand[:, : len(self.resource_kinds)]

    def add_tasks(self, tasks: Sequence[Task], requests: Sequence[Requests]) -> None:
        """Add tasks that are not submitted yet, with the ephemeral resources that each requests.

        Raises:
            UnfoldError: No node has a demanded kind, a task name exists, or a task has too many requests.
        """
        for task, task_requests in zip(tasks, requests, strict=True):
            self._check_task(task, task_requests)
            for ask, _ in task_requests:
                self.name_id(ask.name)
        first_row, count = len(self.tasks), len(self.tasks) + len(tasks)
        if not self.state.device_kinds.size and any(has_shares(task) for task in tasks):
            self.state = track_devices(self.state, self.nodes, self.resource_kinds)
        self.state = grow_tasks(self.state, count)
        kind_columns = {kind: column for column, kind in enumerate(self.resource_kinds)}
        node_types = list_node_types(self.nodes)
        for row, (task, task_requests) in enumerate(zip(tasks, requests, strict=True), first_row):
            for kind, amount in task.demand.items():
                self.state.demand[row, kind_columns[kind]] = amount
            self.state.run_s[row] = [task.run_on.get(node_type, task.run) for node_type in node_types]
            self.state.arrival_s[row] = task.arrival
            self.state.is_owner[row] = task.completes
            self._write_requests(row, task_requests)
            self.task_rows[task.name] = row
        self._write_device_needs(first_row, count)
        self.tasks += tuple(tasks)
        self.state = grow_log(self.state, 4 * count + 64)

    def name_id(self, name: str) -> int:
        """Return the id of an ephemeral resource; a new name gets a new id."""
        number = self.name_ids.get(name)
        if number is None:
            number = self.name_ids[name] = len(self.name_ids)
            self.state = grow_resources(self.state, len(self.name_ids))
        return number

    def create(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, owner: str = "", ttl: float = np.inf, until: str = ""
    ) -> EphemeralResource:
        """Create an ephemeral resource, which expires after ``ttl`` seconds unless renewed.

        Raises:
            UnfoldError: It already exists, or the node does not exist.
        """
        if node in self.entries.get(name, {}):
            raise user_error(f"{name} already exists on {node or 'the cluster'}", hint="resize it")
        now = self.now
        return self._write(EphemeralResource(name, node, amount, owner, self.epoch + 1, now, now + ttl, until))

    def resize(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, epoch: int | None = None, ttl: float | None = None
    ) -> EphemeralResource:
        """Set the amount of an existing resource. Below the held amount, nothing new matches until holders end.

        Raises:
            UnfoldError: It does not exist, or its epoch is not ``epoch`` (compare-and-set).
        """
        current = self._find(name, node, epoch)
        expires = current.expires if ttl is None else self.now + ttl
        return self._write(replace(current, amount=amount, expires=expires, epoch=self.epoch + 1))

    def set_amount(self, name: str, node: str = ANYWHERE, amount: int = 1, *, owner: str = "", until: str = "") -> bool:
        """Create a resource or resize it; return whether anything changed."""
        current = self.entries.get(name, {}).get(node)
        if current is None:
            self.create(name, node, amount, owner=owner, until=until)
        elif current.amount != amount:
            self.resize(name, node, amount)
        return current is None or current.amount != amount

    def delete(
        self, name: str, node: str = ANYWHERE, *, force: bool = False, epoch: int | None = None
    ) -> tuple[Task, ...]:
        """Delete a resource: it no longer matches, and held amounts are reclaimed as holders end.

        Returns:
            With ``force`` the holders, which the caller must preempt; else nothing.

        Raises:
            UnfoldError: It does not exist, or its epoch is not ``epoch``.
        """
        current = self._find(name, node, epoch)
        holders = self.holders(name, node) if force else ()
        del self.entries[name][node]
        if not self.entries[name]:
            del self.entries[name]
        self._withdraw_amount(current)
        self.notify("deleted", current)
        return holders

    def expire_leases(self) -> list[EphemeralResource]:
        """Delete and return the resources with an ended lease."""
        expired = [entry for nodes in self.entries.values() for entry in nodes.values() if entry.expires <= self.now]
        for entry in expired:
            self.delete(entry.name, entry.node)
        expiries = (entry.expires for nodes in self.entries.values() for entry in nodes.values())
        self.next_expiry_s = min(expiries, default=np.inf)
        return expired

    def release_task_bound(self, task: Task) -> None:
        """Delete the resources bound to a task that ended, and reclaim columns that it held last."""
        for name, node in self.task_bound.pop(task.name, ()):
            if node in self.entries.get(name, {}):
                self.delete(name, node)
        self._reclaim_columns(task)

    def holders(self, name: str, node: str = ANYWHERE) -> tuple[Task, ...]:
        """Return the running tasks that hold a resource on a node or, for a cluster-scoped one, anywhere."""
        number = self.name_ids.get(name)
        if number is None:
            return ()
        state, count = self.state, len(self.tasks)
        holds = (state.status[:count] == kernel.RUNNING) & (state.requested[:count] == number).any(1)
        rows = np.flatnonzero(holds)
        if node != ANYWHERE:
            rows = rows[state.task_node[rows] == self.node_rows[node]]
        return tuple(self.tasks[row] for row in rows)

    def snapshot(self) -> tuple[EphemeralResource, ...]:
        """Return every existing resource, ordered by name and node."""
        return tuple(nodes[node] for _, nodes in sorted(self.entries.items()) for node in sorted(nodes))

    def subscribe(self, listener: Listener) -> None:
        """Call ``listener(change, resource)`` at every ``created``, ``resized`` and ``deleted``."""
        self.listeners.append(listener)

    def held_amount(self, name: str, node: str = ANYWHERE) -> int:
        """Return the held amount of a resource, in whole units."""
        number, state = self.name_ids.get(name), self.state
        if number is None or (node and state.column[number] < 0):
            return 0
        if node == ANYWHERE:
            entry = self.entries.get(name, {}).get(node)
            return (entry.amount if entry else 0) - int(state.pool[number]) // MILLI
        row, column = self.node_rows[node], state.column[number]
        return int(state.capacity[row, column] - state.available[row, column]) // MILLI

    def notify(self, change: str, entry: EphemeralResource) -> None:
        """Call the listeners."""
        for listener in self.listeners:
            listener(change, entry)

    def recheck_waiting(self, number: int, until: str) -> None:
        """Make waiting tasks that request a resource examine every node again; a task-bound one affects one task."""
        state, row = self.state, self.task_rows.get(until)
        if row is None:
            kernel.call_recheck_requesters(state, number)
        elif state.status[row] == kernel.WAITING and state.recheck[row] != kernel.ALL_NODES:
            state.recheck[row] = kernel.ALL_NODES
            state.counters[kernel.RECHECKS] += 1

    def assign_column(self, name: str) -> None:
        """Give a resource a column: a free one or a new one."""
        if "" in self.columns:
            column = self.columns.index("")
            self.columns[column] = name
        else:
            column = len(self.columns)
            self.columns.append(name)
        if column >= self.state.available.shape[1]:
            self.state = grow_columns(self.state)
        self.state.column[self.name_ids[name]] = column

    def free_column(self, name: str) -> None:
        """Free the column of a resource that exists nowhere and that no task holds."""
        state, number = self.state, self.name_ids[name]
        column = int(state.column[number])
        if name not in self.entries and column >= 0 and kernel.call_clear_column(state, column):
            self.columns[column] = ""
            state.column[number] = -1

    def _check_task(self, task: Task, requests: Requests) -> None:
        for kind in task.demand:
            if kind not in self.resource_kinds:
                hint = did_you_mean(kind, self.resource_kinds)
                raise user_error(f"task {task.name} demands {kind!r}, which no node has", key="workload", hint=hint)
        if task.name in self.task_rows:
            raise user_error(f"task {task.name} already exists", key="workload", hint="task names must be unique")
        if len(requests) > MAX_REQUESTS:
            message = f"task {task.name} requests {len(requests)} ephemeral resources, the maximum is {MAX_REQUESTS}"
            raise user_error(message, key="policy")

    def _write_device_needs(self, first_row: int, end_row: int) -> None:
        demand = self.state.demand[first_row:end_row]
        demand[:, len(self.resource_kinds) :] = device_need(demand[:, self.state.device_kinds])

    def _write_requests(self, row: int, requests: Requests) -> None:
        state = self.state
        for index, (ask, phase) in enumerate(requests):
            state.requested[row, index] = self.name_ids[ask.name]
            state.requested_amount[row, index] = ask.amount * MILLI
            state.request_phase[row, index] = phase

    def _reclaim_columns(self, task: Task) -> None:
        state = self.state
        for number in state.requested[self.task_rows[task.name]]:
            if number < 0:
                break
            if state.column[number] >= 0:
                name = self.columns[state.column[number]]
                if name and name not in self.entries:
                    self.free_column(name)

    def _find(self, name: str, node: str, epoch: int | None) -> EphemeralResource:
        current = self.entries.get(name, {}).get(node)
        if current is None:
            raise user_error(f"{name} does not exist on {node or 'the cluster'}")
        if epoch is not None and current.epoch != epoch:
            raise epoch_conflict(current, epoch)
        return current

    def _write(self, entry: EphemeralResource) -> EphemeralResource:
        before = self.entries.get(entry.name, {}).get(entry.node)
        self.epoch = entry.epoch
        self.next_expiry_s = min(self.next_expiry_s, entry.expires)
        if entry.node == ANYWHERE:
            self._set_cluster_amount(entry, before)
        else:
            self._set_node_amount(entry, before)
        self.entries.setdefault(entry.name, {})[entry.node] = entry
        if entry.until and before is None:
            self.task_bound.setdefault(entry.until, []).append((entry.name, entry.node))
        self.notify("resized" if before else "created", entry)
        return entry

    def _set_cluster_amount(self, entry: EphemeralResource, before: EphemeralResource | None) -> None:
        number = self.name_id(entry.name)
        state = self.state
        state.scope[number] = kernel.TASK_BOUND if entry.until else kernel.SHARED
        state.pool[number] += (entry.amount - (before.amount if before else 0)) * MILLI
        self.recheck_waiting(number, entry.until)

    def _set_node_amount(self, entry: EphemeralResource, before: EphemeralResource | None) -> None:
        if entry.node not in self.node_rows:
            raise user_error(f"there is no node {entry.node}")
        number = self.name_id(entry.name)
        if self.state.column[number] < 0:
            self.assign_column(entry.name)
            self.recheck_waiting(number, entry.until)
        state, row = self.state, self.node_rows[entry.node]
        column = state.column[number]
        terminating = state.terminating[row, column]
        added = entry.amount * MILLI - (state.capacity[row, column] if before or terminating else 0)
        if terminating:
            # holders of the deleted resource still count against its successor
            state.available[row, column] = entry.amount * MILLI - state.capacity[row, column]
            state.terminating[row, column] = 0
        else:
            state.available[row, column] += added
        state.capacity[row, column] += added
        kernel.call_mark_dirty(state, row)

    def _withdraw_amount(self, entry: EphemeralResource) -> None:
        number, state = self.name_ids[entry.name], self.state
        if entry.node == ANYWHERE:
            state.pool[number] -= entry.amount * MILLI
            return
        row, column = self.node_rows[entry.node], state.column[number]
        state.capacity[row, column] -= state.available[row, column]
        state.available[row, column] = 0
        state.terminating[row, column] = state.capacity[row, column] > 0
        self.free_column(entry.name)


def build_resource_table(nodes: Sequence[Node], extra_kinds: Iterable[str] = ()) -> ResourceTable:
    """Build the table of a cluster without tasks; ``extra_kinds`` may be demanded although no node has them."""
    kinds = tuple(sorted({kind for node in nodes for kind in node.capacity} | set(extra_kinds)))
    node_rows = {node.name: row for row, node in enumerate(nodes)}
    return ResourceTable(tuple(nodes), kinds, allocate_state(nodes, kinds), node_rows=node_rows)
