"""Bound what all connections together hold: their number, heads and bodies, overall and per client address.

One client address gets at most a share of each bound, so that it cannot lock out the others. What exceeds a bound is
answered with 503 and ``Retry-After``, or its connection is closed. A few connections beyond the bound are accepted for
health checks only, with descriptors that stay reserved for them.
"""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from unfoldkit.serving.responses import Reply, error_reply, send_reply
from unfoldkit.serving.service import ASGIApp, Message, Receive, Scope, Send

MAX_CONNECTIONS = 8192
RESERVED_DESCRIPTORS = 64
LOG_INTERVAL_S = 60.0
RETRY_S = 1
REASONS = ("connections", "head_bytes", "body_bytes", "descriptors")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceLimits:
    """Bounds of one process.

    Args:
        connections: Open connections; 0 for as many as the descriptors of the process allow, at most 8,192.
        head_bytes: Bytes of heads that have not arrived completely, and of requests ahead of their responses.
        body_bytes: Bytes of bodies until their responses.
        client_share: The fraction of each bound that one client address may use.
        probes: Connections beyond the bound that are answered on the health paths only.
    """

    connections: int = 0
    head_bytes: int = 16 * 2**20
    body_bytes: int = 64 * 2**20
    client_share: float = 0.5
    probes: int = 8


@dataclass(slots=True)
class Held:
    """What the connections of one client, or all of them, hold."""

    connections: int = 0
    head_bytes: int = 0
    body_bytes: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing."""
        return not (self.connections or self.head_bytes or self.body_bytes)


@dataclass(slots=True, eq=False)
class Holding:
    """What one connection holds. It counts for its client and for the total until ``release``."""

    usage: ResourceUsage
    client: str
    abort: Callable[[], object] = int
    is_probe: bool = False
    head_bytes: int = 0
    body_bytes: int = 0

    def hold(self, head_bytes: int, body_bytes: int) -> str:
        """Record the bytes that the connection holds now; return the exceeded bound, or an empty string."""
        return self.usage.change(self, head_bytes, body_bytes)

    def release(self) -> None:
        """Give everything back at the end of the connection."""
        self.usage.release(self)


@dataclass(slots=True, eq=False)
class ResourceUsage:
    """What all connections of a process hold, and how often a bound was exceeded.

    A ``Collector`` of prometheus_client by shape. Only the event loop changes it.

    Args:
        limits: The bounds.
        warn: Receives at most one line per minute and bound.
        now: A monotonic clock in s.
        max_connections: The bound of connections, see ``refresh``.
    """

    limits: ResourceLimits
    warn: Callable[[str], object]
    now: Callable[[], float] = time.monotonic
    max_connections: int = MAX_CONNECTIONS
    total: Held = field(default_factory=Held)
    clients: dict[str, Held] = field(default_factory=dict)
    probes: list[Holding] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(REASONS, 0)))
    last_warned_s: dict[str, float] = field(default_factory=dict)

    def refresh(self) -> None:
        """Adapt the bound of connections to the descriptors that the process may open now."""
        wanted = self.limits.connections or MAX_CONNECTIONS
        allowed, used = count_descriptors()
        others = used - self.total.connections - len(self.probes)
        free = allowed - others
        reserve = min(RESERVED_DESCRIPTORS, max(free // 3, 1)) + self.limits.probes
        self.max_connections = max(1, min(wanted, free - reserve))

    def admit(self, client: str, abort: Callable[[], object]) -> Holding | None:
        """Count a new connection: in full, as a probe beyond the bound, or not at all (``None``).

        A probe beyond those that are reserved aborts the oldest one.

        Args:
            client: The address of the client.
            abort: Closes the connection at once.
        """
        held = self.clients.get(client) or Held()
        max_of_client = max(1, int(self.max_connections * self.limits.client_share))
        if held.connections < max_of_client and self.total.connections < self.max_connections:
            self.clients[client] = held
            held.connections += 1
            self.total.connections += 1
            return Holding(self, client, abort)
        self.reject("connections")
        if not self.limits.probes:
            return None
        if len(self.probes) >= self.limits.probes:
            self.probes[0].abort()
        if len(self.probes) >= 2 * self.limits.probes:
            return None
        self.probes.append(Holding(self, client, abort, is_probe=True))
        return self.probes[-1]

    def change(self, holding: Holding, head_bytes: int, body_bytes: int) -> str:
        """Record what a connection holds; see ``Holding.hold``."""
        heads, bodies = head_bytes - holding.head_bytes, body_bytes - holding.body_bytes
        if not heads and not bodies:
            return ""
        holding.head_bytes, holding.body_bytes = head_bytes, body_bytes
        client = self.clients.setdefault(holding.client, Held())
        for held in (client, self.total):
            held.head_bytes += heads
            held.body_bytes += bodies
        limits, share = self.limits, self.limits.client_share
        if heads > 0 and (self.total.head_bytes > limits.head_bytes or client.head_bytes > limits.head_bytes * share):
            return "head_bytes"
        if bodies > 0 and (self.total.body_bytes > limits.body_bytes or client.body_bytes > limits.body_bytes * share):
            return "body_bytes"
        return ""

    def release(self, holding: Holding) -> None:
        """Give back what a connection holds, and the connection."""
        self.change(holding, 0, 0)
        if holding.is_probe:
            self.probes.remove(holding)
        elif (held := self.clients.get(holding.client)) is not None:
            held.connections -= 1
            self.total.connections -= 1
        self.forget(holding.client)

    def hold_call(self, client: str, size: int) -> str:
        """Record the bytes of a call over another protocol; return the exceeded bound, or an empty string.

        A negative size gives them back; it must follow every call.
        """
        held = self.clients.get(client)
        if held is None:
            held = self.clients[client] = Held()
        held.body_bytes += size
        self.total.body_bytes += size
        if size <= 0:
            # a call without fields has no bytes
            self.forget(client)
            return ""
        limit = self.limits.body_bytes
        if self.total.body_bytes <= limit and held.body_bytes <= limit * self.limits.client_share:
            return ""
        self.reject("body_bytes")
        return "bytes"

    def hold_connection(self, client: str, count: int) -> str:
        """Count a connection of another protocol (1) unless it exceeds a bound, which is returned; -1 gives it back."""
        held = self.clients.setdefault(client, Held())
        max_of_client = max(1, int(self.max_connections * self.limits.client_share))
        is_over = held.connections >= max_of_client or self.total.connections >= self.max_connections
        if count > 0 and is_over:
            self.forget(client)
            self.reject("connections")
            return "connections"
        held.connections += count
        self.total.connections += count
        self.forget(client)
        return ""

    def forget(self, client: str) -> None:
        """Drop the record of a client that holds nothing."""
        held = self.clients.get(client)
        if held is not None and held.is_empty:
            del self.clients[client]

    def reject(self, reason: str) -> None:
        """Count a rejection, and warn once per minute."""
        self.rejected[reason] += 1
        now = self.now()
        if now - self.last_warned_s.get(reason, -LOG_INTERVAL_S) >= LOG_INTERVAL_S:
            self.last_warned_s[reason] = now
            self.warn(_describe(reason, self))

    def collect(self) -> Iterator[Metric]:
        """Yield what is held, the bound of connections, and the rejections by exceeded bound."""
        held = (
            ("unfold_connections", "Open connections", self.total.connections),
            ("unfold_connections_limit", "Connections that are accepted", self.max_connections),
            ("unfold_head_bytes", "Bytes of heads that have not arrived completely", self.total.head_bytes),
            ("unfold_body_bytes", "Bytes of bodies until their responses", self.total.body_bytes),
        )
        for name, text, value in held:
            yield GaugeMetricFamily(name, text, value=value)
        text = "Connections and requests that exceeded a bound of the server"
        rejections = CounterMetricFamily("unfold_resource_rejections", text, labels=("bound",))
        for reason, count in self.rejected.items():
            rejections.add_metric((reason,), count)
        yield rejections


def bound_bodies(app: ASGIApp, usage: ResourceUsage) -> ASGIApp:
    """Wrap ``app`` so that the bodies of all requests together stay within their bound."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        held = _BodyOfRequest(Holding(usage, (scope.get("client") or ("",))[0]), receive, send)
        try:
            await app(scope, held.receive, held.send)
        finally:
            held.holding.hold(0, 0)
            usage.forget(held.holding.client)
        if held.is_over:
            await send_reply(overload_reply(), send)

    return wrapped


