"""An OpenAI-compatible service that routes to running engines and measures TTFT and TPOT next to the estimate.

A request that an engine refuses before its first byte goes to the next engine; afterwards a failure ends the stream. To
count tokens, streams are requested with usage; a client that did not ask for it does not receive it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from unfold_pipeline._types import RowArray
from unfold_pipeline.engine.autoscaling.token_envelope import Arrival, TokenLog
from unfold_pipeline.engine.endpoint.balancer import EngineBalancer
from unfold_pipeline.engine.endpoint.client import (
    Endpoint,
    EndpointError,
    EndpointLimits,
    build_http_client,
    has_token,
    is_token_count,
    list_choices,
    parse_event,
    read_bounded,
    read_events,
    read_token_count,
)
from unfold_pipeline.engine.endpoint.prefill import REQUEST_ID, PrefillPool
from unfold_pipeline.engine.endpoint.replay import StageError
from unfold_pipeline.engine.planner.problem import Latencies, percentile
from unfold_pipeline.runtime.engines.surrounding_stages import StageLine, StagesAround
from unfold_pipeline.runtime.models.data_flow import encode_answer
from unfoldkit.api import UnfoldError
from unfoldkit.io.event_stream import DONE
from unfoldkit.serving.responses import Reply, json_reply, run_until_disconnect, send_reply
from unfoldkit.serving.service import Receive, Scope, Send

if TYPE_CHECKING:
    import httpx

COMPLETION_PATHS = ("/v1/chat/completions", "/v1/completions")
HEALTH_PATHS = frozenset({"/health", "/v1/health", "/v2/health/live", "/v2/health/ready"})
RETRIED = frozenset({401, 403, 408, 425, 429})
"""The engine is busy, or wants another key than that of the spec; so are a redirect and all statuses from 500 on."""
MAX_RETRY_AFTER = 64
MAX_BODY_BYTES = 8 << 20
MAX_ANSWER_BYTES = 64 << 20
BYTES_PER_TOKEN = 4
DEFAULT_OUTPUT_TOKENS = 256
PREFIX = "unfold_engine_"
TTFT_BUCKETS_S = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0)
TPOT_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)
HEADERS = (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What the plan estimates, in seconds: by measure (``ttft``, ``tpot``), the p50 and the p99."""

    quantiles: Mapping[str, Mapping[str, float]]


def build_estimate(latencies: Latencies) -> Estimate:
    """Return the percentiles of simulated latencies."""
    measures = (("ttft", latencies.ttft_s), ("tpot", latencies.tpot_s))
    return Estimate(
        quantiles={
            name: {"0.5": percentile(values, 0.5), "0.99": percentile(values, 0.99)} for name, values in measures
        }
    )


@dataclass(slots=True)
class MeasureSum:
    """Count and sum of a measure, for the page of the status."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Add one measurement."""
        self.count, self.seconds = self.count + 1, self.seconds + seconds

    @property
    def mean_ms(self) -> float | None:
        """The mean in milliseconds; ``None`` without a measurement."""
        return round(self.seconds / self.count * 1e3, 3) if self.count else None


@dataclass(slots=True)
class RouterMetrics:
    """What the router measures, for Prometheus and for its status."""

    registry: Any
    requests: Any
    ttft: Any
    tpot: Any
    retries: Any
    prefills: Any
    local_prompts: Any
    sums: dict[str, MeasureSum] = field(default_factory=lambda: {"ttft": MeasureSum(), "tpot": MeasureSum()})

    def observe_stream(self, first_s: float, last_s: float, tokens: float) -> None:
        """Count a completed stream: time to first token, time between first and last, and the tokens of a choice."""
        self.ttft.observe(first_s)
        self.sums["ttft"].add(first_s)
        if tokens > 1 and last_s > 0:
            self.tpot.observe(last_s / (tokens - 1))
            self.sums["tpot"].add(last_s / (tokens - 1))


