"""A service that fails to start reports the error of its application in words."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import pytest

from unfoldkit.errors import ExitCode, UnfoldError, user_error
from unfoldkit.serving.http.address import Address, open_listener
from unfoldkit.serving.http.server import run_service
from unfoldkit.serving.http.startup import FAILED
from unfoldkit.serving.service import ASGIApp, Receive, Scope, Send, Service

pytestmark = pytest.mark.timed


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
