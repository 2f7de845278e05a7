"""The live page: static files at ``/`` and the data as server-sent events at ``/events``."""

from __future__ import annotations

import asyncio
import importlib.resources
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from unfoldkit.serving.observability.dashboard import Dashboard, DashboardSource, PastValues
from unfoldkit.serving.responses import Reply, send_reply, wait_for_disconnect
from unfoldkit.serving.service import ASGIApp, Receive, Scope, Send

EVENTS = "/events"
EVERY_S = 1.0
HISTORY_EVERY_S, HISTORY_POINTS = 5.0, 60
"""Five minutes, as the charts show; only the values that they draw are kept."""
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
    charts: DashboardSource
    made_s: float = -math.inf
    dashboard: Dashboard = field(default_factory=lambda: Dashboard("", ""))
    text: bytes = b""
    past: deque[tuple[float, Dashboard]] = field(default_factory=lambda: deque(maxlen=HISTORY_POINTS))

    def current(self) -> bytes:
        """Return an event that is at most half an interval old."""
        now = time.monotonic()
        if now - self.made_s > EVERY_S / 2:
            self.dashboard = self.source()
            self.made_s, self.text = now, format_event(self.dashboard)
        return self.text

    def first(self) -> bytes:
        """Return the current event with the history, for a page that was just opened."""
        text, now = self.current(), time.monotonic()
        history = tuple(
            PastValues(
                round(now - at_s, 3),
                {chart.title: chart.values for chart in past.lines},
                {chart.title: chart.counts for chart in past.spreads},
            )
            for at_s, past in self.past
        )
        return format_event(replace(self.dashboard, history=history)) if history else text

    async def record_history(self) -> None:
        """Keep the values of the charts every few seconds, whether or not a page is open."""
        while True:
            await asyncio.sleep(HISTORY_EVERY_S)
            try:
                dashboard = self.charts()
            except Exception as error:  # noqa: BLE001 - a failure of one moment must not end the history
                logging.getLogger("unfoldkit").debug("the live page has a gap: %s", error)
            else:
                self.past.append((time.monotonic(), replace(dashboard, tiles=(), shares=(), grids=())))


def serve_events(
    app: ASGIApp, source: DashboardSource, drains: asyncio.Event, charts: DashboardSource | None = None
) -> ASGIApp:
    """Wrap ``app`` with the events of a dashboard; they end when ``drains`` is set.

    Args:
        app: The application.
        source: What an open page shows.
        drains: Set when the server ends.
        charts: The same charts alone, for the history; by default those of ``source``.
    """
    shared = SharedEvent(source, charts or source)

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            recorder = asyncio.create_task(shared.record_history())
            try:
                await app(scope, receive, send)
            finally:
                recorder.cancel()
        elif scope["type"] == "http" and scope["path"] == EVENTS and scope["method"] == "GET":
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
    make = shared.first
    try:
        while not any(end.done() for end in ends):
            yield make()
            make = shared.current
            await asyncio.wait(ends, timeout=EVERY_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ends[0].cancel()
