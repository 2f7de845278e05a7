"""A streaming client of OpenAI-compatible servers that stamps every event of a completion.

Times are those of the client's clock. A reply counts only with token counts in its usage: text does not give the number
of tokens. Every wait and every buffer is bounded.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unfoldkit.io.event_stream import DONE, StreamBounds, StreamStalledError, StreamTooLongError, read_event_data

if TYPE_CHECKING:
    import httpx

MAX_REPLY_BYTES = 16 << 20
MAX_LINE_BYTES = 1 << 20
MAX_ERROR_BYTES = 64 << 10
MAX_TOKENS = 1 << 24
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@dataclass(slots=True)
class EndpointError(Exception):
    """A server that did not complete a request as a profile needs it.

    Attributes:
        message: What happened.
        hint: What to do about it.
        status: HTTP status; 0 without a reply.
        retry_after: Its header Retry-After; empty without one.
    """

    message: str
    hint: str = ""
    status: int = 0
    retry_after: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointLimits:
    """How long a server may take, in seconds."""

    connect_s: float = 10.0
    first_token_s: float = 120.0
    between_tokens_s: float = 60.0
    request_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible server.

    Attributes:
        url: Its base, with or without ``/v1``.
        model: Name of the model at the server.
        key: API key; empty for none.
        path: The path of completions.
    """

    url: str
    model: str = ""
    key: str = ""
    path: str = COMPLETIONS

    def build_url(self, path: str) -> str:
        """Return the address of a path that begins with ``/v1``."""
        return self.url.rstrip("/").removesuffix("/v1") + path

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of a request."""
        key = {"authorization": f"Bearer {self.key}"} if self.key else {}
        return {"content-type": "application/json", "accept": "text/event-stream", **key}


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedReply:
    """A completed stream.

    Attributes:
        start_s: When the request was sent.
        event_s: When each event with text arrived.
        end_s: When the last token arrived.
        input_tokens: Prompt tokens, by the usage.
        output_tokens: Generated tokens, by the usage.
        cached_tokens: Prompt tokens from the prefix cache, by the usage; 0 if it does not report them.
    """

    start_s: float
    event_s: tuple[float, ...]
    end_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What a server reports about itself.

    Attributes:
        model: The model that it serves.
        max_context: The most tokens of a request; 0 if unknown.
        kv_tokens: Measured size of the KV cache in tokens; 0 if unknown.
    """

    model: str
    max_context: int
    kv_tokens: int


def build_http_client(connections: int, limits: EndpointLimits) -> httpx.AsyncClient:
    """Build a client that follows no redirect and uses no proxy of the environment.

    Raises:
        UnfoldError: httpx is not installed.
    """
    from unfoldkit.api import require_packages

    require_packages("a running engine", "httpx")
    import httpx

    pool = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    timeout = httpx.Timeout(limits.first_token_s, connect=limits.connect_s)
    return httpx.AsyncClient(limits=pool, timeout=timeout, follow_redirects=False, trust_env=False)


