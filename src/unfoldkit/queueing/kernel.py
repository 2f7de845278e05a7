"""The compiled simulation of a stage. :mod:`unfoldkit.queueing.reference` has its rules and the reference version.

It needs no event heap. Replicas are in a ring, sorted by the time at which they become free. The head of the ring
starts the next batch, and the batch that it finished leaves the stage, so completions come out sorted.
"""

from __future__ import annotations

import numpy as np

from unfoldkit._types import FlagArray, FloatArray, Int32Array, IntArray
from unfoldkit.jit import compiled, inlined

HEAD, SIZE, NEXT, EVENT, OUT, LATE, BATCHES, SHED, FULL, SHORT = range(10)
MARKS = 10


@inlined
def _insert(free: FloatArray, span: IntArray, head: int, size: int, end: float, low: int, high: int) -> None:
    """Add a replica that becomes free at ``end``, with the batch of items ``low`` to ``high``, behind earlier ones."""
    mask = free.size - 1
    position = head + size
    while position > head and free[(position - 1) & mask] > end:
        slot, before = position & mask, (position - 1) & mask
        free[slot] = free[before]
        span[slot, 0], span[slot, 1], span[slot, 2] = span[before, 0], span[before, 1], span[before, 2]
        position -= 1
    slot = position & mask
    free[slot] = end
    span[slot, 0], span[slot, 1], span[slot, 2] = low, high, 0


@inlined
def _remove(free: FloatArray, span: IntArray, head: int, size: int, count: int, at_s: float) -> float:
    """Mark ``count`` replicas that leave after their batch; return the seconds for which they are kept to finish it."""
    mask, drained = free.size - 1, 0.0
    for position in range(head, head + size):
        if count <= 0:
            break
        slot = position & mask
        if span[slot, 2] == 0:
            span[slot, 2] = 1
            drained += max(0.0, free[slot] - at_s)
            count -= 1
    return drained


@inlined
def _complete(
    items: Int32Array,
    low: int,
    high: int,
    end: float,
    origin: FloatArray,
    budget: float,
    shed: int,
    gone: FlagArray,
    out: int,
    late: int,
    out_times: FloatArray,
    out_items: Int32Array,
) -> tuple[int, int]:
    """Write the completions of items ``low`` to ``high``; return the numbers of completions and of late ones so far."""
    for index in range(low, high):
        item = items[index]
        if shed > 0 and gone[item]:
            continue
        out_times[out] = end
        out_items[out] = item
        out += 1
        if end - origin[item] > budget:
            late += 1
    return out, late


