"""Answers the calls of the protocol over gRPC, whichever server brings them."""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
import json
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import unquote

from google.protobuf.message import DecodeError

from unfoldkit.serving.batching.batcher import QueueFull, Result
from unfoldkit.serving.grpc.messages import SERVICE, STREAM_METHOD, Messages, has_more_fields
from unfoldkit.serving.grpc.streams import END_STREAM_KEY, FINAL_KEY, answer_stream, hold_stream
from unfoldkit.serving.grpc.tensors import encode_response, fill_response, read_request
from unfoldkit.serving.model import Rejection
from unfoldkit.serving.observability.access_log import (
    CLIENT_LEFT,
    ID,
    PARENT,
    Observer,
    RequestNote,
    new_id,
    sanitize_id,
)
from unfoldkit.serving.oip.app import describe_model
from unfoldkit.serving.oip.codec import InferenceRequest
from unfoldkit.serving.oip.errors import InvalidRequest, TooLarge
from unfoldkit.serving.oip.inference import Endpoint, problem_reply
from unfoldkit.serving.oip.repository import ModelRepository, RepositoryError
from unfoldkit.serving.oip.statistics import describe_config, describe_statistics

MAX_CONCURRENT_CALLS = 1024
MAX_CACHED_PEERS = 1024
MAX_FIELDS = 10_000
"""Fields of a request: each makes an object, and an empty tensor takes two bytes."""
MIN_COUNTED_BYTES = 64 << 10
"""Fields of shorter requests are not counted: they are few."""
ID_KEYS = {name.decode(): name for name in (ID, PARENT)}
_INFER_PATH = f"/{SERVICE}/ModelInfer"
OPEN_CALLS = frozenset(("ServerLive", "ServerReady"))
"""Calls for probes, which have no token."""
CODES = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    409: "FAILED_PRECONDITION",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}
"""The status codes of gRPC by HTTP status; INTERNAL for any other."""
STATUSES = {code: status for status, code in CODES.items() if status != 413} | {
    "UNAUTHENTICATED": 401,
    "UNIMPLEMENTED": 501,
}
"""The HTTP statuses of calls in the access log, by their status code."""