def build_router_metrics(
    balancer: EngineBalancer, estimate: Estimate, prefill_balancer: EngineBalancer | None = None
) -> RouterMetrics:
    """Build the metrics in a registry of their own, with the estimate of the plan next to them."""
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

    registry = CollectorRegistry()
    held = Gauge(f"{PREFIX}outstanding_tokens", "tokens of the requests at an engine", ["engine"], registry=registry)
    for index in range(len(balancer.urls)):
        held.labels(str(index + 1)).set_function(partial(balancer.outstanding.__getitem__, index))
    prefills = local_prompts = None
    if prefill_balancer is not None:
        prefills = Counter(f"{PREFIX}prefills", "prompts at prefill engines", ["engine", "status"], registry=registry)
        text = "prompts that a decode engine computed, as no prefill engine did"
        local_prompts = Counter(f"{PREFIX}local_prompts", text, registry=registry)
        text = "tokens of the prompts at a prefill engine"
        queued = Gauge(f"{PREFIX}prefill_outstanding_tokens", text, ["engine"], registry=registry)
        for index in range(len(prefill_balancer.urls)):
            queued.labels(str(index + 1)).set_function(partial(prefill_balancer.outstanding.__getitem__, index))
    planned = Gauge(f"{PREFIX}estimate_seconds", "the plan", ["measure", "quantile"], registry=registry)
    for measure, quantiles in estimate.quantiles.items():
        for quantile, seconds in quantiles.items():
            planned.labels(measure, quantile).set(seconds)
    return RouterMetrics(
        registry=registry,
        requests=Counter(f"{PREFIX}requests", "requests", ["engine", "status"], registry=registry),
        ttft=Histogram(f"{PREFIX}ttft_seconds", "time to first token", registry=registry, buckets=TTFT_BUCKETS_S),
        tpot=Histogram(f"{PREFIX}tpot_seconds", "time per later token", registry=registry, buckets=TPOT_BUCKETS_S),
        retries=Counter(f"{PREFIX}retries", "requests that went to another engine", registry=registry),
        prefills=prefills,
        local_prompts=local_prompts,
    )


@dataclass(slots=True)
class RequestError(Exception):
    """A request that ends with an error in OpenAI's form."""

    status: int
    message: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


RunEngines = Callable[[], AbstractAsyncContextManager[None]]
"""Returns a context in which the engines run."""


def run_elsewhere() -> AbstractAsyncContextManager[None]:
    """Return the context of engines that something else starts and stops."""
    return nullcontext()


