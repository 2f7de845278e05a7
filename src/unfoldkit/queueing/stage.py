"""One stage of the queueing model: a batched FIFO queue with replicas, simulated at once or step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from unfoldkit._types import FlagArray, FloatArray, Int32Array, IntArray
from unfoldkit.queueing import kernel, kernel_large

NEVER: FloatArray = np.empty(0)
STEADY: FloatArray = np.ones(1)
NOTHING: IntArray = np.empty(0, dtype=np.int64)
NONE_SHED: FlagArray = np.empty(0, dtype=np.uint8)
MANY = 64
"""From so many replicas on, a heap is faster than a ring."""


@dataclass(frozen=True, slots=True)
class Server:
    """How a stage serves.

    Args:
        latency: Seconds of a batch by its size; index 0 is unused.
        replicas: The number of replicas.
        wait: How long in s an incomplete batch may wait for more items (0 as in InferLine).
        factor: The ``i``-th batch takes ``factor[i % size]`` times as long; the size is a power of two.
        wake: Additional seconds of the first batch on an idle replica.
        patience: The queueing deadline in s: an item that would start later after its origin is shed.
        full: The largest batch; 0 for the last of ``latency``.
    """

    latency: FloatArray
    replicas: int
    wait: float = 0.0
    factor: FloatArray = field(default_factory=lambda: STEADY)
    wake: float = 0.0
    patience: float = math.inf
    full: int = 0


@dataclass(frozen=True, slots=True)
class Schedule:
    """Changes of the replica count; at least one replica must remain.

    Args:
        when: Times of the changes in s.
        change: Replicas to add, or to remove after their batch.
        largest: The largest batch from then on (0: unchanged); empty if it never changes.
    """

    when: FloatArray = field(default_factory=lambda: NEVER)
    change: IntArray = field(default_factory=lambda: NOTHING)
    largest: IntArray = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, slots=True)
class Goal:
    """A simulation may end early once more than ``allowed`` items end later than ``budget`` s after ``origin``."""

    origin: FloatArray
    budget: float = math.inf
    allowed: int = 2**62


@dataclass(frozen=True, slots=True)
class Flow:
    """The completions of a stage.

    Args:
        times: Sorted completion times in s.
        items: The number of each item.
        late: Items that missed the goal.
        ok: Whether the simulation ran to its end; otherwise the arrays are incomplete.
        drained: Seconds for which removed replicas were kept to finish their batch.
        batches: The number of batches.
        short: Whether a batch waited for a replica.
        gone: Marks the items that were shed; empty for a stage that sheds none.
    """

    times: FloatArray
    items: Int32Array
    late: int = 0
    ok: bool = True
    drained: float = 0.0
    batches: int = 0
    short: bool = False
    gone: FlagArray = field(default_factory=lambda: NONE_SHED)


def serve(times: FloatArray, items: Int32Array, server: Server, goal: Goal, schedule: Schedule | None = None) -> Flow:
    """Simulate a complete stage.

    Args:
        times: Sorted arrivals in s.
        items: The number of each item, an index into ``goal.origin``.
        server: How the stage serves.
        goal: When the simulation may end early.
        schedule: Changes of the replica count.
    """
    if schedule is None and server.replicas > MANY and server.patience == math.inf:
        return _serve_large(times, items, server, goal)
    state = start(server, times.size, schedule, names=goal.origin.size)
    drained = state.advance(times, items, times.size, goal, schedule or Schedule())
    done = state.done
    late = int(state.mark[kernel.LATE])
    batches, short = int(state.mark[kernel.BATCHES]), bool(state.mark[kernel.SHORT])
    ok = late <= goal.allowed
    return Flow(state.times[:done], state.items[:done], late, ok, drained, batches, short, state.gone)


def _serve_large(times: FloatArray, items: Int32Array, server: Server, goal: Goal) -> Flow:
    """Simulate a stage with many replicas of a constant number that sheds nothing."""
    # more replicas than items are never used
    replicas = min(server.replicas, times.size + 1)
    ring_size = 1 << replicas.bit_length()
    ring, heap = np.full(ring_size, -np.inf), np.empty(ring_size)
    ranks, begun = np.zeros((2, ring_size), dtype=np.int64), np.zeros(times.size + 1, dtype=np.int64)
    mark = np.zeros(kernel_large.MARKS, dtype=np.int64)
    out_times, out_items = np.empty(times.size), np.empty(times.size, dtype=np.int32)
    kernel_large.serve(
        times, items, server.latency, replicas, server.factor, server.wait, server.wake, _full(server),
        goal.origin, goal.budget, goal.allowed, ring, ranks[0], heap, ranks[1], begun, mark, out_times, out_items,
    )  # fmt: skip
    done, late, batches, short = (int(item) for item in mark)
    return Flow(out_times[:done], out_items[:done], late, late <= goal.allowed, 0.0, batches, bool(short))


def _full(server: Server) -> int:
    if server.full >= server.latency.size:
        raise ValueError("a largest batch has no latency")
    return server.full or server.latency.size - 1


@dataclass(frozen=True, slots=True)
class State:
    """The state of a stage: its ring of replicas, its progress, and arrays for its completions."""

    server: Server
    free: FloatArray
    span: IntArray
    mark: IntArray
    times: FloatArray
    items: Int32Array
    gone: FlagArray

    @property
    def done(self) -> int:
        """The number of completions so far."""
        return int(self.mark[kernel.OUT])

    @property
    def shed(self) -> int:
        """The number of items that were shed."""
        return int(self.mark[kernel.SHED])

    @property
    def begun(self) -> int:
        """The number of items that have been added to a batch."""
        return int(self.mark[kernel.NEXT])

    def advance(
        self, times: FloatArray, items: Int32Array, known: int, goal: Goal, schedule: Schedule, until: float = math.inf
    ) -> float:
        """Simulate up to ``until``; return the seconds for which removed replicas were kept to finish their batch."""
        return kernel.advance(
            times, items, known, self.server.latency, self.server.factor, self.server.wait,
            self.server.wake, self.server.patience, schedule.when, schedule.change, schedule.largest, until,
            goal.origin, goal.budget, goal.allowed,
            self.free, self.span, self.mark, self.times, self.items, self.gone,
        )  # fmt: skip


def start(server: Server, count: int, schedule: Schedule | None = None, *, most: int = 0, names: int = 0) -> State:
    """Return the state of a stage before its first arrival.

    Args:
        server: How the stage serves.
        count: The number of items.
        schedule: Changes of the replica count.
        most: The largest number of replicas, if it is not given by ``schedule``.
        names: Items that may be shed have numbers below; by default ``count``.

    Raises:
        ValueError: A batch may be larger than ``latency`` covers.
    """
    if max(server.full, schedule.largest.max(initial=0) if schedule else 0) >= server.latency.size:
        raise ValueError("a largest batch has no latency")
    added = int(np.maximum(schedule.change, 0).sum()) if schedule else 0
    size = 1 << (max(server.replicas + added, most) + 1).bit_length()
    mark = np.zeros(kernel.MARKS, dtype=np.int64)
    mark[kernel.SIZE] = server.replicas
    mark[kernel.FULL] = server.full or server.latency.size - 1
    free, span = np.full(size, -np.inf), np.zeros((size, 3), np.int64)
    gone = np.zeros(max(count, names), dtype=np.uint8) if server.patience < math.inf else NONE_SHED
    return State(server, free, span, mark, np.empty(count), np.empty(count, dtype=np.int32), gone)
