"""A service that fails to start reports the error of its application in words."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time

import pytest

from unfoldkit.errors import ExitCode, UnfoldError, user_error
from unfoldkit.serving.http.address import Address, open_listener
from unfoldkit.serving.http.early_probes import MAX_HELD, EarlyProbes
from unfoldkit.serving.http.server import run_service
from unfoldkit.serving.http.startup import COMPLETE, FAILED
from unfoldkit.serving.responses import json_reply, send_reply
from unfoldkit.serving.service import ASGIApp, Receive, Scope, Send, Service

pytestmark = pytest.mark.timed
LIVE_REQUEST = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"


def refusing(**more: object) -> ASGIApp:
    """Return an application that reports a failed start."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": FAILED, **more})

    return app


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"message": "no weights", "error": user_error("no weights", key="model")}, "model: no weights"),
        ({"message": "no weights"}, "no weights"),
        ({}, "the service did not start"),
    ],
)
def test_a_failed_start_is_reported_in_words(said: dict[str, object], expected: str) -> None:
    """The error of the application is raised as it is, a message alone becomes one, and nothing ends the process."""
    with open_listener(Address("127.0.0.1", 0)) as bound, pytest.raises(UnfoldError, match=f"^{expected}$") as error:
        run_service(Service("mine", refusing(**said)), bound)
    assert error.value.code is ExitCode.USAGE


def test_an_error_at_the_start_is_reported_and_ends_the_service() -> None:
    """An application that raises anything while it starts is not served without its start."""

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        raise OSError("no more processes")

    expected = "^the service did not start: OSError: no more processes$"
    with open_listener(Address("127.0.0.1", 0)) as bound, pytest.raises(UnfoldError, match=expected) as error:
        run_service(Service("mine", app), bound)
    assert error.value.code is ExitCode.INTERNAL


def test_a_signal_ends_a_start_that_takes_long(capfd: pytest.CaptureFixture[str]) -> None:
    """SIGTERM while a service starts ends it at once: what it has opened is closed, and nothing is printed."""
    closed = []

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        try:
            await asyncio.sleep(60)
        finally:
            closed.append(True)

    began = time.monotonic()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with open_listener(Address("127.0.0.1", 0)) as bound:
        run_service(Service("mine", app), bound)
    assert time.monotonic() - began < 20
    assert closed
    assert capfd.readouterr().err == ""


def read_answer(port: int, text: bytes) -> bytes:
    """Send text and return the answer until the connection closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for part in (text[:9], text[9:]):
            connection.sendall(part)
            time.sleep(0.05)
        try:
            return b"".join(iter(lambda: connection.recv(4096), b""))
        except ConnectionResetError:
            return b""


def test_the_beginning_of_a_probe_keeps_no_core_busy() -> None:
    """Bytes that may become a probe stay unread, so that they are there to read all the time."""

    async def main(listener: socket.socket) -> float:
        probes = EarlyProbes(listener.dup())
        probes.start()
        with socket.create_connection(listener.getsockname(), timeout=10) as client:
            client.sendall(LIVE_REQUEST[:16])
            began_s = time.process_time()
            await asyncio.sleep(0.5)
            used_s = time.process_time() - began_s
            client.sendall(LIVE_REQUEST[16:])
            assert b"200 OK" in await asyncio.to_thread(client.recv, 4096)
        await probes.hand_over(None)
        return used_s

    with open_listener(Address("127.0.0.1", 0)) as bound:
        assert asyncio.run(main(bound)) < 0.25


def test_requests_that_wait_never_keep_probes_out() -> None:
    """Clients that give up and try again add up during a long start: the oldest are ended, each probe is answered."""

    async def main(listener: socket.socket) -> list[bytes]:
        probes = EarlyProbes(listener.dup())
        probes.start()

        def knock() -> list[bytes]:
            request = b"GET /v2/models/a HTTP/1.1\r\nhost: x\r\n\r\n"
            with socket.create_connection(listener.getsockname(), timeout=10) as first:
                first.sendall(request)
                for _ in range(MAX_HELD):
                    with socket.create_connection(listener.getsockname(), timeout=10) as client:
                        client.sendall(request)
                return [read_answer(listener.getsockname()[1], LIVE_REQUEST), first.recv(4096)]

        answers = await asyncio.to_thread(knock)
        await probes.hand_over(None)
        return answers

    with open_listener(Address("127.0.0.1", 0)) as bound:
        live, first = asyncio.run(main(bound))
    assert live.startswith(b"HTTP/1.1 200 ")
    assert first.startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize("is_ended", [False, True])
def test_probes_are_answered_while_the_service_starts(is_ended: bool) -> None:
    """A service that starts is live and not ready, at once; other requests wait until it serves."""
    may_start, port = threading.Event(), 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await asyncio.to_thread(may_start.wait, 10)
            await send({"type": COMPLETE})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send_reply(json_reply({"path": scope["path"]}), send)

    def request(path: str) -> bytes:
        return f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode()

    answers: dict[str, bytes] = {}

    def scene() -> None:
        waiting = threading.Thread(target=lambda: answers.update(early=read_answer(port, request("/early"))))
        waiting.start()
        for _ in range(3):
            answers["live"] = read_answer(port, request("/v2/health/live"))
            answers["ready"] = read_answer(port, request("/v2/health/ready"))
        assert "early" not in answers
        if not is_ended:
            may_start.set()
            waiting.join(10)
            answers["late"] = read_answer(port, request("/late"))
        os.kill(os.getpid(), signal.SIGTERM)
        waiting.join(10)
        may_start.set()

    with open_listener(Address("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
        client = threading.Thread(target=scene)
        client.start()
        run_service(Service("mine", app), bound)
        client.join(10)
    assert answers["live"].startswith(b"HTTP/1.1 200 ")
    assert answers["live"].endswith(b'{"live":true}')
    assert answers["ready"].startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in answers["ready"]
    if is_ended:
        assert answers["early"] == b""
    else:
        assert answers["early"].endswith(b'{"path":"/early"}')
        assert answers["late"].endswith(b'{"path":"/late"}')
