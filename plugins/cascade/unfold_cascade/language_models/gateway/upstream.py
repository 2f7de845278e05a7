"""Calls to OpenAI-compatible endpoints: one attempt, its faults by class, and retries within the time of a request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, cast

from unfold_cascade.language_models.gateway.plan import ServedModel, UpstreamLimits
from unfold_cascade.language_models.openai_api.chat_request import IMAGE_PARTS, MAX_TOKENS, MEDIA_TOKENS, measure_size
from unfold_cascade.language_models.openai_api.completion import Completion, is_number, split_body
from unfold_cascade.language_models.openai_api.dialects import SAMPLING, Dialects, leave_out
from unfoldkit.io.event_stream import DONE, StreamBounds, StreamStalledError, StreamTooLongError, read_event_data

if TYPE_CHECKING:
    import httpx

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
OF_CLIENT = frozenset({400, 413, 422, 451})
REFUSED = frozenset({401, 402, 403, 404, 405, 410})
"""Key, credit, address or model is at fault; so it is where an upstream redirects, which is not followed."""
CONTEXT_WORDS = (
    "context_length_exceeded",
    "exceed_context_size",
    "context length",
    "context size",
    "maximum context",
    "prompt is too long",
    "input is too long",
    "exceeds the maximum number of tokens",
)
SETUP_WORDS = (
    "api key",
    "api_key",
    "invalid model",
    "invalid_model",
    "model_not_found",
    "credit balance",
    "budget_exceeded",
    "budget has been exceeded",
)
"""How endpoints that answer with 400 name a fault of key, credit or model, which no client of the gateway chose."""
NO_CREDIT = "insufficient_quota"
"""Code of a 429 that lasts until the account is paid."""
OPTIONAL_WORDS = ("logprobs", "stream_options")
BACKOFF_S, MAX_BACKOFF_S, MAX_RETRY_AFTER_S = 0.25, 8.0, 30.0
PATIENCE_S = 5.0
"""The longest pause before another call where the next model could answer instead."""
MAX_SHOWN_RETRY_S = 24 * 3600.0
"""The longest Retry-After that is passed on to a client."""
MAX_ERROR_BYTES = 64 << 10
LAST_STATUS = 599
TOO_LONG = "the answer of the upstream is too long"
NO_CHOICES = "the upstream sent an answer without choices"
DRAIN_S = 0.1
TEMPLATE_TOKENS = 32
"""Tokens that a chat template may add to a request, and to each message."""
MAX_IMAGE_TOKENS = 48_169
"""The most tokens of an image: eight tiles of gpt-4o-mini (OpenAI, "Images and vision", calculating costs)."""
Events = AsyncGenerator[dict[str, Any], None]
FaultKind = Literal["client", "context", "refused", "busy", "broken"]


@dataclass(slots=True)
class UpstreamError(Exception):
    """An endpoint did not answer.

    Attributes:
        kind: ``client``: the request is at fault. ``context``: it is too long for this model. ``refused``: key, credit,
            model or path is wrong. ``busy``: may be tried again. ``broken``: the answer broke off or is no completion.
        status: Of the reply to the client, should no other model answer.
        message: For the client; it holds no address and no key.
        code: Error code, if the upstream gave one.
        param: The field at fault, if the upstream named one.
        retry_after_s: Time to wait that the upstream named.
        is_billed: Whether the upstream may charge for the attempt.
        partial: What arrived before a break.
    """

    kind: FaultKind
    status: int
    message: str
    code: str | None = None
    retry_after_s: float | None = None
    is_billed: bool = False
    partial: Completion | None = None
    param: str | None = None


@dataclass(slots=True)
class Attempts:
    """Counts the calls of one request, and what they cost; ``confidence_usd`` is the part paid for confidences.

    ``left_out`` are fields of the request that an endpoint did not take.
    """

    calls: int = 0
    cost_usd: float = 0.0
    unpriced: int = 0
    confidence_usd: float = 0.0
    left_out: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Upstreams:
    """The endpoints, and one pool of connections for all."""

    client: httpx.AsyncClient
    limits: UpstreamLimits
    jitter: random.Random = field(default_factory=random.Random)
    dialects: Dialects = field(default_factory=Dialects)

    async def complete(
        self,
        model: ServedModel,
        request: Mapping[str, Any],
        deadline: float,
        attempts: Attempts,
        *,
        waits: bool = True,
    ) -> Completion:
        """Send a request and collect the whole answer, streamed or not.

        Args:
            model: The model to call.
            request: The body, without the name of the model.
            deadline: Time of the event loop at which the request of the client ends.
            attempts: Counts the calls.
            waits: No other model is left, so that an answer which is not streamed may take until the deadline, and an
                endpoint may name a long time to wait.

        Raises:
            UpstreamError: No attempt succeeded.
        """
        for attempt in range(self.limits.retries + 1):
            completion = Completion()
            try:
                async with (
                    asyncio.timeout_at(deadline),
                    aclosing(self._events(model, request, attempts, waits=waits)) as events,
                ):
                    async for data in events:
                        if request.get("stream"):
                            completion.chunks.append(data)
                            completion.add_chunk(data)
                        else:
                            completion.read_body(data)
                _check_choices(completion)
            except asyncio.CancelledError:
                settle_failure(model, request, _describe_hang_up(completion), attempts)
                raise
            except (UpstreamError, TimeoutError, ValueError) as problem:
                error = as_upstream_error(problem, completion)
                settle_failure(model, request, error, attempts)
                await self._wait_before_retry(error, attempt, deadline, waits=waits)
                continue
            attempts.cost_usd += price_of(model, completion, request, attempts)
            return completion
        raise UpstreamError("busy", 502, "the upstream did not answer")

    async def open_stream(
        self, model: ServedModel, request: Mapping[str, Any], deadline: float, attempts: Attempts
    ) -> Events:
        """Send a request and return its events once the first has arrived; until then faults are retried.

        Raises:
            UpstreamError: No attempt succeeded; while iterating, the stream broke off.
        """
        for attempt in range(self.limits.retries + 1):
            events = self._events(model, request, attempts)
            try:
                async with asyncio.timeout_at(deadline):
                    first = await anext(events)
            except asyncio.CancelledError:
                settle_failure(model, request, _describe_hang_up(Completion()), attempts)
                raise
            except (UpstreamError, TimeoutError, ValueError, StopAsyncIteration) as problem:
                await events.aclose()
                error = as_upstream_error(problem, Completion())
                settle_failure(model, request, error, attempts)
                await self._wait_before_retry(error, attempt, deadline)
                continue
            return _continue_stream(first, events, deadline)
        raise UpstreamError("busy", 502, "the upstream did not answer")

    async def count_tokens(self, model: ServedModel, request: Mapping[str, Any], path: str) -> int | None:
        """Ask an endpoint for the input tokens of a request, which generates nothing; ``None`` if it does not count.

        Args:
            model: The model.
            request: In the form of the API of ``path``.
            path: Below the base of the endpoint, such as ``messages/count_tokens``.
        """
        import httpx

        url, limits = f"{model.url.rstrip('/')}/{path}", self.limits
        try:
            async with (
                asyncio.timeout(limits.connect_s),
                self.client.stream("POST", url, content=_encode(model, request), headers=_head(model)) as response,
            ):
                data = _parse_json(await _read_bounded(response, MAX_ERROR_BYTES))
        except (TimeoutError, UpstreamError, httpx.HTTPError, httpx.InvalidURL, httpx.StreamError):
            return None
        tokens = data.get("input_tokens")
        is_counted = response.status_code == 200 and isinstance(tokens, int) and read_count(tokens) == tokens
        return tokens if is_counted else None

    async def _wait_before_retry(
        self, error: UpstreamError, attempt: int, deadline: float, *, waits: bool = True
    ) -> None:
        """Wait before the next attempt, or raise the error if there is none."""
        if error.kind not in ("busy", "broken") or error.message == TOO_LONG or attempt >= self.limits.retries:
            raise error
        pause = min(BACKOFF_S * 2**attempt, MAX_BACKOFF_S) * (0.5 + self.jitter.random())
        if error.retry_after_s is not None:
            pause = max(pause, error.retry_after_s)
        if (
            pause > (MAX_RETRY_AFTER_S if waits else PATIENCE_S)
            or asyncio.get_running_loop().time() + pause >= deadline
        ):
            raise error
        await asyncio.sleep(pause)

    async def _events(
        self, model: ServedModel, request: Mapping[str, Any], attempts: Attempts, *, waits: bool = False
    ) -> Events:
        """Send a request, again without fields that the endpoint does not know, and yield the JSON that it answers."""
        adapted, left_out = self.dialects.adapt(model.name, request), set[str]()
        while True:
            try:
                async with aclosing(self._attempt(model, adapted, attempts, waits=waits)) as events:
                    async for data in events:
                        self.dialects.remember(model.name, left_out)
                        attempts.left_out.update(name for name in SAMPLING if name in request and name not in adapted)
                        yield data
            except UpstreamError as problem:
                text = f"{problem.message} {problem.param}" if problem.kind == "client" else ""
                name = self.dialects.find_refused(adapted, text, left_out)
                if not name:
                    raise
                adapted = leave_out(name, adapted)
                left_out.add(name)
            else:
                return

    async def _attempt(
        self, model: ServedModel, request: Mapping[str, Any], attempts: Attempts, *, waits: bool
    ) -> Events:
        """Send one attempt and yield the JSON of its answer, or of each event of its stream."""
        import httpx

        attempts.calls += 1
        body, headers, limits = _encode(model, request), _head(model), self.limits
        headers["accept"] = "text/event-stream" if request.get("stream") else "application/json"
        # an answer that is not streamed has its first byte at its end
        first_s = None if waits and not request.get("stream") else limits.first_token_s
        timeout = httpx.Timeout(first_s, connect=limits.connect_s)
        stream = self.client.stream(
            "POST", f"{model.url.rstrip('/')}/chat/completions", content=body, headers=headers, timeout=timeout
        )
        try:
            async with stream as response:
                if response.status_code != 200:
                    raise await _read_error(response)
                if not request.get("stream"):
                    yield _parse_body(await _read_bounded(response, limits.answer_bytes), response)
                    return
                async with aclosing(_read_events(response, limits)) as events:
                    async for data in events:
                        yield data
        except httpx.TimeoutException as problem:
            is_sent = not isinstance(problem, (httpx.ConnectTimeout, httpx.PoolTimeout))
            raise UpstreamError("busy", 504, "the upstream took too long", is_billed=is_sent) from problem
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as problem:
            is_sent = not isinstance(problem, httpx.ConnectError)
            raise UpstreamError("busy", 502, "the connection to the upstream failed", is_billed=is_sent) from problem


def build_client(models: Iterable[ServedModel], limits: httpx.Limits) -> httpx.AsyncClient:
    """Build the client for the endpoints of some models; HTTP/2 is offered where every model of a host allows it.

    It is negotiated by TLS only, so hosts without TLS get the quicker transport for HTTP/1.1 too. Redirects are not
    followed and proxies of the environment not used: requests go to the endpoints of the spec only.
    """
    import httpx

    from unfoldkit.io.http1_transport import Http1Transport

    urls = ((httpx.URL(model.url), model.http2) for model in models)
    hosts = {str(url.copy_with(path="/")) for url, http2 in urls if not http2 or url.scheme == "http"}
    plain = {host: Http1Transport(limits) for host in hosts}
    return httpx.AsyncClient(http2=True, mounts=plain, limits=limits, follow_redirects=False, trust_env=False)


def _encode(model: ServedModel, request: Mapping[str, Any]) -> bytes:
    return json.dumps({**request, "model": model.upstream_model}, ensure_ascii=False).encode("utf-8", "replace")


def _head(model: ServedModel) -> dict[str, str]:
    head = {"content-type": "application/json"}
    return head | {"authorization": f"Bearer {model.key}"} if model.key else head


def _check_choices(completion: Completion) -> None:
    if not completion.choices:
        raise UpstreamError("broken", 502, NO_CHOICES, is_billed=True)


def as_upstream_error(problem: BaseException, partial: Completion) -> UpstreamError:
    """Convert the fault of an attempt."""
    if isinstance(problem, UpstreamError):
        problem.partial = problem.partial or partial
        return problem
    if isinstance(problem, TimeoutError):
        return UpstreamError("busy", 504, "the request took too long", is_billed=True, partial=partial)
    return UpstreamError("broken", 502, "the upstream sent no chat completion", is_billed=True, partial=partial)


def _describe_hang_up(partial: Completion) -> UpstreamError:
    """Describe a call that ended as its client hung up: the upstream may charge for what it has generated so far."""
    return UpstreamError("broken", 499, "the client hung up", is_billed=True, partial=partial)


def settle_failure(model: ServedModel, request: Mapping[str, Any], error: UpstreamError, attempts: Attempts) -> None:
    """Count the cost of a failed attempt that the upstream may charge; if nothing arrived, that of its input."""
    if error.is_billed:
        attempts.cost_usd += price_of(model, error.partial or Completion(), request, attempts)


def price_of(model: ServedModel, completion: Completion, request: Mapping[str, Any], attempts: Attempts) -> float:
    """Compute the cost of an answer from its usage; a count that it lacks is estimated, and the call is unpriced."""
    usage = completion.usage or {}
    input_tokens, output_tokens = read_count(usage.get("prompt_tokens")), count_output_tokens(completion)
    if not input_tokens or output_tokens != read_count(usage.get("completion_tokens")):
        attempts.unpriced += 1
    details = usage.get("prompt_tokens_details")
    cached = read_count(details.get("cached_tokens")) if isinstance(details, dict) else 0.0
    written = read_count(details.get("cache_creation_tokens")) if isinstance(details, dict) else 0.0
    return model.prices.cost(input_tokens or estimate_tokens(request), output_tokens, cached, written)


def count_output_tokens(completion: Completion) -> float:
    """Read the output tokens of an answer; without a usable count they are estimated from its text and reasoning."""
    counted = read_count((completion.usage or {}).get("completion_tokens"))
    thoughts = sum(choice.thought_size for choice in completion.choices.values())
    return counted or (sum(len(text) for text in completion.texts) + thoughts) / 4


def estimate_tokens(request: Mapping[str, Any]) -> float:
    """Estimate the input tokens of a request: four bytes each, as usual for English, but for images."""
    size, images = measure_size(request, IMAGE_PARTS)
    return size / 4 + MEDIA_TOKENS * images


def worst_cost(model: ServedModel, request: Mapping[str, Any]) -> float:
    """Compute an upper bound of the cost of one call: a token has at least one byte, and the output its limit.

    Bytes are no bound for an image, which may be an address, and far too many for one that is sent whole.
    """
    size, images = measure_size(request, IMAGE_PARTS)
    size += MAX_IMAGE_TOKENS * images
    size += TEMPLATE_TOKENS * (1 + len(request.get("messages", ())))
    # an endpoint may go by either, and one that does not know both gets the other alone
    limit = max(request.get(name) or 0 for name in ("max_completion_tokens", "max_tokens")) or model.max_tokens
    count = int(request.get("n") or 1)
    highest = max(model.prices.input, model.prices.cached, model.prices.written)
    return size * highest + limit * count * model.prices.output + model.prices.fixed


def read_count(value: Any) -> float:
    """Read a count of tokens; 0 for what is none, such as one that is longer than any window."""
    return float(value) if is_number(value) and 0 < value <= MAX_TOKENS else 0.0


async def _continue_stream(first: dict[str, Any], events: Events, deadline: float) -> Events:
    try:
        yield first
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    data = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError as problem:
                raise UpstreamError("busy", 504, "the request took too long", is_billed=True) from problem
            yield data
    finally:
        await events.aclose()


async def _read_events(response: httpx.Response, limits: UpstreamLimits) -> Events:
    """Yield the server-sent events up to ``[DONE]``.

    Some servers leave it out: a stream that ends without it is whole if each choice has its reason to finish. Others
    do not stream at all, and answer with one JSON object.
    """
    bounds = StreamBounds(
        first_s=limits.first_token_s,
        between_s=limits.between_tokens_s,
        max_bytes=limits.answer_bytes,
        max_line_bytes=limits.answer_bytes,
    )
    document = bytearray()
    async with (
        aclosing(_keep_document(response.aiter_bytes(), document)) as parts,
        aclosing(read_event_data(parts, bounds)) as events,
    ):
        unfinished: dict[Any, bool] = {}
        try:
            async for _, data in events:
                if data == DONE:
                    if not unfinished:
                        raise UpstreamError("broken", 502, NO_CHOICES, is_billed=True)
                    await _drain(parts, limits.answer_bytes)
                    return
                event = _parse_json(data.decode("utf-8", "replace"))
                _raise_event_error(event, response, has_answer=bool(unfinished))
                _note_finishes(event, unfinished)
                yield event
        except StreamStalledError:
            raise UpstreamError("busy", 504, "the stream of the upstream stalled", is_billed=True) from None
        except StreamTooLongError:
            raise UpstreamError("broken", 502, TOO_LONG, is_billed=True) from None
    if document.startswith(b"{"):
        for event in split_body(_parse_body(document, response)):
            yield event
        return
    if not unfinished or any(unfinished.values()):
        raise UpstreamError("broken", 502, "the stream of the upstream broke off", is_billed=True)


async def _keep_document(parts: AsyncIterator[bytes], document: bytearray) -> AsyncGenerator[bytes, None]:
    """Pass the parts of a body on, and keep them all if it begins as a JSON object, which no event does."""
    # httpx declares its generator as an iterator
    async with aclosing(cast("AsyncGenerator[bytes, None]", parts)) as passed:
        async for part in passed:
            if not document or document.startswith(b"{"):
                document += part if document else part.lstrip()
            yield part


def _parse_body(body: bytes | bytearray, response: httpx.Response) -> dict[str, Any]:
    """Parse an answer which was not streamed; some gateways report faults of what is behind them with status 200."""
    data = _parse_json(body)
    if data.get("error") and not data.get("choices"):
        raise _classify(_read_status(data["error"]), data, response)
    return data


def _note_finishes(event: Mapping[str, Any], unfinished: dict[Any, bool]) -> None:
    """Note for each choice of a chunk, by its index, whether its end is still to come."""
    choices = event.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and isinstance(choice.get("index", 0), int):
            index = choice.get("index", 0)
            unfinished[index] = unfinished.get(index, True) and not choice.get("finish_reason")


def _raise_event_error(event: Mapping[str, Any], response: httpx.Response, *, has_answer: bool) -> None:
    """Raise the error that an event reports: under ``error``, beside choices too, or itself as in older vLLM.

    What came before it is billed. As a first event it is what other endpoints answer with a status.
    """
    if not event.get("error") and event.get("object") != "error":
        return
    if has_answer:
        raise UpstreamError("broken", 502, "the upstream reported an error in its stream", is_billed=True)
    raise _classify(_read_status(event.get("error") or event), event, response)


async def _drain(parts: AsyncIterator[bytes], limit: int) -> None:
    """Read the end of a complete reply: a connection which is closed before it cannot be used again."""
    import httpx

    with contextlib.suppress(httpx.HTTPError, TimeoutError, UpstreamError):
        async with asyncio.timeout(DRAIN_S):
            size = 0
            async for part in parts:
                size = _add_size(size, part, limit)


async def _read_bounded(response: httpx.Response, limit: int) -> bytes:
    data = bytearray()
    async for part in response.aiter_bytes():
        _add_size(len(data), part, limit)
        data += part
    return bytes(data)


def _add_size(size: int, part: bytes, limit: int) -> int:
    if size + len(part) > limit:
        raise UpstreamError("broken", 502, TOO_LONG, is_billed=True)
    return size + len(part)


def _parse_json(data: bytes | bytearray | str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UpstreamError("broken", 502, "the upstream sent broken JSON", is_billed=True)
    return value


async def _read_error(response: httpx.Response) -> UpstreamError:
    """Read a reply with an error status."""
    try:
        body = json.loads(await _read_bounded(response, MAX_ERROR_BYTES))
    except (ValueError, RecursionError, UpstreamError):
        body = None
    return _classify(response.status_code, body, response)


def _read_status(error: Any) -> int:
    """Read the status which the body of an error names; 502 if it names none."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code <= 599 else 502


