"""One stage of the queueing model: a batched FIFO queue with replicas, as a value that is advanced in time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unfoldkit.queueing import kernel, kernel_large

Times = NDArray[np.float64]
Items = NDArray[np.int32]
Counts = NDArray[np.int64]
NEVER: Times = np.empty(0)
STEADY: Times = np.ones(1)
NOTHING: Counts = np.empty(0, dtype=np.int64)
Flags = NDArray[np.uint8]
KEPT: Flags = np.empty(0, dtype=np.uint8)
MANY = 64
"""Replicas from which on a heap is quicker than a ring."""


@dataclass(frozen=True, slots=True)
class Server:
    """How a stage serves: ``latency[b]`` seconds for a batch of ``b`` (index 0 unused), replicas, its largest batch.

    ``wait`` is how long a batch that is not full may be held back for more (0: never, as in InferLine). ``factor``
    makes the ``i``-th batch take ``factor[i % size]`` times as long; its size is a power of two. ``wake`` is what the
    first batch takes longer on a replica that stood idle. An item that would start later than ``patience`` seconds
    after its origin is shed: it takes no place in a batch and never completes. The largest batch, ``full``, is the last
    of ``latency`` unless another is given.
    """

    latency: Times
    replicas: int
    wait: float = 0.0
    factor: Times = field(default_factory=lambda: STEADY)
    wake: float = 0.0
    patience: float = math.inf
    full: int = 0


@dataclass(frozen=True, slots=True)
class Schedule:
    """Changes of the replica count: ``change[i]`` more (or, after their batch, less) from ``when[i]`` seconds on.

    There must always be one replica left. ``largest[i]`` is the largest batch from then on (0: as before); it may be
    left empty if that never changes.
    """

    when: Times = field(default_factory=lambda: NEVER)
    change: Counts = field(default_factory=lambda: NOTHING)
    largest: Counts = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, slots=True)
class Goal:
    """When a pass may end early: more than ``allowed`` items end later than ``budget`` seconds after ``origin``."""

    origin: Times
    budget: float = math.inf
    allowed: int = 2**62


@dataclass(frozen=True, slots=True)
class Flow:
    """Completions of a stage: ``times`` sorted, ``items`` beside them. ``late`` is the number counted by the goal.

    ``ok`` is false if the pass ended early; then the arrays end early too. ``short`` says that a batch waited for a
    replica. ``gone`` marks the items that were shed; it is empty for a stage that sheds none.
    """

    times: Times
    items: Items
    late: int = 0
    ok: bool = True
    drained: float = 0.0
    batches: int = 0
    short: bool = False
    gone: Flags = field(default_factory=lambda: KEPT)


def serve(times: Times, items: Items, server: Server, goal: Goal, schedule: Schedule | None = None) -> Flow:
    """Return the completions of a whole stage.

    ``times`` are sorted arrivals in seconds, ``items`` the number of each (an index into ``goal.origin``).
    """
    if schedule is None and server.replicas > MANY and server.patience == math.inf:
        return _served(times, items, server, goal)
    state = start(server, times.size, schedule, names=goal.origin.size)
    drained = state.advance(times, items, times.size, goal, schedule or Schedule())
    done = state.done
    late = int(state.mark[kernel.LATE])
    batches, short = int(state.mark[kernel.BATCHES]), bool(state.mark[kernel.SHORT])
    ok = late <= goal.allowed
    return Flow(state.times[:done], state.items[:done], late, ok, drained, batches, short, state.gone)


def _served(times: Times, items: Items, server: Server, goal: Goal) -> Flow:
    """Return the completions of a stage of many replicas that neither come nor go, and that sheds nothing."""
    room = 1 << server.replicas.bit_length()
    ring, heap = np.full(room, -np.inf), np.empty(room)
    ranks, begun = np.zeros((2, room), dtype=np.int64), np.zeros(times.size + 1, dtype=np.int64)
    mark = np.zeros(kernel_large.MARKS, dtype=np.int64)
    out_times, out_items = np.empty(times.size), np.empty(times.size, dtype=np.int32)
    kernel_large.serve(
        times, items, server.latency, server.replicas, server.factor, server.wait, server.wake, _full(server),
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
    """A stage at a moment: its ring of replicas, how far it has come, and room for its completions."""

    server: Server
    free: Times
    span: Counts
    mark: Counts
    times: Times
    items: Items
    gone: Flags

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
        """The number of items that have been taken into a batch."""
        return int(self.mark[kernel.NEXT])

    def advance(
        self, times: Times, items: Items, known: int, goal: Goal, schedule: Schedule, until: float = math.inf
    ) -> float:
        """Serve all that happens before ``until``; return the seconds that drained replicas were kept."""
        return kernel.advance(
            times, items, known, self.server.latency, self.server.factor, self.server.wait,
            self.server.wake, self.server.patience, schedule.when, schedule.change, schedule.largest, until,
            goal.origin, goal.budget, goal.allowed,
            self.free, self.span, self.mark, self.times, self.items, self.gone,
        )  # fmt: skip


def start(server: Server, count: int, schedule: Schedule | None = None, *, most: int = 0, names: int = 0) -> State:
    """Return a stage before its first arrival, with room for ``count`` items and ``most`` replicas.

    Items that may be shed are numbered below ``names`` (by default ``count``).

    Raises:
        ValueError: a batch may get longer than ``latency`` knows.
    """
    if max(server.full, schedule.largest.max(initial=0) if schedule else 0) >= server.latency.size:
        raise ValueError("a largest batch has no latency")
    added = int(np.maximum(schedule.change, 0).sum()) if schedule else 0
    size = 1 << (max(server.replicas + added, most) + 1).bit_length()
    mark = np.zeros(kernel.MARKS, dtype=np.int64)
    mark[kernel.SIZE] = server.replicas
    mark[kernel.FULL] = server.full or server.latency.size - 1
    free, span = np.full(size, -np.inf), np.zeros((size, 3), np.int64)
    gone = np.zeros(max(count, names), dtype=np.uint8) if server.patience < math.inf else KEPT
    return State(server, free, span, mark, np.empty(count), np.empty(count, dtype=np.int32), gone)
