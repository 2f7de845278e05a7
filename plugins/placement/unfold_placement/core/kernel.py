"""The compiled matcher and event loop.

:mod:`unfold_placement.simulation.reference` states the same rules in plain Python. A task that fitted nowhere can only
fit where capacity was freed or created since. Hence only new tasks examine every node, others the dirty nodes, and
tasks that lack a cluster-scoped resource none. Among the nodes that fit, the first in node order is used.
"""

from __future__ import annotations

import numpy as np

from unfold_placement._types import FloatArray, Int32Array, Int64Array, MaskArray
from unfold_placement.core.state import COUNTERS, StateArrays
from unfold_placement.core.types import MILLI, ROOM_OF_DEVICE
from unfoldkit.jit import compile_ahead, compiled, without_dispatch

NOT_SUBMITTED, WAITING, RUNNING, DONE, REFUSED = range(5)
"""Codes of ``StateArrays.status``."""
LOG_SUBMITTED, LOG_STARTED, LOG_ENDED, LOG_PREEMPTED, LOG_REFUSED = range(5)
"""Codes of ``StateArrays.log_kind``."""
ARRIVED, QUEUED, HEAPED, LOGGED, DECISIONS, DIRTY, RECHECKS, STARTS, FREED = range(COUNTERS)
"""Indices of ``StateArrays.counters``: lengths of the arrival order, queue, heap, log and dirty nodes, and counts."""
ALL_PHASES = 99
SHARED, TASK_BOUND = 1, 2
"""Codes of ``StateArrays.scope``: cluster-scoped for many tasks, or for one."""
DIRTY_NODES_ONLY, ALL_NODES, BLOCKED = range(3)
"""Codes of ``StateArrays.recheck``."""
LOG_FULL, EVENT_WATCHED, TIME_REACHED, IDLE = range(4)
"""Why ``advance`` returned."""
HOLDS_RESOURCE, LEFT_QUEUE = 1, 2
"""Flags of units in ``next_candidate``."""


@compiled
def fits_demand(demand: Int64Array, free: Int64Array, task: int, node: int) -> bool:
    """Return whether a row of free capacity covers a task's demand."""
    for kind in range(demand.shape[1]):  # noqa: SIM110 - numba compiles the plain loop
        if demand[task, kind] > free[node, kind]:
            return False
    return True


@compiled
def update_free_tree(free: Int64Array, free_tree: Int64Array, node: int) -> None:
    """Update the tree of maxima after the free capacity of a node changed.

    It takes two arrays: a call within compiled code that passes all of ``StateArrays`` costs more than this loop.
    """
    index = free_tree.shape[0] // 2 + node
    for kind in range(free.shape[1]):
        free_tree[index, kind] = free[node, kind]
    changed = True
    while changed and index > 1:
        index >>= 1
        changed = False
        for kind in range(free.shape[1]):
            largest = max(free_tree[2 * index, kind], free_tree[2 * index + 1, kind])
            if largest != free_tree[index, kind]:
                free_tree[index, kind] = largest
                changed = True


@compiled
def next_fitting_node(demand: Int64Array, free_tree: Int64Array, nodes: int, task: int, node: int) -> int:
    """Return the first of ``nodes`` nodes from ``node`` on with free capacity for a task's demand, or -1."""
    leaves = free_tree.shape[0] // 2
    index = leaves + node if node < leaves else 0
    while index > 0:
        if not fits_demand(demand, free_tree, task, index):
            # go on to the next subtree on the right
            while index & 1:
                index >>= 1
            index += index > 0
        elif index < leaves:
            index *= 2
        else:
            return index - leaves if index - leaves < nodes else -1
    return -1


@compiled
def mark_dirty(state: StateArrays, node: int) -> None:
    """Record that capacity was freed or created on a node."""
    if state.is_dirty[node] == 0:
        state.is_dirty[node] = 1
        state.dirty_nodes[state.counters[DIRTY]] = node
        state.counters[DIRTY] += 1


@compiled
def has_cluster_resources(state: StateArrays, task: int, phase: int) -> bool:
    """Return whether the cluster-scoped resources that a task requests in earlier phases are available."""
    for index in range(state.requested.shape[1]):
        resource = state.requested[task, index]
        if resource < 0:
            break
        short = (
            state.pool[resource] < state.requested_amount[task, index]
            if state.scope[resource] > 0
            else state.column[resource] < 0
        )
        if short and state.request_phase[task, index] < phase:
            return False
    return True


