"""The least that a relay in Python costs: `python -m benchmarks.peers.chat_relay PORT UPSTREAM` passes bytes on.

It runs on uvicorn and the default transport of httpx, and neither parses nor gates, prices or counts anything.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Relay:
    """An application that sends every POST to one upstream."""

    upstream: str
    client: httpx.AsyncClient

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Relay a request, and answer any GET with 200."""
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["method"] != "POST":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})
            return
        headers = {"content-type": "application/json"}
        async with self.client.stream("POST", self.upstream + scope["path"], content=body, headers=headers) as response:
            kept = [
                (k.lower(), v) for k, v in response.headers.raw if k.lower() in (b"content-type", b"content-length")
            ]
            await send({"type": "http.response.start", "status": response.status_code, "headers": kept})
            async for part in response.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body"})


if __name__ == "__main__":
    app = Relay(sys.argv[2], httpx.AsyncClient(timeout=20.0, trust_env=False))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", lifespan="off")
