"""A closed-loop client for chat completions over keep-alive HTTP, streamed or not: times, and each whole answer.

It takes a reply as whole only if its status is 200, its JSON is complete, or its stream ends with ``[DONE]``.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply: how long it took, its headers in lower case, and whether it is a whole answer."""

    seconds: float
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_whole(self) -> bool:
        """Whether the client got one whole answer."""
        if self.status != 200:
            return False
        if "event-stream" in self.headers.get("content-type", ""):
            return b"data: [DONE]" in self.body and b'"error"' not in self.body
        try:
            return bool(json.loads(self.body)["choices"][0]["message"]["content"])
        except (ValueError, KeyError, IndexError, TypeError):
            return False


@dataclass(slots=True)
class Client(asyncio.Protocol):
    """One connection with at most one request under way."""

    transport: Any = None
    data: bytearray = field(default_factory=bytearray)
    done: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Resolve the request once its reply is complete."""
        self.data += data
        if self.done is not None and not self.done.done() and _is_complete(self.data):
            self.done.set_result(bytes(self.data))

    def connection_lost(self, exc: Exception | None) -> None:
        """Resolve the request with what there is."""
        del exc
        self.transport = None
        if self.done is not None and not self.done.done():
            self.done.set_result(bytes(self.data))

    async def send(self, request: bytes) -> Reply:
        """Send a request and wait for its reply."""
        self.data.clear()
        self.done = asyncio.get_running_loop().create_future()
        begin = time.perf_counter()
        self.transport.write(request)
        try:
            raw = await asyncio.wait_for(self.done, PATIENCE_S)
        except TimeoutError:
            self.transport.abort()
            raw = bytes(self.data)
        return _parse(raw, time.perf_counter() - begin)


def _is_complete(data: bytearray) -> bool:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = bytes(data[:end]).lower()
    at = head.find(b"content-length:")
    if at < 0:
        return data.endswith(b"0\r\n\r\n", end + 4)
    return len(data) - end - 4 >= int(head[at + 15 :].partition(b"\r\n")[0])


def _parse(raw: bytes, seconds: float) -> Reply:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in fields}
    words = first.split(" ")
    return Reply(seconds, int(words[1]) if len(words) > 1 else 0, headers, body)


def format_request(port: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> bytes:
    """Format a whole request."""
    data = json.dumps(body).encode()
    lines = [f"{name}: {value}" for name, value in {"authorization": "Bearer k", **(headers or {})}.items()]
    head = ["POST /v1/chat/completions HTTP/1.1", f"host: 127.0.0.1:{port}", "content-type: application/json"]
    return "\r\n".join([*head, *lines, f"content-length: {len(data)}", "", ""]).encode() + data


async def send_all(port: int, requests: Sequence[bytes], connections: int) -> list[Reply]:
    """Send requests over so many connections, each as soon as the one before is answered, and return all replies."""
    replies: list[Reply | None] = [None] * len(requests)
    numbers = iter(range(len(requests)))
    loop = asyncio.get_running_loop()

    async def work() -> None:
        client: Client | None = None
        for number in numbers:
            if client is None or client.transport is None or client.transport.is_closing():
                _, client = await loop.create_connection(Client, "127.0.0.1", port)
            replies[number] = await client.send(requests[number])
        if client is not None and client.transport is not None:
            client.transport.close()

    await asyncio.gather(*(work() for _ in range(connections)))
    return [reply for reply in replies if reply is not None]
