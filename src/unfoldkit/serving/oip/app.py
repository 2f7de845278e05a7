"""The Open Inference Protocol v2 over REST as one ASGI application."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from unfoldkit.serving.batching.batcher import Limits, build_batcher
from unfoldkit.serving.batching.request_queue import FifoQueue, RequestQueue
from unfoldkit.serving.model import Field, Model, ModelDescription
from unfoldkit.serving.observability.dashboard import DashboardSource
from unfoldkit.serving.observability.metrics import (
    CONTENT_TYPE,
    CachedExposition,
    Metrics,
    create_metrics,
    model_metrics,
)
from unfoldkit.serving.observability.multiprocess import MetricsSource, PeerProcesses
from unfoldkit.serving.oip import openapi
from unfoldkit.serving.oip.codec import build_reader, build_writer
from unfoldkit.serving.oip.errors import InvalidRequest, TooLarge
from unfoldkit.serving.oip.inference import Endpoint, problem_reply, read_body
from unfoldkit.serving.oip.statistics import describe_config, describe_statistics
from unfoldkit.serving.oip.version1 import answer_predict
from unfoldkit.serving.responses import Reply, error_reply, json_reply, send_reply
from unfoldkit.serving.service import AdmissionCheck, Receive, Responder, Scope, Send, Service

Action = Callable[[Scope, Receive, Send], Awaitable[None]]
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
MODEL_HANGS = "the model does not respond"


@dataclass(frozen=True, slots=True)
class Application:
    """Models, and what answers every path.

    Paths are fixed once the models are known, so an exact lookup replaces the patterns of a router.

    Args:
        endpoints: By name, the models.
        metrics: The metrics of the server.
        source: Where the metrics are read: of this process, or of all that share a folder.
        close: Called once, after the last response.
        posts: By path, what answers a POST.
        gets: By path, what makes the reply to a GET or HEAD.
    """

    endpoints: Mapping[str, Endpoint]
    metrics: Metrics
    source: MetricsSource
    close: Callable[[], None]
    posts: dict[str, Action] = field(default_factory=dict)
    gets: dict[str, Callable[[], Reply]] = field(default_factory=dict)

    @property
    def answers(self) -> dict[str, Responder]:
        """The responders of the inference paths; for ``Service.posts``."""
        return {f"/v2/models/{name}/infer": endpoint.respond for name, endpoint in self.endpoints.items()}

    @property
    def gates(self) -> dict[str, AdmissionCheck]:
        """The admission checks of the inference paths; for ``Service.gates``."""
        return {f"/v2/models/{name}/infer": endpoint.gate for name, endpoint in self.endpoints.items()}

    @property
    def healthy(self) -> bool:
        """Whether every model responds."""
        return not any(endpoint.batcher.hung for endpoint in self.endpoints.values())

    @property
    def body_bytes(self) -> int:
        """The largest body that any model accepts."""
        return max(endpoint.batcher.limits.body_bytes for endpoint in self.endpoints.values())

    def share(self, folder: Path) -> Callable[[], object]:
        """Report the metrics of all processes with this folder; return what stores those of this process there."""
        self.source.peers = peers = PeerProcesses(folder)
        exposition = CachedExposition(self.source.text, self.metrics.requests)
        self.gets["/metrics"] = lambda: Reply(200, exposition.read(), CONTENT_TYPE.encode())
        return lambda: peers.store(self.metrics.registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run one lifespan."""
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
            return
        action = self.posts.get(scope["path"]) if scope["method"] == "POST" else None
        if action is not None:
            await action(scope, receive, send)
        else:
            await send_reply(self._reply(scope["method"], scope["path"]), send)

    def _reply(self, method: str, path: str) -> Reply:
        make_reply = self.gets.get(path)
        if make_reply is not None and method in ("GET", "HEAD"):
            return make_reply()
        if make_reply is not None or path in self.posts:
            allowed = b"POST" if path in self.posts else b"GET, HEAD"
            return error_reply(405, f"{method} is not for {path}", ((b"allow", allowed),))
        if path.startswith("/v2/repository/models/"):
            return error_reply(404, "the models of this service stay loaded; it was started without --model-control")
        return error_reply(404, self._explain_unknown(path))

    def _explain_unknown(self, path: str) -> str:
        parts = path.split("/")
        if parts[:3] == ["", "v2", "models"] and len(parts) > 3 and parts[3] not in self.endpoints:
            return f"no such model: {parts[3][:80]!r}; there is {', '.join(self.endpoints)}"
        return f"no such path: {path[:80]!r}; /openapi.json lists them"

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            kind = message["type"]
            if kind == "lifespan.shutdown":
                for endpoint in self.endpoints.values():
                    endpoint.decoder.close()
                    endpoint.batcher.close()
                self.close()
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return


