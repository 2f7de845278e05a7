"""A closed-loop load generator over keep-alive HTTP: `python -m benchmarks.load URL BODIES --connections C`.

BODIES holds one JSON request a line; they are sent in turn. Prints one JSON object: answers by status, answers a
second, latency percentiles.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop


@dataclass(slots=True)
class Tally:
    """What came back, and how long each took; counted only between ``begin`` and ``end``."""

    begin: float
    end: float
    requests: Iterator[bytes]
    statuses: Counter[bytes] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    broken: int = 0
    all: int = 0


@dataclass(slots=True)
class Connection:
    """One connection: sends a request as soon as the answer before is there. An ``asyncio.Protocol`` by shape."""

    tally: Tally
    over: asyncio.Event
    transport: asyncio.Transport | None = None
    sent: float = 0.0
    buffer: bytes = b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Send the first request."""
        self.transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        """Count an answer when it is whole, and send the next request."""
        self.buffer = data = self.buffer + data if self.buffer else data
        head = data.find(b"\r\n\r\n")
        if head < 0 or len(data) < head + 4 + _length(data[:head]):
            return
        self.buffer = b""
        now = time.perf_counter()
        self.tally.all += 1
        if self.tally.begin <= now < self.tally.end:
            self.tally.statuses[data[9:12]] += 1
            self.tally.seconds.append(now - self.sent)
        if now >= self.tally.end:
            self.over.set()
        else:
            self._send()

    def eof_received(self) -> None:
        """Let the transport close."""

    def connection_lost(self, _error: Exception | None) -> None:
        """Count a connection that ended before its time."""
        self.tally.broken += time.perf_counter() < self.tally.end
        self.over.set()

    def pause_writing(self) -> None:
        """Requests are small."""

    def resume_writing(self) -> None:
        """Requests are small."""

    def _send(self) -> None:
        self.sent = time.perf_counter()
        if self.transport is not None:
            self.transport.write(next(self.tally.requests))


def _length(head: bytes) -> int:
    start = head.lower().index(b"content-length:") + 15
    end = head.find(b"\r\n", start)
    return int(head[start : end if end >= 0 else len(head)])


async def drive(url: str, bodies: list[bytes], connections: int, seconds: float, warm: float) -> dict[str, object]:
    """Return what ``connections`` clients saw within ``seconds`` after ``warm``."""
    place = urlsplit(url)
    requests = [_request(place.netloc, place.path, body) for body in bodies]
    begin = time.perf_counter() + warm
    tally = Tally(begin, begin + seconds, itertools.cycle(requests))
    loop, ends = asyncio.get_running_loop(), [asyncio.Event() for _ in range(connections)]
    for end in ends:
        make: Any = functools.partial(Connection, tally, end)
        await loop.create_connection(make, place.hostname or "", place.port or 80)
    async with asyncio.timeout(warm + seconds + 10):
        await asyncio.gather(*(end.wait() for end in ends))
    times = sorted(tally.seconds)
    return {
        "answers": {status.decode(): count for status, count in tally.statuses.items()},
        "all_answers": tally.all,
        "broken": tally.broken,
        "requests_per_s": tally.statuses[b"200"] / seconds,
        "p50_ms": 1e3 * times[len(times) // 2] if times else None,
        "p99_ms": 1e3 * times[len(times) * 99 // 100] if times else None,
    }


def _request(host: str, path: str, body: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def main() -> None:
    """Drive one server and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("bodies", type=Path)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--warm", type=float, default=0.5)
    given = parser.parse_args()
    bodies = given.bodies.read_bytes().splitlines()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(drive(given.url, bodies, given.connections, given.seconds, given.warm))))


if __name__ == "__main__":
    main()
