"""The path of an inference request, from the body to the answer, with nothing in between."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from unfoldkit.errors import UnfoldError
from unfoldkit.serving.batching.batcher import Done, Full, Limits, Result, Rows
from unfoldkit.serving.model import Array, Call, Described, Refusal
from unfoldkit.serving.observability.metrics import ModelMetrics
from unfoldkit.serving.oip.binary import BINARY, JSON_BYTES, Form, TooLarge, Unfit, form
from unfoldkit.serving.oip.codec import Question, Reader, Writer
from unfoldkit.serving.responses import Reply, error, full, send_reply
from unfoldkit.serving.service import Gate, Receive, Scope, Send

PLAIN = Form()


class Desk(Protocol):
    """Where requests that fit are handed in: the batcher of a model in this process, or what stands in its place."""

    @property
    def limits(self) -> Limits:
        """What is refused."""

    @property
    def hung(self) -> bool:
        """Whether what answers does not come back."""

    def full(self, rows: int) -> int:
        """Return 0 where ``rows`` more can wait, else when to come back, in seconds."""

    def rest(self) -> None:
        """Note that a request was refused, and that others will be."""

    def submit(self, inputs: Mapping[str, Array], call: Call, done: Done) -> None:
        """Take the rows of a request; ``done`` is called in the loop with their answer, a refusal or an error."""

    def close(self) -> None:
        """Wait for what is under way."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One model with all that answers its requests."""

    model: Described
    reader: Reader
    writer: Writer
    batcher: Desk
    metrics: ModelMetrics
    log: logging.Logger

    async def infer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST to ``/v2/models/NAME/infer``."""
        replied: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        try:
            comes = form(scope["headers"])
            body = await read_body(scope, receive, self.batcher.limits.body_bytes)
        except (TooLarge, Unfit) as problem:
            replied.set_result(self._refused(problem, 0.0))
        else:
            self._ask(body, comes, lambda reply: None if replied.done() else replied.set_result(reply))
        await send_reply(await replied, send)

    @property
    def gate(self) -> Gate:
        """What refuses requests while no more can wait."""
        return Gate(self._full, self._refuse)

    def _full(self) -> int:
        return self.batcher.full(1)

    def _refuse(self, count: int) -> None:
        self.metrics.requests.refuse(count)
        self.batcher.rest()

    def _ask(self, body: bytes, comes: Form, done: Callable[[Reply], None]) -> None:
        # before the body is parsed: what is refused should cost as little as it can
        if retry_s := self.gate.ask():
            done(full(retry_s))
        else:
            self.answer(body, done, comes)

    def answer(self, body: bytes, done: Callable[[Reply], None], comes: Form = PLAIN) -> None:
        """Answer a body for which the gate found room: ``done`` is called once, now or when its batch is through."""
        began = time.perf_counter()
        try:
            question = self.reader.read(comes.opened(body, self.batcher.limits.body_bytes), comes.json_bytes)
            self._check_rows(question)

            def back(result: Result) -> None:
                done(self._reply(question, result, time.perf_counter() - began))

            self.batcher.submit(question.inputs, question.call, back)
        except (TooLarge, Unfit, Full) as problem:
            done(self._refused(problem, time.perf_counter() - began))

    def _check_rows(self, question: Question) -> None:
        most = self.batcher.limits.queue_rows
        if question.call.rows > most:
            raise TooLarge(f"{question.call.rows} rows in one request; at most {most} are taken")

    def _reply(self, question: Question, result: Result, seconds: float) -> Reply:
        if isinstance(result, tuple):
            self.metrics.requests.count(200, seconds)
            return self._raw(question, result) if question.raw else Reply(200, self.writer.write(question, *result))
        if isinstance(result, UnfoldError):
            self.log.error("%s: %s", self.model.name, result)
        elif isinstance(result, Exception):
            self.log.error("%s failed", self.model.name, exc_info=result)
        return self._refused(result, seconds)

    def _raw(self, question: Question, rows: Rows) -> Reply:
        told, behind = self.writer.write_raw(question, *rows)
        return Reply(200, told + behind, BINARY, ((JSON_BYTES, b"%d" % len(told)),))

    def _refused(self, problem: Exception | Refusal, seconds: float) -> Reply:
        reply = refusal(problem)
        self.metrics.requests.count(reply.status, seconds)
        return reply


def refusal(problem: Exception | Refusal) -> Reply:
    """Return the reply for what went wrong with a request."""
    if isinstance(problem, Refusal):
        return error(problem.status, problem.message)
    if isinstance(problem, Unfit):
        return error(400, str(problem))
    if isinstance(problem, TooLarge):
        # the rest of the body may not have been read, so the connection cannot go on
        return error(413, str(problem), ((b"connection", b"close"),))
    if isinstance(problem, Full):
        return full(problem.retry_s)
    if isinstance(problem, UnfoldError):
        return error(503, "the model cannot answer now; the log of the server says why")
    return error(500, f"the model failed: {type(problem).__name__}")


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Return the body of a request.

    Raises:
        TooLarge: it is larger than ``limit`` bytes; what is left of it is not read.
        Unfit: the client left before its end.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limit:
            raise TooLarge(f"the body has {int(value)} bytes; at most {limit} are taken")
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Unfit("the client left")
        parts.append(message.get("body", b""))
        size, more = size + len(parts[-1]), message.get("more_body", False)
        if size > limit:
            raise TooLarge(f"the body has more than {limit} bytes")
    return b"".join(parts)
