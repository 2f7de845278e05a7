"""The arrays that hold a cluster and its tasks: layout, allocation and growth.

Compiled code reads one tuple of arrays (:class:`StateArrays`). Its sizes are capacities: rows beyond the tasks and
ephemeral resources in use hold fill values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unfold_placement._types import FloatArray, Int32Array, Int64Array, MaskArray
from unfold_placement.core.types import Node

MAX_REQUESTS = 8
"""Ephemeral resources that one task may request."""
COUNTERS = 9
"""Length of :attr:`StateArrays.counters`; ``kernel.py`` names its entries."""
TASK_FILL = {
    "demand": 0, "requested": -1, "requested_amount": 0, "request_phase": 0, "run_s": 0.0, "arrival_s": 0.0,
    "status": 0, "task_node": -1, "start_s": 0.0, "end_s": 0.0, "recheck": 0, "is_owner": 0, "device": -1, "queue": 0,
}  # fmt: skip
"""Arrays with a row per task, and the value of a row in which no task is."""
RESOURCE_FILL = {"column": -1, "scope": 0, "pool": 0}
"""Arrays with a row per ephemeral resource, and the value of an unused row."""
LOG_ARRAYS = ("heap_time", "heap_task", "log_time", "log_kind", "log_task", "log_node")


class StateArrays(NamedTuple):
    """Every array of a cluster and its tasks. Amounts are in thousandths, times in seconds.

    Attributes:
        demand: [tasks, columns] demand of cpu, gpu, memory and so on, then the device room that each task needs
            (:mod:`unfold_placement.core.devices`).
        requested: [tasks, requests] ids of requested ephemeral resources, -1 where a task requests fewer.
        requested_amount: [tasks, requests] their amounts.
        request_phase: [tasks, requests] the phases of the policies that request them.
        run_s: [tasks, node types] run times.
        arrival_s: [tasks] arrival times.
        arrival_order: [tasks] rows of tasks in order of arrival.
        status: [tasks] ``NOT_SUBMITTED``, ``WAITING``, ``RUNNING``, ``DONE`` or ``REFUSED``.
        task_node: [tasks] row of the node on which a task runs or ran last, else -1.
        start_s: [tasks] last start.
        end_s: [tasks] expected end of the last start.
        recheck: [tasks] which nodes the matcher examines next: ``ALL_NODES``, ``DIRTY_NODES_ONLY`` or none
            (``BLOCKED``).
        is_owner: [tasks] 1 where a task may use reserved nodes.
        device: [tasks, device kinds] device that a task holds or held a share of, -1 for none.
        free: [nodes, columns] free capacity, then the device room.
        free_tree: [2 x leaves, columns] maxima of ``free`` over subtrees, root at 1; node ``n`` is leaf ``leaves + n``.
            A leaf without a node holds -1, so that nothing fits there.
        available: [nodes, columns] unheld amounts of ephemeral resources on nodes.
        capacity: [nodes, columns] their total amounts.
        terminating: [nodes, columns] 1 where a resource was deleted while tasks hold it.
        node_type: [nodes] index of the node type.
        device_kinds: [device kinds] their columns in ``demand``; none while no task demands a fraction.
        device_used: [nodes, device kinds, devices] amounts held in shares, or missing, of each device.
        is_up: [nodes] 1 where tasks may start.
        is_reserved: [nodes] 1 where only the tasks of ``is_owner`` may start.
        is_dirty: [nodes] 1 where capacity was freed or created since the last match.
        dirty_nodes: [nodes] rows of the dirty nodes.
        column: [resources] column in ``available``, -1 where the resource is on no node.
        scope: [resources] 0 for resources on nodes, ``SHARED`` or ``TASK_BOUND`` for cluster-scoped ones.
        pool: [resources] unheld amount of a cluster-scoped resource.
        queue: [tasks] rows of waiting tasks in queue order.
        heap_time: [log] ends of running tasks, as a binary heap.
        heap_task: [log] the tasks of ``heap_time``.
        log_time: [log] times of logged events.
        log_kind: [log] kinds of logged events.
        log_task: [log] task rows of logged events.
        log_node: [log] node rows of logged events, -1 for none.
        counters: [9] lengths and counts; ``kernel.py`` names them.
        clock: [1] the current time.
    """

    demand: Int64Array
    requested: Int32Array
    requested_amount: Int64Array
    request_phase: Int32Array
    run_s: FloatArray
    arrival_s: FloatArray
    arrival_order: Int32Array
    status: Int32Array
    task_node: Int32Array
    start_s: FloatArray
    end_s: FloatArray
    recheck: MaskArray
    is_owner: MaskArray
    device: Int32Array
    free: Int64Array
    free_tree: Int64Array
    available: Int64Array
    capacity: Int64Array
    terminating: MaskArray
    node_type: Int32Array
    device_kinds: Int64Array
    device_used: Int64Array
    is_up: MaskArray
    is_reserved: MaskArray
    is_dirty: MaskArray
    dirty_nodes: Int32Array
    column: Int32Array
    scope: MaskArray
    pool: Int64Array
    queue: Int32Array
    heap_time: FloatArray
    heap_task: Int32Array
    log_time: FloatArray
    log_kind: Int32Array
    log_task: Int32Array
    log_node: Int32Array
    counters: Int64Array
    clock: FloatArray


def allocate_state(nodes: Sequence[Node], resource_kinds: Sequence[str]) -> StateArrays:
    """Allocate the arrays of a cluster without tasks and ephemeral resources."""
    count = len(nodes)
    node_types = list_node_types(nodes)
    zeros = np.zeros
    rows = [[node.capacity.get(kind, 0) for kind in resource_kinds] for node in nodes]
    free = np.array(rows, np.int64).reshape(count, len(resource_kinds))
    return StateArrays(
        demand=zeros((0, len(resource_kinds)), np.int64),
        requested=zeros((0, MAX_REQUESTS), np.int32),
        requested_amount=zeros((0, MAX_REQUESTS), np.int64),
        request_phase=zeros((0, MAX_REQUESTS), np.int32),
        run_s=zeros((0, len(node_types))),
        arrival_s=zeros(0),
        arrival_order=zeros(0, np.int32),
        status=zeros(0, np.int32),
        task_node=zeros(0, np.int32),
        start_s=zeros(0),
        end_s=zeros(0),
        recheck=zeros(0, np.uint8),
        is_owner=zeros(0, np.uint8),
        device=zeros((0, 0), np.int32),
        free=free,
        free_tree=build_max_tree(free),
        available=zeros((count, 4), np.int64),
        capacity=zeros((count, 4), np.int64),
        terminating=zeros((count, 4), np.uint8),
        node_type=np.array([node_types.index(node.labels.get("type", "")) for node in nodes], np.int32),
        device_kinds=zeros(0, np.int64),
        device_used=zeros((count, 0, 0), np.int64),
        is_up=np.ones(count, np.uint8),
        is_reserved=zeros(count, np.uint8),
        is_dirty=zeros(count, np.uint8),
        dirty_nodes=zeros(count, np.int32),
        column=np.full(8, -1, np.int32),
        scope=zeros(8, np.uint8),
        pool=zeros(8, np.int64),
        queue=zeros(0, np.int32),
        heap_time=zeros(64),
        heap_task=zeros(64, np.int32),
        log_time=zeros(64),
        log_kind=zeros(64, np.int32),
        log_task=zeros(64, np.int32),
        log_node=zeros(64, np.int32),
        counters=zeros(COUNTERS, np.int64),
        clock=zeros(1),
    )


def build_max_tree(free: Int64Array) -> Int64Array:
    """Build the tree of maxima over the nodes' free capacity.

    Args:
        free: [nodes, kinds] free capacity in thousandths.

    Returns:
        [2 x leaves, kinds] the tree, where ``leaves`` is the next power of two of the number of nodes.
    """
    leaves = 1 << max(len(free) - 1, 0).bit_length()
    tree = np.full((2 * leaves, free.shape[1]), -1, np.int64)
    tree[leaves : leaves + len(free)] = free
    while leaves > 1:
        leaves //= 2
        tree[leaves : 2 * leaves] = tree[2 * leaves : 4 * leaves].reshape(leaves, 2, free.shape[1]).max(1)
    return tree


def list_node_types(nodes: Sequence[Node]) -> list[str]:
    """List the distinct node types in order of appearance."""
    return list(dict.fromkeys(node.labels.get("type", "") for node in nodes))


def schedule_arrivals(state: StateArrays, count: int) -> StateArrays:
    """Let the first ``count`` tasks arrive by themselves, each at its arrival time."""
    order = np.argsort(state.arrival_s[:count], kind="stable").astype(np.int32)
    return state._replace(arrival_order=order)


def grow_tasks(state: StateArrays, count: int) -> StateArrays:
    """Make room for ``count`` tasks."""
    return _grow(state, TASK_FILL, count)


def grow_resources(state: StateArrays, count: int) -> StateArrays:
    """Make room for ``count`` ephemeral resources."""
    return state if count <= state.column.size else _grow(state, RESOURCE_FILL, 2 * count)


def grow_columns(state: StateArrays) -> StateArrays:
    """Double the columns of node resources."""
    width = state.available.shape[1]
    names = ("available", "capacity", "terminating")
    return state._replace(**{name: np.pad(getattr(state, name), ((0, 0), (0, width))) for name in names})


def grow_log(state: StateArrays, size: int) -> StateArrays:
    """Make room for ``size`` entries in the event log and in the heap of ends."""
    return state if size <= state.log_time.size else _grow(state, dict.fromkeys(LOG_ARRAYS, 0), 2 * size)


def grow_rows(array: NDArray[Any], size: int, fill: float) -> NDArray[Any]:
    """Return an array with at least ``size`` rows, new rows filled with ``fill``."""
    if array.shape[0] >= size:
        return array
    bigger = np.full((max(size, 2 * array.shape[0]), *array.shape[1:]), fill, array.dtype)
    bigger[: array.shape[0]] = array
    return bigger


def _grow(state: StateArrays, fills: dict[str, float] | dict[str, int], size: int) -> StateArrays:
    return state._replace(**{name: grow_rows(getattr(state, name), size, fill) for name, fill in fills.items()})