def build_application(
    models: Sequence[Model],
    *,
    limits: Limits | None = None,
    line: Callable[[], RequestQueue] = FifoQueue,
    registry: CollectorRegistry | None = None,
    close: Callable[[], None] = lambda: None,
    log: logging.Logger | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Application:
    """Build the application that serves ``models``, and warm each of them up.

    Args:
        models: One or more, with different names.
        limits: Bounds of batch, queue and body.
        line: Makes the queue of each model.
        registry: Holds the models' own metrics.
        close: Called after the last response, to close what the models hold.
        log: Receives errors of models.
        clock: A clock in s.
    """
    metrics = create_metrics(registry)
    limits = limits or Limits()
    log = log or logging.getLogger("unfoldkit")
    endpoints = [_build_endpoint(model, limits, line(), metrics, clock, log) for model in models]
    return assemble_application(endpoints, metrics, close)


def assemble_application(
    endpoints: Sequence[Endpoint],
    metrics: Metrics,
    close: Callable[[], None] = lambda: None,
    more: Mapping[str, str] | None = None,
) -> Application:
    """Assemble an application from endpoints.

    Args:
        endpoints: The endpoints.
        metrics: The metrics in which they count.
        close: Called after the last response.
        more: Paths that the caller adds to ``gets``, with a description of each.
    """
    by_name = {endpoint.model.name: endpoint for endpoint in endpoints}
    app = Application(by_name, metrics, MetricsSource(metrics.registry), close)
    app.gets.update(_server_paths(app, more or {}))
    for endpoint in endpoints:
        _add_model(app, endpoint)
    app.gets["/v1/models"] = lambda: json_reply({"models": list(app.endpoints)})
    app.gets["/v2/models/stats"] = lambda: json_reply({"model_stats": [*map(describe_statistics, endpoints)]})
    app.posts[openapi.INDEX] = functools.partial(_answer_index, app)
    return app


def build_service(
    name: str, app: Application, *, lines: Sequence[tuple[str, str]] = (), watch: DashboardSource | None = None
) -> Service:
    """Build the service of an application.

    Args:
        name: The name of the service.
        app: The application.
        lines: Titles and texts that are shown to the user at start.
        watch: The data of the live page.
    """
    return Service(
        name=name,
        app=app,
        paths=list_paths([endpoint.model for endpoint in app.endpoints.values()]),
        posts=app.answers,
        body_bytes=app.body_bytes,
        lines=tuple(lines),
        watch=watch,
        gates=app.gates,
        share=app.share,
        healthy=lambda: app.healthy,
        registry=app.metrics.registry,
        endpoints=app.endpoints,
    )


def list_paths(models: Sequence[ModelDescription]) -> tuple[str, ...]:
    """Return the paths that are shown to the user at start."""
    return (*(f"/v2/models/{model.name}/infer" for model in models), "/v2/health/ready", "/metrics", "/openapi.json")


def describe_model(model: ModelDescription) -> dict[str, Any]:
    """Return the metadata of a model in the protocol, with its own facts under ``parameters``."""
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": "unfoldkit",
        "inputs": [_describe_tensor(item) for item in model.inputs],
        "outputs": [_describe_tensor(item) for item in model.outputs],
        "parameters": dict(model.facts),
    }