@compiled
def advance(  # noqa: C901, PLR0912, PLR0915
    times: FloatArray,
    items: Int32Array,
    known: int,
    latency: FloatArray,
    factor: FloatArray,
    wait: float,
    wake: float,
    patience: float,
    when: FloatArray,
    change: IntArray,
    largest: IntArray,
    until: float,
    origin: FloatArray,
    budget: float,
    allowed: int,
    free: FloatArray,
    span: IntArray,
    mark: IntArray,
    out_times: FloatArray,
    out_items: Int32Array,
    gone: FlagArray,
) -> float:
    """Serve the first ``known`` items up to the time ``until``.

    ``free`` and ``span`` (low, high, leaving) are the ring, and ``mark`` is its state. The simulation ends early once
    more than ``allowed`` items left later than ``budget`` s after their ``origin``. Items that would start later than
    ``patience`` s after it are shed, and marked in ``gone``. From ``when[i]`` on, the stage has ``change[i]`` more
    replicas and ``largest[i]`` items in a full batch (0: unchanged). ``mark[SHORT]`` is set once a batch waited for a
    replica: until then, more replicas would have changed nothing.

    Returns:
        The seconds for which removed replicas were kept to finish their batch.
    """
    mask = free.size - 1
    head, size, at, event, out, late = mark[0], mark[1], mark[2], mark[3], mark[4], mark[5]
    batches, shed, batch = mark[6], mark[7], mark[8]
    drained = 0.0
    while late <= allowed:
        slot = head & mask
        leaving = span[slot, 2] == 1
        if leaving:
            start = free[slot]
        elif at >= known:
            start = np.inf
        else:
            ready = times[at]
            if wait > 0.0:
                full = times[at + batch - 1] if at + batch <= known else np.inf
                # a batch that is full only since full batches got smaller starts when they did
                ready = min(full, ready + wait) if event == 0 else max(min(full, ready + wait), when[event - 1])
            start = max(free[slot], ready)
        if event < when.size and when[event] <= start and when[event] < until:
            # a replica that is added stands idle from that time on; one that is removed ends its batch first
            for _ in range(change[event]):
                _insert(free, span, head, size, when[event], 0, 0)
                size += 1
            drained += _remove(free, span, head, size, -change[event], when[event])
            if event < largest.size and largest[event] > 0:
                batch = largest[event]
            event += 1
            continue
        if start >= until:
            break
        out, late = _complete(
            items, span[slot, 0], span[slot, 1], free[slot], origin, budget, shed, gone, out, late, out_times, out_items
        )
        span[slot, 0] = span[slot, 1]
        if leaving:
            head += 1
            size -= 1
            continue
        low, taken = at, 0
        if patience == np.inf:
            limit = min(known, at + batch)
            at += 1
            while at < limit and times[at] <= start:
                at += 1
            taken = at - low
        else:
            while at < known and taken < batch and times[at] <= start:
                item = items[at]
                if start - origin[item] > patience:
                    gone[item] = 1
                    shed += 1
                else:
                    taken += 1
                at += 1
        if taken == 0:
            continue
        head += 1
        size -= 1
        if start <= free[slot]:
            mark[9] = 1
        end = start + latency[taken] * factor[batches & (factor.size - 1)]
        if start > free[slot]:
            end += wake
        batches += 1
        _insert(free, span, head, size, end, low, at)
        size += 1
    for position in range(head, head + size):
        slot = position & mask
        if free[slot] >= until or late > allowed:
            break
        out, late = _complete(
            items, span[slot, 0], span[slot, 1], free[slot], origin, budget, shed, gone, out, late, out_times, out_items
        )
        span[slot, 0] = span[slot, 1]
    mark[0], mark[1], mark[2], mark[3], mark[4], mark[5] = head, size, at, event, out, late
    mark[6], mark[7], mark[8] = batches, shed, batch
    return drained


@compiled
def list_children(
    times: FloatArray,
    items: Int32Array,
    known: int,
    first: Int32Array,
    count: Int32Array,
    out_times: FloatArray,
    out_items: Int32Array,
) -> int:
    """Write the children of each finished item, in the order in which their parents finished; return how many."""
    out = 0
    for index in range(known):
        item = items[index]
        for copy in range(count[item]):
            out_times[out] = times[index]
            out_items[out] = first[item] + copy
            out += 1
    return out


@compiled
def record_completions(times: FloatArray, items: Int32Array, known: int, owner: Int32Array, finish: FloatArray) -> None:
    """Raise ``finish[owner[item]]`` to the completion of each finished item."""
    for index in range(known):
        query = owner[items[index]]
        finish[query] = max(finish[query], times[index])


@compiled
def record_earliest_ends(
    times: FloatArray, items: Int32Array, known: int, owner: Int32Array, after: FloatArray, finish: FloatArray
) -> None:
    """Raise ``finish[owner[item]]`` to the completion of each finished item and ``after[item]`` seconds on."""
    for index in range(known):
        item = items[index]
        query = owner[item]
        finish[query] = max(finish[query], times[index] + after[item])


@compiled
def raise_to_children(first: Int32Array, count: Int32Array, after: FloatArray, out: FloatArray) -> None:
    """Raise ``out[item]`` to the largest ``after`` among the children of each item."""
    for item in range(out.size):
        for child in range(first[item], first[item] + count[item]):
            out[item] = max(out[item], after[child])


@compiled
def count_late(finish: FloatArray, arrival: FloatArray, limit: float) -> int:
    """Return how many queries took longer than ``limit`` seconds."""
    count = 0
    for index in range(finish.size):
        if finish[index] - arrival[index] > limit:
            count += 1
    return count


@compiled
def fluid_drops(times: FloatArray, gap: float, budget: float) -> int:
    """Return how many items a fluid server drops that needs ``gap`` seconds an item and drops what would be late.

    No schedule of servers with that joint throughput finishes more items within ``budget`` seconds of their arrival:
    unit work and deadlines in the order of arrival (Moore and Hodgson's rule).
    """
    free, drops = -np.inf, 0
    for index in range(times.size):
        end = max(free, times[index]) + gap
        if end > times[index] + budget:
            drops += 1
        else:
            free = end
    return drops
