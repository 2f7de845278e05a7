"""The HTTP ingress of an exported pipeline on Ray Serve: it takes requests and joins the answers of the stages.

It speaks the JSON of the Open Inference Protocol, as ``unfold serve`` does: rows of numbers in, the answer of each
stage as JSON text out. Conditions decide which flows a row follows, and the probabilities of the plan where there are
none.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from unfold_pipeline._types import RowArray
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import Pipeline, Stage, build_edges, build_inputs
from unfold_pipeline.problem.routing import Item, RouteDrawer, Routes
from unfold_pipeline.runtime.models.data_flow import DataFlow, Outputs, encode_answer, format_output, pass_requests
from unfold_pipeline.runtime.models.flow_resolution import find_request_width, request_tensors, resolve_data_flow
from unfold_pipeline.runtime.ray_replica import ModelHung, RayReplica
from unfoldkit.serving.batching.batcher import Limits
from unfoldkit.serving.model import Field
from unfoldkit.serving.oip.codec import InferenceRequest, RequestReader, build_reader
from unfoldkit.serving.oip.content_encoding import read_encoding
from unfoldkit.serving.oip.errors import InvalidRequest, TooLarge

INGRESS = "ingress"
INPUT = "x"


class StageFailedError(RuntimeError):
    """The model of a stage failed on a row that a client sent; the message is for the client."""


class TensorShape(msgspec.Struct):
    """The shape of an input, whatever else a request states about it."""

    shape: list[int]


class RequestShapes(msgspec.Struct):
    """The shapes of the inputs of a request."""

    inputs: list[TensorShape]


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
        features: Numbers of a row; ``None`` if no model states them, and each request does.
    """

    def __init__(
        self,
        name: str,
        stages: Sequence[Mapping[str, Any]],
        *handles: Any,
        seed: int | None = None,
        flow: DataFlow | None = None,
        features: int | None = None,
    ) -> None:
        self._name = name
        self._pipeline = build_flow_graph(stages)
        self._handles = handles
        self._flow = flow or pass_requests(self._pipeline)
        self._routes = RouteDrawer(self._pipeline, np.random.default_rng(seed))
        self._features = features
        outputs = tuple(Field(stage.name, "BYTES") for stage in self._pipeline.stages)
        self._reader = build_reader((_describe_rows(features or 1),), outputs)

    async def __call__(self, request: Any) -> Any:
        """Answer an HTTP request.

        The status is 200 with the outputs, 400 for a body or row that no model takes, 413 for a body that is too
        large, and 500 if a model fails.
        """
        from starlette.responses import JSONResponse

        try:
            inference = self.read_request(await request.body(), request.headers.raw)
            answers = await self._answer_rows(inference.inputs[INPUT])
            outputs = self._build_outputs(answers, inference.outputs)
        except InvalidRequest as error:
            return JSONResponse({"error": str(error)}, 400)
        except TooLarge as error:
            return JSONResponse({"error": str(error)}, 413)
        except StageFailedError as error:
            return JSONResponse({"error": str(error)}, 500)
        except Exception as error:  # noqa: BLE001  # Ray wraps what a model raises in errors of its own
            return JSONResponse({"error": f"a model failed: {type(error).__name__}"}, 500)
        identity = {"id": inference.id} if inference.id else {}
        return JSONResponse({"model_name": self._name, **identity, "outputs": outputs})

    def read_request(self, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> InferenceRequest:
        """Read the rows of a request, shape (rows, features).

        Raises:
            InvalidRequest: The body is not JSON, or not a request for rows of this pipeline.
            TooLarge: It has too many bytes.
        """
        encoding, max_bytes = read_encoding(headers), Limits().body_bytes
        if len(body) > max_bytes:
            raise TooLarge(f"the body has {len(body)} bytes; at most {max_bytes} are accepted")
        data = encoding.decompress(body, max_bytes)
        return self._choose_reader(data[: encoding.json_bytes or None]).read(data, encoding.json_bytes)

    def _choose_reader(self, json: bytes) -> RequestReader:
        """Return the reader for rows as long as the models take them, or else as long as the request states."""
        if self._features is not None:
            return self._reader
        try:
            shape = msgspec.json.decode(json, type=RequestShapes).inputs[0].shape
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, IndexError):
            # the reader explains what is wrong
            return self._reader
        return replace(self._reader, inputs=(_describe_rows(max(1, shape[-1] if shape else 1)),))

    async def _answer_rows(self, rows: RowArray) -> list[dict[str, Any]]:
        answers = await asyncio.gather(*(self.answer_row(row) for row in rows), return_exceptions=True)
        for number, answer in enumerate(answers, 1):
            if isinstance(answer, InvalidRequest):
                raise InvalidRequest(f"row {number}: {answer}") from answer
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if not isinstance(answer, BaseException)]

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
                raise StageFailedError(f"the model of stage {stage} failed on this input") from error
            # Ray's class for both sides has a traceback as its text
            cause = getattr(error, "cause", error)
            raise InvalidRequest(f"the model of stage {stage} cannot handle it: {cause}") from error
        except RuntimeError as error:
            raise StageFailedError(f"the model of stage {stage} failed on this input") from error
        if isinstance(answer, ModelHung):
            raise StageFailedError(f"the model of stage {stage} did not answer")
        query.answers[stage] = format_output(answer.value)
        ready = self._flow.pass_on(query.routes, item, answer.value, query.received)
        await asyncio.gather(*(self._follow(query, child) for child in ready))

    def _build_outputs(self, answers: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the outputs that a request names; all if it names none."""
        return [
            {
                "name": name,
                "datatype": "BYTES",
                "shape": [len(answers)],
                "data": [encode_answer(answer.get(name)) for answer in answers],
            }
            for name in names or [stage.name for stage in self._pipeline.stages]
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
    sources, flow, features = resolve_exported_stages(args["stages"])
    for stage, source in zip(args["stages"], sources, strict=True):
        deployment = serve.deployment(RayReplica).options(name=str(stage["name"]))
        handles.append(deployment.bind(source, int(stage["batch"]), float(stage["wait"])))
    ingress = serve.deployment(PipelineIngress).options(name=INGRESS)
    return ingress.bind(str(args["name"]), args["stages"], *handles, flow=flow, features=features)


def resolve_exported_stages(
    stages: Sequence[Mapping[str, Any]],
) -> tuple[tuple[ModelSource, ...], DataFlow, int | None]:
    """Return the models of the stages of an exported config, what each of them reads, and the numbers of a query.

    Raises:
        UnfoldError: An input or a condition does not fit the models.
    """
    pipeline = build_flow_graph(stages)
    sources = request_tensors(pipeline, [_build_source(stage) for stage in stages])
    features = find_request_width(pipeline, sources)
    return sources, resolve_data_flow(pipeline, sources, features), features


def _describe_rows(features: int) -> Field:
    return Field(INPUT, "FP32", (features,))


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