def build_body(endpoint: Endpoint, prompt: str, output_tokens: int) -> dict[str, Any]:
    """Return the body of a request for exactly some tokens, as far as the server honors ``ignore_eos``."""
    body: dict[str, Any] = {
        "model": endpoint.model,
        "max_tokens": output_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    text = {"messages": [{"role": "user", "content": prompt}]} if endpoint.path == CHAT else {"prompt": prompt}
    return {**body, **text}


async def stream_completion(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    body: Mapping[str, Any],
    limits: EndpointLimits,
    on_event: Callable[[], object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> StreamedReply:
    """Send a request and stamp the events of its stream.

    Args:
        client: The connections.
        endpoint: The server.
        body: The request, with ``stream`` and ``include_usage``.
        limits: How long the server may take.
        on_event: Called at each event with text.
        headers: Of the request, beside those of the endpoint.

    Raises:
        EndpointError: The server refuses, does not stream, reports no usage, stalls or breaks off.
    """
    events: list[float] = []
    usage: Mapping[str, Any] | None = None
    start_s = end_s = time.perf_counter()
    try:
        async with (
            asyncio.timeout(limits.request_s),
            aclosing(_read_stream(client, endpoint, body, limits, headers or {})) as stream,
        ):
            async for now_s, data in stream:
                if isinstance(data.get("usage"), Mapping):
                    usage = data["usage"]
                if has_token(data):
                    events.append(now_s)
                    end_s = now_s
                    if on_event is not None:
                        on_event()
    except TimeoutError as error:
        raise EndpointError(f"a request took longer than {limits.request_s:g} s", "a shorter output") from error
    if usage is None:
        hint = 'the server must honor "stream_options": {"include_usage": true}'
        raise EndpointError("the stream reports no usage, so its tokens are not known", hint)
    counts = [_require_count(usage, name) for name in ("prompt_tokens", "completion_tokens")]
    if not events:
        raise EndpointError("the stream holds no token", "another model or prompt")
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    is_count = isinstance(cached, int) and not isinstance(cached, bool) and 0 <= cached <= counts[0]
    return StreamedReply(
        start_s=start_s,
        event_s=tuple(events),
        end_s=end_s,
        input_tokens=counts[0],
        output_tokens=counts[1],
        cached_tokens=int(cached or 0) if is_count else 0,
    )


async def read_server(client: httpx.AsyncClient, endpoint: Endpoint, limits: EndpointLimits) -> ServerFacts:
    """Return what a server reports: its models, the longest request, and vLLM's size of the KV cache.

    Raises:
        EndpointError: The server cannot be reached, refuses, or does not serve the model.
    """
    data = await _get_json(client, endpoint, "/v1/models", limits)
    rows = data.get("data") if isinstance(data, Mapping) else None
    models = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    names = [str(row.get("id"))[:200] for row in models if row.get("id")]
    if endpoint.model and endpoint.model not in names and len(names) != 1:
        served = ", ".join(names[:6]) or "no model"
        raise EndpointError(f"the server does not serve {endpoint.model}", f"it serves {served}")
    if not endpoint.model and len(names) != 1:
        raise EndpointError(f"the server lists {len(names)} models", "model: {name: NAME}")
    name = endpoint.model if endpoint.model in names else names[0]
    row = models[names.index(name)]
    meta = row.get("meta")
    context: Any = row.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, Mapping) else 0)
    is_count = is_token_count(context)
    kv_tokens = await _read_kv_tokens(client, endpoint, limits)
    return ServerFacts(model=name, max_context=context if is_count else 0, kv_tokens=kv_tokens)


async def _read_kv_tokens(client: httpx.AsyncClient, endpoint: Endpoint, limits: EndpointLimits) -> int:
    """Return the KV cache that vLLM reports in ``vllm:cache_config_info``; 0 without it."""
    try:
        text = (await _get(client, endpoint, "/metrics", limits)).decode("utf-8", "replace")
    except EndpointError:
        return 0
    for line in text.splitlines():
        if line.startswith("vllm:cache_config_info{"):
            pairs = dict(part.partition("=")[::2] for part in line.partition("{")[2].partition("}")[0].split(","))
            try:
                tokens = int(pairs["num_gpu_blocks"].strip('"')) * int(pairs["block_size"].strip('"'))
            except (KeyError, ValueError):
                return 0
            return tokens if 0 < tokens <= 1 << 34 else 0
    return 0


async def _get_json(client: httpx.AsyncClient, endpoint: Endpoint, path: str, limits: EndpointLimits) -> Any:
    data = await _get(client, endpoint, path, limits)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EndpointError(f"{path} is not JSON", "the address of an OpenAI-compatible server") from error


async def _get(client: httpx.AsyncClient, endpoint: Endpoint, path: str, limits: EndpointLimits) -> bytes:
    import httpx

    try:
        async with (
            asyncio.timeout(limits.first_token_s),
            client.stream("GET", endpoint.build_url(path), headers=endpoint.headers) as response,
        ):
            body = await read_bounded(response, MAX_REPLY_BYTES)
    except TimeoutError as error:
        raise EndpointError("the server does not respond", "is it overloaded?") from error
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise _describe_fault(error) from error
    if response.status_code != 200:
        raise _describe_status(response.status_code, path, body)
    return body


async def _read_stream(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    body: Mapping[str, Any],
    limits: EndpointLimits,
    headers: Mapping[str, str],
) -> AsyncGenerator[tuple[float, Mapping[str, Any]], None]:
    """Yield when each server-sent event arrived, and its JSON, up to ``[DONE]``."""
    import httpx

    content = json.dumps(body).encode()
    try:
        url = endpoint.build_url(endpoint.path)
        async with client.stream("POST", url, content=content, headers={**endpoint.headers, **headers}) as response:
            if response.status_code != 200:
                raise _describe_status(
                    response.status_code, endpoint.path, await read_bounded(response, MAX_ERROR_BYTES)
                )
            if "text/event-stream" not in response.headers.get("content-type", ""):
                raise EndpointError("the server does not stream", "a server that honors stream: true")
            async with aclosing(read_events(response, limits)) as events:
                async for now_s, data in events:
                    if data == DONE:
                        return
                    yield now_s, _parse_answer(data)
        raise EndpointError("the stream broke off before its end")
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        raise _describe_fault(error) from error


async def read_events(response: httpx.Response, limits: EndpointLimits) -> AsyncGenerator[tuple[float, bytes], None]:
    """Yield the data of each event with the time at which it arrived.

    Raises:
        EndpointError: The stream stalls or is too long.
    """
    bounds = StreamBounds(
        first_s=limits.first_token_s,
        between_s=limits.between_tokens_s,
        max_bytes=MAX_REPLY_BYTES,
        max_line_bytes=MAX_LINE_BYTES,
    )
    try:
        async with (
            aclosing(response.aiter_bytes()) as parts,  # type: ignore[type-var]
            aclosing(read_event_data(parts, bounds)) as events,
        ):
            async for event in events:
                yield event
    except StreamStalledError as error:
        message = f"the stream stalls: nothing for {error.wait_s:g} s"
        raise EndpointError(message, "is it overloaded?") from error
    except StreamTooLongError as error:
        raise EndpointError(f"the stream is longer than {MAX_REPLY_BYTES >> 20} MiB") from error


async def read_bounded(response: httpx.Response, limit: int) -> bytes:
    """Read a body.

    Raises:
        EndpointError: It has more than ``limit`` bytes.
    """
    data = bytearray()
    async for part in response.aiter_bytes():
        data += part
        if len(data) > limit:
            raise EndpointError("the reply is too long")
    return bytes(data)


def parse_event(data: bytes) -> dict[str, Any]:
    """Parse the JSON object of an event.

    Raises:
        EndpointError: It is none.
    """
    try:
        event = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EndpointError("the stream holds broken JSON") from error
    if not isinstance(event, dict):
        raise EndpointError("the stream holds broken JSON")
    return event


def _parse_answer(data: bytes) -> dict[str, Any]:
    event = parse_event(data)
    if "error" in event and "choices" not in event:
        raise EndpointError(f"the stream reports an error: {_find_message(event)}")
    return event


def has_token(data: Mapping[str, Any]) -> bool:
    """Return whether an event carries generated text, or a part of a tool call."""
    for choice in list_choices(data):
        delta = choice.get("delta")
        texts = [choice.get("text")]
        if isinstance(delta, Mapping):
            texts += [delta.get(name) for name in ("content", "reasoning_content", "reasoning")]
            if delta.get("tool_calls"):
                return True
        if any(isinstance(text, str) and text for text in texts):
            return True
    return False


def list_choices(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the well-formed choices of an event."""
    choices = data.get("choices")
    return [choice for choice in choices if isinstance(choice, Mapping)] if isinstance(choices, list) else []


def is_token_count(value: Any) -> bool:
    """Return whether a value of an answer is a number of tokens; JSON's booleans are none."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_TOKENS


def read_token_count(usage: Mapping[str, Any], name: str) -> int:
    """Return a count of the usage; 0 if it reports none."""
    value = usage.get(name)
    return int(value) if value is not None and is_token_count(value) else 0


def _require_count(usage: Mapping[str, Any], name: str) -> int:
    count = read_token_count(usage, name)
    if not count:
        raise EndpointError(f"the usage reports no {name}", "a server that counts tokens")
    return count


def _describe_status(status: int, path: str, body: bytes) -> EndpointError:
    try:
        text = _find_message(json.loads(body))
    except (ValueError, RecursionError):
        text = ""
    detail = f": {text}" if text else ""
    if status in (401, 403):
        return EndpointError(f"the server refuses the key ({status})", "key_env: the variable with the key", status)
    if status in (404, 405):
        return EndpointError(f"the server has no {path} ({status}){detail}", "the base address of the server", status)
    return EndpointError(f"the server answers {status} to {path}{detail}", status=status)


def _find_message(data: Any) -> str:
    error = data.get("error", data) if isinstance(data, Mapping) else None
    text = error.get("message") if isinstance(error, Mapping) else error
    return " ".join(text.split())[:200] if isinstance(text, str) else ""


def _describe_fault(error: Exception) -> EndpointError:
    import httpx

    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return EndpointError("the connection is refused", "is the server running?")
    if isinstance(error, httpx.TimeoutException):
        return EndpointError("the server stalls", "is it overloaded?")
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return EndpointError("no address of a server", "http://127.0.0.1:8080")
    return EndpointError("the connection broke off")
