"""The compiled matcher and event loop. Rules: see :mod:`unfold_placement.core.reference`, the same in plain Python.

A task that fitted nowhere can only fit where something was freed or created since: so only *new* tasks look at every
node, all others at the *dirty* ones, and those *blocked* by a name of the cluster at none. Among nodes that fit, the
first in their order is taken.
"""

from __future__ import annotations

import numpy as np

from unfold_placement.core.state import Arena, Flags, Small, Whole
from unfoldkit.jit import compiled

UNBORN, WAITING, RUNNING, DONE, REFUSED = range(5)
K_SUBMITTED, K_STARTED, K_ENDED, K_PREEMPTED, K_REFUSED = range(5)
ARRIVED, QUEUED, HEAPED, LOGGED, DECISIONS, DIRTY, FRESH, PLACED, GROWN = range(9)
MARKS, ALL_PHASES = 9, 99
WIDE, PRIVATE = 1, 2
OLD, NEW, BLOCKED = range(3)
FULL, WATCHED, UNTIL, IDLE = range(4)
HELD, GONE = 1, 2


@compiled
def roomy(need: Whole, free: Whole, task: int, node: int) -> bool:
    """Return whether a node has the resources that a task needs."""
    for resource in range(need.shape[1]):  # noqa: SIM110 - a loop is what compiles to a loop
        if need[task, resource] > free[node, resource]:
            return False
    return True


@compiled
def lift(a: Arena, node: int) -> None:
    """Let the tree of maxima know what is free on a node now."""
    at = a.tree.shape[0] // 2 + node
    for resource in range(a.free.shape[1]):
        a.tree[at, resource] = a.free[node, resource]
    changed = True
    while changed and at > 1:
        at >>= 1
        changed = False
        for resource in range(a.free.shape[1]):
            most = max(a.tree[2 * at, resource], a.tree[2 * at + 1, resource])
            if most != a.tree[at, resource]:
                a.tree[at, resource] = most
                changed = True


@compiled
def following(a: Arena, task: int, node: int) -> int:
    """Return the first node from ``node`` on that has the resources that a task needs, or -1."""
    leaves = a.tree.shape[0] // 2
    at = leaves + node if node < leaves else 0
    while at > 0:
        if not roomy(a.need, a.tree, task, at):
            # what stands right of all that was passed
            while at & 1:
                at >>= 1
            at += at > 0
        elif at < leaves:
            at *= 2
        else:
            return at - leaves if at - leaves < a.free.shape[0] else -1
    return -1


@compiled
def touch(a: Arena, node: int) -> None:
    """Note that something was freed or created on a node."""
    if a.dirty[node] == 0:
        a.dirty[node] = 1
        a.touched[a.mark[DIRTY]] = node
        a.mark[DIRTY] += 1


@compiled
def wide_fits(a: Arena, task: int, phase: int) -> bool:
    """Return whether the names that are counted once for the cluster are there."""
    for index in range(a.ask.shape[1]):
        name = a.ask[task, index]
        if name < 0:
            break
        short = a.pool[name] < a.much[task, index] if a.wide[name] > 0 else a.column[name] < 0
        if short and a.step[task, index] < phase:
            return False
    return True


@compiled
def fits(a: Arena, task: int, node: int, phase: int) -> bool:
    """Return whether a node is up and has the names of phases before ``phase`` that a task asks for."""
    if a.up[node] == 0:
        return False
    for index in range(a.ask.shape[1]):
        name = a.ask[task, index]
        if name < 0:
            break
        if a.step[task, index] < phase and a.wide[name] == 0:
            column = a.column[name]
            if column < 0 or a.left[node, column] < a.much[task, index]:
                return False
    return True


@compiled
def shift(a: Arena, task: int, node: int, phase: int, sign: int) -> None:
    """Add a task's demand, and its names of phases before ``phase``, to what a node has, or with -1 take it away."""
    for resource in range(a.need.shape[1]):
        a.free[node, resource] += sign * a.need[task, resource]
    lift(a, node)
    for index in range(a.ask.shape[1]):
        name = a.ask[task, index]
        if name < 0:
            break
        if a.step[task, index] >= phase:
            continue
        column = a.column[name]
        if a.wide[name] > 0:
            a.pool[name] += sign * a.much[task, index]
        elif column >= 0 and sign > 0 and a.dying[node, column] == 1:
            a.cap[node, column] -= a.much[task, index]
        elif column >= 0:
            a.left[node, column] += sign * a.much[task, index]


@compiled
def take(a: Arena, task: int, node: int, phase: int) -> None:
    """Take a task's demand and names out of a node, as ``shift`` does."""
    shift(a, task, node, phase, -1)


@compiled
def give(a: Arena, task: int, node: int, phase: int) -> None:
    """Give back what ``take`` took; of a name that is deleted nothing comes back."""
    shift(a, task, node, phase, 1)


