"""The running pipeline as an ASGI application: the Open Inference Protocol, health, and what the stages are doing."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unfold_pipeline.graph import Pipeline
from unfold_pipeline.live import Tuner, tune
from unfold_pipeline.orders import TICK
from unfold_pipeline.routes import routes
from unfold_pipeline.runtime import Query, Running, clock
from unfold_pipeline.sample import draw
from unfoldkit.serving.service import ASGIApp

MOST_ROWS = 1024
MOST_ARRIVALS = 1 << 17


@dataclass(slots=True)
class Diary:
    """The arrivals of the last minutes, in seconds since ``began``: what the rule in charge looks at."""

    began: float
    arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_ARRIVALS))

    def note(self) -> None:
        """Note that a query arrives now."""
        self.arrivals.append(clock() - self.began)


def application(name: str, pipeline: Pipeline, runtime: Running, seed: int, tuner: Tuner | None = None) -> ASGIApp:
    """Return the application; its lifespan starts and ends the replicas, and the rule that changes their number."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    rng = np.random.default_rng([seed, 7])
    diary = Diary(clock())

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        await runtime.start()
        watch = asyncio.create_task(_watch(runtime, tuner, diary))
        yield
        watch.cancel()
        await runtime.stop()

    async def infer(request: Request) -> JSONResponse:
        try:
            rows = _rows(json.loads(await request.body()))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            return JSONResponse({"error": f"not an inference request: {error}"}, 400)
        answers = await asyncio.gather(*(_one(pipeline, runtime, row, rng, diary) for row in rows))
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
    pipeline: Pipeline, runtime: Running, row: np.ndarray[Any, Any], rng: np.random.Generator, diary: Diary
) -> dict[str, Any] | None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[dict[str, Any] | None] = loop.create_future()

    def finished(answers: dict[str, Any] | None) -> None:
        if not future.done():
            future.set_result(answers)

    way = routes(pipeline, draw(pipeline, np.zeros(1), rng))
    diary.note()
    runtime.submit(Query(row, way, 0, finished))
    return await future


async def _watch(runtime: Running, tuner: Tuner | None, diary: Diary) -> None:
    while tuner is not None:
        await asyncio.sleep(TICK)
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
