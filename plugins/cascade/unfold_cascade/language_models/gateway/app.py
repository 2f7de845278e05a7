"""The ASGI application of the gateway: OpenAI's chat completions and models, health, metrics and audit labels."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unfold_cascade.language_models.gateway.idempotency import Entry, ReplyStore, StoredReply, hash_body
from unfold_cascade.language_models.gateway.metrics import GatewayMetrics
from unfold_cascade.language_models.gateway.plan import ClientKey, GatewayPlan
from unfold_cascade.language_models.gateway.router import Answer, Router, Trace, shape_chunks
from unfold_cascade.language_models.gateway.state import Reservation, StateUnavailableError
from unfold_cascade.language_models.gateway.token_counts import TokenCounter
from unfold_cascade.language_models.gateway.upstream import Events, UpstreamError, price_of
from unfold_cascade.language_models.openai_api import anthropic_messages, responses
from unfold_cascade.language_models.openai_api.chat_request import RequestError, parse_chat_request, parse_object
from unfold_cascade.language_models.openai_api.completion import Completion, format_json
from unfoldkit.api import UnfoldError
from unfoldkit.serving.oip.content_encoding import read_encoding
from unfoldkit.serving.oip.errors import InvalidRequest, TooLarge
from unfoldkit.serving.responses import run_until_disconnect

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
KEEP_ALIVE_S = 10.0
"""A stream that waits for the gate gets a comment this often."""
RETRY_S = 5.0
MAX_KEY = 255
HEALTH_PATHS = frozenset({"/health", "/v1/health", "/v2/health/live", "/v2/health/ready"})
MODEL_PATHS = frozenset({"/v1/models", "/models"})
CHAT_PATHS = frozenset({"/v1/chat/completions", "/chat/completions"})
RESPONSES_PATHS = frozenset({"/v1/responses", "/responses"})
MESSAGES_PATHS = frozenset({"/v1/messages", "/messages"})
ANSWER_PATHS = CHAT_PATHS | RESPONSES_PATHS | MESSAGES_PATHS
COUNTS: Mapping[str, str] = {
    "/v1/messages/count_tokens": "messages/count_tokens",
    "/messages/count_tokens": "messages/count_tokens",
    "/v1/responses/input_tokens": "responses/input_tokens",
    "/responses/input_tokens": "responses/input_tokens",
}
"""Paths that count the tokens of a request, and where an endpoint has them."""
AUDIT_PATH = "/v1/audit"


@dataclass(slots=True)
class Exchange:
    """One request and its reply; what is sent is recorded if it may be replayed.

    A client of HTTP/1.0 reads no chunks: a reply without a length is held until its end (RFC 9112, section 6.1).
    ``writer`` translates answers for clients of OpenAI's Responses API and of Anthropic's Messages API. Errors of the
    former have the form of chat completions; those of the latter (``is_anthropic``) do not.
    """

    send: Send
    is_http_1_0: bool = False
    is_recorded: bool = False
    is_held: bool = False
    writer: responses.ResponseWriter | anthropic_messages.MessageWriter | None = None
    is_anthropic: bool = False
    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head of the reply."""
        self.writer = self.writer if status == 200 else None
        if self.writer is not None:
            headers = [header for header in headers if header[0] != b"content-length"]
        self.status, self.headers = status, headers
        is_translated = self.writer is not None and not self.writer.is_stream
        self.is_held = is_translated or (self.is_http_1_0 and all(name != b"content-length" for name, _ in headers))
        if not self.is_held:
            await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send a part of the body."""
        if self.writer is not None:
            data = self.writer.feed(data, is_last=not more)
        if self.is_recorded or self.is_held:
            self.body += data
        if self.is_held:
            if more:
                return
            data = bytes(self.body)
            headers = [*self.headers, (b"content-length", b"%d" % len(data))]
            await self.send({"type": "http.response.start", "status": self.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": data, "more_body": more})


@dataclass(slots=True)
class GatewayApp:
    """Answers HTTP requests by a router."""

    plan: GatewayPlan
    router: Router
    metrics: GatewayMetrics
    close: Callable[[], Awaitable[None]]
    tokens: TokenCounter
    replies: ReplyStore = field(default_factory=ReplyStore)
    background: set[asyncio.Task[None]] = field(default_factory=set)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or handle the start and the end of the service."""
        if scope["type"] == "lifespan":
            await self._handle_lifespan(receive, send)
        elif scope["type"] == "http":
            exchange = Exchange(send, is_http_1_0=scope.get("http_version") == "1.0")
            try:
                await self._dispatch(scope, receive, exchange)
            except RequestError as error:
                await _send_error(exchange, error, [])
            except RecursionError:
                if not exchange.status:
                    await _send_error(exchange, RequestError(400, "the body is nested too deeply"), [])

    async def _handle_lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send(await self._start())
            else:
                for task in list(self.background):
                    task.cancel()
                await asyncio.gather(*self.background, return_exceptions=True)
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _start(self) -> dict[str, Any]:
        """Probe the models if the plan says so, and return the outcome of the start."""
        try:
            if self.plan.is_probed:
                await self.router.probe()
        except UnfoldError as error:
            await self.close()
            return {"type": "lifespan.startup.failed", "message": str(error), "error": error}
        return {"type": "lifespan.startup.complete"}

    async def _dispatch(self, scope: Scope, receive: Receive, exchange: Exchange) -> None:
        path, method = scope["path"].rstrip("/") or "/", scope["method"]
        exchange.is_anthropic = any(path == each or path.startswith(f"{each}/") for each in MESSAGES_PATHS)
        allowed = _list_methods(path)
        if allowed and method not in allowed:
            message = f"there is no {method} {path[:100]}; use {' or '.join(allowed)}"
            raise RequestError(405, message, code="method_not_allowed", allow=", ".join(allowed))
        if path in HEALTH_PATHS:
            await _send_json(exchange, {"status": "ok", "promise": self.router.promise()})
        elif path == "/metrics":
            await self._send_metrics(exchange)
        elif path in MODEL_PATHS:
            self._authenticate(scope)
            await _send_json(exchange, self._list_models())
        elif path in ANSWER_PATHS:
            await self._chat(scope, receive, exchange, is_response=path in RESPONSES_PATHS)
        elif path in COUNTS:
            await self._count_tokens(scope, receive, exchange, COUNTS[path])
        elif path == AUDIT_PATH:
            await self._observe_label(scope, receive, exchange)
        elif allowed:
            self._authenticate(scope)
            await _send_json(exchange, self._find_model(path.partition("/models/")[2]))
        else:
            served = "this gateway serves /v1/chat/completions, /v1/responses, /v1/messages and /v1/models"
            message = f"there is no {method} {path[:100]}; {served}"
            raise RequestError(404, message, code="unknown_url")

    def _find_model(self, name: str) -> dict[str, Any]:
        """Describe one model.

        Raises:
            RequestError: There is none of this name.
        """
        for model in self._list_models()["data"]:
            if model["id"] == name:
                return dict(model)
        message = f"there is no model {name[:100]!r}; GET /v1/models lists them"
        raise RequestError(404, message, param="model", code="model_not_found")

    def _list_models(self) -> dict[str, Any]:
        names = (self.plan.alias, *self.plan.models)
        return {
            "object": "list",
            "data": [{"id": name, "object": "model", "created": 0, "owned_by": "unfold"} for name in names],
        }

    async def _send_metrics(self, exchange: Exchange) -> None:
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        data = generate_latest(self.metrics.registry)
        await exchange.start(200, [(b"content-type", CONTENT_TYPE_LATEST.encode())])
        await exchange.write(data, more=False)

    def _authenticate(self, scope: Scope) -> ClientKey:
        """Find the key of the client; compared in constant time.

        Raises:
            RequestError: Keys are needed, and none matches.
        """
        if not self.plan.keys:
            return ClientKey(name="anonymous", key="")
        headers = dict(scope["headers"])
        shown = headers.get(b"x-api-key") or headers.get(b"authorization", b"").partition(b" ")[2]
        matches = [key for key in self.plan.keys if hmac.compare_digest(shown.strip(), key.key.encode())]
        if not matches:
            raise RequestError(401, "the API key is missing or unknown", "authentication_error", code="invalid_api_key")
        return matches[0]

    async def _count_tokens(self, scope: Scope, receive: Receive, exchange: Exchange, path: str) -> None:
        """Count the input tokens of a request to the last model that may answer it, as the window of that one binds."""
        self._authenticate(scope)
        body = await _read_body(scope, receive, self.plan.body_bytes)
        original = parse_object(body)
        chat = (
            json.dumps(anthropic_messages.translate_prompt(original)).encode()
            if exchange.is_anthropic
            else responses.translate_request(body)[0]
        )
        request = parse_chat_request(chat)
        model = self.plan.models[self.router.list_models(request, Trace(""))[-1]]
        count = await self.tokens.count(model, request, original, path)
        named = [(b"x-unfold-model", model.name.encode("latin-1", "replace"))]
        how = b"counted" if count.is_exact else b"estimated"
        kind = {} if exchange.is_anthropic else {"object": "response.input_tokens"}
        await _send_json(exchange, {**kind, "input_tokens": count.tokens}, [*named, (b"x-unfold-tokens", how)])

    async def _observe_label(self, scope: Scope, receive: Receive, exchange: Exchange) -> None:
        """Count a label of an audited request; only requests that the coin drew count."""
        self._authenticate(scope)
        try:
            data = json.loads(await _read_body(scope, receive, self.plan.body_bytes))
        except (ValueError, RecursionError):
            raise RequestError(400, "the body is not valid JSON") from None
        names = ("is_correct", "reference_is_correct")
        flags = [data[name] for name in names if isinstance(data, dict) and isinstance(data.get(name), bool)]
        if len(flags) < len(names) or not _is_request_id(data.get("request_id")):
            hint = '{"request_id": "...", "is_correct": true, "reference_is_correct": true}'
            raise RequestError(400, f"a label has the form {hint}")
        if not self.plan.audits_labels:
            raise RequestError(400, "this gateway audits by disagreement, not by labels", code="not_by_labels")
        is_drawn = self.router.is_drawn(data["request_id"])
        if is_drawn:
            self.router.observe(data["request_id"], float(flags[1]) - float(flags[0]))
        await _send_json(exchange, {"counted": is_drawn, "promise": self.router.promise()})

    async def _chat(self, scope: Scope, receive: Receive, exchange: Exchange, *, is_response: bool) -> None:
        trace = Trace(f"unfold-{os.urandom(12).hex()}", promise=self.router.promise())
        try:
            client = self._authenticate(scope)
            body = await _read_body(scope, receive, self.plan.body_bytes)
            if is_response:
                body, exchange.writer = responses.translate_request(body)
            elif exchange.is_anthropic:
                body, exchange.writer = anthropic_messages.translate_request(body)
            key = _read_idempotency_key(scope)
            answer = self._answer_once(key, client, body, exchange, trace) if key else None
            await run_until_disconnect(answer or self._answer(client, body, exchange, trace), receive)
        except RequestError as error:
            await _send_error(exchange, error, self._headers(trace))

    async def _answer_once(self, key: str, client: ClientKey, body: bytes, exchange: Exchange, trace: Trace) -> None:
        """Answer a request with an idempotency key: replay, wait, or answer and store."""
        while (entry := self.replies.find(client.name, key)) is not None:
            if entry.body_hash != hash_body(body):
                message = "this Idempotency-Key was used with another body"
                raise RequestError(409, message, "idempotency_error", code="idempotency_key_reused")
            if await _replay(entry, exchange):
                return
        self.replies.open(client.name, key, body)
        exchange.is_recorded, is_stored = True, False
        try:
            is_whole = await self._answer(client, body, exchange, trace)
            if is_whole and exchange.status == 200:
                self.replies.complete(client.name, key, StoredReply(200, exchange.headers, bytes(exchange.body)))
                is_stored = True
        finally:
            if not is_stored:
                self.replies.drop(client.name, key)

    async def _answer(self, client: ClientKey, body: bytes, exchange: Exchange, trace: Trace) -> bool:
        """Answer a chat request, and return whether the answer is whole."""
        trace.deadline = asyncio.get_running_loop().time() + self.plan.limits.total_s
        begin, status = time.perf_counter(), 499
        reservation: Reservation | None = None

        def settle() -> None:
            nonlocal reservation
            if reservation is not None:
                self.router.largest_cost_usd = max(self.router.largest_cost_usd, trace.attempts.cost_usd)
                self.router.state.settle(reservation, trace.attempts.cost_usd)
                reservation = None

        try:
            request = parse_chat_request(body)
            names = self.router.list_models(request, trace)
            reservation = self._reserve(client, request, names, trace)
            request = self._bound_output(client, request, names)
            is_whole = await self._send_answer(request, names, trace, exchange, settle)
            status = exchange.status
        except UpstreamError as error:
            status = error.status
            settle()
            if exchange.status:
                await _write_stream_error(exchange, error)
            else:
                await _send_error(exchange, _as_request_error(error), self._headers(trace))
            return False
        except RequestError as error:
            status = error.status
            await _send_error(exchange, error, self._headers(trace))
            return False
        else:
            return is_whole
        finally:
            settle()
            self.metrics.count(trace, status, time.perf_counter() - begin)

    def _reserve(
        self, client: ClientKey, request: Mapping[str, Any], names: tuple[str, ...], trace: Trace
    ) -> Reservation | None:
        """Set aside the largest cost of a request.

        Raises:
            RequestError: The budget of the key does not suffice, or what is spent cannot be stored now.
        """
        if not self.plan.keys:
            return None
        worst = self.router.worst_cost(request, names, trace)
        try:
            reservation = self.router.state.reserve(client.name_account(time.time()), worst, client.budget_usd)
        except StateUnavailableError:
            message = "the gateway cannot store the spending of keys at present; retry later"
            raise RequestError(503, message, "server_error", code="unavailable", retry_after_s=RETRY_S) from None
        if reservation is None:
            budget = "budget" if client.period is None else f"budget of this {client.period} (UTC)"
            message = f"the {budget} of this key does not suffice for the largest cost of this request"
            raise RequestError(429, message, "insufficient_quota", code="insufficient_quota")
        return reservation

    def _bound_output(self, client: ClientKey, request: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
        """Set the output limit which the reservation assumed, if the client set none and has a budget."""
        has_limit = request.get("max_tokens") is not None or request.get("max_completion_tokens") is not None
        if client.budget_usd is None or has_limit:
            return request
        return {**request, "max_tokens": min(self.plan.models[name].max_tokens for name in names)}

    async def _send_answer(
        self,
        request: dict[str, Any],
        names: tuple[str, ...],
        trace: Trace,
        exchange: Exchange,
        settle: Callable[[], None],
    ) -> bool:
        """Send the answer; the key is charged before the last byte, so that a client never sees an older balance."""
        model_name = request["model"]
        if not request.get("stream"):
            answer = await self.router.answer(request, names, trace)
            assert answer.completion is not None  # noqa: S101 - without stream the answer is whole
            assert answer.completion.body is not None  # noqa: S101
            (body,) = shape_chunks(answer.completion.body, request, model_name)
            self._finish(request, answer.completion, trace)
            settle()
            await _send_json(exchange, body, self._headers(trace))
            return True
        answer = await self._wait_for_gate(request, names, trace, exchange)
        if not exchange.status:
            await exchange.start(200, [*_stream_headers(), *self._headers(trace)])
        completion = answer.completion or Completion()
        if answer.events is None:
            await exchange.write(b"".join(_format_chunks(completion.chunks, request, model_name)))
        else:
            await self._pass_on(answer.events, completion, request, trace, exchange)
        self._finish(request, completion, trace)
        settle()
        comment = f": x-unfold-model={trace.model} x-unfold-cost-usd={trace.attempts.cost_usd:.9f}\n\n"
        await exchange.write(comment.encode("latin-1", "replace"))
        await exchange.write(b"data: [DONE]\n\n", more=False)
        return True

    async def _wait_for_gate(
        self, request: dict[str, Any], names: tuple[str, ...], trace: Trace, exchange: Exchange
    ) -> Answer:
        """Wait for the decision; if it takes long, begin the reply and send comments that keep it open."""
        task = asyncio.create_task(self.router.answer(request, names, trace))
        try:
            while not (await asyncio.wait({task}, timeout=KEEP_ALIVE_S))[0]:
                if not exchange.status:
                    pending = [*_stream_headers(), *self._headers(trace, is_pending=True)]
                    await exchange.start(200, pending)
                await exchange.write(b": waiting\n\n")
            return await task
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, UpstreamError):
                    await task

    async def _pass_on(
        self,
        events: Events,
        completion: Completion,
        request: dict[str, Any],
        trace: Trace,
        exchange: Exchange,
    ) -> None:
        """Pass the chunks of the last model on as they come; what a break leaves is priced too."""
        try:
            async for chunk in events:
                completion.add_chunk(chunk)
                for data in _format_chunks([chunk], request, request["model"]):
                    await exchange.write(data)
        except ValueError as problem:
            raise UpstreamError("broken", 502, "the upstream sent no chat completion") from problem
        finally:
            await events.aclose()
            model = self.plan.models[trace.model]
            trace.attempts.cost_usd += price_of(model, completion, request, trace.attempts)

    def _finish(self, request: dict[str, Any], completion: Completion, trace: Trace) -> None:
        """Remember which model answered, and start the audit of a drawn request."""
        self.router.check_identity(trace.model, completion)
        self.router.remember(request, completion, trace.model)
        self.tokens.learn(trace.model, request, completion)
        if trace.is_audited and not self.plan.audits_labels and self.router.state.audit_limit is not None:
            task = asyncio.create_task(self.router.audit(request, completion.texts, trace))
            self.background.add(task)
            task.add_done_callback(self.background.discard)

    def _headers(self, trace: Trace, *, is_pending: bool = False) -> list[tuple[bytes, bytes]]:
        values = {
            "model": "pending" if is_pending else trace.model or "none",
            "route": "pending" if is_pending else ",".join(trace.steps) or "none",
            "calls": str(trace.attempts.calls),
            "cost-usd": f"{trace.attempts.cost_usd:.9f}",
            "plan": self.plan.plan_hash,
            "promise": trace.promise,
            "request-id": trace.request_id,
            "gate-ms": f"{trace.gate_ms:.1f}",
        }
        if trace.attempts.left_out:
            values["left-out"] = ",".join(sorted(trace.attempts.left_out))
        named = [(f"x-unfold-{name}".encode(), value.encode("latin-1", "replace")) for name, value in values.items()]
        # the id that OpenAI's clients show; that of the client or of the request log takes its place
        return [*named, (b"x-request-id", trace.request_id.encode())]


