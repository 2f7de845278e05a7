"""Counts of tokens before a request is sent: by the endpoint, or estimated, and never answered by a completion."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from plugins.cascade.tests.language_models.scripted_upstream import always
from plugins.cascade.tests.language_models.served_gateway import Gateway, make_plan, serve_gateway
from tests.asgi import host
from tests.http_server import serve_handler
from unfold_cascade.language_models.gateway.service import build_app
from unfold_cascade.language_models.gateway.token_counts import MEDIA_TOKENS

MESSAGES, RESPONSES = "/v1/messages/count_tokens", "/v1/responses/input_tokens"


def ask(text: str, **fields: Any) -> dict[str, Any]:
    """Build a request without a limit of its output, as clients count it."""
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}


def count(gateway: Gateway, body: dict[str, Any], path: str = MESSAGES) -> tuple[int, str]:
    """Count tokens, and return how it was done."""
    status, headers, data = gateway.post(body, path=path)
    assert status == 200, data
    return json.loads(data)["input_tokens"], headers["x-unfold-tokens"]


def test_tokens_are_estimated_from_what_endpoints_reported(tmp_path: Path) -> None:
    """At first by four bytes a token; a model that reports one token a byte is soon estimated so."""
    usage = {"prompt_tokens": 20_000, "completion_tokens": 1, "total_tokens": 20_001}
    with serve_gateway(tmp_path, large=always(text="x", usage=usage)) as gateway:
        body = ask("word " * 4000)
        first, how = count(gateway, body)
        assert how == "estimated"
        assert 5000 <= first <= 5100
        for _ in range(3):
            assert gateway.post({**body, "model": "large", "max_tokens": 9}, path="/v1/messages")[0] == 200
        assert 17_000 <= count(gateway, body)[0] <= 20_100
        assert count(gateway, {"model": "auto", "input": "word " * 4000}, RESPONSES)[0] > 17_000
        # the small model has its own tokens
        assert count(gateway, {**body, "model": "small"})[0] == first


def test_tools_and_images_count(tmp_path: Path) -> None:
    """A tool counts by its schema, and an image as one, however many bytes it has."""
    tool = {"name": "add", "description": "adds " * 400, "input_schema": {"type": "object"}}
    source = {"type": "base64", "media_type": "image/png", "data": "A" * 400_000}
    picture = [{"type": "image", "source": source}, {"type": "text", "text": "what is it?"}]
    with serve_gateway(tmp_path) as gateway:
        assert count(gateway, ask("hi", tools=[tool]))[0] >= 500
        tokens, _ = count(gateway, {"model": "auto", "messages": [{"role": "user", "content": picture}]})
        assert MEDIA_TOKENS < tokens < MEDIA_TOKENS + 100


@contextmanager
def serve_counting_gateway(folder: Path, answer: tuple[int, bytes]) -> Iterator[tuple[Gateway, list[tuple[str, Any]]]]:
    """Serve a gateway before an endpoint that gives one answer to everything, and collect what it receives."""
    received: list[tuple[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            received.append((self.path, body))
            self.send_response(answer[0])
            self.send_header("content-length", str(len(answer[1])))
            self.end_headers()
            self.wfile.write(answer[1])

    with serve_handler(Handler) as port:
        plan = make_plan(*[f"http://127.0.0.1:{port}/v1"] * 2)
        app = build_app(plan, folder, logging.getLogger("unfold.test"))
        with host(app) as url:
            yield Gateway(url, None, None, app), received  # type: ignore[arg-type]


def test_an_endpoint_that_counts_is_asked(tmp_path: Path) -> None:
    """It gets the request in its own form, under its name of the model that would answer last."""
    with serve_counting_gateway(tmp_path, (200, b'{"input_tokens": 42}')) as (gateway, received):
        body = ask("hi", system="be short", tools=[{"name": "f", "input_schema": {"type": "object"}}])
        assert count(gateway, body) == (42, "counted")
        assert received == [("/v1/messages/count_tokens", {**body, "model": "l-1"})]
        assert count(gateway, {"model": "small", "input": "hi"}, RESPONSES) == (42, "counted")
        assert received[1] == ("/v1/responses/input_tokens", {"model": "s-1", "input": "hi"})


@pytest.mark.parametrize(
    "answer",
    [(404, b'{"input_tokens": 42}'), (200, b"{}"), (200, b"["), (200, b'{"input_tokens": -1}'), (307, b"{}")],
)
def test_an_endpoint_that_does_not_count_is_left_alone(tmp_path: Path, answer: tuple[int, bytes]) -> None:
    """Its answer is not passed on, and it is not asked each time."""
    with serve_counting_gateway(tmp_path, answer) as (gateway, received):
        assert [count(gateway, ask("hi"))[1] for _ in range(3)] == ["estimated"] * 3
        assert len(received) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [(MESSAGES, {"model": "auto"}), (MESSAGES, {"model": "auto", "messages": [3]}), (RESPONSES, {"model": "auto"})],
)
def test_what_is_no_request_is_refused(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """It gets 400, like a request that is to be answered."""
    with serve_gateway(tmp_path) as gateway:
        assert gateway.post(body, path=path)[0] == 400
