"""The live page: one HTML file with its style and script at ``/``, and server-sent events at ``/events``."""

from __future__ import annotations

import asyncio
import importlib.resources
import math
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import msgspec

from unfoldkit.serving.observability.dashboard import Board, Watch
from unfoldkit.serving.responses import Reply, send_reply
from unfoldkit.serving.service import ASGIApp, Receive, Scope, Send

EVENTS = "/events"
EVERY_S = 1.0
# nothing from elsewhere, no script but the file beside the page, no frame around it
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
"""The paths of the page. They tell nothing of the service, so they need no token; the events do."""


@dataclass(slots=True)
class Shared:
    """The event of now, made once for all who watch: a board may take milliseconds, and dozens may watch."""

    watch: Watch
    made: float = -math.inf
    text: bytes = b""

    def event(self) -> bytes:
        """Return an event that is at most half as old as the next one is away."""
        now = time.monotonic()
        if now - self.made > EVERY_S / 2:
            self.made, self.text = now, event(self.watch())
        return self.text


def watched(app: ASGIApp, watch: Watch, drains: asyncio.Event) -> ASGIApp:
    """Return ``app`` with events of what ``watch`` shows; they end when ``drains`` is set."""
    shared = Shared(watch)

    async def passing(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == EVENTS and scope["method"] == "GET":
            await _stream(shared, drains, receive, send)
        else:
            await app(scope, receive, send)

    return passing


def with_page(app: ASGIApp) -> ASGIApp:
    """Return ``app`` with the files of the page."""
    replies = _replies()

    async def passing(scope: Scope, receive: Receive, send: Send) -> None:
        reply = replies.get(scope["path"]) if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") else None
        if reply is None:
            await app(scope, receive, send)
        else:
            await send_reply(reply, send)

    return passing


def _replies() -> Mapping[str, Reply]:
    folder = importlib.resources.files("unfoldkit.serving") / "page"
    more = (POLICY, (b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-cache"))
    return {path: Reply(200, (folder / name).read_bytes(), kind, more) for path, (name, kind) in FILES.items()}


async def _stream(shared: Shared, drains: asyncio.Event, receive: Receive, send: Send) -> None:
    # a proxy in between must not keep events back until it has many
    proxies = (b"x-accel-buffering", b"no")
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), proxies]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    gone = asyncio.create_task(_until_gone(receive))
    try:
        async for text in _events(shared, drains, gone):
            await send({"type": "http.response.body", "body": text, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        gone.cancel()


async def _events(shared: Shared, drains: asyncio.Event, gone: asyncio.Task[None]) -> AsyncIterator[bytes]:
    ends = (asyncio.create_task(drains.wait()), gone)
    try:
        while not any(end.done() for end in ends):
            yield shared.event()
            await asyncio.wait(ends, timeout=EVERY_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ends[0].cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(board: Board) -> bytes:
    """Return a board as one server-sent event."""
    return b"data: %b\n\n" % msgspec.json.encode(board)