def overload_reply() -> Reply:
    """Make the response to what exceeds a bound; the rest of the request may be unread, so the connection ends."""
    headers = ((b"retry-after", b"%d" % RETRY_S), (b"connection", b"close"))
    return error_reply(503, "the server is at its limit of connections or bytes; retry later", headers)


@dataclass(slots=True, eq=False)
class _BodyOfRequest:
    """Counts the body of one request; beyond the bound, the application sees a client that disconnects."""

    holding: Holding
    inner_receive: Receive
    inner_send: Send
    is_over: bool = False
    has_started: bool = False

    async def receive(self) -> Message:
        if self.is_over:
            return {"type": "http.disconnect"}
        message = await self.inner_receive()
        size = len(message.get("body", b""))
        if size and self.holding.hold(0, self.holding.body_bytes + size):
            self.holding.usage.reject("body_bytes")
            self.is_over = not self.has_started
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        if not self.is_over:
            self.has_started = True
            await self.inner_send(message)


def count_descriptors() -> tuple[int, int]:
    """Return how many descriptors the process may have, and how many it has; many and none if that is unknown."""
    with suppress(ImportError, OSError):
        # not on every system
        import resource

        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"  # noqa: PTH112 - once per second
        return allowed if allowed >= 0 else MAX_CONNECTIONS * 4, len(os.listdir(folder))  # noqa: PTH208
    return MAX_CONNECTIONS * 4, 0


def has_descriptors() -> bool:
    """Whether the process can open another file."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno not in (errno.EMFILE, errno.ENFILE)
    return True


def _describe(reason: str, usage: ResourceUsage) -> str:
    held = usage.total
    texts = {
        "connections": f"{held.connections} of {usage.max_connections} connections are open; further ones are rejected",
        "head_bytes": f"{held.head_bytes} bytes of incomplete heads are held; their connections are closed",
        "body_bytes": f"{held.body_bytes} bytes of bodies are held; further ones are rejected",
        "descriptors": "no descriptors are left; idle connections are closed",
    }
    return texts[reason] + " (next report in a minute at the earliest)"
