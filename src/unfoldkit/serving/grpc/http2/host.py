"""What the connections of a server share: its methods, its bounds, and what is counted toward them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from unfoldkit.serving.grpc.http2.calls import Method


@dataclass(slots=True, kw_only=True, eq=False)
class Host:
    """What the connections of a server share.

    Args:
        methods: What is answered, by path.
        hold_body: Counts the bytes of a client, and returns why they are too many; see ``ResourceUsage.hold_call``.
        hold_connection: The same for connections.
        max_message_bytes: The largest message.
        max_streams: Calls of one connection at a time.
        max_calls: Calls of all connections at a time; half of them for one client.
        max_connections: The bound of connections.
        idle_s: How long a connection without calls stays open.
        handshake_s: How long a client has for its preface.
        log: Receives failures of handlers.
        connections: The open connections.
        open_calls: The number of open calls by client.
        call_count: The number of all.
        is_draining: The server stops.
        tasks: The running handlers.
    """

    methods: Mapping[str, Method]
    hold_body: Callable[[str, int], str]
    hold_connection: Callable[[str, int], str]
    max_message_bytes: int
    max_streams: int
    max_calls: int
    max_connections: int
    idle_s: float
    handshake_s: float
    log: logging.Logger
    connections: set[Any] = field(default_factory=set)
    open_calls: Counter[str] = field(default_factory=Counter)
    call_count: int = 0
    is_draining: bool = False
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def is_full(self, client: str) -> bool:
        """Whether there are more calls than may be open."""
        return self.call_count > self.max_calls or self.open_calls[client] > self.max_calls // 2

    def count_call(self, client: str, change: int) -> None:
        """Count a call that begins (1) or ends (-1)."""
        self.call_count += change
        self.open_calls[client] += change
        if not self.open_calls[client]:
            del self.open_calls[client]
