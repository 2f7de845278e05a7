"""The queue of a running stage: the queries that wait, its replicas, and its counters."""

from __future__ import annotations

import math
import time
from asyncio import TimerHandle
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from unfold_pipeline._types import FloatArray, Tensors
from unfold_pipeline.estimator.admission import BatchSpeed, StageLoad
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import StageConfig
from unfold_pipeline.problem.routing import Item, Routes
from unfold_pipeline.runtime.models.data_flow import Outputs
from unfold_pipeline.runtime.replica import Replica
from unfoldkit.api import UnfoldError, user_error

SLACK_QUANTILE = 0.95
SLACK_STEP = 0.05
ACTIVATION_STEP = 0.3

OnFinished = Callable[[dict[str, Any] | None], None]
"""Receives the answers of the stages, or ``None`` if the query has no answer."""


def read_clock() -> float:
    """Return seconds of a monotonic clock."""
    return time.perf_counter()


def build_start_error(stage: str, reason: str) -> UnfoldError:
    """Return the error of a service with a stage that starts no replica."""
    message, key = f"replicas of {stage} do not start: {reason}", f"stages.{stage}.model"
    return user_error(message, key=key, hint="unfold profile SPEC runs the model on its own")


def build_hang_error(stage: str, awaited: str, limit_s: float) -> UnfoldError:
    """Return the error of a model that is measured and does not answer within the limit of its start."""
    message, key = f"the model did not answer {awaited} within {limit_s:g} s", f"stages.{stage}.model"
    return user_error(message, key=key, hint="start: 10 min allows more time; does the model wait for something?")


@dataclass(slots=True)
class Query:
    """A query in flight.

    Attributes:
        row: Its input; tensors by name are what its only stage reads.
        routes: The routes that hold its path.
        number: Its number in the routes.
        on_finished: Is called once with its answers.
        answers: Answers of the stages so far.
        received: By item that is not done, what the stages upstream have returned.
        due_s: When its answer is late, on :func:`read_clock`.
        is_shed: Whether it was dropped because it would be late.
        failed_stage: The stage with the model that raised an error on it.
        refused_input: Why that model does not take what the client sent; empty if the fault is another one.
        process_failures: Processes that ended while they served nothing else.
        batched_at: Stages that took it into a batch, and when; empty for a query without a deadline.
        has_lost_replica: Whether a replica was lost that served it, or that it waited for; it is answered anyway.
        on_shed: Withdraw what was sent for it to other processes.
    """

    row: Tensors
    routes: Routes
    number: int
    on_finished: OnFinished
    answers: dict[str, Any] = field(default_factory=dict)
    received: dict[Item, Outputs] = field(default_factory=dict)
    due_s: float = math.inf
    is_shed: bool = False
    failed_stage: str = ""
    refused_input: str = ""
    process_failures: int = 0
    batched_at: list[tuple[StageRuntime, float]] = field(default_factory=list)
    has_lost_replica: bool = False
    on_shed: list[Callable[[], object]] = field(default_factory=list)

    def complete(self) -> None:
        """Deliver the answers, and let the stages learn how long the query took from their batches on."""
        now_s = read_clock()
        for stage, batched_s in self.batched_at:
            stage.learn_remaining_time(now_s - batched_s)
        self.on_finished(self.answers)

    def drop_if_late(self, remaining_s: float) -> bool:
        """Drop the query if it cannot be answered in time; return whether it was dropped, now or before.

        ``remaining_s`` is the time that it still needs.
        """
        is_over = self.is_shed or bool(self.failed_stage)
        if is_over or read_clock() + remaining_s <= self.due_s:
            return is_over
        self.shed()
        return True

    def shed(self) -> None:
        """End the query without an answer, because it would come too late."""
        self.is_shed = True
        self.on_finished(None)
        for withdraw in self.on_shed:
            withdraw()

    def fail_at(self, stage: str) -> None:
        """End the query without an answer, because the model of ``stage`` raised an error on it."""
        self.failed_stage = stage
        self.on_finished(None)


