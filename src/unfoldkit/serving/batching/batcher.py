"""Dynamic batching without delay: rows that arrive in one turn of the event loop are predicted together.

A batch starts as soon as the loop has read what there was to read, so a single row never waits for others. While a
batch is computed, further rows gather for the next one, so that batches grow with the load and by nothing else.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from unfoldkit.errors import ExitCode, UnfoldError
from unfoldkit.serving.batching.request_queue import FifoQueue, QueuedRequest, RequestQueue
from unfoldkit.serving.model import (
    Array,
    Batch,
    Call,
    EncodedRows,
    Model,
    PathChoice,
    Predictions,
    Rejection,
    encode_rows,
    make_blank_batch,
)
from unfoldkit.serving.observability.metrics import ModelMetrics

RowSpan = tuple[EncodedRows, int, int]
"""The encoded rows of a batch, the first row of one request in them, and the row after its last."""

Result = RowSpan | Rejection | Exception
Done = Callable[[Result], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a batcher.

    Args:
        batch_rows: The largest number of rows per batch.
        queue_rows: Requests beyond so many waiting rows are rejected.
        body_bytes: The largest body of a request.
        loop_seconds: A batch that is expected to take longer runs in a thread, so that the loop can go on.
        queue_seconds: Requests that would wait longer are rejected: under long overload all responses would be late.
        hung_seconds: A batch that takes longer is given up.
    """

    batch_rows: int = 64
    queue_rows: int = 1024
    body_bytes: int = 4 * 2**20
    loop_seconds: float = 0.001
    queue_seconds: float = 0.5
    hung_seconds: float = 30.0


YIELD_S = 0.03
MODEL_HANGS = Rejection(503, "the model does not respond; its server must be restarted")


class QueueFull(Exception):  # noqa: N818 - a state of the queue, not a mistake
    """The queue holds as much as it may; retry after ``retry_s``."""

    def __init__(self, retry_s: int) -> None:
        super().__init__(retry_s)
        self.retry_s = retry_s


@dataclass(slots=True)
class Timing:
    """The expected duration of a batch of n rows: ``scale * (base + n * slope)`` s. ``scale`` is learned."""

    base: float
    slope: float
    scale: float = 1.0

    def expected(self, rows: int) -> float:
        """Return the expected seconds of a batch."""
        return self.scale * (self.base + rows * self.slope)

    def per_row(self, rows: int) -> float:
        """Return the expected seconds per row in a batch of ``rows``."""
        return self.scale * (self.base / rows + self.slope)

    def learn(self, rows: int, seconds: float) -> None:
        """Adapt ``scale`` to a measured batch.

        The steps settle where one batch in five is faster: the duration when nothing else delays the model.
        """
        is_slower = seconds > self.expected(rows)
        self.scale = min(max(self.scale * (1.005 if is_slower else 0.98), 0.1), 100.0)


