"""The Open Inference Protocol v2 over REST as one ASGI application: a table of paths, no framework."""

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

from unfoldkit.serving.batching.batcher import Limits, batcher
from unfoldkit.serving.batching.request_queue import Arrivals, Line
from unfoldkit.serving.model import Described, Field, Model
from unfoldkit.serving.observability.dashboard import Watch
from unfoldkit.serving.observability.metrics import TEXT, Metrics, metrics, of_model
from unfoldkit.serving.observability.multiprocess import Siblings
from unfoldkit.serving.oip import openapi
from unfoldkit.serving.oip.binary import TooLarge, Unfit
from unfoldkit.serving.oip.codec import reader, writer
from unfoldkit.serving.oip.inference import Endpoint, read_body, refusal
from unfoldkit.serving.responses import Reply, error, json_reply, send_reply
from unfoldkit.serving.service import Answer, Gate, Receive, Scope, Send, Service

Action = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Application:
    """Models, and the replies of every path; ``close`` is called once, after the last answer."""

    endpoints: Mapping[str, Endpoint]
    metrics: Metrics
    close: Callable[[], None]
    posts: dict[str, Action] = field(default_factory=dict)
    gets: dict[str, Callable[[], Reply]] = field(default_factory=dict)

    @property
    def answers(self) -> dict[str, Answer]:
        """The paths of inference, each with what answers a body; for ``Service.posts``."""
        places = ((f"/v2/models/{name}/infer", endpoint.answer) for name, endpoint in self.endpoints.items())
        return dict(places)

    @property
    def gates(self) -> dict[str, Gate]:
        """The paths of inference, each with what refuses a request before its body is read; for ``Service.gates``."""
        return {f"/v2/models/{name}/infer": endpoint.gate for name, endpoint in self.endpoints.items()}

    @property
    def healthy(self) -> bool:
        """Whether every model comes back."""
        return not any(endpoint.batcher.hung for endpoint in self.endpoints.values())

    @property
    def body_bytes(self) -> int:
        """The largest body that any model takes."""
        return max(endpoint.batcher.limits.body_bytes for endpoint in self.endpoints.values())

    def share(self, folder: Path) -> Callable[[], object]:
        """Tell from now on the metrics of all processes with this folder; return what keeps those of this one there."""
        siblings, registry = Siblings(folder), self.metrics.registry
        self.gets["/metrics"] = lambda: Reply(200, siblings.text(registry), TEXT.encode())
        return lambda: siblings.keep(registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or one lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        action = self.posts.get(scope["path"]) if scope["method"] == "POST" else None
        if action is not None:
            await action(scope, receive, send)
        else:
            await send_reply(self._reply(scope["method"], scope["path"]), send)

    def _reply(self, method: str, path: str) -> Reply:
        make = self.gets.get(path)
        if make is not None and method in ("GET", "HEAD"):
            return make()
        if make is not None or path in self.posts:
            allowed = b"POST" if path in self.posts else b"GET, HEAD"
            return error(405, f"{method} is not for {path}", ((b"allow", allowed),))
        return error(404, self._unknown(path))

    def _unknown(self, path: str) -> str:
        known = ", ".join(self.endpoints)
        parts = path.split("/")
        if parts[:3] == ["", "v2", "models"] and len(parts) > 3 and parts[3] not in self.endpoints:
            return f"no such model: {parts[3][:80]!r}; there is {known}"
        return f"no such path: {path[:80]!r}; /openapi.json tells them all"

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            kind = message["type"]
            if kind == "lifespan.shutdown":
                for endpoint in self.endpoints.values():
                    endpoint.batcher.close()
                self.close()
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return


def application(
    models: Sequence[Model],
    *,
    limits: Limits | None = None,
    line: Callable[[], Line] = Arrivals,
    registry: CollectorRegistry | None = None,
    close: Callable[[], None] = lambda: None,
    log: logging.Logger | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Application:
    """Return the application that answers for ``models``, each warmed up.

    Args:
        models: one or more, with different names.
        limits: sizes of batch, queue and body.
        line: makes, for each model, that in which its requests wait.
        registry: where the models' own metrics stand already.
        close: called after the last answer, to close what the models hold.
        log: told of a model that failed.
        clock: seconds.
    """
    found = metrics(registry)
    limits = limits or Limits()
    log = log or logging.getLogger("unfoldkit")
    return assembled([_endpoint(model, limits, line(), found, clock, log) for model in models], found, close)


def assembled(
    endpoints: Sequence[Endpoint],
    found: Metrics,
    close: Callable[[], None] = lambda: None,
    more: Mapping[str, str] | None = None,
) -> Application:
    """Return the application of endpoints that stand already; ``found`` are the metrics that they count in.

    ``more`` are paths that the caller adds to ``gets``, each with what it tells.
    """
    app = Application({endpoint.model.name: endpoint for endpoint in endpoints}, found, close)
    app.gets.update(_server_paths(app, more or {}))
    for endpoint in endpoints:
        _add_model(app, endpoint)
    app.posts[openapi.INDEX] = functools.partial(_index, app)
    return app


def served(
    name: str, app: Application, *, lines: Sequence[tuple[str, str]] = (), watch: Watch | None = None
) -> Service:
    """Return the service of an application; ``lines`` and ``watch`` are what its user is told and shown."""
    return Service(
        name=name,
        app=app,
        paths=paths([endpoint.model for endpoint in app.endpoints.values()]),
        posts=app.answers,
        body_bytes=app.body_bytes,
        lines=tuple(lines),
        watch=watch,
        gates=app.gates,
        share=app.share,
        healthy=lambda: app.healthy,
    )


def paths(models: Sequence[Described]) -> tuple[str, ...]:
    """Return the paths that a user is told at start."""
    return (*(f"/v2/models/{model.name}/infer" for model in models), "/v2/health/ready", "/metrics", "/openapi.json")


def _endpoint(
    model: Model, limits: Limits, line: Line, found: Metrics, clock: Callable[[], float], log: logging.Logger
) -> Endpoint:
    own = of_model(found, model.name)
    asks = reader(model.inputs, model.outputs)
    return Endpoint(model, asks, writer(model), batcher(model, limits, own, clock, line), own, log)


def _server_paths(app: Application, more: Mapping[str, str]) -> dict[str, Callable[[], Reply]]:
    version = importlib.metadata.version("unfoldkit")
    about = {"name": "unfoldkit", "version": version, "extensions": ["binary_tensor_data"]}
    document = openapi.document([endpoint.model for endpoint in app.endpoints.values()], version, more)
    return {
        "/v2": lambda: json_reply(about),
        "/v2/health/live": lambda: json_reply({"live": app.healthy}, 200 if app.healthy else 503),
        "/v2/health/ready": lambda: json_reply({"ready": app.healthy}, 200 if app.healthy else 503),
        "/metrics": lambda: Reply(200, app.metrics.text(), TEXT.encode()),
        "/openapi.json": lambda: json_reply(document),
    }


def _add_model(app: Application, endpoint: Endpoint) -> None:
    model = endpoint.model
    for place in (f"/v2/models/{model.name}", f"/v2/models/{model.name}/versions/{model.version}"):
        app.posts[f"{place}/infer"] = endpoint.infer
        app.gets[place] = lambda: json_reply(metadata(model))
        app.gets[f"{place}/ready"] = lambda: _ready(endpoint)


class _Wish(msgspec.Struct):
    """Which models the index is to tell: those that are ready, or all."""

    ready: bool | None = None


async def _index(app: Application, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one POST to the index of models; it is all that there is of the extension for model repositories."""
    try:
        body = await read_body(scope, receive, openapi.INDEX_BYTES)
        wish = msgspec.json.decode(body or b"{}", type=_Wish)
    except (TooLarge, Unfit) as problem:
        await send_reply(refusal(problem), send)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        await send_reply(error(400, str(problem)), send)
    else:
        told = [_listed(endpoint) for endpoint in app.endpoints.values()]
        await send_reply(json_reply([one for one in told if one["state"] == "READY" or not wish.ready]), send)


def _listed(endpoint: Endpoint) -> dict[str, str]:
    state, reason = ("UNAVAILABLE", "the model does not come back") if endpoint.batcher.hung else ("READY", "")
    return {"name": endpoint.model.name, "version": endpoint.model.version, "state": state, "reason": reason}


def _ready(endpoint: Endpoint) -> Reply:
    ready = not endpoint.batcher.hung
    return json_reply({"name": endpoint.model.name, "ready": ready}, 200 if ready else 503)


def metadata(model: Described) -> dict[str, Any]:
    """Return the protocol's metadata of a model, with its own facts under ``parameters``."""
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": "unfoldkit",
        "inputs": [_tensor(item) for item in model.inputs],
        "outputs": [_tensor(item) for item in model.outputs],
        "parameters": dict(model.facts),
    }


def _tensor(item: Field) -> dict[str, Any]:
    about: dict[str, Any] = {"name": item.name, "datatype": item.datatype, "shape": [-1, *item.shape]}
    if item.columns:
        about["parameters"] = {"columns": list(item.columns)}
    return about
