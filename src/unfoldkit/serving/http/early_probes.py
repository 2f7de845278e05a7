"""Health probes while a service starts: it is live and not ready, at once; other requests wait until it serves.

Loading models may take minutes. A probe that waits so long counts as failed: Kubernetes restarts a container which is
not live, and a load balancer which only connects takes the service for ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from unfoldkit.serving.http.access_control import LIVE, READY

HEAD_BYTES = 256
MAX_HELD = 256
"""Connections that wait; one more costs the oldest: its client has probably given up and tries again."""
NEXT_LOOK_S = 0.05
_LIVE_HEAD, _READY_HEAD = f"GET {LIVE} HTTP/1.".encode(), f"GET {READY} HTTP/1.".encode()
_STARTING = ("503 Service Unavailable", '{"error":"the service starts"}', "retry-after: 1\r\n")
_REPLIES = {
    _LIVE_HEAD: ("200 OK", '{"live":true}', ""),
    _READY_HEAD: ("503 Service Unavailable", '{"ready":false}', "retry-after: 1\r\n"),
}


@dataclass(slots=True)
class EarlyProbes:
    """Accepts the connections of a listener until the server does.

    Attributes:
        listener: A copy of the listener, which the event loop watches beside the original.
        held: Connections for the server; those without a request yet are watched.
        is_over: The server has the listener.
    """

    listener: socket.socket
    held: dict[int, socket.socket] = field(default_factory=dict)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    is_over: bool = False

    def start(self) -> None:
        """Accept connections from now on."""
        self.listener.setblocking(False)
        self.loop.add_reader(self.listener.fileno(), self._accept)

    async def hand_over(self, connect: Callable[[], asyncio.Protocol] | None) -> None:
        """Leave the listener to the server, and give it the connections that wait; without a server, close them."""
        self.is_over = True
        self.loop.remove_reader(self.listener.fileno())
        self.listener.close()
        while self.held:
            descriptor, connection = self.held.popitem()
            self.loop.remove_reader(descriptor)
            if connect is None:
                connection.close()
                continue
            with contextlib.suppress(OSError):
                await self.loop.connect_accepted_socket(connect, connection)

    def _accept(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except BlockingIOError:
            return
        except OSError:
            # no descriptor is left; the others wait in the backlog
            self._end_oldest()
            return
        if len(self.held) >= MAX_HELD:
            self._end_oldest()
        connection.setblocking(False)
        self.held[connection.fileno()] = connection
        self._watch(connection)

    def _end_oldest(self) -> None:
        """Ask the client that has waited longest to try again: probes of others are more urgent."""
        if not self.held:
            # nothing can be freed here; the listener is there to read all the time
            self.loop.remove_reader(self.listener.fileno())
            self.loop.call_later(NEXT_LOOK_S, self._resume)
            return
        descriptor = next(iter(self.held))
        self.loop.remove_reader(descriptor)
        _close_with(self.held.pop(descriptor), _STARTING)

    def _resume(self) -> None:
        if not self.is_over:
            self.loop.add_reader(self.listener.fileno(), self._accept)

    def _watch(self, connection: socket.socket) -> None:
        if connection.fileno() in self.held and not self.is_over:
            self.loop.add_reader(connection.fileno(), self._read_head, connection)

    def _read_head(self, connection: socket.socket) -> None:
        """Answer a probe; leave the bytes of any other request where they are."""
        try:
            head = connection.recv(HEAD_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            head = b""
        reply = next((reply for start, reply in _REPLIES.items() if head.startswith(start)), None)
        self.loop.remove_reader(connection.fileno())
        if head and reply is None and any(start.startswith(head) for start in _REPLIES):
            # the beginning of a probe may become one, and is there to read all the time
            self.loop.call_later(NEXT_LOOK_S, self._watch, connection)
            return
        if reply is not None or not head:
            del self.held[connection.fileno()]
            _close_with(connection, reply)


def _close_with(connection: socket.socket, reply: tuple[str, str, str] | None) -> None:
    with contextlib.suppress(OSError), connection:
        if reply is None:
            return
        status, body, headers = reply
        # unread bytes would reset the connection before the client has read the answer
        connection.recv(1 << 16)
        connection.send(
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"{headers}connection: close\r\n\r\n{body}".encode()
        )