@compiled
def has_node_resources(state: StateArrays, task: int, node: int, phase: int) -> bool:
    """Return whether a node is up, not reserved for others, and has what a task requests in phases before ``phase``."""
    if state.is_up[node] == 0 or (state.is_reserved[node] == 1 and state.is_owner[task] == 0):
        return False
    for index in range(state.requested.shape[1]):
        resource = state.requested[task, index]
        if resource < 0:
            break
        if state.request_phase[task, index] < phase and state.scope[resource] == 0:
            column = state.column[resource]
            if column < 0 or state.available[node, column] < state.requested_amount[task, index]:
                return False
    return True


@compiled
def update_device_room(device_kinds: Int64Array, free: Int64Array, used: Int64Array, node: int) -> None:
    """Update the device room of a node after its free amounts or its shares changed."""
    for index in range(device_kinds.size):
        in_shares, largest = 0, 0
        for device in range(used.shape[2]):
            if used[node, index, device] > 0:
                in_shares += MILLI - used[node, index, device]
                largest = max(largest, MILLI - used[node, index, device])
        whole = max(free[node, device_kinds[index]] - in_shares, 0) // MILLI
        free[node, free.shape[1] - device_kinds.size + index] = whole * ROOM_OF_DEVICE + largest


@compiled
def choose_device(used: Int64Array, node: int, index: int, share: int) -> int:
    """Return the device to take a share of: the fullest with room, else a free one.

    Where none has room, as on a live node that holds more than it should, it is the emptiest.
    """
    best, emptiest = -1, 0
    for device in range(used.shape[2]):
        if used[node, index, device] < used[node, index, emptiest]:
            emptiest = device
        has_room = used[node, index, device] + share <= MILLI
        if has_room and (best < 0 or used[node, index, device] > used[node, index, best]):
            best = device
    return best if best >= 0 else emptiest


@compiled
def shift_shares(state: StateArrays, task: int, node: int, sign: int) -> None:
    """Add a task's shares of devices to a node's free amounts; -1 subtracts. Shares of a running task do not move."""
    for index in range(state.device_kinds.size):
        share = state.demand[task, state.device_kinds[index]] % MILLI
        if share > 0:
            if sign < 0 and state.status[task] != RUNNING:
                state.device[task, index] = choose_device(state.device_used, node, index, share)
            state.device_used[node, index, state.device[task, index]] -= sign * share
    update_device_room(state.device_kinds, state.free, state.device_used, node)


@compiled
def shift_allocation(state: StateArrays, task: int, node: int, phase: int, sign: int) -> None:
    """Add a task's demand, and its requests of phases before ``phase``, to a node's free amounts; -1 subtracts."""
    for kind in range(state.demand.shape[1] - state.device_kinds.size):
        state.free[node, kind] += sign * state.demand[task, kind]
    if state.device_kinds.size > 0:
        shift_shares(state, task, node, sign)
    update_free_tree(state.free, state.free_tree, node)
    for index in range(state.requested.shape[1]):
        resource = state.requested[task, index]
        if resource < 0:
            break
        if state.request_phase[task, index] >= phase:
            continue
        column = state.column[resource]
        if state.scope[resource] > 0:
            state.pool[resource] += sign * state.requested_amount[task, index]
        elif column >= 0 and sign > 0 and state.terminating[node, column] == 1:
            state.capacity[node, column] -= state.requested_amount[task, index]
        elif column >= 0:
            state.available[node, column] += sign * state.requested_amount[task, index]


@compiled
def allocate(state: StateArrays, task: int, node: int, phase: int) -> None:
    """Subtract a task's demand and requests from a node's free amounts."""
    shift_allocation(state, task, node, phase, -1)


@compiled
def release(state: StateArrays, task: int, node: int, phase: int) -> None:
    """Undo ``allocate``; amounts of terminating resources do not return."""
    shift_allocation(state, task, node, phase, 1)


@compiled
def first_fit(state: StateArrays, task: int, phase: int, allowed: MaskArray) -> int:
    """Return the first allowed node on which a task fits, or -1."""
    if not has_cluster_resources(state, task, phase):
        return -1
    node = next_fitting_node(state.demand, state.free_tree, state.free.shape[0], task, 0)
    while node >= 0 and not (allowed[node] == 1 and has_node_resources(state, task, node, phase)):
        node = next_fitting_node(state.demand, state.free_tree, state.free.shape[0], task, node + 1)
    return node


