"""Dynamic batching without delay: rows that arrive in one tick of the event loop are predicted together.

A batch starts as soon as the loop has read what was there to read, so a lone row never waits for company; while a batch
is computed, others gather for the next one, so batches grow with the load and by nothing else.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from unfoldkit.serving.batching.request_queue import Arrivals, Line, Waiting
from unfoldkit.serving.batching.worker_thread import Thread
from unfoldkit.serving.model import Answers, Array, Batch, Call, Model, Refusal, Turn, blank
from unfoldkit.serving.observability.metrics import ModelMetrics
from unfoldkit.serving.oip.codec import Cells, cells

Rows = tuple[Cells, int, int]
"""The JSON of a batch, the first row of one request in it, and the one after its last."""

Result = Rows | Refusal | Exception
Done = Callable[[Result], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """``batch_rows`` close a batch; more than ``queue_rows`` waiting are refused; ``body_bytes`` bound a request.

    What would wait longer than ``queue_seconds`` is refused too: who is overloaded long would answer all too late. A
    batch that is expected to take longer than ``loop_seconds`` is computed in a thread, so that others are heard; one
    that takes longer than ``hung_seconds`` there is given up.
    """

    batch_rows: int = 64
    queue_rows: int = 1024
    body_bytes: int = 4 * 2**20
    loop_seconds: float = 0.001
    queue_seconds: float = 0.5
    hung_seconds: float = 30.0


REST_S = 0.03
HUNG = Refusal(503, "the model does not come back; its server must be started again")


class Full(Exception):  # noqa: N818 - a state of the queue, not a mistake
    """The queue holds as much as it may; ``retry_s`` is when to come back."""

    def __init__(self, retry_s: int) -> None:
        super().__init__(retry_s)
        self.retry_s = retry_s


@dataclass(slots=True)
class Timing:
    """What a batch of n rows is expected to take: ``scale * (base + n * slope)`` seconds, learned as batches pass."""

    base: float
    slope: float
    scale: float = 1.0

    def expected(self, rows: int) -> float:
        """Return the expected seconds of a batch."""
        return self.scale * (self.base + rows * self.slope)

    def each(self, rows: int) -> float:
        """Return the expected seconds of one row in a batch of ``rows``."""
        return self.scale * (self.base / rows + self.slope)

    def learn(self, rows: int, seconds: float) -> None:
        """Take a measured batch into account.

        The steps settle where one batch in five is quicker: what the model takes when nothing else holds it up.
        """
        slower = seconds > self.expected(rows)
        self.scale = min(max(self.scale * (1.005 if slower else 0.98), 0.1), 100.0)


@dataclass(slots=True)
class Batcher:
    """Gathers requests for one model and predicts them together. Lives in one event loop.

    ``rows`` wait; ``busy`` while a batch is due or under way; ``hung`` while the model does not come back.
    """

    model: Model
    limits: Limits
    metrics: ModelMetrics
    timing: Timing
    line: Line = field(default_factory=Arrivals)
    rows: int = 0
    busy: bool = False
    hung: bool = False
    resting: bool = False
    thread: Thread = field(default_factory=lambda: Thread("unfold-predict"))

    def full(self, rows: int) -> int:
        """Return 0 where ``rows`` more can wait, else when to come back, in seconds.

        Too many rows wait already, or they will take too long. It is cheap, since refusing takes what is short.
        """
        wait = self.rows * self.timing.each(self.limits.batch_rows)
        if self.rows + rows > self.limits.queue_rows or (self.rows and wait > self.limits.queue_seconds):
            return max(1, math.ceil(wait))
        return 0

    def rest(self) -> None:
        """Let the loop sleep once all that came is heard: a thread computes, and little is gained by hearing more.

        To wake up for every request that is refused takes more of the processor than to refuse it.
        """
        if self.busy and not self.resting:
            self.resting = True
            asyncio.get_running_loop().call_soon(self._rest)

    def _rest(self) -> None:
        self.resting = False
        self.thread.rest(REST_S)

    def submit(self, inputs: Mapping[str, Array], call: Call, done: Done) -> None:
        """Queue the rows of a request; ``done`` is called in the loop with their answer, a refusal or an error.

        Raises:
            Full: too many rows wait already, or they will take too long.
        """
        if self.hung:
            done(HUNG)
            return
        if retry_s := self.full(call.rows):
            raise Full(retry_s)
        self.line.add(Waiting(inputs, call, done))
        self.rows += call.rows
        if not self.busy:
            self.busy = True
            loop = asyncio.get_running_loop()
            loop.call_soon(self._next, loop)

    def close(self) -> None:
        """Wait for the batch in the thread, if there is one that comes back."""
        if not self.hung:
            self.thread.close()

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        taken, turn = self.line.take(self.limits.batch_rows)
        if not taken:
            self.busy = False
            return
        rows = sum(item.call.rows for item in taken)
        self.rows -= rows
        if self.timing.expected(rows) <= self.limits.loop_seconds:
            _deliver(taken, self._answer(taken, rows, turn))
            loop.call_soon(self._next, loop)
            return
        late = loop.call_later(self.limits.hung_seconds, self._give_up, taken)

        def back(results: list[Result]) -> None:
            late.cancel()
            if self.hung:
                self.hung = False
            else:
                _deliver(taken, results)
            self._next(loop)

        self.thread.run(lambda: self._answer(taken, rows, turn), lambda found: loop.call_soon_threadsafe(back, found))

    def _give_up(self, taken: list[Waiting]) -> None:
        """Answer those whom the model keeps waiting, and all behind them."""
        self.hung = True
        while taken:
            _deliver(taken, [HUNG] * len(taken))
            taken, _ = self.line.take(self.limits.batch_rows)
        self.rows = 0

    def _answer(self, taken: list[Waiting], rows: int, turn: Turn | None) -> list[Result]:
        began = time.perf_counter()
        try:
            results = _split(self.model.predict(_together(taken, turn)), taken)
        except Exception as error:  # noqa: BLE001 - a model may raise anything
            results = [error] if len(taken) == 1 else self._one_by_one(taken, turn)
        seconds = time.perf_counter() - began
        self.timing.learn(rows, seconds)
        self.metrics.predict.observe(seconds)
        self.metrics.batch.observe(rows)
        self.metrics.rows.inc(rows)
        return results

    def _one_by_one(self, taken: list[Waiting], turn: Turn | None) -> list[Result]:
        """One bad request must not take its neighbours along."""
        results: list[Result] = []
        for item in taken:
            try:
                own = None if turn is None else replace(turn, due=(item.due,))
                results += _split(self.model.predict(_together([item], own)), [item])
            except Exception as error:  # noqa: BLE001 - as above
                results.append(error)
        return results


def batcher(
    model: Model, limits: Limits, metrics: ModelMetrics, clock: Callable[[], float], line: Line | None = None
) -> Batcher:
    """Return the batcher of a model that was warmed up, with its time measured on blank rows."""
    times = {rows: min(_timed(model, rows, clock) for _ in range(3)) for rows in (1, limits.batch_rows)}
    few, many = times.values()
    slope = max((many - few) / max(limits.batch_rows - 1, 1), 1e-9)
    found = Batcher(model, limits, metrics, Timing(max(few - slope, 1e-9), slope), line or Arrivals())
    metrics.queue.set_function(lambda: found.rows)
    return found


def _timed(model: Model, rows: int, clock: Callable[[], float]) -> float:
    batch = blank(model, rows)
    began = clock()
    model.predict(batch)
    return clock() - began


def _together(taken: list[Waiting], turn: Turn | None) -> Batch:
    if len(taken) == 1:
        return Batch(taken[0].inputs, (taken[0].call,), turn=turn)
    names = taken[0].inputs
    inputs = {name: np.concatenate([item.inputs[name] for item in taken]) for name in names}
    return Batch(inputs, tuple(item.call for item in taken), turn=turn)


def _split(answers: Answers, taken: list[Waiting]) -> list[Result]:
    found = cells(answers.columns)
    results: list[Result] = []
    first = 0
    for index, item in enumerate(taken):
        last = first + item.call.rows
        results.append(answers.refused.get(index) or (found, first, last))
        first = last
    return results


def _deliver(taken: list[Waiting], results: list[Result]) -> None:
    for item, result in zip(taken, results, strict=True):
        item.done(result)