class QueuedItem(NamedTuple):
    """An item of a query at a stage, and when it arrived there, on :func:`read_clock`."""

    query: Query
    item: Item
    queued_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletedBatch:
    """A batch that was answered.

    Attributes:
        stage: Name of the stage.
        rows: Number of rows.
        start_s: When it was handed over, on :func:`read_clock`.
        total_s: Seconds until the answer.
        model_s: Seconds of these in the model.
        waited_s: Seconds of these in which the replica waited for a core.
        cpu_s: Seconds of these in which a core was busy.
    """

    stage: str
    rows: int
    start_s: float
    total_s: float
    model_s: float
    waited_s: float = 0.0
    cpu_s: float = 0.0


@dataclass(slots=True)
class Worker:
    """A replica as its stage sees it.

    Attributes:
        replica: Process and pipe.
        launched_s: When its process was started, on :func:`read_clock`.
        is_ready: Whether the model is loaded.
        is_leaving: Whether it ends with its batch.
        core: The core to which it is pinned.
        batch: The items that it serves.
        batch_start_s: When the batch was handed over.
        hang_timer: Fires when it has kept the batch for too long.
    """

    replica: Replica
    launched_s: float = field(default_factory=read_clock)
    is_ready: bool = False
    is_leaving: bool = False
    core: int | None = None
    batch: list[QueuedItem] = field(default_factory=list)
    batch_start_s: float = 0.0
    hang_timer: TimerHandle | None = None

    def release_batch(self) -> list[QueuedItem]:
        """Return the batch that the replica was serving, and forget it."""
        if self.hang_timer is not None:
            self.hang_timer.cancel()
            self.hang_timer = None
        batch, self.batch = self.batch, []
        return batch