@compiled
def mark_fitting(state: StateArrays, task: int, phase: int, marks: MaskArray) -> None:
    """Mark every node on which a task fits."""
    available = has_cluster_resources(state, task, phase)
    for node in range(state.free.shape[0]):
        marks[node] = (
            available
            and fits_demand(state.demand, state.free, task, node)
            and has_node_resources(state, task, node, phase)
        )


@compiled
def next_candidate(
    state: StateArrays,
    rows: Int32Array,
    shape: Int32Array,
    level: Int32Array,
    flag: MaskArray,
    low: int,
    phase: int,
    hopeless: MaskArray,
) -> int:
    """Return the first index from ``low`` on of a unit that may fit or holds a resource, or -1.

    Args:
        state: The arrays.
        rows: [units] task rows.
        shape: [units] shape ids: units of one shape fit or fail together.
        level: [units] fallback levels.
        flag: [units] ``HOLDS_RESOURCE``, ``LEFT_QUEUE`` or 0; tasks that no longer wait are flagged here.
        low: Where the search begins.
        phase: Requests of earlier phases must be available.
        hopeless: [shapes, levels] 1 where a shape is known to fit nowhere.
    """
    for index in range(low, rows.size):
        if flag[index] == LEFT_QUEUE:
            continue
        if state.status[rows[index]] != WAITING:
            flag[index] = LEFT_QUEUE
            continue
        if flag[index] == HOLDS_RESOURCE:
            return index
        # a task with a reservation fits where others of its shape do not
        may_fit = hopeless[shape[index], level[index]] == 0 or state.is_owner[rows[index]] == 1
        if may_fit and has_cluster_resources(state, rows[index], phase):
            if next_fitting_node(state.demand, state.free_tree, state.free.shape[0], rows[index], 0) >= 0:
                return index
            hopeless[shape[index], level[index]] = 1
    return -1


@compiled
def next_admissible(
    state: StateArrays, rows: Int32Array, shape: Int32Array, is_removed: MaskArray, low: int, phase: int,
    pending: Int32Array, samples: Int32Array, hopeless: MaskArray,
) -> int:  # fmt: skip
    """Return the first index from ``low`` on of a unit that may fit or waits no longer, or -1.

    Args:
        state: The arrays.
        rows: [units] row of each unit's first task.
        shape: [units] shape ids.
        is_removed: [units] not 0 where a unit was removed.
        low: Where the search begins.
        phase: Requests of earlier phases must be available.
        pending: [shapes] number of pending units of each shape.
        samples: [shapes] row of a task of each shape.
        hopeless: [shapes, levels] 1 where a shape is known to fit nowhere; level 0 is used.
    """
    is_any_fitting = False
    for number in range(pending.size):
        if pending[number] > 0 and hopeless[number, 0] == 0:
            if first_fit(state, samples[number], phase, state.is_up) >= 0:
                is_any_fitting = True
                break
            hopeless[number, 0] = 1
    if not is_any_fitting:
        return -1
    for index in range(low, rows.size):
        if is_removed[index] != 0:
            continue
        if state.status[rows[index]] != WAITING:
            return index
        if hopeless[shape[index], 0] == 0:
            if first_fit(state, rows[index], phase, state.is_up) >= 0:
                return index
            hopeless[shape[index], 0] = 1
    return -1


@compiled
def revive_shapes(
    state: StateArrays, cursor: int, nodes: Int32Array, samples: Int32Array, is_single: MaskArray, hopeless: MaskArray
) -> bool:
    """Let the shapes be tried again that fit on a node which a task has left since a log entry, or on further nodes.

    Returns whether there are any.

    Args:
        state: The arrays.
        cursor: First log entry to read.
        nodes: Rows of the further nodes.
        samples: [shapes] row of a task of each shape.
        is_single: [shapes] 1 where the units of a shape are single tasks.
        hopeless: [shapes, levels] 1 where a shape is known to fit nowhere; level 0 is reset here.
    """
    has_revived = False
    for step in range(cursor - nodes.size, state.counters[LOGGED]):
        if step >= cursor and state.log_kind[step] != LOG_ENDED and state.log_kind[step] != LOG_PREEMPTED:
            continue
        node = nodes[step - cursor + nodes.size] if step < cursor else state.log_node[step]
        for shape in range(samples.size):
            if hopeless[shape, 0] == 1 and (
                is_single[shape] == 0 or fits_demand(state.demand, state.free, samples[shape], node)
            ):
                hopeless[shape, 0] = 0
                has_revived = True
    return has_revived


