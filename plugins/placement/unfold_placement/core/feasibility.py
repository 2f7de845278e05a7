"""The empty cluster: whether a unit could run on it, and which nodes to keep free for a unit that waits.

A unit that would not fit on the empty cluster under the present standing rules is *set aside*: it can block no other.
A unit that would fit, but does not fit now, can have nodes reserved. They drain until it fits (Lifka, 1995, reserves
nodes for the head of the queue; without run times they stay empty meanwhile).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from unfold_placement._types import Int32Array, Int64Array, MaskArray
from unfold_placement.core import kernel
from unfold_placement.core.devices import list_unusable, measure_room
from unfold_placement.core.resources import ResourceTable
from unfold_placement.core.state import StateArrays, build_max_tree
from unfold_placement.core.types import ANYWHERE, MANY, MILLI, QUEUE, Task, shorten_rule

EMPTIED_ARRAYS = ("free", "free_tree", "device", "device_used", "available", "pool", "is_reserved")
"""Arrays of the empty cluster that are not those of the table."""


@dataclass(slots=True)
class EmptyCluster:
    """The cluster as if nothing ran, under the present standing rules.

    Attributes:
        table: Nodes, tasks and ephemeral resources.
        rules_version: Changes of nodes and of standing rules so far; the controller counts them.
        seen_version: The version to which ``state`` and ``reasons`` refer.
        capacity: [nodes, kinds] capacity in thousandths.
        state: The arrays of the empty cluster; None until they are needed.
        reasons: Why units cannot run, by their demands and requests; empty where they can.
    """

    table: ResourceTable
    rules_version: int = 0
    seen_version: int = -1
    capacity: Int64Array = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    state: StateArrays | None = None
    reasons: dict[bytes, str] = field(default_factory=dict)

    def copy_for(self, table: ResourceTable) -> EmptyCluster:
        """Return a copy for a copy of the table.

        Both share the arrays of the empty cluster, in which compiled code restores what it changes: one thread uses
        them at a time.
        """
        copied = EmptyCluster(table, self.rules_version, self.seen_version, self.capacity, None, dict(self.reasons))
        if self.state is not None and self._is_current(self.state):
            copied.state = table.state._replace(**{name: getattr(self.state, name) for name in EMPTIED_ARRAYS})
        return copied

    def why_impossible(self, unit: Sequence[Task]) -> str:
        """Return why a unit cannot run even on the empty cluster; empty if it can.

        A unit that requests a resource which exists nowhere yet, such as the end of a stage, is not impossible.
        """
        rows, state = self._task_rows(unit), self.table.state
        if self.seen_version != self.rules_version:
            self._refresh()
        is_standing = state.request_phase[rows] < QUEUE
        requested = np.where(is_standing, state.requested[rows], -1)
        key = state.demand[rows].tobytes() + requested.tobytes() + state.requested_amount[rows].tobytes()
        if key not in self.reasons:
            self.reasons[key] = self._find_reason(unit, rows, requested)
        return self.reasons[key]

    def fits_drained(self, unit: Sequence[Task]) -> bool:
        """Return whether a unit would fit if nothing ran while the resources of nodes have what they have left now."""
        rows, drained = self._task_rows(unit), self._refresh()._replace(available=self.table.state.available)
        assigned, allowed = np.empty(rows.size, np.int32), self._mask(np.arange(len(self.table.nodes)))
        return bool(kernel.call_assign_unit(drained, rows, QUEUE, allowed, assigned))

    def choose_nodes(self, unit: Sequence[Task]) -> MaskArray | None:
        """Return the [nodes] mask of the nodes to keep free for a unit: those with room soonest, then the emptiest.

        None means that no nodes suffice.
        """
        rows, empty, state = self._task_rows(unit), self._refresh(), self.table.state
        fitting = np.zeros(len(self.table.nodes), np.uint8)
        marks, free_at = np.empty_like(fitting), np.full(fitting.size, np.inf)
        running = np.flatnonzero(state.status[: len(self.table.tasks)] == kernel.RUNNING).astype(np.int32)
        running = running[state.end_s[running].argsort(kind="stable")]
        ready = np.empty(fitting.size)
        for row in self._distinct_rows(rows):
            kernel.call_mark_fitting(empty, row, QUEUE, marks)
            fitting |= marks
            kernel.call_forecast_free_times(state, row, self.table.now, running, ready)
            free_at = np.minimum(free_at, np.where(marks, ready, np.inf))
        # the run time of a task on a live cluster may be unknown: its end is then in the past
        free_at = np.maximum(free_at, self.table.now)
        demanded = self.table.demand_by_kind[rows].any(axis=0)
        free = (state.free[:, : demanded.size] / np.maximum(self.capacity, 1))[:, demanded].sum(axis=1)
        candidates = np.flatnonzero(fitting)
        candidates = candidates[np.lexsort((-free[candidates], free_at[candidates]))]
        count = kernel.call_shortest_prefix(empty, rows, QUEUE, candidates)
        return self._mask(candidates[:count]) if count else None

    def _fits_within(self, rows: Int32Array, nodes: Int64Array) -> bool:
        assigned = np.empty(rows.size, np.int32)
        return bool(kernel.call_assign_unit(self._refresh(), rows, QUEUE, self._mask(nodes), assigned))

    def _mask(self, nodes: Int64Array) -> MaskArray:
        mask = np.zeros(len(self.table.nodes), np.uint8)
        mask[nodes] = 1
        return mask

    def _task_rows(self, unit: Sequence[Task]) -> Int32Array:
        return np.array([self.table.task_rows[task.name] for task in unit], np.int32)

    def _distinct_rows(self, rows: Int32Array) -> list[int]:
        """Return the last row of each kind of task: with one demand, and with one request to the standing rules."""
        state = self.table.state
        if kernel.call_are_alike(state, rows, QUEUE):
            return [int(rows[-1])]
        demands, requested = state.demand[rows], np.where(state.request_phase[rows] < QUEUE, state.requested[rows], -1)
        keys = (demand.tobytes() + request.tobytes() for demand, request in zip(demands, requested, strict=True))
        return list(dict(zip(keys, rows.tolist(), strict=True)).values())

    def _refresh(self) -> StateArrays:
        """Return the arrays of the empty cluster; the tasks' arrays are those of the table."""
        table, state = self.table, self.table.state
        if not self.capacity.size:
            rows = [[node.capacity.get(kind, 0) for kind in table.resource_kinds] for node in table.nodes]
            self.capacity = np.array(rows, np.int64).reshape(len(table.nodes), len(table.resource_kinds))
        if self.state is None or not self._is_current(self.state):
            self.seen_version, self.reasons = self.rules_version, {}
            free, device_used = self._empty_amounts()
            free = np.where(state.is_up[:, None] > 0, free, -1)
            self.state = state._replace(
                free=free,
                free_tree=build_max_tree(free),
                device=state.device.copy(),
                device_used=device_used,
                available=np.where(state.terminating > 0, 0, state.capacity),
                pool=np.where(state.scope > 0, MANY * MILLI, 0),
                is_reserved=np.zeros_like(state.is_reserved),
            )
        return self.state

    def _is_current(self, empty: StateArrays) -> bool:
        """Whether arrays of the empty cluster are those of the present rules, and no array has grown since."""
        state, is_seen = self.table.state, self.seen_version == self.rules_version
        has_grown = empty.demand is not state.demand or empty.column is not state.column
        return is_seen and not has_grown and empty.available.shape == state.available.shape

    def _empty_amounts(self) -> tuple[Int64Array, Int64Array]:
        """Return ``free`` and ``device_used`` as if nothing ran."""
        columns = self.table.state.device_kinds
        if not columns.size:
            return self.capacity, self.table.state.device_used
        used = list_unusable(self.table.nodes, [self.table.resource_kinds[column] for column in columns])
        return np.column_stack([self.capacity, measure_room(self.capacity[:, columns], used)]), used

    def _find_reason(self, unit: Sequence[Task], rows: Int32Array, requested: Int32Array) -> str:
        table, state = self.table, self._refresh()
        names = dict(enumerate(table.name_ids))
        totals: dict[int, int] = {}
        for resource, amount in zip(
            requested.ravel().tolist(), state.requested_amount[rows].ravel().tolist(), strict=True
        ):
            if resource >= 0:
                if state.scope[resource] == 0 and state.column[resource] < 0:
                    return ""
                totals[resource] = totals.get(resource, 0) + amount
        for resource, amount in totals.items():
            entry = table.entries.get(names[resource], {}).get(ANYWHERE)
            if state.scope[resource] == kernel.SHARED and entry is not None and amount > entry.amount * MILLI:
                name, are = shorten_rule(names[resource]), "is" if entry.amount == 1 else "are"
                return f"it needs {amount / MILLI:g} of {name}, of which there {are} {entry.amount}"
        if not state.is_up.any():
            return ""
        marks = np.empty(len(table.nodes), np.uint8)
        for task, row, wanted in zip(unit, rows.tolist(), requested.tolist(), strict=True):
            kernel.call_mark_fitting(state, row, QUEUE, marks)
            if not marks.any():
                return self._describe_shortage(task, [names[resource] for resource in wanted if resource >= 0])
        if len(unit) > 1 and not self._fits_within(rows, np.arange(len(table.nodes))):
            return self._describe_total(unit)
        return ""

    def _describe_total(self, unit: Sequence[Task]) -> str:
        """Return the kind that a unit needs more of than the cluster has, or that its tasks do not fit together."""
        is_up, total = self.table.state.is_up > 0, Counter[str]()
        for task in unit:
            total.update(task.demand)
        for kind, amount in total.items():
            available = int(self.capacity[is_up, self.table.resource_kinds.index(kind)].sum())
            if available < amount:
                total_text = f"{_format(amount)} {kind}, and the cluster has {_format(available)}"
                return f"its {len(unit)} tasks need {total_text}"
        return f"its {len(unit)} tasks do not fit together on the empty cluster"

    def _describe_shortage(self, task: Task, names: Sequence[str]) -> str:
        is_up = self.table.state.is_up > 0
        demand = " + ".join(f"{_format(amount)} {kind}" for kind, amount in task.demand.items()) or "nothing"
        for kind, amount in task.demand.items():
            column = self.table.resource_kinds.index(kind)
            largest = int(self.capacity[is_up, column].max())
            if largest < amount:
                return f"no node has {_format(amount)} {kind}, the largest has {_format(largest)}"
        where = f" with {' and '.join(names)}" if names else ""
        return f"no node{where} has {demand}"


def _format(amount: int) -> str:
    """Return an amount in thousandths in full: two that are compared must not look alike."""
    return f"{amount / MILLI:.15g}"