def _build_endpoint(
    model: Model, limits: Limits, line: RequestQueue, metrics: Metrics, clock: Callable[[], float], log: logging.Logger
) -> Endpoint:
    counted = model_metrics(metrics, model.name)
    used = (*getattr(model, "used_parameters", ()), *getattr(line, "used_parameters", ()))
    reader = build_reader(model.inputs, model.outputs, used)
    return Endpoint(
        model, reader, build_writer(model), build_batcher(model, limits, counted, clock, line), counted, log
    )


def _server_paths(app: Application, more: Mapping[str, str]) -> dict[str, Callable[[], Reply]]:
    version = importlib.metadata.version("unfoldkit")
    server = {
        "name": "unfoldkit",
        "version": version,
        "extensions": list(EXTENSIONS),
    }
    exposition = CachedExposition(app.metrics.text, app.metrics.requests)
    document = openapi.build_document([endpoint.model for endpoint in app.endpoints.values()], version, more)
    return {
        "/v2": lambda: json_reply(server),
        "/v2/health/live": lambda: json_reply({"live": app.healthy}, 200 if app.healthy else 503),
        "/v2/health/ready": lambda: json_reply({"ready": app.healthy}, 200 if app.healthy else 503),
        "/metrics": lambda: Reply(200, exposition.read(), CONTENT_TYPE.encode()),
        "/openapi.json": lambda: json_reply(document),
    }


def _add_model(app: Application, endpoint: Endpoint) -> None:
    model = endpoint.model
    for path in (f"/v2/models/{model.name}", f"/v2/models/{model.name}/versions/{model.version}"):
        app.posts[f"{path}/infer"] = endpoint.infer
        app.gets[path] = lambda: json_reply(describe_model(model))
        app.gets[f"{path}/ready"] = lambda: _ready_reply(endpoint)
        app.gets[f"{path}/config"] = lambda: json_reply(describe_config(endpoint))
        app.gets[f"{path}/stats"] = lambda: json_reply({"model_stats": [describe_statistics(endpoint)]})
    first = f"/v1/models/{model.name}"
    app.gets[first] = lambda: json_reply({"name": model.name, "ready": not endpoint.batcher.hung})
    app.posts[f"{first}:predict"] = functools.partial(answer_predict, endpoint)


class IndexRequest(msgspec.Struct):
    """Which models the index lists: those that are ready, or all."""

    ready: bool | None = None


async def _answer_index(app: Application, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one POST to the index of models."""
    try:
        body = await read_body(scope, receive, openapi.INDEX_BYTES)
        request = msgspec.json.decode(body or b"{}", type=IndexRequest)
    except (TooLarge, InvalidRequest) as problem:
        await send_reply(problem_reply(problem), send)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        await send_reply(error_reply(400, str(problem)), send)
    else:
        entries = [_index_entry(endpoint) for endpoint in app.endpoints.values()]
        ready = [entry for entry in entries if entry["state"] == "READY" or not request.ready]
        await send_reply(json_reply(ready), send)


def _index_entry(endpoint: Endpoint) -> dict[str, str]:
    state, reason = ("UNAVAILABLE", MODEL_HANGS) if endpoint.batcher.hung else ("READY", "")
    return {"name": endpoint.model.name, "version": endpoint.model.version, "state": state, "reason": reason}


def _ready_reply(endpoint: Endpoint) -> Reply:
    is_ready = not endpoint.batcher.hung
    return json_reply({"name": endpoint.model.name, "ready": is_ready}, 200 if is_ready else 503)


def _describe_tensor(item: Field) -> dict[str, Any]:
    tensor: dict[str, Any] = {"name": item.name, "datatype": item.datatype, "shape": [-1, *item.shape]}
    if item.columns:
        tensor["parameters"] = {"columns": list(item.columns)}
    return tensor
