"""The HTTP ingress of an exported pipeline on Ray Serve: it takes requests and joins the answers of the stages.

It speaks the JSON of the Open Inference Protocol, as ``unfold serve`` does: rows of numbers in, the answer of each
stage as JSON text out. Conditions decide which flows a row follows, and the probabilities of the plan where there are
none.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unfold_pipeline._types import RowArray
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import Pipeline, Stage, build_edges, build_inputs
from unfold_pipeline.problem.routing import Item, RouteDrawer, Routes
from unfold_pipeline.runtime.models.data_flow import DataFlow, Outputs, encode_answer, format_output, pass_requests
from unfold_pipeline.runtime.models.flow_resolution import request_tensors, resolve_data_flow
from unfold_pipeline.runtime.ray_replica import ModelHung, RayReplica
from unfoldkit.serving.oip.errors import InvalidRequest

INGRESS = "ingress"
INPUT = "x"


class InvalidBodyError(ValueError):
    """The body of a request is not an inference request for this pipeline."""


@dataclass(frozen=True, slots=True)
class RoutedRow:
    """A row on its way: its routes, what its items have received, and the answers of the stages so far."""

    row: RowArray
    routes: Routes
    received: dict[Item, Outputs] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)


class PipelineIngress:
    """Routes the rows of a request through the stages.

    Args:
        name: Name of the pipeline.
        stages: ``name``, ``after``, ``share`` and ``fan_out`` of each stage, in topological order.
        handles: Handle of the deployment of each stage, in the same order.
        seed: Seed of the routes.
        flow: What each stage reads; by default the row of the request.
    """

    def __init__(
        self,
        name: str,
        stages: Sequence[Mapping[str, Any]],
        *handles: Any,
        seed: int | None = None,
        flow: DataFlow | None = None,
    ) -> None:
        self._name = name
        self._pipeline = build_flow_graph(stages)
        self._handles = handles
        self._flow = flow or pass_requests(self._pipeline)
        self._routes = RouteDrawer(self._pipeline, np.random.default_rng(seed))

    async def __call__(self, request: Any) -> Any:
        """Answer an HTTP request: 200 with the outputs, 400 for a body or row that is none, 500 if a model fails."""
        from starlette.responses import JSONResponse

        try:
            rows = parse_rows(await request.body())
        except InvalidBodyError as error:
            return JSONResponse({"error": str(error)}, 400)
        try:
            answers = await asyncio.gather(*(self.answer_row(row) for row in rows))
            outputs = self._build_outputs(answers)
        except InvalidRequest as error:
            return JSONResponse({"error": f"a model cannot handle one of the rows: {error}"}, 400)
        except Exception as error:  # noqa: BLE001  # Ray wraps what a model raises in errors of its own
            return JSONResponse({"error": f"a model failed: {type(error).__name__}"}, 500)
        return JSONResponse({"model_name": self._name, "outputs": outputs})

    async def answer_row(self, row: RowArray) -> dict[str, Any]:
        """Return the answer of each stage that the row visits; a join waits for all its parents."""
        routes, number = self._routes.draw_next()
        query = RoutedRow(row, routes)
        await asyncio.gather(*(self._follow(query, item) for item in routes.find_entries(number)))
        return query.answers

    async def _follow(self, query: RoutedRow, item: Item) -> None:
        stage = self._pipeline.stages[item[0]].name
        tensors = self._flow.build_input(item[0], query.row, query.received.get(item, {}))
        try:
            answer = await self._handles[item[0]].remote(tensors)
        except InvalidRequest as error:
            if not self._flow.includes_request(item[0]):
                raise RuntimeError(f"the model of {stage} does not take its input") from error
            # Ray's class for both sides has a traceback as its text
            raise InvalidRequest(str(getattr(error, "cause", error))) from error
        if isinstance(answer, ModelHung):
            raise TimeoutError(f"the model of {stage} did not answer")
        query.answers[stage] = format_output(answer.value)
        ready = self._flow.pass_on(query.routes, item, answer.value, query.received)
        await asyncio.gather(*(self._follow(query, child) for child in ready))

    def _build_outputs(self, answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                "name": stage.name,
                "datatype": "BYTES",
                "shape": [len(answers)],
                "data": [encode_answer(answer.get(stage.name)) for answer in answers],
            }
            for stage in self._pipeline.stages
        ]


def build_flow_graph(stages: Sequence[Mapping[str, Any]]) -> Pipeline:
    """Return the stages with their edges and no hardware; ``stages`` are those of an exported config."""
    positions = {str(stage["name"]): index for index, stage in enumerate(stages)}
    return Pipeline(
        tuple(
            Stage(
                str(stage["name"]),
                build_edges(stage["after"], stage.get("when", {}), positions),
                (),
                float(stage["share"]),
                float(stage["fan_out"]),
                inputs=build_inputs(stage.get("inputs", {}), positions),
                missing=float(stage.get("missing", math.nan)),
            )
            for stage in stages
        )
    )


def parse_rows(body: bytes) -> RowArray:
    """Return the rows of an inference request, shape (rows, features).

    Raises:
        InvalidBodyError: The body is not JSON, has no input ``x``, or its data does not fill its shape.
    """
    try:
        inputs = json.loads(body)["inputs"]
        tensor = next(item for item in inputs if item["name"] == INPUT)
        shape = [int(size) for size in tensor["shape"]]
        rows: RowArray = np.array(tensor["data"], dtype=np.float32).reshape(shape)
    except (ValueError, KeyError, TypeError, StopIteration, AttributeError, OverflowError, RecursionError) as error:
        message = (
            'the body must be like {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0, 1]}]}'
        )
        raise InvalidBodyError(message) from error
    if rows.ndim != 2 or not rows.size:
        raise InvalidBodyError(f"the input has shape {shape}; it must be rows of numbers")
    return rows


def application(args: dict[str, Any]) -> Any:
    """Build the application that an exported config names, for ``serve deploy``.

    Args:
        args: ``name``, and ``stages`` with ``name``, ``after``, ``when``, ``inputs``, ``missing``, ``share``,
            ``fan_out``, ``batch``, ``wait`` in seconds, and ``path`` or ``code`` of the model with its ``columns``,
            ``features`` and ``outputs``, and ``gpu`` if it runs on one.

    Raises:
        UnfoldError: An input or a condition does not fit the models.
    """
    from ray import serve

    handles = []
    sources, flow = resolve_exported_stages(args["stages"])
    for stage, source in zip(args["stages"], sources, strict=True):
        deployment = serve.deployment(RayReplica).options(name=str(stage["name"]))
        handles.append(deployment.bind(source, int(stage["batch"]), float(stage["wait"])))
    ingress = serve.deployment(PipelineIngress).options(name=INGRESS)
    return ingress.bind(str(args["name"]), args["stages"], *handles, flow=flow)


def resolve_exported_stages(stages: Sequence[Mapping[str, Any]]) -> tuple[tuple[ModelSource, ...], DataFlow]:
    """Return the models of the stages of an exported config, and what each of them reads.

    Raises:
        UnfoldError: An input or a condition does not fit the models.
    """
    pipeline = build_flow_graph(stages)
    sources = request_tensors(pipeline, [_build_source(stage) for stage in stages])
    return sources, resolve_data_flow(pipeline, sources)


def _build_source(stage: Mapping[str, Any]) -> ModelSource:
    return ModelSource(
        path=str(stage.get("path", "")),
        code=str(stage.get("code", "")),
        folder=".",
        columns=tuple(stage.get("columns", ())),
        features=stage.get("features"),
        outputs=tuple(stage.get("outputs", {}).items()),
        on_gpu=bool(stage.get("gpu", False)),
    )
