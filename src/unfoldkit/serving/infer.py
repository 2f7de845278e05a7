"""The path of an inference request: raw ASGI from the body to the answer, nothing in between."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from unfoldkit.serving.batcher import Batcher, Full, Refused
from unfoldkit.serving.metrics import ModelMetrics
from unfoldkit.serving.model import Field, Model
from unfoldkit.serving.protocol import AnswerOut, Question, Reader, Unfit, tensors
from unfoldkit.serving.replies import Reply, error, send_reply
from unfoldkit.serving.service import Receive, Scope, Send

JSON = (b"content-type", b"application/json")
encode = msgspec.json.Encoder().encode


class TooLarge(Exception):  # noqa: N818 - the client's, not ours
    """The body is larger than is allowed."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One model with all that answers its requests."""

    model: Model
    reader: Reader
    batcher: Batcher
    metrics: ModelMetrics
    fields: dict[str, Field]
    log: logging.Logger

    async def infer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST to ``/v2/models/NAME/infer``."""
        began = time.perf_counter()
        try:
            body = await read_body(scope, receive, self.batcher.limits.body_bytes)
            question = self.reader.read(body)
            self._check_rows(question)
            answer = await self.batcher.submit(question.inputs, question.call)
            reply = self._encoded(question, *answer)
        except Exception as problem:  # noqa: BLE001 - whatever a model raises is answered
            await self._refuse(problem, send)
            return
        head = [JSON, (b"content-length", b"%d" % len(reply))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": reply})
        self.metrics.answered(200)
        self.metrics.duration.observe(time.perf_counter() - began)

    def _check_rows(self, question: Question) -> None:
        most = self.batcher.limits.queue_rows
        if question.call.rows > most:
            raise TooLarge(f"{question.call.rows} rows in one request; at most {most} are taken")

    def _encoded(self, question: Question, columns: Mapping[str, list[Any]], first: int, last: int) -> bytes:
        fields = [self.fields[name] for name in question.outputs] or self.model.outputs
        outputs = tensors(fields, columns, first, last)
        entity = question.call.entity
        about = {"entity": entity} if entity else {}
        return encode(AnswerOut(self.model.name, self.model.version, outputs, question.id, about))

    async def _refuse(self, problem: Exception, send: Send) -> None:
        reply = refusal(problem)
        self.metrics.answered(reply.status)
        if reply.status == 500:
            self.log.error("%s failed", self.model.name, exc_info=problem)
        await send_reply(reply, send)


def refusal(problem: Exception) -> Reply:
    """Return the reply for what went wrong with a request."""
    if isinstance(problem, Unfit):
        return error(400, str(problem))
    if isinstance(problem, TooLarge):
        # the rest of the body is not read, so the connection cannot go on
        return error(413, str(problem), ((b"connection", b"close"),))
    if isinstance(problem, Full):
        wait = b"%d" % problem.retry_s
        return error(429, "too many rows are waiting; come back later", ((b"retry-after", wait),))
    if isinstance(problem, Refused):
        return error(problem.refusal.status, problem.refusal.message)
    return error(500, f"the model failed: {type(problem).__name__}")


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Return the body of a request.

    Raises:
        TooLarge: it is larger than ``limit`` bytes; what is left of it is not read.
        Unfit: its encoding is not plain JSON, or the client left before its end.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limit:
            raise TooLarge(f"the body has {int(value)} bytes; at most {limit} are taken")
        if name == b"content-encoding" and value != b"identity":
            raise Unfit("a compressed body is not taken")
        if name == b"inference-header-content-length":
            raise Unfit("binary tensors are not taken; send JSON data")
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
        if len(body) > limit:
            raise TooLarge(f"the body has more than {limit} bytes")
    if message["type"] == "http.disconnect":
        raise Unfit("the client left")
    return body