class CallError(Exception):
    """A call ends with a status of gRPC by its name, and a message."""

    def __init__(self, code: str, message: str, retry_s: int = 0) -> None:
        super().__init__(message)
        self.code, self.message, self.retry_s = code, message, retry_s


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcOptions:
    """How a service is offered over gRPC.

    Args:
        address: Host and port as gRPC expects them.
        is_authorized: Checks an ``authorization`` header; ``None`` if no token is needed.
        is_native: Answer by our own HTTP/2, see :mod:`unfoldkit.serving.grpc.http2`, and not by ``grpc.aio``.
        context: TLS of our own server; ``None`` for plain text.
        credentials: The same for ``grpc.aio``.
        hold_body: Records the bytes of a client's request, and returns why they are too many; called with a negative
            size afterwards.
        hold_connection: The same for the connections of a client.
        is_draining: Whether the server is about to stop.
        repository: Loads and unloads the models; ``None`` if they stay loaded.
        observer: Receives a note of every call, with the HTTP status that its outcome would have.
        interceptors: Interceptors of the server.
    """

    address: str
    is_authorized: Callable[[bytes], bool] | None = None
    is_native: bool = True
    context: ssl.SSLContext | None = None
    credentials: Any = None
    hold_body: Callable[[str, int], str] = field(default=lambda _client, _size: "")
    hold_connection: Callable[[str, int], str] = field(default=lambda _client, _count: "")
    is_draining: Callable[[], bool] = bool
    repository: ModelRepository | None = None
    observer: Observer | None = None
    interceptors: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class InferenceServicer:
    """Answers the calls of the protocol.

    Args:
        endpoints: The models by name.
        options: How the service is offered.
        messages: The messages of the protocol.
        in_flight: The number of calls under way.
        open_streams: The number of open streams of each client.
    """

    endpoints: Mapping[str, Endpoint]
    options: GrpcOptions
    messages: Messages
    in_flight: Counter[str] = field(default_factory=Counter)
    open_streams: Counter[str] = field(default_factory=Counter)

    @property
    def is_ready(self) -> bool:
        """Whether every model responds, and the server is not about to stop."""
        is_hung = any(endpoint.batcher.hung for endpoint in self.endpoints.values())
        return bool(self.endpoints) and not is_hung and not self.options.is_draining()

    async def answer(self, name: str, request: Any, context: Any) -> Any:
        """Answer a request to the method ``name``, record the outcome, and turn a ``CallError`` into a gRPC status."""
        ids = _identify_call(context, self.options)
        try:
            response = await self._account(name, request, context, ids)
        except CallError as error:
            await _abort(context, error, ids[ID])
        if ids[ID]:
            context.set_trailing_metadata(_trailers(ids[ID]))
        return response

    async def answer_stream(self, context: Any) -> None:
        """Answer a stream of inference requests, each with a response of its own."""
        ids = _identify_call(context, self.options)
        try:
            await self._run_stream(context, ids)
        except CallError as error:
            await _abort(context, error, ids[ID])
        context.set_trailing_metadata(_trailers(ids[ID]))

    async def _run_stream(self, context: Any, ids: Mapping[bytes, str]) -> None:
        self._check_token(STREAM_METHOD, context)
        with hold_stream(self.open_streams, client_address(context.peer())) as exceeded:
            self._check_size(exceeded)
            respond = functools.partial(self._respond, context, ids)
            reason = await answer_stream(context, respond, self.options.is_draining)
        if reason:
            raise CallError(CODES[503], reason)

    async def _respond(self, context: Any, ids: Mapping[bytes, str], request: Any) -> Any:
        """Return the response to one request of a stream; a failure is its message beside the id."""
        is_final_wanted = request is not None and END_STREAM_KEY in request.parameters
        if is_final_wanted:
            del request.parameters[END_STREAM_KEY]
        message = ""
        try:
            answer = await self._account("ModelInfer", request, context, ids, STREAM_METHOD)
        except CallError as error:
            answer = self.messages.ModelInferResponse(id="" if request is None else request.id)
            message = error.message
        if is_final_wanted:
            answer.parameters[FINAL_KEY].bool_param = True
        return self.messages.ModelStreamInferResponse(error_message=message, infer_response=answer)

    async def _account(
        self,
        name: str,
        request: Any,
        context: Any,
        ids: Mapping[bytes, str],
        method: str = "",
    ) -> Any:
        """Make a call after its token was checked and its bytes were counted, and record its outcome.

        ``method`` is that of the client where it is not ``name``.

        Raises:
            CallError: The call fails.
        """
        client, size = client_address(context.peer()), 0 if request is None else request.ByteSize()
        account, status = self._open_account(f"/{SERVICE}/{method or name}", client, size, ids), 500
        try:
            self._check_token(name, context)
            self._check_size(account.exceeded)
            response = await self._call(name, request)
        except CallError as error:
            status = STATUSES.get(error.code, 500)
            raise
        except asyncio.CancelledError:
            status = CLIENT_LEFT
            raise
        else:
            status = 200
            return response
        finally:
            account.close(status)

    def _open_account(self, path: str, client: str, size: int, ids: Mapping[bytes, str]) -> _Account:
        """Count a call and its bytes until ``close``."""
        exceeded = self.options.hold_body(client, size)
        self.in_flight["calls"] += 1
        if not exceeded and self.in_flight["calls"] > MAX_CONCURRENT_CALLS:
            exceeded = "calls"
        return _Account(self, path, client, size, ids, exceeded, time.perf_counter())

    def start_infer(self, data: bytes, call: Any) -> None:
        """Answer ``ModelInfer`` without a task, which would cost as much as the call itself.

        Args:
            data: The bytes of the request.
            call: Its context, with ``respond`` for the bytes of the response, and ``fail``.
        """
        ids = _identify_call(call, self.options)
        account = self._open_account(_INFER_PATH, client_address(call.peer()), len(data), ids)

        def finish(outcome: bytes | CallError) -> None:
            if isinstance(outcome, CallError):
                account.close(STATUSES.get(outcome.code, 500))
                call.fail(outcome.code, outcome.message, (*_trailers(ids[ID]), *_retry_after(outcome)))
                return
            account.close(CLIENT_LEFT if call.is_over else 200)
            if ids[ID]:
                call.set_trailing_metadata(_trailers(ids[ID]))
            call.respond(outcome)

        try:
            self._check_token("ModelInfer", call)
            self._check_size(account.exceeded)
            message = _require("ModelInfer", parse_message(self.messages.ModelInferRequest, data))
            self._infer(message, lambda *answer: finish(self._encode(*answer)))
        except CallError as error:
            finish(error)
        except Exception:
            account.close(500)
            raise

    def _encode(self, endpoint: Endpoint, request: InferenceRequest, result: Result) -> bytes | CallError:
        """Return the bytes of a response, or why there is none; it never fails, since others wait behind it."""
        if not isinstance(result, tuple):
            return build_call_error(endpoint, result)
        try:
            return encode_response(self.messages, endpoint, request, result)
        except Exception as error:
            endpoint.log.exception("cannot write a response of %s", endpoint.model.name)
            return build_call_error(endpoint, error)

    async def _call(self, name: str, request: Any) -> Any:
        return await getattr(self, f"call_{name}")(_require(name, request))

    def _check_size(self, exceeded: str) -> None:
        if exceeded:
            message = f"the server is at its limit of {exceeded}; retry later"
            raise CallError("RESOURCE_EXHAUSTED", message, 1)

    def _check_token(self, name: str, context: Any) -> None:
        if self.options.is_authorized is None or name in OPEN_CALLS:
            return
        headers = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        token = headers[0] if len(headers) == 1 else ""
        if not self.options.is_authorized(token.encode() if isinstance(token, str) else token):
            raise CallError("UNAUTHENTICATED", "a bearer token is needed")

    def _find(self, name: str, version: str) -> Endpoint:
        endpoint, repository = self.endpoints.get(name), self.options.repository
        if endpoint is None and repository is not None and name in repository.versions:
            raise CallError("UNAVAILABLE", repository.explain(name))
        if endpoint is None or version not in ("", endpoint.model.version):
            raise CallError("NOT_FOUND", f"no such model: {name[:80]!r} {version[:80]}; there is {self._names()}")
        return endpoint

    def _names(self) -> str:
        return ", ".join(f"{name} {endpoint.model.version}" for name, endpoint in self.endpoints.items())

    async def call_ServerLive(self, _request: Any) -> Any:  # noqa: N802 - the name of the call
        """Return whether the process answers."""
        return self.messages.ServerLiveResponse(live=True)

    async def call_ServerReady(self, _request: Any) -> Any:  # noqa: N802
        """Return whether requests are answered."""
        return self.messages.ServerReadyResponse(ready=self.is_ready)

    async def call_ServerMetadata(self, _request: Any) -> Any:  # noqa: N802
        """Return name and version of the server."""
        version = importlib.metadata.version("unfoldkit")
        extensions = ["model_configuration", "model_repository", "statistics"]
        return self.messages.ServerMetadataResponse(name="unfoldkit", version=version, extensions=extensions)

    async def call_ModelReady(self, request: Any) -> Any:  # noqa: N802
        """Return whether a model takes requests: its last prediction did not hang."""
        return self.messages.ModelReadyResponse(ready=not self._find(request.name, request.version).batcher.hung)

    async def call_ModelMetadata(self, request: Any) -> Any:  # noqa: N802
        """Return the inputs and outputs of a model."""
        facts = describe_model(self._find(request.name, request.version).model)
        tensors = {
            side: [{key: item[key] for key in ("name", "datatype", "shape")} for item in facts[side]]
            for side in ("inputs", "outputs")
        }
        response: Any = self.messages.ModelMetadataResponse
        return response(name=facts["name"], versions=facts["versions"], platform=facts["platform"], **tensors)

    async def call_ModelConfig(self, request: Any) -> Any:  # noqa: N802
        """Return the configuration of a model."""
        return self.messages.ModelConfigResponse(config=describe_config(self._find(request.name, request.version)))

    async def call_ModelStatistics(self, request: Any) -> Any:  # noqa: N802
        """Return the statistics of one model, or of all."""
        chosen = [self._find(request.name, request.version)] if request.name else self.endpoints.values()
        return self.messages.ModelStatisticsResponse(model_stats=[describe_statistics(item) for item in chosen])

    async def call_RepositoryIndex(self, request: Any) -> Any:  # noqa: N802
        """List the models."""
        if self.options.repository is not None:
            models = self.options.repository.list_models(is_ready_only=request.ready)
            return self.messages.RepositoryIndexResponse(models=models)
        states = {False: "READY", True: "UNAVAILABLE"}
        models = [
            {"name": item.model.name, "version": item.model.version, "state": states[item.batcher.hung]}
            for item in self.endpoints.values()
            if not (request.ready and item.batcher.hung)
        ]
        return self.messages.RepositoryIndexResponse(models=models)

    async def call_RepositoryModelLoad(self, request: Any) -> Any:  # noqa: N802
        """Load a model, if the service was started with model control."""
        repository = self._require_repository()
        try:
            await repository.load(request.model_name, request.parameters)
        except RepositoryError as error:
            raise CallError(CODES[error.status], error.message) from error
        return self.messages.RepositoryModelLoadResponse()

    async def call_RepositoryModelUnload(self, request: Any) -> Any:  # noqa: N802
        """Unload a model after its responses, if the service was started with model control."""
        repository = self._require_repository()
        try:
            await repository.unload(request.model_name)
        except RepositoryError as error:
            raise CallError(CODES[error.status], error.message) from error
        return self.messages.RepositoryModelUnloadResponse()

    def _require_repository(self) -> ModelRepository:
        if self.options.repository is None:
            message = "the models of this service stay loaded; it was started without --model-control"
            raise CallError("UNIMPLEMENTED", message)
        return self.options.repository

    async def call_ModelInfer(self, message: Any) -> Any:  # noqa: N802
        """Answer an inference request."""
        if self.options.repository is None:
            return await self._await_infer(message)
        with self.options.repository.track(self._find(message.model_name, message.model_version).model.name):
            return await self._await_infer(message)

    async def _await_infer(self, message: Any) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._infer(message, lambda *answer: None if future.done() else future.set_result(answer))
        endpoint, request, result = await future
        if not isinstance(result, tuple):
            raise build_call_error(endpoint, result)
        response = self.messages.ModelInferResponse()
        fill_response(response, endpoint, request, result)
        return response

    def _infer(self, message: Any, done: Callable[[Endpoint, InferenceRequest, Result], None]) -> None:
        """Submit a request; ``done`` is called once, now or after its batch.

        Raises:
            CallError: It is not admitted, or not valid.
        """
        endpoint = self._find(message.model_name, message.model_version)
        if retry_s := endpoint.gate.ask():
            raise CallError(CODES[429], "too many rows are waiting; retry later", retry_s)
        try:
            request = read_request(endpoint, message)
        except (InvalidRequest, TooLarge) as problem:
            endpoint.metrics.requests.count(problem_reply(problem).status, 0.0)
            raise CallError("INVALID_ARGUMENT", str(problem)) from problem
        endpoint.submit(request, lambda result: done(endpoint, request, result))


