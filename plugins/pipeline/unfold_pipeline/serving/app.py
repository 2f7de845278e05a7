"""The running pipeline behind the server of the serving room: its queries are handed in where a model's batcher is."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import operator
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from unfold_pipeline.estimator.admission import Pace, worth
from unfold_pipeline.estimator.replica_schedule import TICK
from unfold_pipeline.problem.pipeline import Pipeline
from unfold_pipeline.problem.routing import Ways
from unfold_pipeline.replay.load_generator import Tuner, order
from unfold_pipeline.runtime.local import Running
from unfold_pipeline.runtime.stage import Query, clock
from unfold_pipeline.serving.dashboard import Diary, Promise
from unfold_pipeline.serving.metrics import Counts, batches
from unfoldkit.api import UnfoldError
from unfoldkit.serving.batching.batcher import Done, Full, Limits, Result
from unfoldkit.serving.model import Array, Call, Field, Refusal
from unfoldkit.serving.observability.metrics import Metrics, ModelMetrics, metrics, of_model
from unfoldkit.serving.oip.app import Application, assembled
from unfoldkit.serving.oip.codec import cells, reader, writer
from unfoldkit.serving.oip.inference import Endpoint
from unfoldkit.serving.responses import json_reply
from unfoldkit.serving.service import Receive, Scope, Send

Answer = dict[str, Any] | None
INPUT = "x"
MOST_INSIDE = 1024
LATE = Refusal(503, "shed: it could not be answered in time any more")
BROKEN = Refusal(503, "a stage cannot be served")


@dataclass(frozen=True, slots=True)
class Front:
    """How the pipeline is told to clients: rows of numbers in, what each stage said as JSON text out."""

    name: str
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    version: str = "1"
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Given:
    """What a service is told: the stream of its routes, the rule in charge, and what it promised.

    ``shed`` says that queries which cannot be in time are refused.
    """

    seed: int
    tuner: Tuner | None = None
    promise: Promise | None = None
    shed: bool = False

    @property
    def limit(self) -> float:
        """Within how many seconds a query should be answered."""
        return self.promise.limit if self.promise else math.inf


@dataclass(slots=True)
class Entrance:
    """Takes requests into the pipeline, row by row; at most ``limits.queue_rows`` are inside at a time.

    What would be answered far too late, by the ``pace`` of now, is refused too.
    """

    pipeline: Pipeline
    runtime: Running
    given: Given
    diary: Diary
    limits: Limits
    metrics: ModelMetrics
    ways: Ways
    pace: Pace
    inside: int = 0
    hung: bool = False

    def full(self, rows: int) -> int:
        """Return 0 where there is room for the rows, else when to come back, in seconds."""
        wait = self.pace.wait(self.inside, self.room, clock())
        return max(math.ceil(wait), int(self.inside + rows > self.limits.queue_rows))

    @property
    def room(self) -> int:
        """How many rows can be served at once."""
        return sum(map(operator.mul, self.runtime.serving(), self.runtime.batches()))

    def left(self) -> None:
        """Note that a row is through."""
        self.inside -= 1
        self.pace.end(self.inside, self.room, clock())

    def rest(self) -> None:
        """Do nothing: the loop hears the replicas, too."""

    def submit(self, inputs: Mapping[str, Array], call: Call, done: Done) -> None:
        """Let the rows of a request in; ``done`` is called with their answer or a refusal.

        Raises:
            Full: as many rows are inside as may be, or they will take too long.
        """
        if retry_s := self.full(call.rows):
            raise Full(retry_s)
        Party(self, done, [None] * call.rows).enter(inputs[INPUT], call.deadline)

    def close(self) -> None:
        """Nothing is left to wait for: the server drains before."""

    def query(self, row: Array, finished: Callable[[Answer], None], deadline: float | None) -> Query:
        """Return a query that is to be submitted now; who names a deadline has no use for a later answer."""
        way, number = self.ways.next()
        own = self.given.limit if self.given.shed else math.inf
        return Query(row, way, number, finished, due=clock() + (own if deadline is None else deadline))


@dataclass(slots=True)
class Party:
    """The rows of one request, which end one by one."""

    entrance: Entrance
    done: Done
    answers: list[Answer]
    left: int = 0
    shed: bool = False
    failed: str = ""

    def enter(self, rows: Array, deadline: float | None) -> None:
        """Submit each row as a query."""
        self.left = len(rows)
        self.entrance.inside += self.left
        for index, row in enumerate(rows):
            self._submit(index, row, deadline)

    def _submit(self, index: int, row: Array, deadline: float | None) -> None:
        began, ended = clock(), False
        entrance = self.entrance
        entrance.diary.note()

        def finished(answer: Answer) -> None:
            nonlocal ended
            if ended:
                return
            ended = True
            self.shed |= query.shed
            self.failed = self.failed or query.failed
            entrance.diary.ended(query, clock() - began, entrance.given.limit, answered=answer is not None)
            self._end(index, answer)

        query = entrance.query(row, finished, deadline)
        entrance.runtime.submit(query)

    def _end(self, index: int, answer: Answer) -> None:
        self.answers[index] = answer
        self.left -= 1
        self.entrance.left()
        if self.left == 0:
            self.done(self._result())

    def _result(self) -> Result:
        found = [answer for answer in self.answers if answer is not None]
        if len(found) < len(self.answers):
            return self._refusal()
        names = [stage.name for stage in self.entrance.pipeline.stages]
        try:
            told = {name: [written(answer.get(name)) for answer in found] for name in names}
        except TypeError as error:
            return error
        self.entrance.metrics.rows.inc(len(found))
        return cells(told), 0, len(found)

    def _refusal(self) -> Refusal:
        if self.failed:
            return Refusal(500, f"the model of stage {self.failed} failed on this input")
        return LATE if self.shed else BROKEN


def written(answer: Any) -> str:
    """Return what a stage said as JSON text; a number that is none (NaN, infinity), which JSON does not know, as null.

    Raises:
        TypeError: it is of a type that has no JSON.
    """
    try:
        return json.dumps(answer, allow_nan=False)
    except ValueError:
        return msgspec.json.encode(answer).decode()


@dataclass(frozen=True, slots=True)
class Served:
    """The application of a pipeline; its lifespan starts and ends the replicas, and the rule of their number."""

    app: Application
    entrance: Entrance

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or one lifespan."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send, self.entrance.runtime, self.entrance.given, self.entrance.diary)
        else:
            await self.app(scope, receive, send)


def application(
    name: str,
    pipeline: Pipeline,
    runtime: Running,
    width: int,
    given: Given,
    diary: Diary | None = None,
    limits: Limits | None = None,
) -> Served:
    """Return the application.

    ``width`` is how many numbers a query has; ``diary`` is told what happens.
    """
    diary = diary or Diary(clock())
    limits = limits or Limits(queue_rows=MOST_INSIDE)
    found = metrics()
    own = of_model(found, name)
    ways = Ways(pipeline, np.random.default_rng([given.seed, 7]))
    entrance = Entrance(pipeline, runtime, given, diary, limits, own, ways, Pace(worth(given.limit)))
    own.queue.set_function(lambda: entrance.inside)
    runtime.listen(batches(found, name))
    found.registry.register(Counts(runtime, diary))
    outputs = tuple(Field(stage.name, "BYTES") for stage in pipeline.stages)
    return Served(_assembled(Front(name, (Field(INPUT, "FP32", (width,)),), outputs), entrance, found), entrance)


def paths(name: str) -> tuple[str, ...]:
    """Return the paths that a user is told at start."""
    return (f"/v2/models/{name}/infer", "/v2/health/ready", "/status", "/metrics", "/openapi.json")


def _assembled(front: Front, entrance: Entrance, found: Metrics) -> Application:
    asks = reader(front.inputs, front.outputs)
    log = logging.getLogger("unfoldkit")
    endpoint = Endpoint(front, asks, writer(front), entrance, entrance.metrics, log)
    app = assembled([endpoint], found, more={"/status": "queue and replicas of each stage"})

    def ready(about: dict[str, Any]) -> Any:
        good = all(entrance.runtime.serving())
        return json_reply({**about, "ready": good}, 200 if good else 503)

    app.gets["/v2/health/ready"] = lambda: ready({})
    app.gets[f"/v2/models/{front.name}/ready"] = lambda: ready({"name": front.name})
    app.gets["/status"] = lambda: json_reply({"name": front.name, "stages": entrance.runtime.status()})
    return app


async def _lifespan(receive: Receive, send: Send, runtime: Running, given: Given, diary: Diary) -> None:
    await receive()
    try:
        async with _running(runtime, given, diary):
            await send({"type": "lifespan.startup.complete"})
            await receive()
    except UnfoldError as error:
        await send({"type": "lifespan.startup.failed", "message": str(error), "error": error})
        return
    await send({"type": "lifespan.shutdown.complete"})


@asynccontextmanager
async def _running(runtime: Running, given: Given, diary: Diary) -> AsyncIterator[None]:
    await runtime.start()
    diary.paid_until = clock()
    watch = asyncio.create_task(_watch(runtime, given, diary))
    try:
        yield
    finally:
        watch.cancel()
        await runtime.stop()


async def _watch(runtime: Running, given: Given, diary: Diary) -> None:
    options = given.promise.options if given.promise else ()
    while True:
        await asyncio.sleep(TICK)
        if options:
            diary.pay([stage["replicas"] for stage in runtime.status()], options)
        if given.tuner is not None:
            await _tune(runtime, given.tuner, diary)


async def _tune(runtime: Running, tuner: Tuner, diary: Diary) -> None:
    if not diary.arrivals:
        return
    now = float(math.floor(clock() - diary.began))
    try:
        # of a hundred thousand arrivals a rule needs tens of milliseconds, in which requests want to be heard
        wanted = await asyncio.to_thread(tuner.rule, np.array(diary.arrivals), now)
        order(runtime, tuner.limits, wanted)
    except Exception:
        # what fails this second may do next second; to end here would leave all counts as they are for good
        logging.getLogger("unfoldkit").exception("the rule in charge of replicas failed; they stay as they are")
