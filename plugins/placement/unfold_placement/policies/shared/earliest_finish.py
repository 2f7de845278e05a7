"""Forecast of earliest finish times: when nodes have room for waiting tasks, each on the node where it ends first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from unfold_placement._types import BoolArray, FloatArray, Int32Array, MaskArray
from unfold_placement.core import kernel
from unfold_placement.core.cluster_view import Unit, View
from unfold_placement.core.kernel import LOGGED, RUNNING, WAITING
from unfold_placement.core.state import StateArrays
from unfold_placement.policies.shared.pending import UnitShapes
from unfoldkit.jit import compiled


@compiled
def has_cluster_resources(state: StateArrays, task: int, phase: int) -> bool:
    """Return whether the cluster-scoped resources that a task requests in earlier phases are available.

    A copy of the kernel's function, since compiled code calls functions of its own module only.
    """
    for index in range(state.requested.shape[1]):
        resource = state.requested[task, index]
        if resource < 0:
            break
        amount = state.requested_amount[task, index]
        short = state.pool[resource] < amount if state.scope[resource] > 0 else state.column[resource] < 0
        if short and state.request_phase[task, index] < phase:
            return False
    return True


@compiled
def earliest_finish_node(state: StateArrays, task: int, free_at: FloatArray, reserved_until: FloatArray) -> int:
    """Return the node on which a task would end first, or -1.

    Args:
        state: The arrays.
        task: Row of the task.
        free_at: [nodes] when each node has room for the task, in seconds.
        reserved_until: [nodes] until when each node is reserved for tasks ahead of it.
    """
    best_end, best_node = np.inf, -1
    for node in range(free_at.size):
        end = max(free_at[node], reserved_until[node]) + state.run_s[task, state.node_type[node]]
        if state.is_up[node] == 1 and (best_node < 0 or end < best_end):
            best_end, best_node = end, node
    return best_node


@compiled
def reserve_nodes(
    state: StateArrays, rows: Int32Array, group: Int32Array, phase: int, free_at: FloatArray, reserved_until: FloatArray
) -> None:
    """Reserve, for each admitted task of ``rows``, the node on which it would end first; none fits anywhere now.

    ``group`` is the row of ``free_at`` [groups, nodes] that belongs to each task's shape.
    """
    for index in range(rows.size):
        if state.status[rows[index]] == WAITING and has_cluster_resources(state, rows[index], phase):
            node = earliest_finish_node(state, rows[index], free_at[group[index]], reserved_until)
            if node >= 0:
                start = max(free_at[group[index], node], reserved_until[node])
                reserved_until[node] = start + state.run_s[rows[index], state.node_type[node]]


@dataclass(slots=True)
class FinishForecast:
    """Reservations of nodes for waiting tasks, in queue order.

    Attributes:
        view: The cluster.
        rows: [tasks] rows of the waiting tasks.
        shapes: [tasks] their shape numbers.
        run_s: [tasks, node types] their run times.
        is_type_dependent: [tasks] whether the run time differs between node types.
        reserved_until: [nodes] until when each node is reserved, in seconds.
        reserved_count: Number of tasks with reservations.
        log_length: Length of the event log to which ``free_at_by_shape`` refers.
        free_at_by_shape: [nodes] when each node has room, by shape.
    """

    view: View
    rows: Int32Array
    shapes: Int32Array
    run_s: FloatArray
    is_type_dependent: BoolArray
    reserved_until: FloatArray
    reserved_count: int = 0
    log_length: int = -1
    free_at_by_shape: dict[int, FloatArray] = field(default_factory=dict)

    def iter_fitting(self, shapes: UnitShapes) -> Iterator[tuple[int, MaskArray]]:
        """Yield the index of each task that fits somewhere now, and the mask of these nodes.

        Tasks ahead of it have their reservations by then.
        """
        zeros = np.zeros(self.rows.size, np.int32)
        for index in shapes.iter_candidates(self.view, self.rows, self.shapes, zeros, zeros.astype(np.uint8)):
            mask = self.view.fit_mask(self.view.table.tasks[self.rows[index]], shapes.phase)
            if not mask.any():
                shapes.hopeless[self.shapes[index], 0] = 1
                continue
            # tasks that run equally long everywhere never wait: reservations matter only for later ones that do
            if self.is_type_dependent[index:].any():
                self.reserve_before(index, shapes.phase)
            yield index, mask

    def earliest_end_now(self, index: int, mask: MaskArray) -> tuple[str, float]:
        """Return the node on which a task that starts now ends first, and this end (s)."""
        node_types = self.view.table.state.node_type
        ends = np.where(mask, self.view.now + self.run_s[index, node_types], np.inf)
        return self.view.table.nodes[int(ends.argmin())].name, float(ends.min())

    def place_unit(self, unit: Unit, phase: int) -> list[str]:
        """Return nodes for the tasks of a gang, each in order on the node where it ends first; empty if not all fit."""
        state, table = self.view.table.state, self.view.table
        allocated: list[tuple[int, int]] = []
        try:
            for task in unit:
                row, mask = table.task_rows[task.name], self.view.fit_mask(task, phase)
                if not mask.any():
                    return []
                node = int(np.where(mask, state.run_s[row, state.node_type], np.inf).argmin())
                kernel.call_allocate(state, row, node, phase)
                allocated.append((row, node))
            return [table.nodes[node].name for _, node in allocated]
        finally:
            for row, node in allocated:
                kernel.call_release(state, row, node, phase)

    def reserve_before(self, index: int, phase: int) -> None:
        """Reserve nodes for all tasks before an index; nothing has started since the last of them was passed."""
        rows, shapes = self.rows[self.reserved_count : index], self.shapes[self.reserved_count : index]
        self.reserved_count = index + 1
        if rows.size:
            _, first_index, group = np.unique(shapes, return_index=True, return_inverse=True)
            free_at = np.array([self.free_at(int(rows[first]), int(shapes[first])) for first in first_index])
            reserve_nodes(self.view.table.state, rows, group.astype(np.int32), phase, free_at, self.reserved_until)

    def reserve_if_earlier(self, index: int, mask: MaskArray, end_now_s: float, max_wait_s: float) -> bool:
        """Reserve a node on which a task that waits ends before ``end_now_s``; return whether there is one.

        Args:
            index: Index of the task.
            mask: [nodes] nodes on which it fits now, which are not candidates.
            end_now_s: Its end if it starts now.
            max_wait_s: How long it waits at most.
        """
        if not self.is_type_dependent[index]:
            return False
        state, row = self.view.table.state, int(self.rows[index])
        free_at = np.where(mask, np.inf, self.free_at(row, int(self.shapes[index])))
        node = earliest_finish_node(state, row, free_at, self.reserved_until)
        run_s = float(state.run_s[row, state.node_type[node]])
        end_s = max(float(free_at[node]), float(self.reserved_until[node])) + run_s
        if end_s - run_s - self.view.now > max_wait_s or end_s >= end_now_s:
            return False
        self.reserved_until[node] = end_s
        return True

    def free_at(self, row: int, shape: int) -> FloatArray:
        """Return the [nodes] times (s) at which each node has room for a task."""
        state = self.view.table.state
        if self.log_length != state.counters[LOGGED]:
            self.log_length, self.free_at_by_shape = int(state.counters[LOGGED]), {}
        if shape not in self.free_at_by_shape:
            running = np.flatnonzero(state.status == RUNNING).astype(np.int32)
            running = running[np.argsort(state.end_s[running], kind="stable")]
            self.free_at_by_shape[shape] = np.empty(len(state.is_up))
            kernel.call_forecast_free_times(state, row, self.view.now, running, self.free_at_by_shape[shape])
        return self.free_at_by_shape[shape]


def build_forecast(view: View, shapes: UnitShapes) -> FinishForecast:
    """Build the forecast of all waiting tasks, without reservations."""
    rows = view.queue_rows()
    run_s = view.table.state.run_s[rows]
    reserved_until = np.zeros(len(view.table.nodes))
    is_type_dependent = run_s.min(1) < run_s.max(1)
    return FinishForecast(view, rows, shapes.single_task_shapes(rows, view), run_s, is_type_dependent, reserved_until)
