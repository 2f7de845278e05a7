"""Ids of requests and lines of logs, over real sockets."""

from __future__ import annotations

import io
import json
import logging
import socket
import struct
import time
from typing import Any

import pytest

from tests.unit.serving.client import read, request, rows, serving
from unfoldkit.serving.observability.access_log import (
    JsonLines,
    RequestNote,
    combine_observers,
    json_access_log,
    sanitize_id,
)

INFER = "/v2/models/total/infer"
LONG = "/v2/models/total/versions/1/infer"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("path", [INFER, LONG])
def test_an_answer_repeats_the_id_of_its_request(path: str) -> None:
    """Each way gives the client's id back, each request its own; one that is not fit for a header is dropped."""
    with serving("total") as server, server.connect() as wire:
        for name in ("a-1", "b.2", "a-1"):
            wire.sendall(request(path, rows([1, 2, 3]), headers=f"x-request-id: {name}\r\n"))
            assert read(wire).headers["x-request-id"] == name
        wire.sendall(request(path, rows([1, 2, 3])))
        assert "x-request-id" not in read(wire).headers
        wire.sendall(request(path, rows([1, 2, 3]), headers="x-request-id: <script>\r\n"))
        assert "x-request-id" not in read(wire).headers


def test_each_request_is_a_line_of_json() -> None:
    """With an observer each request is a line with its id, path, status and time, by both ways; no secret is in it."""
    with serving("total", "log=1", "token=secret-token") as server:
        good = "authorization: Bearer secret-token\r\n"
        server.ask(INFER, rows([1, 2, 3], id="x"), headers=f"{good}x-request-id: mine\r\n")
        server.ask(f"{INFER}?key=secret-token", rows([1, 2, 3]), headers=good)
        server.ask(INFER, rows([666, 0, 0]), headers=f"{good}traceparent: {PARENT}\r\n")
        server.ask(INFER, rows([1, 2, 3]), headers="authorization: Bearer wrong-token\r\n")
        assert server.end() == 0
        output = server.output()
    found = [json.loads(line) for line in output.splitlines() if '"request"' in line and "/infer" in line]
    assert [(line["path"], line["status"], line["level"]) for line in found] == [
        (INFER, 200, "info"), (INFER, 200, "info"), (INFER, 500, "error"), (INFER, 401, "info"),
    ]  # fmt: skip
    assert found[0]["id"] == "mine"
    assert len({line["id"] for line in found}) == 4
    assert found[2]["traceparent"] == PARENT
    assert all(line["ms"] >= 0 for line in found)
    assert "-token" not in output


@pytest.mark.parametrize("path", [INFER, LONG])
@pytest.mark.parametrize("is_reset", [False, True])
def test_a_client_that_hangs_up_is_logged(path: str, *, is_reset: bool) -> None:
    """By both ways a request has status 499 if its client closes or resets the connection before the response."""
    with serving("total", "log=1", "delay=0.5") as server:
        wire = server.connect()
        wire.sendall(request(path, rows([1, 2, 3])))
        time.sleep(0.1)
        if is_reset:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.close()
        assert server.end() == 0
        lines = [json.loads(line) for line in server.output().splitlines() if "/infer" in line]
    assert [(line["status"], line["level"]) for line in lines] == [(499, "info")]


def test_a_failure_is_logged_as_one_line() -> None:
    """A record with a traceback is still one line of JSON."""
    stream = io.StringIO()
    log, handler = logging.Logger("a"), logging.StreamHandler(stream)  # noqa: LOG001 - one of this test alone
    handler.setFormatter(JsonLines())
    log.addHandler(handler)
    log.error("%s failed", "it", exc_info=ValueError("two\nlines"))
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    assert (found["message"], found["level"]) == ("it failed", "error")
    assert "ValueError" in found["error"]


@pytest.mark.parametrize("given", [b"", b"a b", b"a\r\nb", b"\xff", b"x" * 129, b'"'])
def test_an_id_that_could_break_a_log_is_dropped(given: bytes) -> None:
    """Only letters, digits and a few signs, at most 128 of them, are repeated."""
    assert sanitize_id(given) == ""


def test_all_observers_hear() -> None:
    """Several observers receive each event; without any there is no dispatch, so that it costs nothing."""
    heard: list[Any] = []
    note = RequestNote("i", "POST", "/", 200, 0.1)
    both = combine_observers([heard.append, heard.append])
    assert both
    both(note)
    assert heard == [note, note]
    assert combine_observers([]) is None


def test_lines_have_the_fields_of_the_note() -> None:
    """A note becomes a record with its fields; a failure is an error."""
    records: list[logging.LogRecord] = []
    log = logging.Logger("a")  # noqa: LOG001 - one of this test alone
    log.addFilter(lambda record: records.append(record) or False)  # type: ignore[func-returns-value]
    json_access_log(log)(RequestNote("i", "POST", "/p", 503, 0.25))
    assert records[0].levelno == logging.ERROR
    assert vars(records[0])["fields"] == {"id": "i", "method": "POST", "path": "/p", "status": 503, "ms": 250.0}