@dataclass(slots=True, eq=False)
class _Account:
    """A call that is counted: its path, client, bytes and ids, the bound that it exceeds, and its start in s."""

    servicer: InferenceServicer
    path: str
    client: str
    size: int
    ids: Mapping[bytes, str]
    exceeded: str
    start_s: float

    def close(self, status: int) -> None:
        """Give back what is counted, and note the HTTP status that the outcome would have."""
        options = self.servicer.options
        self.servicer.in_flight["calls"] -= 1
        options.hold_body(self.client, -self.size)
        if options.observer is not None:
            duration_s = time.perf_counter() - self.start_s
            options.observer(RequestNote(self.ids[ID], "POST", self.path, status, duration_s, self.ids[PARENT]))


def parse_message(message: Any, data: bytes) -> Any:
    """Return a message; ``None`` if the bytes are none, or one of more than ``MAX_FIELDS`` fields.

    The library would end the call with UNKNOWN, and a name of Python.
    """
    if len(data) > MIN_COUNTED_BYTES and has_more_fields(data, MAX_FIELDS):
        return None
    try:
        return message.FromString(data)
    except DecodeError:
        return None


def _require(name: str, request: Any) -> Any:
    if request is None:
        raise CallError("INVALID_ARGUMENT", f"the bytes are not a {name}Request of at most {MAX_FIELDS:,} fields")
    return request