@dataclass(slots=True)
class EngineRouterApp:
    """Answers OpenAI's completions by running engines.

    Attributes:
        endpoints: The engines, in the order of the balancer.
        balancer: Distributes the requests.
        metrics: What is measured.
        estimate: What the plan estimates.
        limits: How long an engine may take.
        max_in_flight: Requests that may be inside.
        running: Starts the engines and stops them.
        log: Records the tokens that arrive, for a scaling rule.
        list_states: Returns the state of each engine, where this service starts them.
        stages: The running stages before and after the engines.
        prefill: The prefill engines; ``None`` if the engines compute prompts themselves.
        in_flight: Requests at stages and engines.
        client: Connections to the engines, while the service runs.
    """

    endpoints: Sequence[Endpoint]
    balancer: EngineBalancer
    metrics: RouterMetrics
    estimate: Estimate
    limits: EndpointLimits
    max_in_flight: int
    running: RunEngines = run_elsewhere
    log: TokenLog | None = None
    list_states: Callable[[], Sequence[str]] | None = None
    stages: StagesAround | None = None
    prefill: PrefillPool | None = None
    in_flight: int = 0
    client: httpx.AsyncClient | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or handle the start and the end of the service."""
        if scope["type"] == "lifespan":
            await self._handle_lifespan(receive, send)
        elif scope["type"] == "http":
            try:
                await self._dispatch(scope, receive, send)
            except RequestError as fault:
                await send_reply(_format_fault(fault), send)

    async def _handle_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with (
                build_http_client(self._count_connections(), self.limits) as client,
                nullcontext() if self.stages is None else self.stages.running(),
                self.running(),
            ):
                self.client = client
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except UnfoldError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error), "error": error})
            return
        await send({"type": "lifespan.shutdown.complete"})

    def _count_connections(self) -> int:
        """Return the connections that requests may need: a request holds one, at one engine after the other."""
        prefill = 0 if self.prefill is None else len(self.prefill.endpoints)
        return self.max_in_flight + len(self.endpoints) + prefill

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"].rstrip("/") or "/", scope["method"]
        path = f"/v1{path}" if f"/v1{path}" in (*COMPLETION_PATHS, "/v1/models") else path
        if path in COMPLETION_PATHS:
            if method != "POST":
                raise RequestError(405, f"{path} takes POST")
            await self._complete(path, receive, send)
        elif method not in ("GET", "HEAD"):
            raise RequestError(404, f"there is no {method} {path[:100]}")
        elif path == "/v1/models":
            await send_reply(await self._list_models(), send)
        elif path in HEALTH_PATHS:
            is_up = self.balancer.count_up(time.perf_counter()) > 0
            await send_reply(
                json_reply({"status": "ok" if is_up else "no engine responds"}, 200 if is_up else 503), send
            )
        elif path == "/metrics":
            from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

            await send_reply(Reply(200, generate_latest(self.metrics.registry), CONTENT_TYPE_LATEST.encode()), send)
        elif path == "/status":
            await send_reply(json_reply(self._describe_status()), send)
        else:
            raise RequestError(404, f"there is no {method} {path[:100]}; this router serves {COMPLETION_PATHS[0]}")

    def _describe_status(self) -> dict[str, Any]:
        now_s = time.perf_counter()
        states = self.list_states() if self.list_states is not None else [""] * len(self.endpoints)
        pool = self.prefill
        return {
            "engines": [
                {
                    **({"state": states[index]} if states[index] else {}),
                    **_describe_engine(endpoint, self.balancer, index, now_s),
                }
                for index, endpoint in enumerate(self.endpoints)
                if endpoint.url
            ],
            **(
                {}
                if pool is None
                else {
                    "prefill_engines": [
                        _describe_engine(endpoint, pool.balancer, index, now_s)
                        for index, endpoint in enumerate(pool.endpoints)
                    ]
                }
            ),
            "measured_mean_ms": {name: item.mean_ms for name, item in self.metrics.sums.items()},
            "estimated_s": self.estimate.quantiles,
        }

    async def _list_models(self) -> Reply:
        """Return the models of the first engine that responds."""
        import httpx

        assert self.client is not None  # noqa: S101 - the lifespan comes first
        faults = (httpx.HTTPError, httpx.InvalidURL, EndpointError, TimeoutError)
        active = zip(self.endpoints, self.balancer.active, strict=True)
        for endpoint in [endpoint for endpoint, is_active in active if is_active]:
            url = endpoint.build_url("/v1/models")
            with contextlib.suppress(*faults):
                async with (
                    asyncio.timeout(self.limits.connect_s),
                    self.client.stream("GET", url, headers=endpoint.headers) as response,
                ):
                    if response.status_code == 200:
                        return Reply(200, await read_bounded(response, MAX_BODY_BYTES))
        raise RequestError(502, "no engine responds")

    async def _complete(self, path: str, receive: Receive, send: Send) -> None:
        self._reject_excess()
        request = _parse_request(await _read_body(receive))
        # others may have come while the body was read
        self._reject_excess()
        exchange = _Exchange(send)
        if self.stages is not None:
            try:
                exchange.row = self.stages.take_row(request)
            except ValueError as error:
                raise RequestError(400, str(error)) from None
        self.in_flight += 1
        try:
            # the engine stops generating once the connection closes
            await run_until_disconnect(self._pass_stages(path, request, exchange), receive)
        finally:
            self.in_flight -= 1

    def _reject_excess(self) -> None:
        if self.in_flight >= self.max_in_flight:
            raise RequestError(429, "too many requests are waiting; retry later", ((b"retry-after", b"1"),))

    async def _pass_stages(self, path: str, request: dict[str, Any], exchange: _Exchange) -> None:
        """Pass the stages before the engines, and route.

        Raises:
            RequestError: A stage failed, or no engine answers.
        """
        if self.stages is not None:
            exchange.answers.update(await _pass_line(self.stages.upstream, exchange))
        await self._route(path, request, exchange)

    async def _route(self, path: str, request: dict[str, Any], exchange: _Exchange) -> None:
        """Send a request to one engine after the other until one begins to answer.

        Raises:
            RequestError: No engine did.
        """
        import httpx

        tried = set[int]()
        prompt, output = _estimate_tokens(request)
        tokens = prompt + output
        if self.log is not None:
            exchange.arrival = self.log.add(time.perf_counter(), prompt, output)
        fault = RequestError(502, "no engine responds")
        while (index := self.balancer.choose(tokens, time.perf_counter(), tried)) is not None:
            tried.add(index)
            status = 499
            try:
                async with asyncio.timeout(self.limits.request_s):
                    body = await self._compute_prompt(path, request, prompt, exchange)
                    status = await self._forward(path, index, body, exchange)
            except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, EndpointError, TimeoutError) as error:
                self.balancer.mark_down(index, time.perf_counter())
                fault = _describe_fault(error)
                status = fault.status
                if exchange.is_started:
                    await exchange.break_off()
                    return
                self.metrics.retries.inc()
            else:
                return
            finally:
                self.balancer.release(index, tokens)
                self.metrics.requests.labels(str(index + 1), str(status)).inc()
        raise fault

    async def _compute_prompt(
        self, path: str, request: dict[str, Any], tokens: int, exchange: _Exchange
    ) -> dict[str, Any]:
        """Return the request for a decode engine, after a prefill engine has computed its prompt.

        Each attempt needs a prompt of its own: a KV cache can be read once.
        """
        if self.prefill is None:
            return request
        assert self.client is not None  # noqa: S101 - the lifespan comes first
        prefill = await self.prefill.compute(self.client, path, request, tokens)
        exchange.request_id = prefill.request_id
        if prefill.transfer is None:
            self.metrics.local_prompts.inc()
        return prefill.extend(request)

    async def _forward(self, path: str, index: int, request: dict[str, Any], exchange: _Exchange) -> int:
        """Forward a request to an engine and its reply to the client; return the status.

        Raises:
            EndpointError: The engine is busy, or its stream is broken.
        """
        assert self.client is not None  # noqa: S101 - the lifespan comes first
        endpoint, is_stream = self.endpoints[index], bool(request.get("stream"))
        options = request.get("stream_options")
        options = options if isinstance(options, dict) else {}
        body = {**request, "stream_options": {**options, "include_usage": True}} if is_stream else request
        content = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        headers = {**endpoint.headers, "accept": "text/event-stream" if is_stream else "application/json"}
        if exchange.request_id:
            headers[REQUEST_ID] = exchange.request_id
        async with self.client.stream("POST", endpoint.build_url(path), content=content, headers=headers) as response:
            if _may_another_answer(response.status_code):
                raise EndpointError(
                    f"the engine answers {response.status_code}",
                    status=response.status_code if response.status_code >= 400 else 502,
                    retry_after=response.headers.get("retry-after", "")[:MAX_RETRY_AFTER],
                )
            self.balancer.mark_up(index)
            kind = response.headers.get("content-type", "application/json")
            if response.status_code != 200 or "text/event-stream" not in kind:
                content = await read_bounded(response, MAX_ANSWER_BYTES)
                if response.status_code == 200 and self.log is not None:
                    with contextlib.suppress(EndpointError):
                        exchange.count_tokens(parse_event(content))
                if response.status_code == 200 and self.stages is not None:
                    content = _add_answers(content, await self._pass_downstream(exchange))
                await exchange.reply(response.status_code, content, kind)
                return int(response.status_code)
            async with aclosing(read_events(response, self.limits)) as stream:
                await self._pass_on(stream, exchange, wants_usage=bool(options.get("include_usage")))
        return 200

    async def _pass_on(
        self,
        stream: AsyncGenerator[tuple[float, bytes], None],
        exchange: _Exchange,
        *,
        wants_usage: bool,
    ) -> None:
        """Pass the events of a stream on as they come, and measure them.

        Raises:
            EndpointError: The stream ends before ``[DONE]``.
        """
        first_s = last_s = 0.0
        events = tokens = 0
        choices = set[str]()
        async for now_s, data in stream:
            if data == DONE:
                if self.stages is not None and not await self._write_answers(exchange):
                    return
                await exchange.write(b"data: [DONE]\n\n", more=False)
                if events:
                    # choices are generated side by side
                    each = (tokens or events) / max(1, len(choices))
                    self.metrics.observe_stream(first_s - exchange.begin_s, last_s - first_s, each)
                return
            event = parse_event(data)
            if has_token(event):
                first_s, last_s, events = first_s or now_s, now_s, events + 1
                choices.update(str(choice.get("index")) for choice in list_choices(event))
            tokens = exchange.count_tokens(event) or tokens
            if event.get("choices") or wants_usage or "error" in event:
                await exchange.write(b"data: " + data + b"\n\n")
        raise EndpointError("the stream broke off before its end")

    async def _pass_downstream(self, exchange: _Exchange) -> dict[str, Any]:
        """Pass the stages after the engines; return the answers of all stages.

        Raises:
            RequestError: A stage failed, or its answer has no JSON form.
        """
        assert self.stages is not None  # noqa: S101 - the caller checks
        exchange.answers.update(await _pass_line(self.stages.downstream, exchange))
        try:
            return {"stages": {name: encode_answer(answer) for name, answer in exchange.answers.items()}}
        except TypeError as error:
            raise RequestError(500, "the answer of a stage has no JSON form") from error

    async def _write_answers(self, exchange: _Exchange) -> bool:
        """Write the answers of the stages as an event; if a stage fails, end the stream and return false."""
        try:
            answers = await self._pass_downstream(exchange)
        except RequestError as error:
            await exchange.break_off(error.message)
            return False
        event = {"object": "chat.completion.chunk", "choices": [], **answers}
        await exchange.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        return True


@dataclass(slots=True)
class _Exchange:
    """The reply to one request, its entry in the log of tokens, and what the stages around the engines returned.

    With prefill engines, both engines get the same ``request_id``.
    """

    send: Send
    is_started: bool = False
    arrival: Arrival | None = None
    row: RowArray | None = None
    answers: dict[str, Any] = field(default_factory=dict)
    begin_s: float = field(default_factory=time.perf_counter)
    request_id: str = ""

    def count_tokens(self, answer: Mapping[str, Any]) -> int:
        """Return the generated tokens that an answer or an event reports, and correct the log; 0 if it reports none."""
        usage = answer.get("usage")
        tokens = read_token_count(usage, "completion_tokens") if isinstance(usage, Mapping) else 0
        if isinstance(usage, Mapping) and tokens and self.arrival is not None:
            self.arrival.correct(read_token_count(usage, "prompt_tokens") or self.arrival.prompt, tokens)
        return tokens

    async def reply(self, status: int, body: bytes, kind: str) -> None:
        """Send a whole reply."""
        self.is_started = True
        await send_reply(Reply(status, body, kind.encode("latin-1", "replace")), self.send)

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send a part of a stream, after its head."""
        if not self.is_started:
            self.is_started = True
            await self.send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def break_off(self, message: str = "the stream of the engine broke off") -> None:
        """End a stream with an error event and without ``[DONE]``."""
        error = {"error": {"message": message, "type": "server_error"}}
        await self.write(f"data: {json.dumps(error)}\n\n".encode(), more=False)


