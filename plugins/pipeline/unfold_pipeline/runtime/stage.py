"""A stage that runs: the queries that wait for it, its replicas, and what was counted."""

from __future__ import annotations

import math
import time
from asyncio import TimerHandle
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from unfold_pipeline.problem.routing import Item, Routes
from unfold_pipeline.runtime.model_loader import Rows, Source
from unfold_pipeline.runtime.replica import Replica

NEARLY_ALL = 0.95
PACE = 0.05

Finished = Callable[[dict[str, Any] | None], None]


@dataclass(slots=True)
class Query:
    """A query under way: its input, its routes, what the stages answered, and who waits.

    ``due`` is when its answer is late, on :func:`clock`; ``shed`` says that it was refused because it would be;
    ``failed`` names the stage whose model raised an error on it; ``ended`` counts the processes that ended while they
    had nothing but it. ``taken`` are the stages that took it into a batch, and when, if it may be late.
    """

    row: Rows
    routes: Routes
    number: int
    finished: Finished
    answers: dict[str, Any] = field(default_factory=dict)
    due: float = math.inf
    shed: bool = False
    failed: str = ""
    ended: int = 0
    taken: list[tuple[StageRuntime, float]] = field(default_factory=list)

    def answered(self) -> None:
        """Hand over the answers; the stages learn how long it took from their batches on."""
        now = clock()
        for stage, since in self.taken:
            stage.learn(now - since)
        self.finished(self.answers)

    def hopeless(self, need: float) -> bool:
        """Whether it has no answer any more, or not in time if it still needs ``need`` seconds; then it is refused."""
        over = self.shed or bool(self.failed)
        if over or clock() + need <= self.due:
            return over
        self.shed = True
        self.finished(None)
        return True

    def fail(self, stage: str) -> None:
        """End it without an answer, as the model of a stage raised an error on it."""
        self.failed = stage
        self.finished(None)


Work = tuple[Query, Item, float]
"""A query, its item at a stage, and when it came there, on :func:`clock`."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that was answered: its stage, its rows, when it was handed over on :func:`clock`, and what it took.

    Of the ``total`` seconds ``model`` were spent in the model, and in ``waited`` its replica had no core.
    """

    stage: str
    rows: int
    began: float
    total: float
    model: float
    waited: float = 0.0


@dataclass(slots=True)
class Worker:
    """A replica as its stage sees it: on its way until ``ready``, serving ``batch``, perhaps keeping to a ``core``.

    The batch was handed over at ``since``; ``late`` rings when it has kept it for too long.
    """

    replica: Replica
    ready: bool = False
    leaving: bool = False
    core: int | None = None
    batch: list[Work] = field(default_factory=list)
    since: float = 0.0
    late: TimerHandle | None = None

    def hand_over(self) -> list[Work]:
        """Return the batch that it was serving, which it serves no more."""
        if self.late is not None:
            self.late.cancel()
            self.late = None
        batch, self.batch = self.batch, []
        return batch


@dataclass(slots=True)
class StageRuntime:
    """A stage: its model, largest batch, queue, replicas, how many there should be, and what was counted.

    ``need`` is the least seconds that a query still takes from here on, and ``margin`` how much longer nearly all take,
    as they did lately; it stays below ``room``, so that some are always taken and it can be learnt anew. ``seconds``
    were spent in the model, and ``worked`` of them a core was busy. ``alone`` are rows of batches on which the model
    failed, to be tried one by one; ``failed`` counts those on which it did so again, ``problem`` is the last error. A
    batch that is not full may be held back for ``wait`` seconds; ``alarm`` looks again when they are over. A replica
    that keeps a batch for longer than ``patience`` seconds is ended. ``failures`` counts those that ended with nothing
    to do, one after the other; after too many no other is started before ``pause`` is over.
    """

    name: str
    source: Source
    batch: int
    wanted: int
    need: float = 0.0
    queue: deque[Work] = field(default_factory=deque)
    workers: list[Worker] = field(default_factory=list)
    failures: int = 0
    replaced: int = 0
    served: int = 0
    batches: int = 0
    seconds: float = 0.0
    worked: float = 0.0
    alone: deque[Work] = field(default_factory=deque)
    failed: int = 0
    problem: str = ""
    logged: float = -math.inf
    wait: float = 0.0
    alarm: TimerHandle | None = None
    patience: float = math.inf
    pause: TimerHandle | None = None
    room: float = 0.0
    margin: float = 0.0

    def learn(self, seconds: float) -> None:
        """Follow the time that nearly all queries take beyond their need (a quantile, by stochastic approximation)."""
        up = seconds - self.need > self.margin
        step = PACE * self.room * (NEARLY_ALL if up else NEARLY_ALL - 1)
        self.margin = min(max(self.margin + step, 0.0), self.room)

    def due(self) -> float:
        """Return in how many seconds a batch may start: one that is full now, another when its oldest has waited."""
        if self.alone or len(self.queue) >= self.batch:
            return 0.0
        return self.queue[0][2] + self.wait - clock() if self.queue else math.inf

    def empty(self) -> Iterator[Work]:
        """Take out all that waits."""
        while self.alone:
            yield self.alone.popleft()
        while self.queue:
            yield self.queue.popleft()


def taken(stage: StageRuntime) -> list[Work]:
    """Take the next batch out of the queue; queries that cannot be in time any more are refused, and take no place."""
    return _filled(stage, stage.alone, 1) or _filled(stage, stage.queue, stage.batch)


def _filled(stage: StageRuntime, queue: deque[Work], most: int) -> list[Work]:
    batch: list[Work] = []
    while queue and len(batch) < most:
        work = queue.popleft()
        if not work[0].hopeless(stage.need + stage.margin):
            batch.append(work)
            if work[0].due < math.inf:
                work[0].taken.append((stage, clock()))
    return batch


def status(stage: StageRuntime) -> dict[str, Any]:
    """Return what a stage is doing, for people."""
    ready = sum(worker.ready for worker in stage.workers)
    counts = {
        "queue": len(stage.queue) + len(stage.alone),
        "replicas": len(stage.workers),
        "ready": ready,
        "replaced": stage.replaced,
        "failed": stage.failed,
    }
    return {"name": stage.name, "batch": stage.batch, "served": stage.served, "batches": stage.batches, **counts}


def clock() -> float:
    """Return seconds for measuring."""
    return time.perf_counter()
