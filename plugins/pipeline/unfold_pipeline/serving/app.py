"""The HTTP application of a running pipeline: inference, health, status and metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unfold_pipeline.problem.pipeline import Pipeline
from unfold_pipeline.problem.routing import RouteDrawer
from unfold_pipeline.runtime.local import PipelineRuntime
from unfold_pipeline.runtime.query_admission import QueryGate
from unfold_pipeline.runtime.stage import read_clock
from unfold_pipeline.serving.autoscale_loop import run_lifespan
from unfold_pipeline.serving.dashboard import ServiceRecord
from unfold_pipeline.serving.inference import INPUT_NAME, InferenceGateway, ServiceSettings
from unfold_pipeline.serving.metrics import PipelineCollector, build_batch_listener
from unfoldkit.serving.batching.batcher import Limits
from unfoldkit.serving.model import Field
from unfoldkit.serving.observability.metrics import Metrics, create_metrics, model_metrics
from unfoldkit.serving.oip.app import Application, assemble_application
from unfoldkit.serving.oip.codec import build_reader, build_writer
from unfoldkit.serving.oip.inference import Endpoint
from unfoldkit.serving.responses import json_reply, retry_after
from unfoldkit.serving.service import Receive, Scope, Send

MAX_ROWS_IN_FLIGHT = 1024
DEMAND_WINDOW_S = 10.0
DECISIONS_SHOWN = 120


@dataclass(frozen=True, slots=True)
class ServedModel:
    """How clients see the pipeline: rows of numbers in, the answer of each stage as JSON text out."""

    name: str
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    version: str = "1"
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PipelineApp:
    """The ASGI application of a pipeline; its lifespan starts and ends the replicas and the scaling loop."""

    app: Application
    gateway: InferenceGateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or one lifespan."""
        if scope["type"] == "lifespan":
            gateway = self.gateway
            await run_lifespan(receive, send, gateway.runtime, gateway.settings, gateway.record)
        else:
            await self.app(scope, receive, send)


def build_app(
    name: str,
    pipeline: Pipeline,
    runtime: PipelineRuntime,
    features: int,
    settings: ServiceSettings,
    record: ServiceRecord | None = None,
    limits: Limits | None = None,
) -> PipelineApp:
    """Return the application.

    Args:
        name: Name of the pipeline.
        pipeline: Its stages.
        runtime: Its replicas, not started yet.
        features: Numbers per query.
        settings: How it is served.
        record: Receives what happens.
        limits: Maximum rows in flight and body size.
    """
    server_metrics = create_metrics()
    record = record or ServiceRecord(read_clock())
    gateway = InferenceGateway(
        gate=QueryGate(pipeline=pipeline, runtime=runtime, max_wait_s=settings.max_wait_s, arrivals=record.arrivals),
        settings=settings,
        record=record,
        limits=limits or Limits(queue_rows=MAX_ROWS_IN_FLIGHT),
        metrics=model_metrics(server_metrics, name),
        routes=RouteDrawer(pipeline, np.random.default_rng([settings.seed, 7])),
    )
    gateway.metrics.queue.set_function(lambda: gateway.in_flight)
    runtime.subscribe(build_batch_listener(server_metrics, name))
    server_metrics.registry.register(PipelineCollector(name, runtime, gateway.record))
    outputs = tuple(Field(stage.name, "BYTES") for stage in pipeline.stages)
    model = ServedModel(name, (Field(INPUT_NAME, "FP32", (features,)),), outputs)
    return PipelineApp(_build_routes(model, gateway, server_metrics), gateway)


def list_paths(name: str) -> tuple[str, ...]:
    """Return the paths that are printed when the service starts."""
    return (f"/v2/models/{name}/infer", "/v2/health/ready", "/status", "/metrics", "/openapi.json")


def _build_routes(model: ServedModel, gateway: InferenceGateway, server_metrics: Metrics) -> Application:
    log = logging.getLogger("unfoldkit")
    endpoint = Endpoint(
        model,
        build_reader(model.inputs, model.outputs, ("deadline_ms",)),
        build_writer(model),
        gateway,
        gateway.metrics,
        log,
    )
    app = assemble_application(
        [endpoint],
        server_metrics,
        more={"/status": "queues, replicas, demand and scaling decisions"},
    )

    def report_readiness(identity: dict[str, Any]) -> Any:
        is_ready = all(gateway.runtime.serving_replicas())
        status, headers = (200, ()) if is_ready else (503, retry_after(gateway.estimate_retry()))
        return json_reply({**identity, "ready": is_ready}, status, headers)

    app.gets["/v2/health/ready"] = lambda: report_readiness({})
    app.gets[f"/v2/models/{model.name}/ready"] = lambda: report_readiness({"name": model.name})
    app.gets["/status"] = lambda: json_reply(_describe_status(model.name, gateway))
    return app


def _describe_status(name: str, gateway: InferenceGateway) -> dict[str, Any]:
    """Return the stages, the demand of the last seconds, and the last targets of the scaling rule, second by second."""
    status: dict[str, Any] = {"name": name, "stages": gateway.runtime.list_status()}
    arrivals, tuner = gateway.record.arrivals, gateway.settings.tuner
    now_s = read_clock() - gateway.record.start_s
    recent_s = min(DEMAND_WINDOW_S, max(now_s, 1e-9))
    status["demand"] = {
        "queries": arrivals.total,
        "queries_per_second": round(arrivals.list_arrivals(now_s - recent_s).size / recent_s, 3),
        "refused": gateway.gate.refused,
    }
    if gateway.settings.planned is not None:
        branches = gateway.settings.planned.branches([stage["served"] for stage in status["stages"]])
        status["conditions"] = [
            {"stage": branch.stage, "planned": round(branch.planned, 4), "measured": round(branch.measured, 4)}
            for branch in branches
        ]
    if tuner is not None:
        status["decisions"] = [
            {"second": second, "replicas": state.replicas, "batches": state.batches}
            for second, state in list(tuner.decisions)[-DECISIONS_SHOWN:]
        ]
    return status