@compiled
def assign_unit(state: StateArrays, tasks: Int32Array, phase: int, allowed: MaskArray, assigned: Int32Array) -> bool:
    """Find a node for every task so that all fit together, in the order of ``tasks``; nothing is allocated."""
    count = 0
    for task in tasks:
        node = first_fit(state, task, phase, allowed)
        if node < 0:
            break
        assigned[count] = node
        shift_allocation(state, task, node, phase, -1)
        count += 1
    for index in range(count):
        shift_allocation(state, tasks[index], assigned[index], phase, 1)
    return count == tasks.size


@compiled
def has_unit_resources(state: StateArrays, tasks: Int32Array, phase: int) -> bool:
    """Return whether the cluster-scoped resources that each of some tasks requests in earlier phases are available."""
    for task in tasks:  # noqa: SIM110 - numba compiles the plain loop
        if not has_cluster_resources(state, task, phase):
            return False
    return True


@compiled
def mark_admitted(state: StateArrays, tasks: Int32Array, phase: int, marks: MaskArray) -> None:
    """Mark the tasks that no longer wait, and those with all cluster-scoped requests of earlier phases met."""
    for index in range(tasks.size):
        marks[index] = state.status[tasks[index]] != WAITING or has_cluster_resources(state, tasks[index], phase)


@compiled
def are_alike(state: StateArrays, tasks: Int32Array, phase: int) -> bool:
    """Return whether tasks have equal demands, and equal requests in earlier phases."""
    for task in tasks[1:]:
        for kind in range(state.demand.shape[1]):
            if state.demand[task, kind] != state.demand[tasks[0], kind]:
                return False
        for index in range(state.requested.shape[1]):
            is_earlier = state.request_phase[task, index] < phase
            if is_earlier != (state.request_phase[tasks[0], index] < phase):
                return False
            if is_earlier and (
                state.requested[task, index] != state.requested[tasks[0], index]
                or state.requested_amount[task, index] != state.requested_amount[tasks[0], index]
            ):
                return False
    return True


@compiled
def count_nodes_for(state: StateArrays, tasks: Int32Array, phase: int, candidates: Int64Array) -> int:
    """Return how many of the first candidate nodes suffice for tasks that are alike; 0 if all do not."""
    assigned = np.empty(tasks.size, np.int64)
    count, used = 0, 0
    while used < candidates.size and count < tasks.size:
        task, node = tasks[count], candidates[used]
        if (
            fits_demand(state.demand, state.free, task, node)
            and has_node_resources(state, task, node, phase)
            and has_cluster_resources(state, task, phase)
        ):
            assigned[count] = node
            shift_allocation(state, task, node, phase, -1)
            count += 1
        else:
            used += 1
    for index in range(count):
        shift_allocation(state, tasks[index], assigned[index], phase, 1)
    return used + 1 if count == tasks.size else 0


@compiled
def shortest_prefix(state: StateArrays, tasks: Int32Array, phase: int, candidates: Int64Array) -> int:
    """Return how many of the first candidate nodes suffice for a unit; 0 if all do not.

    The tasks of a unit that are not alike need a bisection: where the first go decides what is left for the others.
    """
    if are_alike(state, tasks, phase):
        return count_nodes_for(state, tasks, phase, candidates)
    allowed, assigned = np.zeros(state.is_up.size, np.uint8), np.empty(tasks.size, np.int32)
    low, high, middle = 1, candidates.size, candidates.size
    while True:
        allowed[:] = 0
        for index in range(middle):
            allowed[candidates[index]] = 1
        if assign_unit(state, tasks, phase, allowed, assigned):
            high = middle
        elif middle == candidates.size:
            return 0
        else:
            low = middle + 1
        if low >= high:
            return high
        middle = (low + high) // 2