def _is_request_id(value: Any) -> bool:
    """Whether a value may be the id of a request: short, and without characters that no header and no store holds."""
    return isinstance(value, str) and len(value) <= MAX_KEY and value.isprintable()


def _list_methods(path: str) -> tuple[str, ...]:
    """List the methods of a path; empty if there is no such path."""
    if path in ANSWER_PATHS or path in COUNTS or path == AUDIT_PATH:
        return ("POST",)
    is_read = path in HEALTH_PATHS or path == "/metrics" or path in MODEL_PATHS
    return ("GET", "HEAD") if is_read or path.startswith(("/v1/models/", "/models/")) else ()


async def _read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Read the body of a request up to a limit.

    Raises:
        RequestError: It is too long or damaged, or the client hung up.
    """
    length = dict(scope["headers"]).get(b"content-length", b"0")
    too_long = RequestError(413, f"the body is longer than {limit} bytes", code="request_too_large")
    if length.isdigit() and int(length) > limit:
        raise too_long
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError(400, "the client hung up")
        body += message.get("body", b"")
        if len(body) > limit:
            raise too_long
        if not message.get("more_body"):
            return _decompress(scope, bytes(body), limit)


def _decompress(scope: Scope, body: bytes, limit: int) -> bytes:
    """Decompress a body by its Content-Encoding.

    Raises:
        RequestError: The encoding is unknown, the body is damaged, or too long.
    """
    try:
        return read_encoding(pair for pair in scope["headers"] if pair[0] == b"content-encoding").decompress(
            body, limit
        )
    except InvalidRequest as problem:
        raise RequestError(400, str(problem)) from None
    except TooLarge as problem:
        raise RequestError(413, str(problem), code="request_too_large") from None


def _read_idempotency_key(scope: Scope) -> str:
    key = dict(scope["headers"]).get(b"idempotency-key", b"").decode("latin-1")
    if len(key) > MAX_KEY:
        raise RequestError(400, f"Idempotency-Key is longer than {MAX_KEY} characters")
    return str(key)


async def _replay(entry: Entry, exchange: Exchange) -> bool:
    """Send the stored reply of an entry once it is complete; return whether there is one."""
    reply = await asyncio.shield(entry.reply)
    if reply is None:
        return False
    # what is stored is translated
    exchange.writer = None
    await exchange.start(reply.status, [*reply.headers, (b"x-unfold-replayed", b"true")])
    await exchange.write(reply.body, more=False)
    return True


async def _send_json(exchange: Exchange, data: Any, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    body = format_json(data)
    length = (b"content-length", b"%d" % len(body))
    await exchange.start(200, [(b"content-type", b"application/json"), length, *(headers or [])])
    await exchange.write(body, more=False)


async def _send_error(exchange: Exchange, error: RequestError, headers: list[tuple[bytes, bytes]]) -> None:
    body = anthropic_messages.encode_error(error) if exchange.is_anthropic else error.body()
    retry = [] if error.retry_after_s is None else [(b"retry-after", b"%d" % max(round(error.retry_after_s), 1))]
    if error.allow:
        retry.append((b"allow", error.allow.encode()))
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await exchange.start(error.status, [*head, *retry, *headers])
    await exchange.write(body, more=False)


def _format_chunks(chunks: Sequence[dict[str, Any]], request: Mapping[str, Any], model: str) -> Iterator[bytes]:
    """Yield the events of chunks in the form that the client requested."""
    for chunk in chunks:
        for shaped in shape_chunks(chunk, request, model):
            yield b"data: " + format_json(shaped) + b"\n\n"


async def _write_stream_error(exchange: Exchange, error: UpstreamError) -> None:
    """End a stream that has begun with an error event, and without ``[DONE]``."""
    await exchange.write(b"data: " + _as_request_error(error).body() + b"\n\n", more=False)


def _as_request_error(error: UpstreamError) -> RequestError:
    kind = (
        "rate_limit_error"
        if error.status == 429
        else "invalid_request_error"
        if error.status < 500
        else "upstream_error"
    )
    return RequestError(error.status, error.message, kind, error.param, error.code, error.retry_after_s)


def _stream_headers() -> list[tuple[bytes, bytes]]:
    return [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