def _classify(status: int, body: Any, response: httpx.Response) -> UpstreamError:
    """Classify a reply with an error."""
    text, kind_text, code, param = _describe_error(body, status)
    whole = f"{text} {kind_text} {code}".lower()
    if status in (400, 413, 422) and any(word in whole for word in CONTEXT_WORDS):
        return UpstreamError("context", 400, text[:500], "context_length_exceeded")
    # a message may quote the request, and a client must not be able to shut a model out
    sent = response.request.content.decode("utf-8", "replace").lower() if status == 400 else ""
    is_setup = status == 400 and any(word in whole and word not in sent for word in SETUP_WORDS)
    is_unpaid = status == 429 and NO_CREDIT in (kind_text, code)
    if status in REFUSED or 300 <= status < 400 or is_setup or is_unpaid:
        # the text may name the key or the account: it is not for the client
        return UpstreamError("refused", 502, f"the upstream refused the gateway ({status})")
    if status in RETRIED or status >= 500:
        retry_after_s = read_retry_after(response.headers)
        shown = status if status <= LAST_STATUS else 502
        return UpstreamError("busy", shown, text[:500], str(code) if code else None, retry_after_s)
    shown = status if 400 <= status < 500 else 502
    named = param[:100] if isinstance(param, str) else None
    kind: FaultKind = "client" if status in OF_CLIENT else "broken"
    return UpstreamError(kind, shown, text[:500], str(code) if code else None, param=named)


def _describe_error(body: Any, status: int) -> tuple[str, Any, Any, Any]:
    """Return message, type, code and param of an error in the form of OpenAI, FastAPI, Mistral, vLLM or Gemini."""
    body = body[0] if isinstance(body, list) and body else body
    fields = body if isinstance(body, dict) else {}
    error = fields.get("error", fields)
    error = error if isinstance(error, dict) else {"message": error}
    detail = fields.get("detail")
    if isinstance(detail, list):
        parts = [part for part in detail if isinstance(part, dict)]
        detail = "; ".join(f"{'.'.join(map(str, part.get('loc') or ()))}: {part.get('msg')}" for part in parts)
    message = next((text for text in (error.get("message"), detail) if isinstance(text, str) and text), None)
    shown = message or f"the upstream answered with status {status}"
    return shown, error.get("type"), error.get("code"), error.get("param")


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Parse retry-after-ms, and Retry-After in seconds or as a date; ``None`` without a finite number."""
    for name, factor in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * factor
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            return min(max(seconds, 0.0), MAX_SHOWN_RETRY_S)
    try:
        moment = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError, OverflowError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return min(max((moment - datetime.now(UTC)).total_seconds(), 0.0), MAX_SHOWN_RETRY_S)