def _describe_engine(endpoint: Endpoint, balancer: EngineBalancer, index: int, now_s: float) -> dict[str, Any]:
    """Return what a running engine holds, for the status."""
    return {
        "url": endpoint.url,
        "requests": balancer.requests[index],
        "outstanding_tokens": balancer.outstanding[index],
        "is_up": balancer.active[index] and balancer.down_until_s[index] <= now_s,
    }


async def _pass_line(line: StageLine, exchange: _Exchange) -> Mapping[str, Any]:
    assert exchange.row is not None  # noqa: S101 - a request without a row was rejected
    try:
        return await line.pass_row(exchange.row)
    except StageError as error:
        message = f"the model of stage {error.stage} failed on x" if error.stage else "a stage cannot be served"
        raise RequestError(500 if error.stage else 503, message) from error


def _add_answers(content: bytes, answers: Mapping[str, Any]) -> bytes:
    """Return a reply with the answers of the stages; unchanged if it is not a JSON object."""
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        return content
    return json.dumps({**reply, **answers}).encode() if isinstance(reply, dict) else content


def _may_another_answer(status: int) -> bool:
    return status in RETRIED or 300 <= status < 400 or status >= 500


def _describe_fault(error: Exception) -> RequestError:
    import httpx

    if isinstance(error, EndpointError):
        retry = ((b"retry-after", error.retry_after.encode("latin-1", "replace")),) if error.retry_after else ()
        return RequestError(error.status or 502, error.message, retry)
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return RequestError(504, "the engine stalls")
    return RequestError(502, "the connection to the engine failed")