@compiled
def first(a: Arena, task: int, phase: int, allowed: Flags) -> int:
    """Return the first allowed node on which a task fits, or -1."""
    if not wide_fits(a, task, phase):
        return -1
    node = following(a, task, 0)
    while node >= 0 and not (allowed[node] == 1 and fits(a, task, node, phase)):
        node = following(a, task, node + 1)
    return node


@compiled
def every(a: Arena, task: int, phase: int, out: Flags) -> None:
    """Mark each node on which a task fits."""
    there = wide_fits(a, task, phase)
    for node in range(a.free.shape[0]):
        out[node] = there and roomy(a.need, a.free, task, node) and fits(a, task, node, phase)


@compiled
def hopeful(a: Arena, rows: Small, shape: Small, level: Small, flag: Flags, low: int, phase: int, dead: Flags) -> int:
    """Return the first place from ``low`` on of a task that holds names or, its shape not dead, may fit; or -1."""
    for at in range(low, rows.size):
        if flag[at] == GONE:
            continue
        if a.state[rows[at]] != WAITING:
            flag[at] = GONE
        elif flag[at] == HELD:
            return at
        elif dead[shape[at], level[at]] == 0 and wide_fits(a, rows[at], phase):
            if following(a, rows[at], 0) >= 0:
                return at
            dead[shape[at], level[at]] = 1
    return -1


@compiled
def assign(a: Arena, tasks: Small, phase: int, allowed: Flags, out: Small) -> bool:
    """Find a node for each task so that all fit together, in the order of ``tasks``; nothing is taken."""
    count = 0
    for task in tasks:
        found = first(a, task, phase, allowed)
        if found < 0:
            break
        out[count] = found
        take(a, task, found, phase)
        count += 1
    for index in range(count):
        give(a, tasks[index], out[index], phase)
    return count == tasks.size


@compiled
def note(a: Arena, kind: int, task: int, node: int) -> None:
    """Write a line of the log."""
    at = a.mark[LOGGED]
    a.log_time[at] = a.clock[0]
    a.log_kind[at] = kind
    a.log_task[at] = task
    a.log_node[at] = node
    a.mark[LOGGED] = at + 1


@compiled
def push(a: Arena, time: float, task: int) -> None:
    """Put a task's end into the heap, ties by task."""
    at = a.mark[HEAPED]
    a.mark[HEAPED] = at + 1
    while at > 0:
        above = (at - 1) >> 1
        if a.heap_time[above] < time or (a.heap_time[above] == time and a.heap_task[above] < task):
            break
        a.heap_time[at] = a.heap_time[above]
        a.heap_task[at] = a.heap_task[above]
        at = above
    a.heap_time[at] = time
    a.heap_task[at] = task


@compiled
def pop(a: Arena) -> int:
    """Take the earliest end out of the heap and return its task."""
    found = int(a.heap_task[0])
    size = a.mark[HEAPED] - 1
    a.mark[HEAPED] = size
    time, task = a.heap_time[size], a.heap_task[size]
    at = 0
    while 2 * at + 1 < size:
        below = 2 * at + 1
        if below + 1 < size and (
            a.heap_time[below + 1] < a.heap_time[below]
            or (a.heap_time[below + 1] == a.heap_time[below] and a.heap_task[below + 1] < a.heap_task[below])
        ):
            below += 1
        if a.heap_time[below] > time or (a.heap_time[below] == time and a.heap_task[below] > task):
            break
        a.heap_time[at] = a.heap_time[below]
        a.heap_task[at] = a.heap_task[below]
        at = below
    a.heap_time[at] = time
    a.heap_task[at] = task
    return found


@compiled
def enqueue(a: Arena, task: int) -> None:
    """Put a task at the end of the queue."""
    a.state[task] = WAITING
    a.fresh[task] = NEW
    a.queue[a.mark[QUEUED]] = task
    a.mark[QUEUED] += 1
    a.mark[FRESH] += 1


@compiled
def begin(a: Arena, task: int, node: int, timed: bool) -> None:
    """Start a task on a node; ``timed`` where its end is known."""
    take(a, task, node, ALL_PHASES)
    a.state[task] = RUNNING
    a.place[task] = node
    a.began[task] = a.clock[0]
    a.ends[task] = a.clock[0] + a.run[task, a.kind[node]]
    if timed:
        push(a, a.ends[task], task)
    note(a, K_STARTED, task, node)
    a.mark[PLACED] += 1


@compiled
def finish(a: Arena, task: int, kind: int) -> None:
    """End or preempt a task and give back what it held; those that wait for a name of its are looked at again."""
    node = a.place[task]
    give(a, task, node, ALL_PHASES)
    a.state[task] = DONE
    a.mark[GROWN] += 1
    touch(a, node)
    note(a, kind, task, node)
    for index in range(a.ask.shape[1]):
        name = a.ask[task, index]
        if name < 0:
            break
        if a.wide[name] == WIDE:
            wake(a, name)


