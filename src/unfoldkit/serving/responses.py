"""Short responses, JSON with a status, and work that ends when its client does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec

from unfoldkit.serving.service import Receive, Send

Header = tuple[bytes, bytes]


# not frozen: one is made per request, and freezing would triple its cost
@dataclass(slots=True)
class Reply:
    """A complete response."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: tuple[Header, ...] = ()


def json_reply(data: Any, status: int = 200, headers: tuple[Header, ...] = ()) -> Reply:
    """Make a response of ``data`` as JSON."""
    return Reply(status, msgspec.json.encode(data), headers=headers)


def error_reply(status: int, message: str, headers: tuple[Header, ...] = ()) -> Reply:
    """Make a response with the error object of the Open Inference Protocol."""
    return Reply(status, msgspec.json.encode({"error": message}), headers=headers)


def too_many_requests(retry_s: int) -> Reply:
    """Make the response to a request that was not admitted, with the time to retry."""
    return error_reply(429, "too many rows are waiting; retry later", retry_after(retry_s))


def retry_after(retry_s: int) -> tuple[Header, ...]:
    """Return the header with the time to retry; none for 0."""
    return ((b"retry-after", b"%d" % retry_s),) if retry_s else ()


async def send_reply(reply: Reply, send: Send) -> None:
    """Send a response as ASGI messages."""
    head = [(b"content-type", reply.content_type), (b"content-length", b"%d" % len(reply.body)), *reply.headers]
    try:
        await send({"type": "http.response.start", "status": reply.status, "headers": head})
        await send({"type": "http.response.body", "body": reply.body})
    except RuntimeError as problem:
        # uvloop raises this if the connection was lost meanwhile; uvicorn does not handle it
        if "closed" not in str(problem):
            raise


async def run_until_disconnect(work: Coroutine[Any, Any, object], receive: Receive) -> None:
    """Run the work on a request until it is done, or cancel it if the client disconnects."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(wait_for_disconnect(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    finally:
        task.cancel()
        watch.cancel()


async def wait_for_disconnect(receive: Receive) -> None:
    """Wait until the client of a request disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