@compiled
def forecast_free_times(state: StateArrays, task: int, now: float, running: Int32Array, free_at: FloatArray) -> None:
    """Write when each node has room for a task.

    Args:
        state: The arrays.
        task: Row of the task.
        now: The current time in seconds.
        running: Rows of the running tasks, ordered by end.
        free_at: [nodes] receives times in seconds, infinity for never.
    """
    free, used = state.free.copy(), state.device_used.copy()
    kinds = free.shape[1] - state.device_kinds.size
    free_at[:] = np.inf
    for step in range(-free.shape[0], running.size):
        node = step + free.shape[0] if step < 0 else state.task_node[running[step]]
        if step >= 0:
            for kind in range(kinds):
                free[node, kind] += state.demand[running[step], kind]
            for index in range(state.device_kinds.size):
                share = state.demand[running[step], state.device_kinds[index]] % MILLI
                if share > 0:
                    used[node, index, state.device[running[step], index]] -= share
            update_device_room(state.device_kinds, free, used, node)
        if free_at[node] == np.inf and fits_demand(state.demand, free, task, node):
            free_at[node] = state.end_s[running[step]] if step >= 0 else now


@compiled
def log_event(state: StateArrays, kind: int, task: int, node: int) -> None:
    """Append an event at the current time to the log; numbers are rows of tasks and nodes, -1 for none."""
    index = state.counters[LOGGED]
    state.log_time[index] = state.clock[0]
    state.log_kind[index] = kind
    state.log_task[index] = task
    state.log_node[index] = node
    state.counters[LOGGED] = index + 1


@compiled
def push_end(state: StateArrays, time: float, task: int) -> None:
    """Push a task's end onto the heap; equal ends are ordered by task."""
    index = state.counters[HEAPED]
    state.counters[HEAPED] = index + 1
    while index > 0:
        parent = (index - 1) >> 1
        if state.heap_time[parent] < time or (state.heap_time[parent] == time and state.heap_task[parent] < task):
            break
        state.heap_time[index] = state.heap_time[parent]
        state.heap_task[index] = state.heap_task[parent]
        index = parent
    state.heap_time[index] = time
    state.heap_task[index] = task


@compiled
def pop_end(state: StateArrays) -> int:
    """Pop the earliest end from the heap and return its task."""
    first = int(state.heap_task[0])
    size = state.counters[HEAPED] - 1
    state.counters[HEAPED] = size
    time, task = state.heap_time[size], state.heap_task[size]
    index = 0
    while 2 * index + 1 < size:
        child = 2 * index + 1
        if child + 1 < size and (
            state.heap_time[child + 1] < state.heap_time[child]
            or (
                state.heap_time[child + 1] == state.heap_time[child]
                and state.heap_task[child + 1] < state.heap_task[child]
            )
        ):
            child += 1
        if state.heap_time[child] > time or (state.heap_time[child] == time and state.heap_task[child] > task):
            break
        state.heap_time[index] = state.heap_time[child]
        state.heap_task[index] = state.heap_task[child]
        index = child
    state.heap_time[index] = time
    state.heap_task[index] = task
    return first


@compiled
def enqueue(state: StateArrays, task: int) -> None:
    """Append a task to the queue."""
    state.status[task] = WAITING
    state.recheck[task] = ALL_NODES
    state.queue[state.counters[QUEUED]] = task
    state.counters[QUEUED] += 1
    state.counters[RECHECKS] += 1


@compiled
def submit_task(state: StateArrays, task: int) -> None:
    """Append a task that arrives to the queue, and log it."""
    enqueue(state, task)
    log_event(state, LOG_SUBMITTED, task, -1)


@compiled
def start_task(state: StateArrays, task: int, node: int, knows_end: bool) -> None:
    """Start a task on a node; ``knows_end`` pushes its end onto the heap."""
    allocate(state, task, node, ALL_PHASES)
    state.status[task] = RUNNING
    state.task_node[task] = node
    state.start_s[task] = state.clock[0]
    state.end_s[task] = state.clock[0] + state.run_s[task, state.node_type[node]]
    if knows_end:
        push_end(state, state.end_s[task], task)
    log_event(state, LOG_STARTED, task, node)
    state.counters[STARTS] += 1


@compiled
def finish_task(state: StateArrays, task: int, kind: int) -> None:
    """End or preempt a task, release its allocation and recheck tasks that wait for its shared resources."""
    node = state.task_node[task]
    release(state, task, node, ALL_PHASES)
    state.status[task] = DONE
    state.counters[FREED] += 1
    mark_dirty(state, node)
    log_event(state, kind, task, node)
    for index in range(state.requested.shape[1]):
        resource = state.requested[task, index]
        if resource < 0:
            break
        if state.scope[resource] == SHARED:
            recheck_requesters(state, resource)