def _identify_call(context: Any, options: GrpcOptions) -> dict[bytes, str]:
    """Return the request id and the trace parent of a call; the id is new where the client sent none to log."""
    ids = read_ids(context.invocation_metadata())
    if options.observer is not None and not ids[ID]:
        ids[ID] = new_id()
    return ids


def _trailers(request_id: str) -> tuple[tuple[str, str], ...]:
    return ((ID.decode(), request_id),) if request_id else ()


async def _abort(context: Any, error: CallError, request_id: str) -> NoReturn:
    """End a call with the status of an error."""
    import grpc

    await context.abort(grpc.StatusCode[error.code], error.message, (*_trailers(request_id), *_retry_after(error)))
    raise AssertionError("abort raises")


def _retry_after(error: CallError) -> tuple[tuple[str, str], ...]:
    return (("retry-after", str(error.retry_s)),) if error.retry_s else ()


def read_ids(metadata: Any) -> dict[bytes, str]:
    """Return the request id and the trace parent in the metadata of a call; empty if there is none to repeat."""
    ids = {ID: "", PARENT: ""}
    for key, value in metadata or ():
        if (name := ID_KEYS.get(key)) is not None:
            ids[name] = sanitize_id(value.encode() if isinstance(value, str) else value)
    return ids


@functools.lru_cache(MAX_CACHED_PEERS)
def client_address(peer: str) -> str:
    """Return the address of ``ipv4:ADDRESS:PORT`` or ``ipv6:%5BADDRESS%5D:PORT``, as HTTP has it."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def build_call_error(endpoint: Endpoint, problem: Rejection | Exception) -> CallError:
    """Return the error of a call that was rejected or failed, in the words that HTTP has for it."""
    reply = problem_reply(problem)
    retry_s = problem.retry_s if isinstance(problem, (QueueFull, Rejection)) else 0
    endpoint.log_problem(problem)
    return CallError(CODES.get(reply.status, "INTERNAL"), json.loads(reply.body)["error"], retry_s)
