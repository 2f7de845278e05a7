"""Reject requests under overload in bulk, without the cost of the event loop per connection.

A rejected client is likely to be rejected again, so a connection is watched from its first rejection on. After each
turn of the event loop, one system call asks the kernel which watched connections have data. A complete plain request
that is not admitted is answered at once; everything else is passed to its connection as if the loop had read it.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

MAX_CONNECTIONS = 512
"""Connections per pass: the event loop gets its turn in between."""
READ_BYTES = 4096


class WatchedConnection(Protocol):
    """A connection as the rejecter sees it.

    It is quiet if nothing is under way in either direction, so that the next bytes begin a request. ``is_quiet`` is the
    result of the last check, and stays true until something happens; ``last_active_s`` is when it last had a request.
    """

    is_quiet: bool
    last_active_s: float

    def check_quiet(self) -> bool:
        """Whether the connection is quiet; the result is kept in ``is_quiet``."""

    def data_received(self, data: bytes) -> None:
        """Process bytes that were read."""

    def send(self, data: bytes) -> None:
        """Write bytes after those that are still to be written."""


@dataclass(slots=True)
class BulkRejection:
    """How requests with one head are rejected in one pass: those of ``size`` bytes get ``response``.

    ``count_rejected`` receives their number.
    """

    size: int
    response: bytes = b""
    count_rejected: Callable[[int], object] = abs
    count: int = 0


@dataclass(slots=True)
class OverloadRejecter:
    """Watches connections of one event loop, by file descriptor.

    Args:
        rejection_for: Returns how requests with a head are rejected.
        call_soon: Calls a function in the next turn of the loop.
        now: A monotonic clock in s.
        connections: The watched connections.
        poller: The epoll object, made at the first use.
        is_scheduled: Whether a pass is scheduled.
    """

    rejection_for: Callable[[bytes], BulkRejection]
    call_soon: Callable[[Callable[[], None]], object]
    now: Callable[[], float]
    connections: dict[int, WatchedConnection] = field(default_factory=dict)
    poller: select.epoll | None = None
    is_scheduled: bool = False

    def watch(self, connection: WatchedConnection, descriptor: int) -> None:
        """Watch a connection, and schedule a pass."""
        self._schedule()
        if self.connections.get(descriptor) is connection:
            return
        with contextlib.suppress(OSError):
            self._epoll().register(descriptor, select.EPOLLIN)
            self.connections[descriptor] = connection

    def unwatch(self, connection: WatchedConnection, descriptor: int) -> None:
        """Stop watching a connection, unless another one has its descriptor by now."""
        if self.connections.get(descriptor) is not connection:
            return
        del self.connections[descriptor]
        with contextlib.suppress(OSError):
            self._epoll().unregister(descriptor)

    def run(self) -> None:
        """Read from quiet connections with data, reject what is not admitted; again while requests are rejected."""
        self.is_scheduled, now = False, self.now()
        rejections: dict[bytes, BulkRejection] = {}
        for descriptor, _ in self._epoll().poll(0, MAX_CONNECTIONS):
            connection = self.connections.get(descriptor)
            if connection is not None and (connection.is_quiet or connection.check_quiet()):
                connection.last_active_s = now
                self._read(connection, descriptor, rejections)
        counted = [rejection for rejection in rejections.values() if rejection.count]
        for rejection in counted:
            rejection.count_rejected(rejection.count)
        if counted:
            self._schedule()

    def _read(self, connection: WatchedConnection, descriptor: int, rejections: dict[bytes, BulkRejection]) -> None:
        try:
            data = os.read(descriptor, READ_BYTES)
        except OSError:
            # the event loop gets the same error
            return
        head = data[: data.find(b"\r\n\r\n") + 4]
        rejection = rejections.get(head)
        if rejection is None:
            rejection = rejections[head] = self.rejection_for(head)
        if rejection.size == len(data):
            rejection.count += 1
            _write(connection, descriptor, rejection.response)
        elif data:
            connection.data_received(data)

    def _schedule(self) -> None:
        if not self.is_scheduled:
            self.is_scheduled = True
            self.call_soon(self.run)

    def _epoll(self) -> select.epoll:
        if self.poller is None:
            self.poller = select.epoll()
        return self.poller


def _write(connection: WatchedConnection, descriptor: int, response: bytes) -> None:
    try:
        sent = os.write(descriptor, response)
    except BlockingIOError:
        sent = 0
    except OSError:
        # the client left; the event loop gets the same error
        return
    if sent < len(response):
        connection.send(response[sent:])
