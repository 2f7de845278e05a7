"""Small replies: JSON with a status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from unfoldkit.serving.service import Send

Header = tuple[bytes, bytes]


# not frozen: one is made for every request, and freezing makes that three times as dear
@dataclass(slots=True)
class Reply:
    """A whole answer."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: tuple[Header, ...] = ()


def json_reply(data: Any, status: int = 200) -> Reply:
    """Return ``data`` as JSON."""
    return Reply(status, msgspec.json.encode(data))


def error(status: int, message: str, headers: tuple[Header, ...] = ()) -> Reply:
    """Return the protocol's error object."""
    return Reply(status, msgspec.json.encode({"error": message}), headers=headers)


def full(retry_s: int) -> Reply:
    """Return the answer where no more can wait; ``retry_s`` is when to come back."""
    return error(429, "too many rows are waiting; come back later", ((b"retry-after", b"%d" % retry_s),))


async def send_reply(reply: Reply, send: Send) -> None:
    """Send a reply."""
    head = [(b"content-type", reply.content_type), (b"content-length", b"%d" % len(reply.body)), *reply.headers]
    try:
        await send({"type": "http.response.start", "status": reply.status, "headers": head})
        await send({"type": "http.response.body", "body": reply.body})
    except RuntimeError as problem:
        # uvloop's word for a connection that was cut while its answer was made; uvicorn does not know of it
        if "closed" not in str(problem):
            raise
