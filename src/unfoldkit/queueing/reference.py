"""The rules of a stage, in plain Python: an event heap, slow and easy to read. The compiled kernel must equal it.

1. One first-in-first-out queue, shared by all replicas of the stage.
2. All that happens at one instant (arrivals, ends of batches, changes of the replica count) is taken in before anything
   is started at that instant. Without this rule a batch that arrives whole would be served as one and the rest.
3. While a replica is idle and the queue is not empty, the replica that has been idle longest takes the oldest queries,
   at most a full batch, and is busy for the latency of a batch of that size, times the factor of the batch's number;
   longer by the time to wake up if it stood idle. All of a batch end together.
4. With a time-out, a batch that is not full starts only when its oldest query has waited that long.
5. Completions leave in the order of time; at one instant in the order in which the batches were started.
6. A replica that is removed is an idle one, or else the one that would end first, and it ends its batch.
7. With patience, a replica that takes queries passes over those that come to it later than that after their origin:
   they are shed, and never complete.
8. The largest batch may change; a batch that is being served stays as it is.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ARRIVE, END, CHANGE, WAKE, LARGEST = range(5)


@dataclass(slots=True)
class Replica:
    """One serving process: free since, or busy until, ``free``."""

    free: float = 0.0
    busy: bool = False
    leaving: bool = False


@dataclass(slots=True)
class Stage:
    """A stage at a moment."""

    latency: Sequence[float]
    factor: Sequence[float]
    wait: float
    wake: float
    replicas: list[Replica]
    full: int
    patience: float = float("inf")
    origin: Mapping[int, float] = field(default_factory=dict)
    queue: deque[tuple[float, int]] = field(default_factory=deque)
    events: list[tuple[float, int, int, object]] = field(default_factory=list)
    done: list[tuple[float, int]] = field(default_factory=list)
    drained: float = 0.0
    count: int = 0
    batches: int = 0


def serve(
    times: Sequence[float],
    items: Sequence[int],
    latency: Sequence[float],
    replicas: int,
    *,
    factor: Sequence[float] = (1.0,),
    wait: float = 0.0,
    wake: float = 0.0,
    patience: float = float("inf"),
    changes: Sequence[tuple[float, int]] = (),
    largest: Sequence[tuple[float, int]] = (),
) -> tuple[list[tuple[float, int]], float]:
    """Return ``(completion, item)`` in the order of completion, and the seconds that drained replicas were kept.

    The origin of an item is its arrival; ``largest`` tells times and the largest batch from then on.
    """
    idle = [Replica(float("-inf")) for _ in range(replicas)]
    full = len(latency) - 1
    stage = Stage(latency, factor, wait, wake, idle, full, patience, dict(zip(items, times, strict=True)))
    for time, item in zip(times, items, strict=True):
        _push(stage, time, ARRIVE, item)
    for time, change in changes:
        _push(stage, time, CHANGE, change)
    for time, size in largest:
        _push(stage, time, LARGEST, size)
    while stage.events:
        now = stage.events[0][0]
        while stage.events and stage.events[0][0] == now:
            _, _, kind, what = heapq.heappop(stage.events)
            _happen(stage, now, kind, what)
        _start(stage, now)
    return stage.done, stage.drained


def _push(stage: Stage, time: float, kind: int, what: object) -> None:
    heapq.heappush(stage.events, (time, stage.count, kind, what))
    stage.count += 1


def _happen(stage: Stage, now: float, kind: int, what: object) -> None:
    if kind == ARRIVE and isinstance(what, int):
        stage.queue.append((now, what))
        if stage.wait:
            _push(stage, now + stage.wait, WAKE, None)
    elif kind == END and isinstance(what, tuple):
        replica, batch = what
        replica.busy = False
        stage.done += [(now, item) for item in batch]
        if replica.leaving:
            stage.replicas.remove(replica)
    elif kind == CHANGE and isinstance(what, int):
        stage.replicas += [Replica(now) for _ in range(what)]
        for _ in range(-what):
            _remove(stage, now)
    elif kind == LARGEST and isinstance(what, int):
        stage.full = what


def _remove(stage: Stage, now: float) -> None:
    staying = [replica for replica in stage.replicas if not replica.leaving]
    chosen = min(staying, key=lambda replica: replica.free)
    if not chosen.busy:
        stage.replicas.remove(chosen)
        return
    chosen.leaving = True
    stage.drained += chosen.free - now


def _start(stage: Stage, now: float) -> None:
    while stage.queue:
        ready = len(stage.queue) >= stage.full or stage.queue[0][0] + stage.wait <= now
        idle = [replica for replica in stage.replicas if not replica.busy and not replica.leaving]
        if not ready or not idle:
            return
        batch = _taken(stage, now, stage.full)
        if not batch:
            continue
        replica = min(idle, key=lambda item: item.free)
        slowness = stage.factor[stage.batches % len(stage.factor)]
        stage.batches += 1
        awake = 0.0 if replica.free == now else stage.wake
        replica.busy, replica.free = True, now + stage.latency[len(batch)] * slowness + awake
        _push(stage, replica.free, END, (replica, batch))


def _taken(stage: Stage, now: float, full: int) -> list[int]:
    batch: list[int] = []
    while stage.queue and len(batch) < full:
        item = stage.queue.popleft()[1]
        if now - stage.origin[item] <= stage.patience:
            batch.append(item)
    return batch
