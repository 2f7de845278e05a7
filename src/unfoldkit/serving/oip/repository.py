"""The model repository extension of the protocol: clients unload the models of a service, and load them again.

An unloaded model keeps its name in the index. Its requests get 503 until it is loaded. With its last model, the service
itself is closed and its memory given back; the process stays live but is not ready. The next load starts the service
again from its run.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, generate_latest

from unfoldkit.errors import UnfoldError
from unfoldkit.serving.observability.dashboard import Dashboard, DashboardSource, Tile
from unfoldkit.serving.observability.metrics import CONTENT_TYPE
from unfoldkit.serving.oip import openapi
from unfoldkit.serving.oip.app import MODEL_HANGS, IndexRequest
from unfoldkit.serving.oip.errors import InvalidRequest, TooLarge
from unfoldkit.serving.oip.inference import problem_reply, read_body
from unfoldkit.serving.responses import Reply, error_reply, json_reply, send_reply
from unfoldkit.serving.service import AdmissionCheck, ASGIApp, Message, Receive, Scope, Send, Service

DRAIN_S = 35.0
"""How long an unload waits for responses: longer than a model may take before it counts as hung."""
POLL_S = 0.005
MODELS = "/v2/repository/models/"
LOADING, UNLOADING, UNLOADED = "is being loaded", "is being unloaded", "is unloaded"
Start = Callable[[], Service]


class RepositoryError(Exception):
    """A load or unload fails with an HTTP status and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class ChangeRequest(msgspec.Struct):
    """The body of a load or unload."""

    parameters: dict[str, Any] | None = None


