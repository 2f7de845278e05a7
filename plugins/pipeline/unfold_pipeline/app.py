"""The running pipeline as an ASGI application: the Open Inference Protocol, health, and what the stages are doing."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from unfold_pipeline.board import Diary, Promise
from unfold_pipeline.graph import Pipeline
from unfold_pipeline.live import Tuner, tune
from unfold_pipeline.orders import TICK
from unfold_pipeline.routes import routes
from unfold_pipeline.runtime import Query, Running, clock
from unfold_pipeline.sample import draw
from unfoldkit.serving.service import ASGIApp

MOST_ROWS = 1024


def application(
    name: str,
    pipeline: Pipeline,
    runtime: Running,
    seed: int,
    tuner: Tuner | None = None,
    diary: Diary | None = None,
    given: Promise | None = None,
) -> ASGIApp:
    """Return the application; its lifespan starts and ends the replicas, and the rule that changes their number.

    ``diary`` is told what happens, ``given`` is what it is held against.
    """
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    rng = np.random.default_rng([seed, 7])
    diary = diary or Diary(clock())
    limit, prices = (given.limit, given.prices) if given else (math.inf, ())

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        await runtime.start()
        diary.paid_until = clock()
        watch = asyncio.create_task(_watch(runtime, tuner, diary, prices))
        yield
        watch.cancel()
        await runtime.stop()

    async def infer(request: Request) -> JSONResponse:
        try:
            rows = _rows(json.loads(await request.body()))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            return JSONResponse({"error": f"not an inference request: {error}"}, 400)
        answers = await asyncio.gather(*(_one(pipeline, runtime, row, rng, diary, limit) for row in rows))
        if None in answers:
            return JSONResponse({"error": "a stage cannot be served"}, 503)
        return JSONResponse(_answer(name, [item for item in answers if item is not None]))

    async def live(_request: Request) -> JSONResponse:
        return JSONResponse({"live": True})

    async def ready(_request: Request) -> JSONResponse:
        good = all(runtime.serving())
        return JSONResponse({"ready": good}, 200 if good else 503)

    async def status(_request: Request) -> JSONResponse:
        return JSONResponse({"name": name, "stages": runtime.status()})

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route(f"/v2/models/{name}/infer", infer, methods=["POST"]),
            Route("/v2/health/live", live),
            Route("/v2/health/ready", ready),
            Route("/status", status),
        ],
    )


async def _one(
    pipeline: Pipeline,
    runtime: Running,
    row: np.ndarray[Any, Any],
    rng: np.random.Generator,
    diary: Diary,
    limit: float,
) -> dict[str, Any] | None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[dict[str, Any] | None] = loop.create_future()

    def finished(answers: dict[str, Any] | None) -> None:
        if not future.done():
            future.set_result(answers)

    way = routes(pipeline, draw(pipeline, np.zeros(1), rng))
    diary.note()
    began = clock()
    runtime.submit(Query(row, way, 0, finished))
    answers = await future
    diary.answered(clock() - began, lost=answers is None, limit=limit)
    return answers


async def _watch(runtime: Running, tuner: Tuner | None, diary: Diary, prices: Sequence[float]) -> None:
    while True:
        await asyncio.sleep(TICK)
        if prices:
            diary.pay([stage["replicas"] for stage in runtime.status()], prices)
        if tuner is not None:
            tune(runtime, tuner, np.array(diary.arrivals), clock() - diary.began)


def _rows(body: Any) -> np.ndarray[Any, Any]:
    tensor = body["inputs"][0]
    rows = np.asarray(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
    if rows.ndim != 2 or not 0 < len(rows) <= MOST_ROWS:
        raise ValueError(f"shape {list(rows.shape)} is not (1 to {MOST_ROWS} rows, features)")
    return rows


def _answer(name: str, answers: list[dict[str, Any]]) -> dict[str, Any]:
    names = sorted({stage for answer in answers for stage in answer})
    outputs = [
        {
            "name": stage,
            "datatype": "BYTES",
            "shape": [len(answers)],
            "data": [json.dumps(answer.get(stage)) for answer in answers],
        }
        for stage in names
    ]
    return {"model_name": name, "outputs": outputs}
