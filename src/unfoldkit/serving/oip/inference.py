"""The path of an inference request from its body to its response."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from unfoldkit.errors import UnfoldError
from unfoldkit.serving.batching.batcher import Done, Limits, QueueFull, Result, RowSpan, WorkerThread
from unfoldkit.serving.model import Array, Call, ModelDescription, Rejection
from unfoldkit.serving.observability.access_log import limit_texts
from unfoldkit.serving.observability.metrics import ModelMetrics
from unfoldkit.serving.oip.binary import BINARY_TYPE
from unfoldkit.serving.oip.codec import InferenceRequest, RequestReader, ResponseWriter
from unfoldkit.serving.oip.content_encoding import JSON_LENGTH, BodyEncoding, read_encoding
from unfoldkit.serving.oip.errors import InvalidRequest, TooLarge
from unfoldkit.serving.responses import Reply, error_reply, retry_after, send_reply, too_many_requests
from unfoldkit.serving.service import AdmissionCheck, Receive, Scope, Send

PLAIN_JSON = BodyEncoding()
LARGE_BODY_BYTES = 2**17
"""Larger bodies, and compressed ones, are decoded in a thread: they would hold up the event loop for milliseconds."""


class RequestSink(Protocol):
    """Takes valid requests: the batcher of a model in this process, or a replacement for it."""

    @property
    def limits(self) -> Limits:
        """Bounds of batch, queue and body."""

    @property
    def hung(self) -> bool:
        """Whether the model does not respond."""

    def full(self, rows: int) -> int:
        """Return 0 if ``rows`` more can wait, else the time in s after which to retry."""

    def note_rejections(self, requests: int) -> None:
        """Note that so many requests were rejected, and that more may follow."""

    def submit(self, inputs: Mapping[str, Array], call: Call, done: Done) -> None:
        """Take the rows of a request; the loop calls ``done`` with its rows, a rejection or an error."""

    def close(self) -> None:
        """Wait for what is under way."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One model and what answers its requests."""

    model: ModelDescription
    reader: RequestReader
    writer: ResponseWriter
    batcher: RequestSink
    metrics: ModelMetrics
    log: logging.Logger
    decoder: WorkerThread = field(default_factory=lambda: WorkerThread("unfold-decode"))
    passes_log: Callable[[str], bool] = field(default_factory=limit_texts)

    async def infer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST to ``/v2/models/NAME/infer``."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        try:
            encoding = read_encoding(scope["headers"])
            body = await read_body(scope, receive, self.batcher.limits.body_bytes)
        except (TooLarge, InvalidRequest) as problem:
            future.set_result(self._reject(problem, 0.0))
        else:
            self._admit(body, encoding, lambda reply: None if future.done() else future.set_result(reply))
        await send_reply(await future, send)

    @property
    def gate(self) -> AdmissionCheck:
        """The check that rejects requests while the queue is full."""
        return AdmissionCheck(self._retry_after, self._count_rejected)

    def answer(self, body: bytes, done: Callable[[Reply], None], encoding: BodyEncoding = PLAIN_JSON) -> None:
        """Answer the body of an admitted request; ``done`` is called once, now or after its batch."""
        start_s = time.perf_counter()
        if len(body) <= LARGE_BODY_BYTES and not encoding.window_bits:
            self._submit(self._decode(body, encoding), done, start_s)
            return
        loop = asyncio.get_running_loop()

        def finish(decoded: InferenceRequest | Exception) -> None:
            loop.call_soon_threadsafe(self._submit, decoded, done, start_s)

        self.decoder.run(lambda: self._decode(body, encoding), finish)

    def respond(self, body: bytes, done: Callable[[Reply], None], json_bytes: int = 0) -> None:
        """Answer a body that did not pass through ASGI; tensors follow its first ``json_bytes`` (0: all is JSON)."""
        self.answer(body, done, BodyEncoding(json_bytes=json_bytes) if json_bytes else PLAIN_JSON)

    def _decode(self, body: bytes, encoding: BodyEncoding) -> InferenceRequest | Exception:
        """Decode a body, or return what is wrong with it."""
        try:
            data = encoding.decompress(body, self.batcher.limits.body_bytes)
            max_rows = self.batcher.limits.queue_rows
            self.reader.check_size(data, max_rows, encoding.json_bytes)
            request = self.reader.read(data, encoding.json_bytes)
        except (TooLarge, InvalidRequest) as problem:
            return problem
        except Exception as error:
            # in a thread nothing else would answer the request
            self.log.exception("cannot decode a request for %s", self.model.name)
            return error
        return _too_many_rows(request, max_rows) if request.call.rows > max_rows else request

    def _submit(self, decoded: InferenceRequest | Exception, done: Callable[[Reply], None], start_s: float) -> None:
        """Queue a decoded request, or reject it."""
        if isinstance(decoded, Exception):
            done(self._reject(decoded, time.perf_counter() - start_s))
            return

        def finish(result: Result) -> None:
            done(self._reply(decoded, result, time.perf_counter() - start_s))

        try:
            self.batcher.submit(decoded.inputs, decoded.call, finish)
        except (TooLarge, InvalidRequest, QueueFull) as problem:
            done(self._reject(problem, time.perf_counter() - start_s))

    def submit(self, request: InferenceRequest, done: Callable[[Result], None]) -> None:
        """Queue a request that came by another protocol, and count it; ``done`` receives its rows or the problem.

        Args:
            request: A request for this model.
            done: Called once, now or after its batch.
        """
        start_s, max_rows = time.perf_counter(), self.batcher.limits.queue_rows

        def finish(result: Result) -> None:
            status = 200 if isinstance(result, tuple) else problem_reply(result).status
            self.metrics.requests.count(status, time.perf_counter() - start_s)
            done(result)

        if request.call.rows > max_rows:
            finish(_too_many_rows(request, max_rows))
            return
        try:
            self.batcher.submit(request.inputs, request.call, finish)
        except (TooLarge, InvalidRequest, QueueFull) as problem:
            finish(problem)

    def _retry_after(self) -> int:
        return self.batcher.full(1)

    def _count_rejected(self, count: int) -> None:
        self.metrics.requests.refuse(count)
        self.batcher.note_rejections(count)

    def _admit(self, body: bytes, encoding: BodyEncoding, done: Callable[[Reply], None]) -> None:
        # before the body is parsed: a rejection should cost as little as possible
        if retry_s := self.gate.ask():
            done(too_many_requests(retry_s))
        else:
            self.answer(body, done, encoding)

    def _reply(self, request: InferenceRequest, result: Result, seconds: float) -> Reply:
        if isinstance(result, tuple):
            self.metrics.requests.count(200, seconds)
            return self._raw_reply(request, result) if request.raw else Reply(200, self.writer.write(request, *result))
        self.log_problem(result)
        return self._reject(result, seconds)

    def log_problem(self, problem: Exception | Rejection) -> None:
        """Log the failure of a model, not the mistake of a client; one that lasts is logged once a minute."""
        if isinstance(problem, UnfoldError):
            if self.passes_log(str(problem)):
                self.log.error("%s: %s", self.model.name, problem)
        elif isinstance(problem, Exception) and not isinstance(problem, (InvalidRequest, TooLarge, QueueFull)):
            self.log.error("%s failed", self.model.name, exc_info=problem)

    def _raw_reply(self, request: InferenceRequest, rows: RowSpan) -> Reply:
        json, raw_data = self.writer.write_raw(request, *rows)
        return Reply(200, json + raw_data, BINARY_TYPE, ((JSON_LENGTH, b"%d" % len(json)),))

    def _reject(self, problem: Exception | Rejection, seconds: float) -> Reply:
        reply = problem_reply(problem)
        self.metrics.requests.count(reply.status, seconds)
        return reply


