"""What unusual clients send: other methods and paths, JSON at its edges, features of the official client."""

from __future__ import annotations

import gzip
import json
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plugins.cascade.tests.language_models.scripted_upstream import always
from plugins.cascade.tests.language_models.served_gateway import Gateway, answer_with_calls, ask, serve_gateway

openai = pytest.importorskip("openai")
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "required": ["a"]}}}
USER = [{"role": "user", "content": "hi"}]
IMAGE = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with serve_gateway(tmp_path_factory.mktemp("gateway"), answer_with_calls, answer_with_calls) as served:
        yield served


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="k", max_retries=0) as opened:
        yield opened


def send(gateway: Gateway, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(gateway.url + path, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, {k.lower(): v for k, v in reply.headers.items()}, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("HEAD", "/v1/models", 200, None),
        ("HEAD", "/health", 200, None),
        ("GET", "/v1/models/small", 200, None),
        ("OPTIONS", "/v1/chat/completions", 405, "POST"),
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("DELETE", "/v1/models/small", 405, "GET, HEAD"),
        ("GET", "/v1/models/none%2Fof/these", 404, None),
        ("POST", "/v1/embeddings", 404, None),
        ("GET", "/v1/files", 404, None),
    ],
)
def test_every_path_and_method_has_an_answer(
    gateway: Gateway, method: str, path: str, status: int, allow: str | None
) -> None:
    """Errors have OpenAI's form; a wrong method names the right ones; HEAD has no body."""
    code, head, body = send(gateway, method, path)
    assert (code, head.get("allow")) == (status, allow)
    assert head["content-type"] == "application/json"
    if method == "HEAD":
        assert body == b""
        assert int(head["content-length"]) > 0
    elif status >= 400:
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"-Infinity", b"1" * 5000, b"1e999"])
def test_numbers_that_are_no_json_are_rejected(gateway: Gateway, value: bytes) -> None:
    """They would reach the upstream as broken JSON."""
    body = b'{"model": "auto", "messages": [{"role": "user", "content": "x"}], "temperature": ' + value + b"}"
    assert gateway.post(body)[0] == 400


@pytest.mark.parametrize("depth", [*range(900, 1000, 5), 100_000])
def test_nesting_never_breaks_the_gateway(gateway: Gateway, depth: int) -> None:
    """A body is passed on or rejected, also where it can be parsed and cannot be written again."""
    body = b'{"model": "auto", "messages": [{"role": "user", "content": "x"}], "x": ' + b"[" * depth + b"]" * depth
    status, _, data = gateway.post(body + b"}")
    assert status in (200, 400)
    assert json.loads(data)


@pytest.mark.parametrize("text", ["", "\u0000", "🌍\u200d日本", "\ud800", "x" * 300_000])
def test_any_text_arrives(gateway: Gateway, text: str) -> None:
    """Empty, with control characters, beyond the first plane, half a character, long."""
    status, _, data = gateway.post(ask(text))
    assert status == 200, data


def test_parallel_tool_calls_and_their_stream(client: Any) -> None:
    """Both calls arrive whole, streamed or not."""
    answer = client.chat.completions.create(model="auto", messages=USER, tools=[ADD], parallel_tool_calls=True)
    assert [call.id for call in answer.choices[0].message.tool_calls] == ["c0", "c1"]
    arguments = ["", ""]
    for chunk in client.chat.completions.create(model="auto", messages=USER, tools=[ADD], stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            arguments[call.index] += call.function.arguments or ""
    assert arguments == ['{"a": 1}'] * 2


def test_fields_of_reasoning_models_and_schemas_reach_the_upstream(client: Any, gateway: Gateway) -> None:
    """The gateway passes on what it does not read."""
    fields = {"max_completion_tokens": 9, "seed": 3, "reasoning_effort": "low", "store": False}
    shape = {"type": "json_object"}
    messages = [{"role": "developer", "content": "brief"}, *USER]
    client.chat.completions.create(model="auto", messages=messages, response_format=shape, **fields)
    sent = gateway.small.requests[-1]
    assert {name: sent[name] for name in fields} == fields
    assert (sent["response_format"], sent["messages"][0]["role"]) == (shape, "developer")


def test_the_official_client_shows_the_id_of_the_request(client: Any) -> None:
    """It is the id under which labels of an audit are reported."""
    raw = client.chat.completions.with_raw_response.create(**ask())
    assert raw.parse()._request_id == raw.headers["x-unfold-request-id"]


@pytest.mark.parametrize(
    "fields", [{"messages": [{"role": "user", "content": IMAGE}]}, {"modalities": ["text", "audio"]}]
)
def test_what_the_log_did_not_cover_goes_to_the_reference(client: Any, fields: dict[str, Any]) -> None:
    """Images in a message, and audio as an answer."""
    raw = client.chat.completions.with_raw_response.create(**{"model": "auto", "messages": USER, **fields})
    assert (raw.headers["x-unfold-promise"], raw.headers["x-unfold-model"]) == ("unpromised", "large")


def test_the_official_client_sees_typed_errors(client: Any) -> None:
    """Absent endpoints and models, an empty list of messages, a body beyond the limit."""
    with pytest.raises(openai.NotFoundError, match="v1/embeddings") as absent:
        client.embeddings.create(model="auto", input="x")
    assert absent.value.code == "unknown_url"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("gpt-9")
    assert unknown.value.code == "model_not_found"
    assert client.models.retrieve("auto").id == "auto"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="auto", messages=[])
    with pytest.raises(openai.APIStatusError) as long:
        client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "x" * 5_000_000}])
    assert long.value.status_code == 413


@pytest.mark.parametrize("stream", [False, True])
def test_infinite_log_probabilities_are_written_as_openai_does(tmp_path: Path, stream: bool) -> None:
    """JSON has no infinite numbers, and clients reject a body with one; the answer is not trusted either."""
    with serve_gateway(tmp_path, always(logprob=float("-inf")), always(logprob=float("-inf"))) as gateway:
        body = ask(logprobs=True, stream=stream)
        status, head, data = gateway.post(body)
        assert (status, head["x-unfold-route"]) == (200, "small:none<0.50,large")
        assert b"Infinity" not in data
        assert b'"logprob": -9999.0' in data


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 200), ("deflate", 200), ("identity", 200), ("br", 400)])
def test_compressed_requests_are_read(gateway: Gateway, encoding: str, status: int) -> None:
    """Bounds are those of the size when decompressed."""
    pack = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding, bytes)
    assert gateway.post(pack(json.dumps(ask()).encode()), content_encoding=encoding)[0] == status
    if encoding in ("gzip", "deflate"):
        assert gateway.post(pack(b" " * (5 << 20)), content_encoding=encoding)[0] == 413
