"""The live page: static files at ``/`` and the data as server-sent events at ``/events``."""

from __future__ import annotations

import asyncio
import importlib.resources
import math
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import msgspec

from unfoldkit.serving.observability.dashboard import Dashboard, DashboardSource
from unfoldkit.serving.responses import Reply, send_reply, wait_for_disconnect
from unfoldkit.serving.service import ASGIApp, Receive, Scope, Send

EVENTS = "/events"
EVERY_S = 1.0
# nothing from other sites, no script but the file beside the page, no frame around it
POLICY = (
    b"content-security-policy",
    (
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
)
FILES = {
    "/": ("index.html", b"text/html; charset=utf-8"),
    "/live.css": ("live.css", b"text/css; charset=utf-8"),
    "/live.js": ("live.js", b"text/javascript; charset=utf-8"),
}
"""The paths of the page. The files hold no data of the service and need no token; the events do."""


@dataclass(slots=True)
class SharedEvent:
    """The current event, made once for all viewers: a dashboard may take milliseconds, and dozens may watch."""

    source: DashboardSource
    made_s: float = -math.inf
    text: bytes = b""

    def current(self) -> bytes:
        """Return an event that is at most half an interval old."""
        now = time.monotonic()
        if now - self.made_s > EVERY_S / 2:
            self.made_s, self.text = now, format_event(self.source())
        return self.text


def serve_events(app: ASGIApp, source: DashboardSource, drains: asyncio.Event) -> ASGIApp:
    """Wrap ``app`` with the events of a dashboard; they end when ``drains`` is set."""
    shared = SharedEvent(source)

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == EVENTS and scope["method"] == "GET":
            await _stream(shared, drains, receive, send)
        else:
            await app(scope, receive, send)

    return wrapped


def serve_page(app: ASGIApp) -> ASGIApp:
    """Wrap ``app`` with the files of the page."""
    replies = _load_files()

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        reply = replies.get(scope["path"]) if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") else None
        if reply is None:
            await app(scope, receive, send)
        else:
            await send_reply(reply, send)

    return wrapped


def format_event(dashboard: Dashboard) -> bytes:
    """Format a dashboard as one server-sent event."""
    return b"data: %b\n\n" % msgspec.json.encode(dashboard)


def _load_files() -> Mapping[str, Reply]:
    folder = importlib.resources.files("unfoldkit.serving") / "page"
    headers = (POLICY, (b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-cache"))
    return {path: Reply(200, (folder / name).read_bytes(), kind, headers) for path, (name, kind) in FILES.items()}


async def _stream(shared: SharedEvent, drains: asyncio.Event, receive: Receive, send: Send) -> None:
    # a proxy must not hold events back until its buffer is full
    unbuffered = (b"x-accel-buffering", b"no")
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), unbuffered]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    disconnected = asyncio.create_task(wait_for_disconnect(receive))
    try:
        async for text in _iter_events(shared, drains, disconnected):
            await send({"type": "http.response.body", "body": text, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        disconnected.cancel()


async def _iter_events(
    shared: SharedEvent, drains: asyncio.Event, disconnected: asyncio.Task[None]
) -> AsyncIterator[bytes]:
    ends = (asyncio.create_task(drains.wait()), disconnected)
    try:
        while not any(end.done() for end in ends):
            yield shared.current()
            await asyncio.wait(ends, timeout=EVERY_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ends[0].cancel()