@compiled
def recheck_requesters(state: StateArrays, resource: int) -> None:
    """Make the waiting tasks that request a resource examine every node again."""
    for position in range(state.counters[QUEUED]):
        task = state.queue[position]
        for slot in range(state.requested.shape[1]):
            if state.requested[task, slot] == resource and state.recheck[task] != ALL_NODES:
                state.recheck[task] = ALL_NODES
                state.counters[RECHECKS] += 1


@compiled
def clear_column(state: StateArrays, column: int) -> bool:
    """Clear the column of a resource that exists nowhere; return False, changing nothing, where a task holds it."""
    for node in range(state.capacity.shape[0]):
        if state.capacity[node, column]:
            return False
    for node in range(state.capacity.shape[0]):
        state.terminating[node, column] = 0
        state.available[node, column] = 0
    return True


@compiled
def any_dirty_node_fits(demand: Int64Array, free: Int64Array, dirty_nodes: Int32Array, count: int, task: int) -> bool:
    """Return whether one of the dirty nodes covers a task's demand."""
    for index in range(count):  # noqa: SIM110 - numba compiles the plain loop
        if fits_demand(demand, free, task, dirty_nodes[index]):
            return True
    return False


@compiled
def find_node(state: StateArrays, task: int, dirty_count: int, recheck: int) -> int:
    """Return the first node on which a task fits: of all nodes, or of the dirty ones; -1 for none."""
    if recheck == ALL_NODES:
        # the caller checked the cluster-scoped resources, so first_fit would check them twice
        node = next_fitting_node(state.demand, state.free_tree, state.free.shape[0], task, 0)
        while node >= 0 and not has_node_resources(state, task, node, ALL_PHASES):
            node = next_fitting_node(state.demand, state.free_tree, state.free.shape[0], task, node + 1)
        return node
    first = -1
    for index in range(dirty_count):
        node = state.dirty_nodes[index]
        if (
            (first < 0 or node < first)
            and fits_demand(state.demand, state.free, task, node)
            and has_node_resources(state, task, node, ALL_PHASES)
        ):
            first = node
    return first


@compiled
def start_fitting(state: StateArrays, max_starts: int, knows_ends: bool) -> int:  # noqa: C901, PLR0912
    """Start tasks that fit, in queue order and at most ``max_starts``; return the number of starts."""
    if state.counters[RECHECKS] == 0 and state.counters[DIRTY] == 0:
        return 0
    started = 0
    remaining = 0
    size = state.counters[QUEUED]
    position = 0
    dirty_count = state.counters[DIRTY]
    while position < size and started < max_starts:
        task = state.queue[position]
        position += 1
        node = -1
        recheck = state.recheck[task]
        may_fit = recheck == ALL_NODES or (recheck == DIRTY_NODES_ONLY and dirty_count > 0)
        if may_fit and state.status[task] == WAITING:
            state.counters[DECISIONS] += 1
            state.recheck[task] = DIRTY_NODES_ONLY
            if recheck == ALL_NODES and not has_cluster_resources(state, task, ALL_PHASES):
                state.recheck[task] = BLOCKED
            elif recheck == ALL_NODES or any_dirty_node_fits(
                state.demand, state.free, state.dirty_nodes, dirty_count, task
            ):
                if recheck == ALL_NODES or has_cluster_resources(state, task, ALL_PHASES):
                    node = find_node(state, task, dirty_count, recheck)
                else:
                    state.recheck[task] = BLOCKED
        if recheck == ALL_NODES:
            state.counters[RECHECKS] -= 1
        if node >= 0:
            start_task(state, task, node, knows_ends)
            started += 1
        elif state.status[task] == WAITING:
            state.queue[remaining] = task
            remaining += 1
    if position == size:
        for index in range(dirty_count):
            state.is_dirty[state.dirty_nodes[index]] = 0
        state.counters[DIRTY] = 0
    while position < size:
        state.queue[remaining] = state.queue[position]
        remaining += 1
        position += 1
    state.counters[QUEUED] = remaining
    return started


@compiled
def end_due_tasks(state: StateArrays, now: float) -> None:
    """End the running tasks with an end at ``now`` or before."""
    while state.counters[HEAPED] > 0 and state.heap_time[0] <= now:
        task = pop_end(state)
        if state.status[task] == RUNNING and state.end_s[task] <= now:
            finish_task(state, task, LOG_ENDED)


