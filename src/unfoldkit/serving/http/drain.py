"""Graceful end of a server: it takes no new connections, answers accepted requests, then closes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from signal import Signals
from typing import TYPE_CHECKING, Any, cast

from unfoldkit.serving.http.access_control import READY
from unfoldkit.serving.responses import error_reply, send_reply
from unfoldkit.serving.service import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    import uvicorn

LINGER_S = 1.0
"""Idle connections get so long for one more request, which is answered with ``connection: close``."""
CLOSE = (b"connection", b"close")


@dataclass(slots=True)
class Drain:
    """Whether the server is draining, and which signal started it."""

    started: asyncio.Event = field(default_factory=asyncio.Event)
    signal: Signals | None = None

    def begin(self, which: Signals) -> None:
        """Begin to drain after a signal: the server takes no new connections and answers what was accepted."""
        self.signal = which
        self.started.set()


def close_while_draining(app: ASGIApp, drain: Drain) -> ASGIApp:
    """Wrap ``app``: while it drains, it is not ready and every response closes its connection."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if not drain.started.is_set() or scope["type"] != "http":
            await app(scope, receive, send)
        elif scope["path"] == READY:
            await send_reply(error_reply(503, "this server is about to stop", (CLOSE,)), send)
        else:
            await app(scope, receive, _send_closing(send))

    return wrapped


async def stop_server(server: uvicorn.Server, listener: socket.socket) -> None:
    """Stop listening, let each open connection end with its next response, then stop the server."""
    await _stop_listening(server, listener)
    deadline = time.monotonic() + LINGER_S
    await wait_until(lambda: not server.server_state.connections or time.monotonic() > deadline)
    server.should_exit = True


async def wait_until(condition: Callable[[], bool]) -> None:
    """Poll a condition, for which uvicorn has no event."""
    while not condition():  # noqa: ASYNC110 - uvicorn has no event for these
        await asyncio.sleep(0.01)


async def _stop_listening(server: uvicorn.Server, listener: socket.socket) -> None:
    """Close the listener after accepting the clients that are connected already: the kernel would reset them."""
    config, loop = server.config, asyncio.get_running_loop()
    late = list(_accept_pending(listener))
    for open_server in server.servers:
        open_server.close()
    for connection in late:
        protocol_class = cast("Callable[..., Any]", config.http_protocol_class)
        protocol = functools.partial(protocol_class, config, server.server_state, server.lifespan.state)
        await loop.connect_accepted_socket(cast("Any", protocol), connection, ssl=config.ssl)


def _accept_pending(listener: socket.socket) -> Iterator[socket.socket]:
    """Yield each established connection that was not accepted yet, as long as there are file descriptors."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)
            yield connection


def _send_closing(send: Send) -> Send:
    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), CLOSE]
        await send(message)

    return closing