@dataclass(slots=True)
class ActivationTime:
    """The measured seconds from ordering a replica until it serves: an exponential average, 0 before the first."""

    seconds: float = 0.0
    count: int = 0

    def observe(self, seconds: float) -> None:
        """Learn from a replica that has just become ready."""
        self.count += 1
        self.seconds += max(1.0 / self.count, ACTIVATION_STEP) * (seconds - self.seconds)

    def expect_single_starts(self) -> None:
        """Let the next start replace the average: those so far competed with each other for cores."""
        self.count = 0

    def estimate(self, waited_s: float) -> float:
        """Return the seconds of a start; a replica that is awaited for longer shows that starts take at least that."""
        return max(self.seconds, waited_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """How a stage of a plan runs.

    Attributes:
        name: Of the stage.
        source: Its model.
        config: Its largest batch and its replicas.
        min_remaining_s: Least seconds that a query still takes from here on.
        max_slack_s: Upper limit of how much longer than the least queries are expected to take.
        max_wait_s: How long a batch that is not full may be delayed.
        hang_timeout_s: A replica that keeps a batch for longer is ended.
        latency_s: Planned seconds of a batch by its size; empty if unknown.
    """

    name: str
    source: ModelSource
    config: StageConfig
    min_remaining_s: float = 0.0
    max_slack_s: float = 0.0
    max_wait_s: float = 0.0
    hang_timeout_s: float = math.inf
    latency_s: FloatArray = field(default_factory=lambda: np.empty(0))


@dataclass(slots=True, kw_only=True)
class StageRuntime:
    """A running stage.

    Attributes:
        name: Of the stage.
        source: Its model.
        max_batch: Maximum batch size at present.
        target_replicas: How many replicas there should be.
        min_remaining_s: Least seconds that a query still takes from here on.
        max_slack_s: Upper limit of ``slack_s``, so that some queries are always admitted and the slack is learned.
        slack_s: How much longer than the least nearly all queries took lately.
        max_wait_s: How long a batch that is not full may be delayed.
        hang_timeout_s: A replica that keeps a batch for longer is ended.
        queue: Items that wait.
        retry_queue: Items of batches on which the model failed, to be tried one by one.
        workers: Its replicas.
        consecutive_failures: Replicas that ended without a batch, one after the other.
        failed_s: When the last of them ended, on :func:`read_clock`.
        replaced, served, batches, failed: Counters of replicas, rows, batches, and rows on which the model failed.
        model_s, cpu_s: Seconds in the model, and those of them in which a core was busy.
        last_error: The last error of the model.
        logged_s: When an error of each kind was logged last.
        wait_timer: Fires when the oldest item has waited for ``max_wait_s``.
        start_error: Why the last replicas did not start; empty once one does.
        restart_timer: Fires when replicas may be started again after too many failures.
        speed: How long its batches take.
        activation: How long its replicas take to start.
    """

    name: str
    source: ModelSource
    max_batch: int
    target_replicas: int
    min_remaining_s: float = 0.0
    max_slack_s: float = 0.0
    slack_s: float = 0.0
    max_wait_s: float = 0.0
    hang_timeout_s: float = math.inf
    queue: deque[QueuedItem] = field(default_factory=deque)
    retry_queue: deque[QueuedItem] = field(default_factory=deque)
    workers: list[Worker] = field(default_factory=list)
    consecutive_failures: int = 0
    failed_s: float = -math.inf
    start_error: str = ""
    replaced: int = 0
    served: int = 0
    batches: int = 0
    failed: int = 0
    model_s: float = 0.0
    cpu_s: float = 0.0
    last_error: str = ""
    logged_s: dict[str, float] = field(default_factory=dict)
    wait_timer: TimerHandle | None = None
    restart_timer: TimerHandle | None = None
    speed: BatchSpeed = field(default_factory=BatchSpeed)
    activation: ActivationTime = field(default_factory=ActivationTime)

    @property
    def activation_s(self) -> float:
        """The seconds from ordering a replica until it serves; 0 if unknown."""
        launched_s = [worker.launched_s for worker in self.workers if not worker.is_ready and not worker.is_leaving]
        return self.activation.estimate(read_clock() - min(launched_s) if launched_s else 0.0)

    @property
    def ready_replicas(self) -> int:
        """Replicas that serve and stay."""
        return sum(worker.is_ready and not worker.is_leaving for worker in self.workers)

    @property
    def silent_s(self) -> float:
        """For how many seconds the replica that has kept its batch longest has not answered; 0 if all are idle."""
        starts_s = [worker.batch_start_s for worker in self.workers if worker.batch]
        return read_clock() - min(starts_s) if starts_s else 0.0

    def measure_load(self) -> StageLoad:
        """Return what waits here and what serves it."""
        in_service = sum(len(worker.batch) for worker in self.workers)
        return StageLoad(
            items=len(self.queue) + len(self.retry_queue) + in_service,
            replicas=self.ready_replicas,
            max_batch=self.max_batch,
            speed=self.speed,
            restart_s=self.activation.seconds,
        )

    def learn_remaining_time(self, seconds: float) -> None:
        """Track the time that nearly all queries take beyond the least: a quantile by stochastic approximation."""
        is_above = seconds - self.min_remaining_s > self.slack_s
        step_s = SLACK_STEP * self.max_slack_s * (SLACK_QUANTILE if is_above else SLACK_QUANTILE - 1)
        self.slack_s = min(max(self.slack_s + step_s, 0.0), self.max_slack_s)

    def next_batch_delay(self) -> float:
        """Return in how many seconds a batch may start: 0 if it is full, infinite if nothing waits."""
        if self.retry_queue or len(self.queue) >= self.max_batch:
            return 0.0
        return self.queue[0].queued_s + self.max_wait_s - read_clock() if self.queue else math.inf

    def take_batch(self) -> list[QueuedItem]:
        """Remove the next batch from the queue; queries that cannot be in time are dropped and take no slot."""
        return self._fill_batch(self.retry_queue, 1) or self._fill_batch(self.queue, self.max_batch)

    def drain_queues(self) -> Iterator[QueuedItem]:
        """Remove all items that wait."""
        while self.retry_queue:
            yield self.retry_queue.popleft()
        while self.queue:
            yield self.queue.popleft()

    def build_status(self) -> dict[str, Any]:
        """Return the state of the stage for people and metrics."""
        return {
            "name": self.name,
            "batch": self.max_batch,
            "served": self.served,
            "batches": self.batches,
            "queue": len(self.queue) + len(self.retry_queue),
            "replicas": len(self.workers),
            "ready": sum(worker.is_ready for worker in self.workers),
            "replaced": self.replaced,
            "failed": self.failed,
            "silent_s": round(self.silent_s, 3),
            "start_error": self.start_error if self.ready_replicas < self.target_replicas else "",
        }

    def _fill_batch(self, queue: deque[QueuedItem], max_batch: int) -> list[QueuedItem]:
        batch: list[QueuedItem] = []
        while queue and len(batch) < max_batch:
            queued = queue.popleft()
            if not queued.query.drop_if_late(self.min_remaining_s + self.slack_s):
                batch.append(queued)
                if queued.query.due_s < math.inf:
                    queued.query.batched_at.append((self, read_clock()))
        return batch