@dataclass(slots=True, eq=False)
class ModelRepository:
    """The models of a service, each loaded or not. It is the ASGI application around that of the service.

    Args:
        start: Starts the service again; called in a thread.
        service: The service while a model is loaded.
        endpoints: The loaded models by name.
        versions: The version of every model by name, loaded or not.
        reasons: Why a model is unavailable, by name.
        in_flight: Requests under way by model.
        registry: The metrics of the host, which outlive those of a service.
        lifespan: The lifespan of the service.
        changing: Held by the load or unload under way.
        log: Receives why a service did not start.
    """

    start: Start
    service: Service | None
    endpoints: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    in_flight: Counter[str] = field(default_factory=Counter)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    lifespan: Lifespan | None = None
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("unfoldkit.serving"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or one lifespan."""
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
            return
        path = scope["path"]
        if path == openapi.INDEX or path.startswith(MODELS):
            await send_reply(await self._answer_change(scope, receive), send)
        elif (reply := self._reply_without_model(path)) is not None:
            await send_reply(reply, send)
        elif self.service is not None:
            with self.track(_name_model(path)):
                await self.service.app(scope, receive, send)

    @contextmanager
    def track(self, name: str) -> Iterator[None]:
        """Count a request for a model while it is under way: an unload waits for it."""
        # clients can make up any name
        name = name if name in self.versions else ""
        self.in_flight[name] += 1
        try:
            yield
        finally:
            self.in_flight[name] -= 1

    def respond(self, name: str, path: str, body: bytes, done: Callable[[Any], None], json_bytes: int = 0) -> None:
        """Answer a request that the host did not pass through ASGI; see ``Endpoint.respond``."""
        if self.service is None or name not in self.endpoints:
            done(self.refuse(name))
            return
        self.in_flight[name] += 1

        def finish(reply: Any) -> None:
            self.in_flight[name] -= 1
            done(reply)

        self.service.posts[path](body, finish, json_bytes)

    def refuse(self, name: str) -> Reply:
        """Make the response to a request for a model that is not loaded."""
        return error_reply(503, self.explain(name))

    def explain(self, name: str) -> str:
        """Return why a model is not loaded."""
        return f"model {name} {self.reasons.get(name, UNLOADED)}; POST {MODELS}{name}/load loads it"

    def list_models(self, *, is_ready_only: bool = False) -> list[dict[str, str]]:
        """Return the index: name, version, state and reason of every model, or of those that are ready."""
        entries = [self._describe(name) for name in self.versions]
        return [entry for entry in entries if entry["state"] == "READY" or not is_ready_only]

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Load a model; one that is loaded stays as it is.

        Raises:
            RepositoryError: There is no such model, the request names contents, or the service does not start.
        """
        self._check_name(name)
        if parameters:
            keys = ", ".join(sorted(parameters))[:80]
            raise RepositoryError(400, f"a model is loaded as its run has it; leave out {keys}")
        # a client that goes away must not leave a model between two states
        await asyncio.shield(asyncio.ensure_future(self._load(name)))

    async def _load(self, name: str) -> None:
        async with self.changing:
            if name in self.endpoints:
                return
            self.reasons[name] = LOADING
            try:
                self.service = self.service or await self._start_service()
                self.endpoints[name] = _find_endpoint(self.service, name)
            except RepositoryError as error:
                self.reasons[name] = f"does not load: {error.message}"
                raise
            self.versions[name] = self.endpoints[name].model.version
            del self.reasons[name]

    async def unload(self, name: str) -> None:
        """Unload a model, after the responses to its requests; one that is not loaded stays so.

        Raises:
            RepositoryError: There is no such model.
        """
        self._check_name(name)
        await asyncio.shield(asyncio.ensure_future(self._unload(name)))

    async def _unload(self, name: str) -> None:
        async with self.changing:
            if name not in self.endpoints:
                return
            self.reasons[name] = UNLOADING
            del self.endpoints[name]
            for _ in range(round(DRAIN_S / POLL_S)):
                if not self.in_flight[name]:
                    break
                await asyncio.sleep(POLL_S)
            if not self.endpoints:
                await self._stop_service()
            self.reasons[name] = UNLOADED

    def adopt(self, service: Service) -> None:
        """Make a started service the current one; none of its models is loaded yet."""
        self.service = service
        if service.registry is not None:
            # both describe themselves when they are read
            service.registry.register(self.registry)
        for name, endpoint in service.endpoints.items():
            self.versions.setdefault(name, endpoint.model.version)

    def watch(self) -> Dashboard:
        """Return the dashboard of the service, or that of none."""
        if self.service is not None and self.service.watch is not None:
            return self.service.watch()
        return Dashboard(", ".join(self.versions), "models", (Tile("models", "unloaded"),))

    def _describe(self, name: str) -> dict[str, str]:
        endpoint = self.endpoints.get(name)
        if endpoint is None:
            state, reason = "UNAVAILABLE", self.reasons.get(name, UNLOADED)
        else:
            state, reason = ("UNAVAILABLE", MODEL_HANGS) if endpoint.batcher.hung else ("READY", "")
        return {"name": name, "version": self.versions[name], "state": state, "reason": reason}

    def _check_name(self, name: str) -> None:
        if name not in self.versions:
            raise RepositoryError(404, f"no such model: {name[:80]!r}; there is {', '.join(self.versions)}")

    def _reply_without_model(self, path: str) -> Reply | None:
        """Return the response that does not depend on a loaded model; ``None`` if the service answers."""
        if path == openapi.READY and not self.endpoints:
            return json_reply({"ready": False}, 503)
        name = _name_model(path)
        if name in self.versions and name not in self.endpoints:
            return json_reply({"name": name, "ready": False}, 503) if path.endswith("/ready") else self.refuse(name)
        return self._reply_without_service(path) if self.service is None else None

    def _reply_without_service(self, path: str) -> Reply:
        if path == openapi.LIVE:
            return json_reply({"live": True})
        if path == "/metrics":
            return Reply(200, generate_latest(self.registry), CONTENT_TYPE.encode())
        return error_reply(503, "no model is loaded")

    async def _answer_change(self, scope: Scope, receive: Receive) -> Reply:
        """Answer the index, a load or an unload."""
        if scope["method"] != "POST":
            return error_reply(405, f"{scope['method']} is not for {scope['path'][:80]}", ((b"allow", b"POST"),))
        try:
            body = await read_body(scope, receive, openapi.INDEX_BYTES) or b"{}"
            return await self._change(scope["path"], body)
        except (TooLarge, InvalidRequest) as problem:
            return problem_reply(problem)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
            return error_reply(400, str(problem))
        except RepositoryError as error:
            return error_reply(error.status, error.message)

    async def _change(self, path: str, body: bytes) -> Reply:
        if path == openapi.INDEX:
            is_ready_only = bool(msgspec.json.decode(body, type=IndexRequest).ready)
            return json_reply(self.list_models(is_ready_only=is_ready_only))
        parameters = msgspec.json.decode(body, type=ChangeRequest).parameters or {}
        name, _, action = path.removeprefix(MODELS).rpartition("/")
        if action == "load":
            await self.load(name, parameters)
        elif action == "unload":
            await self.unload(name)
        else:
            raise RepositoryError(404, f"no such path: {path[:80]!r}; there is {MODELS}NAME/load and /unload")
        return json_reply({})

    async def _start_service(self) -> Service:
        try:
            service = await asyncio.to_thread(self.start)
            self.lifespan = await Lifespan.enter(service.app)
        except UnfoldError as error:
            self.log.error("a model does not load: %s", error)  # noqa: TRY400 - the error says where and why
            raise RepositoryError(409, "the run does not load; the log of the server has the reason") from error
        except Exception as error:
            self.log.exception("a model does not load")
            raise RepositoryError(409, f"the service does not start: {type(error).__name__}") from error
        self.adopt(service)
        return service

    async def _stop_service(self) -> None:
        lifespan, self.lifespan, self.service = self.lifespan, None, None
        if lifespan is not None:
            await lifespan.exit()
            del lifespan
        # the objects of the start are frozen, and models hold cycles
        gc.unfreeze()
        gc.collect()

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        if self.service is not None:
            try:
                self.lifespan = await Lifespan.enter(self.service.app)
            except LifespanError as error:
                await send(error.failure)
                return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if self.lifespan is not None:
            await self.lifespan.exit()
        await send({"type": "lifespan.shutdown.complete"})


class LifespanError(Exception):
    """A service did not start; ``failure`` is its message."""

    def __init__(self, failure: Message) -> None:
        super().__init__(str(failure.get("message") or "the service did not start"))
        self.failure = failure


@dataclass(slots=True, eq=False)
class Lifespan:
    """The lifespan of an application that is not the host's.

    Args:
        requests: Messages to the application.
        replies: Its messages.
        task: Runs it.
    """

    requests: asyncio.Queue[Message]
    replies: asyncio.Queue[Message]
    task: asyncio.Task[None]

    @classmethod
    async def enter(cls, app: ASGIApp) -> Lifespan:
        """Start an application.

        Raises:
            LifespanError: It did not start.
        """
        requests: asyncio.Queue[Message] = asyncio.Queue()
        replies: asyncio.Queue[Message] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        task = asyncio.create_task(_as_coroutine(app, scope, requests.get, replies.put))
        lifespan = cls(requests, replies, task)
        reply = await lifespan._exchange("lifespan.startup")
        if reply["type"] != "lifespan.startup.complete":
            raise LifespanError(reply)
        return lifespan

    async def exit(self) -> None:
        """Close the application and what it holds."""
        await self._exchange("lifespan.shutdown")
        await self.task

    async def _exchange(self, kind: str) -> Message:
        await self.requests.put({"type": kind})
        reply = asyncio.ensure_future(self.replies.get())
        await asyncio.wait({reply, self.task}, return_when=asyncio.FIRST_COMPLETED)
        if not reply.done() and self.replies.empty():
            reply.cancel()
            # raises what ended the application
            await self.task
            return {"type": f"{kind}.failed"}
        return await reply


async def _as_coroutine(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)


def offer_repository(service: Service, start: Start) -> Service:
    """Return the service with models that clients may unload and load.

    Args:
        service: The service; all its models are loaded.
        start: Starts it again.
    """
    repository = ModelRepository(start=start, service=None)
    repository.adopt(service)
    repository.endpoints.update(service.endpoints)
    posts, gates = {}, {}
    for path in service.posts:
        name = _name_model(path)
        posts[path] = functools.partial(repository.respond, name, path)
        gates[path] = _follow_gate(repository, path)
    watch: DashboardSource | None = repository.watch if service.watch else None
    return replace(
        service,
        app=repository,
        posts=posts,
        gates=gates,
        share=None,
        healthy=lambda: repository.service is None or repository.service.healthy(),
        registry=repository.registry,
        endpoints=repository.endpoints,
        watch=watch,
        repository=repository,
        paths=(*service.paths, openapi.INDEX, *(f"{MODELS}{name}/unload" for name in service.endpoints)),
    )


def _find_endpoint(service: Service, name: str) -> Any:
    if name not in service.endpoints:
        raise RepositoryError(409, f"the run has no model {name} any more")
    return service.endpoints[name]


def _follow_gate(repository: ModelRepository, path: str) -> AdmissionCheck:
    """Return the admission check of a path in the current service; without one, every request is admitted."""

    def find_gate() -> AdmissionCheck | None:
        return None if repository.service is None else repository.service.gates.get(path)

    def full() -> int:
        return gate.full() if (gate := find_gate()) else 0

    def refuse(count: int) -> None:
        if gate := find_gate():
            gate.refuse(count)

    return AdmissionCheck(full, refuse)


def _name_model(path: str) -> str:
    """Return the model that a path is about; empty if it is about none."""
    parts = path.split("/")
    if parts[:3] in (["", "v2", "models"], ["", "v1", "models"]) and len(parts) > 3:
        return parts[3].removesuffix(":predict")
    return ""
