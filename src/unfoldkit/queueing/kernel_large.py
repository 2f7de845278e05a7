"""A faster compiled simulation for many replicas of a constant number, equal to the other kernel to the bit.

In :mod:`unfoldkit.queueing.kernel` all replicas are in one ring, and those that a batch overtakes move up. With
hundreds of replicas, that takes most of the time. Here, a batch that overtakes others waits in a heap next to the ring.
"""

from __future__ import annotations

import numpy as np

from unfoldkit._types import FloatArray, Int32Array, IntArray
from unfoldkit.jit import compiled

MARKS = 4


@compiled
def _push(ends: FloatArray, ranks: IntArray, size: int, end: float, rank: int) -> None:
    """Add a batch to a heap of ``size``; all batches in it were started earlier."""
    place = size
    while place > 0 and ends[(place - 1) // 2] > end:
        ends[place], ranks[place] = ends[(place - 1) // 2], ranks[(place - 1) // 2]
        place = (place - 1) // 2
    ends[place], ranks[place] = end, rank


@compiled
def _pop(ends: FloatArray, ranks: IntArray, size: int) -> None:
    """Remove from a heap of ``size`` the batch that ends first; of equal ends, the one that was started first."""
    end, rank, place, child = ends[size - 1], ranks[size - 1], 0, 1
    while child < size - 1:
        other = child + 1
        if other < size - 1 and (
            ends[other] < ends[child] or (ends[other] == ends[child] and ranks[other] < ranks[child])
        ):
            child = other
        if ends[child] > end or (ends[child] == end and ranks[child] > rank):
            break
        ends[place], ranks[place] = ends[child], ranks[child]
        place, child = child, 2 * child + 1
    ends[place], ranks[place] = end, rank


@compiled
def serve(  # noqa: C901, PLR0912
    times: FloatArray,
    items: Int32Array,
    latency: FloatArray,
    replicas: int,
    factor: FloatArray,
    wait: float,
    wake: float,
    batch: int,
    origin: FloatArray,
    budget: float,
    allowed: int,
    ring: FloatArray,
    ring_ranks: IntArray,
    heap: FloatArray,
    heap_ranks: IntArray,
    begun: IntArray,
    mark: IntArray,
    out_times: FloatArray,
    out_items: Int32Array,
) -> None:
    """Serve all items; the other arguments are those of ``kernel.advance``.

    ``ring`` and ``heap`` hold when replicas become free, and the number of the last batch of each from 1 on (0: none).
    Batch ``i`` has the items from ``begun[i - 1]`` to ``begun[i]``. ``mark`` receives the numbers of completions, late
    completions and batches, and whether a batch waited for a replica.
    """
    at, out, late, batches, head, tail, size = 0, 0, 0, 0, 0, replicas, 0
    mask = ring.size - 1
    while (head < tail or size > 0) and late <= allowed:
        spot = head & mask
        overtook = size > 0 and (
            head == tail or heap[0] < ring[spot] or (heap[0] == ring[spot] and heap_ranks[0] < ring_ranks[spot])
        )
        if overtook:
            free, rank = heap[0], heap_ranks[0]
            _pop(heap, heap_ranks, size)
            size -= 1
        else:
            free, rank = ring[spot], ring_ranks[spot]
            head += 1
        if rank > 0:
            for index in range(begun[rank - 1], begun[rank]):
                item = items[index]
                out_times[out] = free
                out_items[out] = item
                out += 1
                if free - origin[item] > budget:
                    late += 1
        if at == times.size:
            continue
        ready = times[at]
        if wait > 0.0:
            full = times[at + batch - 1] if at + batch <= times.size else np.inf
            ready = min(full, ready + wait)
        start = max(free, ready)
        low, limit = at, min(times.size, at + batch)
        at += 1
        while at < limit and times[at] <= start:
            at += 1
        if start <= free:
            mark[3] = 1
        end = start + latency[at - low] * factor[batches & (factor.size - 1)]
        if start > free:
            end += wake
        batches += 1
        begun[batches] = at
        if head == tail or ring[(tail - 1) & mask] <= end:
            ring[tail & mask], ring_ranks[tail & mask] = end, batches
            tail += 1
        else:
            _push(heap, heap_ranks, size, end, batches)
            size += 1
    mark[0], mark[1], mark[2] = out, late, batches
