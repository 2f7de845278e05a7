"""The server of gRPC over our own HTTP/2: it listens, ends what takes too long, and drains."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from dataclasses import dataclass

from unfoldkit.serving.grpc.http2.connection import Connection
from unfoldkit.serving.grpc.http2.host import Host

CHECK_EVERY_S = 1.0
POLL_S = 0.01
BACKLOG = 2048


@dataclass(slots=True, eq=False)
class Http2Server:
    """A running server.

    Args:
        host: What its connections share.
        listener: The listening sockets.
        watch: Ends what takes too long.
    """

    host: Host
    listener: asyncio.Server
    watch: asyncio.Task[None]

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, answer those that were sent, and end what lasts longer than ``grace_s``."""
        self.listener.close()
        self.host.is_draining = True
        for connection in list(self.host.connections):
            connection.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self.host.connections:  # noqa: ASYNC110 - connections have no common event
                    await asyncio.sleep(POLL_S)
        for connection in list(self.host.connections):
            connection.abort()
        self.watch.cancel()


async def start_http2_server(host: Host, address: str, context: ssl.SSLContext | None) -> Http2Server:
    """Listen on an address (host and port), by TLS if there is a context.

    Raises:
        OSError: The address cannot be bound.
    """
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(
        lambda: Connection(host, loop),  # type: ignore[arg-type, return-value]
        sock=_bind(address),
        ssl=context,
        ssl_handshake_timeout=host.handshake_s if context else None,
        backlog=BACKLOG,
    )
    return Http2Server(host, listener, loop.create_task(_watch(host)))


def _bind(address: str) -> socket.socket:
    """Bind a socket that other processes may share; ``[::]`` takes IPv4 too, which asyncio would switch off."""
    name, _, port = address.rpartition(":")
    bound = socket.socket(socket.AF_INET6 if "[" in name else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((name.strip("[]"), int(port)))
    except OSError:
        bound.close()
        raise
    return bound


async def _watch(host: Host) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(CHECK_EVERY_S)
        for connection in list(host.connections):
            connection.check_time(loop.time())