@compiled
def submit_due_tasks(state: StateArrays, now: float) -> None:
    """Submit the tasks that arrive until ``now``, in order of arrival."""
    while (
        state.counters[ARRIVED] < state.arrival_order.size
        and state.arrival_s[state.arrival_order[state.counters[ARRIVED]]] <= now
    ):
        task = state.arrival_order[state.counters[ARRIVED]]
        state.counters[ARRIVED] += 1
        submit_task(state, task)


@compiled
def advance(state: StateArrays, until: float, watched: int) -> int:
    """Advance the clock to a watched event, to ``until`` or to the end, matching tasks at every instant before.

    Args:
        state: The arrays.
        until: Latest time in seconds.
        watched: Bits of the event kinds at which to stop.

    Returns:
        ``LOG_FULL``, ``EVENT_WATCHED``, ``TIME_REACHED`` or ``IDLE``.
    """
    room = state.log_time.size
    while True:
        while state.counters[HEAPED] > 0 and (
            state.status[state.heap_task[0]] != RUNNING or state.end_s[state.heap_task[0]] != state.heap_time[0]
        ):
            pop_end(state)
        arrival = (
            state.arrival_s[state.arrival_order[state.counters[ARRIVED]]]
            if state.counters[ARRIVED] < state.arrival_order.size
            else np.inf
        )
        next_end = state.heap_time[0] if state.counters[HEAPED] > 0 else np.inf
        now = min(arrival, next_end)
        if now > until:
            state.clock[0] = max(state.clock[0], until)
            return TIME_REACHED
        if now == np.inf:
            return IDLE
        if (
            state.counters[LOGGED]
            + state.counters[HEAPED]
            + state.counters[QUEUED]
            + state.arrival_order.size
            - state.counters[ARRIVED]
            >= room
        ):
            return LOG_FULL
        state.clock[0] = max(state.clock[0], now)
        first_entry = state.counters[LOGGED]
        end_due_tasks(state, now)
        submit_due_tasks(state, now)
        for index in range(first_entry, state.counters[LOGGED]):
            if watched & (1 << state.log_kind[index]):
                return EVENT_WATCHED
        if watched & (1 << LOG_STARTED):
            return EVENT_WATCHED
        start_fitting(state, state.queue.size, True)


# plain Python calls these many times a task, without numba's check of every array's type
call_next_admissible = without_dispatch(next_admissible)
call_revive_shapes = without_dispatch(revive_shapes)
call_advance = without_dispatch(advance)
call_start_fitting = without_dispatch(start_fitting)
call_mark_dirty = without_dispatch(mark_dirty)
call_recheck_requesters = without_dispatch(recheck_requesters)
call_first_fit = without_dispatch(first_fit)
call_assign_unit = without_dispatch(assign_unit)
call_has_unit_resources = without_dispatch(has_unit_resources)
call_mark_admitted = without_dispatch(mark_admitted)
call_mark_fitting = without_dispatch(mark_fitting)
call_are_alike = without_dispatch(are_alike)
call_shortest_prefix = without_dispatch(shortest_prefix)
call_forecast_free_times = without_dispatch(forecast_free_times)
call_has_cluster_resources = without_dispatch(has_cluster_resources)
call_allocate = without_dispatch(allocate)
call_release = without_dispatch(release)
call_end_due_tasks = without_dispatch(end_due_tasks)
call_submit_due_tasks = without_dispatch(submit_due_tasks)
call_next_candidate = without_dispatch(next_candidate)
call_submit_task = without_dispatch(submit_task)
call_finish_task = without_dispatch(finish_task)
call_clear_column = without_dispatch(clear_column)


def compile_live_functions(state: StateArrays) -> None:
    """Compile, or load, all that a live controller may call; the arrays of every cluster are of one type."""
    samples: dict[object, object] = {
        StateArrays: state, int: 0, float: 0.0, bool: False, Int64Array: np.zeros(1, np.int64),
        Int32Array: np.zeros(1, np.int32), FloatArray: np.zeros(1), MaskArray: np.zeros(1, np.uint8),
        "hopeless": np.zeros((1, 1), np.uint8),
    }  # fmt: skip
    functions = [start_task, enqueue, log_event, mark_dirty, first_fit, mark_fitting, next_candidate, next_admissible]
    functions += [revive_shapes, assign_unit, has_unit_resources, mark_admitted, are_alike, shortest_prefix]
    functions += [forecast_free_times, allocate, release, finish_task, recheck_requesters, clear_column]
    compile_ahead([*functions, start_fitting, submit_task, has_cluster_resources], samples)
