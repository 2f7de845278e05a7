"""The reference implementation of a stage: an event heap in plain Python. The compiled kernels must equal it.

1. All replicas of the stage share one first-in-first-out queue.
2. All events of one instant (arrivals, ends of batches, changes of the replica count) are processed before a batch
   starts at that instant. Otherwise, queries that arrive together would be split into a batch of one and the others.
3. While a replica is idle and the queue is not empty, the replica that has been idle longest takes the oldest queries,
   at most a full batch. It is busy for the latency of that batch size times the factor of the batch's number, and
   longer by the wake-up time if it was idle. All queries of a batch end together.
4. With a time-out, a batch that is not full starts only when its oldest query has waited that long.
5. Completions are in the order of time; at one instant, in the order in which their batches were started.
6. A removed replica is an idle one, or else the one that would end first; it finishes its batch.
7. With a queueing deadline (``patience``), a replica sheds queries that it would start later than that after their
   origin; they never complete.
8. The largest batch may change; a running batch is not affected.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ARRIVE, END, CHANGE, WAKE, LARGEST = range(5)


@dataclass(slots=True)
class Replica:
    """One serving process, free since or busy until ``free``."""

    free: float = 0.0
    busy: bool = False
    leaving: bool = False


@dataclass(slots=True)
class Stage:
    """The state of a stage; all times are in seconds.

    Attributes:
        latency: Seconds of a batch by its size; index 0 is unused.
        factor: Factors on the latency of successive batches, used in turn.
        wait: Time-out of batches that are not full.
        wake: Wake-up time of an idle replica.
        replicas: The replicas, those that leave included.
        full: The largest batch.
        patience: The queueing deadline.
        origin: The time from which the patience with each item counts.
        queue: Arrival and number of the items that wait.
        events: A heap of time, kind, sequence number and subject.
        done: End and number of the items that completed.
        drained: Seconds for which removed replicas were kept.
        count: Sequence number of the next event.
        batches: Batches that were started.
    """

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
    """Simulate a stage.

    Args:
        times: Sorted arrivals in s, which are also the origins of the items.
        items: The number of each item.
        latency: Seconds of a batch by its size; index 0 is unused.
        replicas: The initial number of replicas.
        factor: Relative duration of the batches, in turn.
        wait: The time-out of an incomplete batch in s.
        wake: Additional seconds of the first batch on an idle replica.
        patience: The queueing deadline in s.
        changes: Times and changes of the replica count.
        largest: Times and the largest batch from then on.

    Returns:
        ``(completion, item)`` in the order of completion, and the seconds for which removed replicas were kept.
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
            _process(stage, now, kind, what)
        _start(stage, now)
    return stage.done, stage.drained


def _push(stage: Stage, time: float, kind: int, what: object) -> None:
    heapq.heappush(stage.events, (time, stage.count, kind, what))
    stage.count += 1


def _process(stage: Stage, now: float, kind: int, what: object) -> None:
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
    removed = min(staying, key=lambda replica: replica.free)
    if not removed.busy:
        stage.replicas.remove(removed)
        return
    removed.leaving = True
    stage.drained += removed.free - now


def _start(stage: Stage, now: float) -> None:
    while stage.queue:
        ready = len(stage.queue) >= stage.full or stage.queue[0][0] + stage.wait <= now
        idle = [replica for replica in stage.replicas if not replica.busy and not replica.leaving]
        if not ready or not idle:
            return
        batch = _take_batch(stage, now, stage.full)
        if not batch:
            continue
        replica = min(idle, key=lambda item: item.free)
        slowness = stage.factor[stage.batches % len(stage.factor)]
        stage.batches += 1
        awake = 0.0 if replica.free == now else stage.wake
        replica.busy, replica.free = True, now + stage.latency[len(batch)] * slowness + awake
        _push(stage, replica.free, END, (replica, batch))


def _take_batch(stage: Stage, now: float, full: int) -> list[int]:
    batch: list[int] = []
    while stage.queue and len(batch) < full:
        item = stage.queue.popleft()[1]
        if now - stage.origin[item] <= stage.patience:
            batch.append(item)
    return batch
