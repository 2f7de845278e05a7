"""What a skilled hand builds: starlette on uvicorn, orjson, rows of one loop tick predicted together, frozen GC.

ENGINE says what predicts: `onnx` (ONNX Runtime, one thread, as the project's server) or `xgboost` (in place).
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Predict = Callable[[Any], Any]
MOST = 32


def predictor() -> Predict:
    """Return what gives (n, classes) probabilities for (n, d) rows in single precision."""
    if os.environ["ENGINE"] == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(os.environ["PEER_ONNX"], options, ["CPUExecutionProvider"])
        name, out = session.get_inputs()[0].name, session.get_outputs()[-1].name
        return lambda x: session.run([out], {name: x})[0]
    import xgboost

    booster = xgboost.Booster(model_file=os.environ["PEER_UBJ"])
    booster.set_param({"nthread": 1})

    def predict(x: Any) -> Any:
        p = booster.inplace_predict(x)
        return np.column_stack([1 - p, p])

    return predict


class Ticks:
    """Gathers the rows of one tick of the event loop."""

    def __init__(self, predict: Predict) -> None:
        self.predict, self.waiting = predict, list[tuple[Any, asyncio.Future[Any]]]()

    def ask(self, row: Any) -> asyncio.Future[Any]:
        """Return the future answer to one row."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        if not self.waiting:
            loop.call_soon(self.answer)
        self.waiting.append((row, future))
        return future

    def answer(self) -> None:
        """Predict what waits."""
        taken, self.waiting = self.waiting[:MOST], self.waiting[MOST:]
        if self.waiting:
            asyncio.get_running_loop().call_soon(self.answer)
        found = self.predict(np.array([row for row, _ in taken], dtype=np.float32)).tolist()
        for (_, future), p in zip(taken, found, strict=True):
            if not future.done():
                future.set_result(p)


def create() -> Starlette:
    """Return the application."""
    ticks = Ticks(predictor())

    async def infer(request: Request) -> Response:
        tensor = orjson.loads(await request.body())["inputs"][0]
        p = await ticks.ask(tensor["data"])
        output = {"name": "p", "datatype": "FP64", "shape": [1, len(p)], "data": p}
        return Response(orjson.dumps({"model_name": "m", "outputs": [output]}), media_type="application/json")

    async def ready(_request: Request) -> Response:
        return JSONResponse({"ready": True})

    app = Starlette(routes=[Route("/v2/models/m/infer", infer, methods=["POST"]), Route("/ready", ready)])
    gc.collect()
    gc.freeze()
    return app