@dataclass(slots=True)
class Batcher:
    """Gathers requests for one model and predicts them together. It belongs to one event loop.

    Args:
        model: The model.
        limits: Its bounds.
        metrics: Its metrics.
        timing: The expected duration of its batches.
        line: The waiting requests.
        rows: The number of waiting rows.
        busy: A batch is due or under way.
        hung: The model does not respond.
        is_yielding: The loop is about to yield to the thread.
        thread: Runs long batches.
    """

    model: Model
    limits: Limits
    metrics: ModelMetrics
    timing: Timing
    line: RequestQueue = field(default_factory=FifoQueue)
    rows: int = 0
    busy: bool = False
    hung: bool = False
    is_yielding: bool = False
    thread: WorkerThread = field(default_factory=lambda: WorkerThread("unfold-predict"))

    def full(self, rows: int) -> int:
        """Return 0 if ``rows`` more can wait, else the time in s after which to retry.

        It must be cheap: it runs for every rejected request, when the processor is scarce.
        """
        wait_s = self.rows * self.timing.per_row(self.limits.batch_rows)
        if self.rows + rows > self.limits.queue_rows or (self.rows and wait_s > self.limits.queue_seconds):
            return max(1, math.ceil(wait_s))
        return 0

    def note_rejections(self, _requests: int) -> None:
        """Let the loop sleep after this turn while a thread computes.

        Waking up for every request that is rejected takes more processor time than rejecting it.
        """
        if self.busy and not self.is_yielding:
            self.is_yielding = True
            asyncio.get_running_loop().call_soon(self._yield)

    def _yield(self) -> None:
        self.is_yielding = False
        self.thread.yield_to_job(YIELD_S)

    def submit(self, inputs: Mapping[str, Array], call: Call, done: Done) -> None:
        """Queue the rows of a request; the loop calls ``done`` with its rows, a rejection or an error.

        Raises:
            QueueFull: Too many rows are waiting, or they will take too long.
        """
        if self.hung:
            done(MODEL_HANGS)
            return
        if retry_s := self.full(call.rows):
            raise QueueFull(retry_s)
        self.line.add(QueuedRequest(inputs, call, done))
        self.rows += call.rows
        if not self.busy:
            self.busy = True
            loop = asyncio.get_running_loop()
            loop.call_soon(self._start_batch, loop)

    def close(self) -> None:
        """Wait for the batch in the thread, unless the model hangs."""
        if not self.hung:
            self.thread.close()

    def _start_batch(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, choice = self.line.take(self.limits.batch_rows)
        if not batch:
            self.busy = False
            return
        rows = sum(item.call.rows for item in batch)
        self.rows -= rows
        if self.timing.expected(rows) <= self.limits.loop_seconds:
            _deliver(batch, self._predict(batch, rows, choice))
            loop.call_soon(self._start_batch, loop)
            return
        timeout = loop.call_later(self.limits.hung_seconds, self._give_up, batch)

        def finish(results: list[Result]) -> None:
            timeout.cancel()
            if self.hung:
                self.hung = False
            else:
                _deliver(batch, results)
            self._start_batch(loop)

        self.thread.run(
            lambda: self._predict(batch, rows, choice), lambda results: loop.call_soon_threadsafe(finish, results)
        )

    def _give_up(self, batch: list[QueuedRequest]) -> None:
        """Reject the requests that the model keeps waiting, and all that are queued."""
        self.hung = True
        while batch:
            _deliver(batch, [MODEL_HANGS] * len(batch))
            batch, _ = self.line.take(self.limits.batch_rows)
        self.rows = 0

    def _predict(self, batch: list[QueuedRequest], rows: int, choice: PathChoice | None) -> list[Result]:
        start_s = time.perf_counter()
        try:
            results = _split(self.model.predict(_concatenate(batch, choice)), batch)
        except Exception as error:  # noqa: BLE001 - a model may raise anything
            is_final = len(batch) == 1 or _is_shared(error)
            results = [error] * len(batch) if is_final else self._predict_singly(batch, choice)
        seconds = time.perf_counter() - start_s
        self.timing.learn(rows, seconds)
        self.metrics.predict.observe(seconds)
        self.metrics.batch.observe(rows)
        self.metrics.rows.inc(rows)
        return results

    def _predict_singly(self, batch: list[QueuedRequest], choice: PathChoice | None) -> list[Result]:
        """Predict each request by itself, so that a bad one does not fail the others."""
        results: list[Result] = []
        for item in batch:
            try:
                item_choice = None if choice is None else replace(choice, due=(item.due,))
                results += _split(self.model.predict(_concatenate([item], item_choice)), [item])
            except Exception as error:  # noqa: BLE001 - as above
                results.append(error)
        return results


def build_batcher(
    model: Model,
    limits: Limits,
    metrics: ModelMetrics,
    clock: Callable[[], float],
    line: RequestQueue | None = None,
) -> Batcher:
    """Build the batcher of a model: warm the model up, and measure its duration on blank rows.

    Args:
        model: The model.
        limits: Bounds of batch, queue and body.
        metrics: The metrics of the model.
        clock: A clock in s.
        line: The queue; by default first come, first served.
    """
    seconds = {rows: min(_measure(model, rows, clock) for _ in range(3)) for rows in (1, limits.batch_rows)}
    one_row, full_batch = seconds.values()
    slope = max((full_batch - one_row) / max(limits.batch_rows - 1, 1), 1e-9)
    batcher = Batcher(model, limits, metrics, Timing(max(one_row - slope, 1e-9), slope), line or FifoQueue())
    metrics.queue.set_function(lambda: batcher.rows)
    return batcher


def _is_shared(error: Exception) -> bool:
    """Whether what failed serves all requests, such as a locked store: each of them would wait for it once more."""
    return isinstance(error, UnfoldError) and error.code == ExitCode.INTERNAL


def _measure(model: Model, rows: int, clock: Callable[[], float]) -> float:
    batch = make_blank_batch(model, rows)
    start_s = clock()
    model.predict(batch)
    return clock() - start_s


def _concatenate(batch: list[QueuedRequest], choice: PathChoice | None) -> Batch:
    if len(batch) == 1:
        return Batch(batch[0].inputs, (batch[0].call,), turn=choice)
    inputs = {name: np.concatenate([item.inputs[name] for item in batch]) for name in batch[0].inputs}
    return Batch(inputs, tuple(item.call for item in batch), turn=choice)


def _split(predictions: Predictions, batch: list[QueuedRequest]) -> list[Result]:
    encoded = encode_rows(predictions.columns)
    results: list[Result] = []
    start = 0
    for index, item in enumerate(batch):
        end = start + item.call.rows
        results.append(predictions.refused.get(index) or (encoded, start, end))
        start = end
    return results


def _deliver(batch: list[QueuedRequest], results: list[Result]) -> None:
    for item, result in zip(batch, results, strict=True):
        item.done(result)


Job = tuple[Callable[[], Any], Callable[[Any], object]]


@dataclass(slots=True)
class WorkerThread:
    """A thread that starts with its first job. Unlike in an executor, a job that never ends keeps no process alive."""

    name: str
    jobs: queue.SimpleQueue[Job | None] = field(default_factory=queue.SimpleQueue)
    thread: threading.Thread | None = None
    is_working: threading.Lock = field(default_factory=threading.Lock)

    def run(self, work: Callable[[], Any], on_result: Callable[[Any], object]) -> None:
        """Run ``work``, which must not raise, in the thread, and pass its result to ``on_result`` there."""
        if self.thread is None:
            self.thread = threading.Thread(target=self._loop, name=self.name, daemon=True)
            self.thread.start()
        self.jobs.put((work, on_result))

    def yield_to_job(self, seconds: float) -> None:
        """Block the caller until the current job ends, at most ``seconds``, so that the job has the processor."""
        if self.is_working.acquire(timeout=seconds):
            self.is_working.release()

    def close(self) -> None:
        """Wait for the submitted jobs."""
        if self.thread is not None:
            self.jobs.put(None)
            self.thread.join()

    def _loop(self) -> None:
        while (job := self.jobs.get()) is not None:
            work, on_result = job
            with self.is_working:
                on_result(work())
