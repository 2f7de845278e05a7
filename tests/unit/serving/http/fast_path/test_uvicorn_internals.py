"""The fast path is off where uvicorn lacks what it relies on."""

from __future__ import annotations

import asyncio

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tests.unit.serving.client import rows, serving
from unfoldkit.serving.http.fast_path.head import FastPath, parse_head
from unfoldkit.serving.http.fast_path.uvicorn_internals import find_incompatibility


def check() -> str:
    async def run() -> str:
        async def app(_scope: object, _receive: object, _send: object) -> None:
            """Answer nothing."""

        return find_incompatibility(uvicorn.Config(app, http="httptools", log_config=None))

    return asyncio.run(run())


def test_the_installed_uvicorn_is_compatible() -> None:
    assert check() == ""


def test_a_missing_internal_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(HttpToolsProtocol, "eof_received")
    monkeypatch.setattr(asyncio.Protocol, "eof_received", property(), raising=False)
    assert "has no HttpToolsProtocol.eof_received" in check()


def test_without_responders_no_request_is_taken() -> None:
    plain = FastPath(
        responders={},
        max_body_bytes=1000,
        is_authorized=lambda _header: True,
        is_closing=lambda: False,
        default_headers=bytes,
    )
    assert parse_head(b"POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}", plain) is None


@pytest.mark.parametrize("words", [(), ("fast_path=0",)])
def test_predictions_do_not_depend_on_the_fast_path(words: tuple[str, ...]) -> None:
    with serving("total", *words) as server:
        answer = server.ask("/v2/models/total/infer", rows([1, 2, 3]))
    assert (answer.status, answer.json["outputs"][0]["data"]) == (200, [6.0])