def _too_many_rows(request: InferenceRequest, max_rows: int) -> TooLarge:
    return TooLarge(f"{request.call.rows} rows in one request; at most {max_rows} are accepted")


def problem_reply(problem: Exception | Rejection) -> Reply:
    """Make the response to a request that was rejected or failed."""
    if isinstance(problem, Rejection):
        return error_reply(problem.status, problem.message, retry_after(problem.retry_s))
    if isinstance(problem, InvalidRequest):
        return error_reply(400, str(problem))
    if isinstance(problem, TooLarge):
        # the rest of the body may be unread, so the connection cannot be reused
        return error_reply(413, str(problem), ((b"connection", b"close"),))
    if isinstance(problem, QueueFull):
        return too_many_requests(problem.retry_s)
    if isinstance(problem, UnfoldError):
        return error_reply(503, "the model cannot respond now; the log of the server has the reason")
    return error_reply(500, f"the model failed: {type(problem).__name__}")


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Read the body of a request.

    Raises:
        TooLarge: It has more than ``limit`` bytes; the rest is not read.
        InvalidRequest: The client disconnected before its end.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limit:
            raise TooLarge(f"the body has {int(value)} bytes; at most {limit} are accepted")
    # not a list of parts, each of which may be one byte in an object of forty
    body, has_more = bytearray(), True
    while has_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidRequest("the client disconnected")
        body += message.get("body", b"")
        has_more = message.get("more_body", False)
        if len(body) > limit:
            raise TooLarge(f"the body has more than {limit} bytes")
    return bytes(body)