@compiled
def wake(a: Arena, name: int) -> None:
    """Make the waiting tasks that ask for a name look at every node again."""
    for at in range(a.mark[QUEUED]):
        task = a.queue[at]
        for index in range(a.ask.shape[1]):
            if a.ask[task, index] == name and a.fresh[task] != NEW:
                a.fresh[task] = NEW
                a.mark[FRESH] += 1


@compiled
def near(need: Whole, free: Whole, touched: Small, count: int, task: int) -> bool:
    """Return whether one of the dirty nodes has the resources that a task needs."""
    for at in range(count):  # noqa: SIM110 - as above
        if roomy(need, free, task, touched[at]):
            return True
    return False


@compiled
def look(a: Arena, task: int, touched: int, seen: int) -> int:
    """Return the first node on which a task fits, of all if it is new, else of the dirty ones."""
    if seen == NEW:
        # not by first(): names of the cluster were looked at, and this is asked for every task of a queue
        node = following(a, task, 0)
        while node >= 0 and not fits(a, task, node, ALL_PHASES):
            node = following(a, task, node + 1)
        return node
    found = -1
    for at in range(touched):
        node = a.touched[at]
        if (found < 0 or node < found) and roomy(a.need, a.free, task, node) and fits(a, task, node, ALL_PHASES):
            found = node
    return found


@compiled
def settle(a: Arena, most: int, timed: bool) -> int:  # noqa: C901, PLR0912
    """Start what fits, in the order of the queue, but at most ``most`` tasks; return how many started."""
    if a.mark[FRESH] == 0 and a.mark[DIRTY] == 0:
        return 0
    started = 0
    kept = 0
    size = a.mark[QUEUED]
    at = 0
    touched = a.mark[DIRTY]
    while at < size and started < most:
        task = a.queue[at]
        at += 1
        found = -1
        seen = a.fresh[task]
        if (seen == NEW or (seen == OLD and touched > 0)) and a.state[task] == WAITING:
            a.mark[DECISIONS] += 1
            a.fresh[task] = OLD
            if seen == NEW and not wide_fits(a, task, ALL_PHASES):
                a.fresh[task] = BLOCKED
            elif seen == NEW or near(a.need, a.free, a.touched, touched, task):
                if seen == NEW or wide_fits(a, task, ALL_PHASES):
                    found = look(a, task, touched, seen)
                else:
                    a.fresh[task] = BLOCKED
        if seen == NEW:
            a.mark[FRESH] -= 1
        if found >= 0:
            begin(a, task, found, timed)
            started += 1
        elif a.state[task] == WAITING:
            a.queue[kept] = task
            kept += 1
    if at == size:
        for dirty in range(touched):
            a.dirty[a.touched[dirty]] = 0
        a.mark[DIRTY] = 0
    while at < size:
        a.queue[kept] = a.queue[at]
        kept += 1
        at += 1
    a.mark[QUEUED] = kept
    return started


@compiled
def advance(a: Arena, until: float, watched: int) -> int:  # noqa: C901
    """Let time pass until a watched kind of event, the time ``until``, or the end; matching what nobody watches."""
    room = a.log_time.size
    while True:
        while a.mark[HEAPED] > 0 and (a.state[a.heap_task[0]] != RUNNING or a.ends[a.heap_task[0]] != a.heap_time[0]):
            pop(a)
        come = a.arrival[a.order[a.mark[ARRIVED]]] if a.mark[ARRIVED] < a.order.size else np.inf
        end = a.heap_time[0] if a.mark[HEAPED] > 0 else np.inf
        now = min(come, end)
        if now > until:
            a.clock[0] = max(a.clock[0], until)
            return UNTIL
        if now == np.inf:
            return IDLE
        if a.mark[LOGGED] + a.mark[HEAPED] + a.mark[QUEUED] + a.order.size - a.mark[ARRIVED] >= room:
            return FULL
        a.clock[0] = max(a.clock[0], now)
        before = a.mark[LOGGED]
        while a.mark[HEAPED] > 0 and a.heap_time[0] <= now:
            task = pop(a)
            if a.state[task] == RUNNING and a.ends[task] <= now:
                finish(a, task, K_ENDED)
        while a.mark[ARRIVED] < a.order.size and a.arrival[a.order[a.mark[ARRIVED]]] <= now:
            task = a.order[a.mark[ARRIVED]]
            a.mark[ARRIVED] += 1
            enqueue(a, task)
            note(a, K_SUBMITTED, task, -1)
        for at in range(before, a.mark[LOGGED]):
            if watched & (1 << a.log_kind[at]):
                return WATCHED
        if watched & (1 << K_STARTED):
            return WATCHED
        settle(a, a.queue.size, True)