async def _read_body(receive: Receive) -> bytes:
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError(499, "the client hung up")
        data += message.get("body", b"")
        if len(data) > MAX_BODY_BYTES:
            raise RequestError(413, f"the body is larger than {MAX_BODY_BYTES >> 20} MiB")
        if not message.get("more_body"):
            return bytes(data)


def _parse_request(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(400, "the body is not valid JSON") from None
    if not isinstance(request, dict):
        raise RequestError(400, "the body is not a JSON object")
    return request


def _estimate_tokens(request: Mapping[str, Any]) -> tuple[int, int]:
    """Return the tokens of a request: its text at four bytes a token, and the most that it may generate."""
    text = request.get("messages") or request.get("prompt") or ""
    size = len(json.dumps(text, ensure_ascii=False).encode("utf-8", "replace"))
    limits = [request.get(name) for name in ("max_completion_tokens", "max_tokens")]
    output = next((value for value in limits if is_token_count(value)), DEFAULT_OUTPUT_TOKENS)
    choices = request.get("n") if is_token_count(request.get("n")) else 1
    return size // BYTES_PER_TOKEN, min(int(output or 0) * int(choices or 1), 1 << 20)


def _format_fault(fault: RequestError) -> Reply:
    kind = "invalid_request_error" if fault.status < 500 else "server_error"
    error = {"message": fault.message, "type": kind, "param": None, "code": None}
    reply = json_reply({"error": error}, fault.status)
    return Reply(reply.status, reply.body, headers=fault.headers)
