"""A stage that runs: the queries that wait for it, its replicas, and what was counted."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from unfold_pipeline.models import Rows, Source
from unfold_pipeline.replica import Replica
from unfold_pipeline.routes import Item, Routes

Finished = Callable[[dict[str, Any] | None], None]


@dataclass(slots=True)
class Query:
    """A query under way: its input, its routes, what the stages answered, and who waits.

    ``due`` is when its answer is late, on :func:`clock`; ``shed`` says that it was refused because it would be.
    """

    row: Rows
    routes: Routes
    number: int
    finished: Finished
    answers: dict[str, Any] = field(default_factory=dict)
    due: float = math.inf
    shed: bool = False

    def hopeless(self, need: float) -> bool:
        """Whether it cannot be in time any more if it still needs ``need`` seconds; then it is refused."""
        if self.shed or clock() + need <= self.due:
            return self.shed
        self.shed = True
        self.finished(None)
        return True


Work = tuple[Query, Item]


@dataclass(slots=True)
class Worker:
    """A replica as its stage sees it: on its way until ``ready``, serving ``batch``, perhaps keeping to a ``core``."""

    replica: Replica
    ready: bool = False
    leaving: bool = False
    core: int | None = None
    batch: list[Work] = field(default_factory=list)


@dataclass(slots=True)
class StageRuntime:
    """A stage: its model, largest batch, queue, replicas, how many there should be, and what was counted.

    ``need`` is the least seconds that a query still takes from here on; ``seconds`` were spent in the model, and
    ``worked`` of them a core was busy.
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


def taken(stage: StageRuntime) -> list[Work]:
    """Take the next batch out of the queue; queries that cannot be in time any more are refused, and take no place."""
    batch: list[Work] = []
    while stage.queue and len(batch) < stage.batch:
        work = stage.queue.popleft()
        if not work[0].hopeless(stage.need):
            batch.append(work)
    return batch


def status(stage: StageRuntime) -> dict[str, Any]:
    """Return what a stage is doing, for people."""
    ready = sum(worker.ready for worker in stage.workers)
    counts = {"queue": len(stage.queue), "replicas": len(stage.workers), "ready": ready, "replaced": stage.replaced}
    return {"name": stage.name, "batch": stage.batch, "served": stage.served, "batches": stage.batches, **counts}


def clock() -> float:
    """Return seconds for measuring."""
    return time.perf_counter()
