"""A closed-loop load generator over keep-alive HTTP: `python -m benchmarks.load URL BODIES --connections C`.

BODIES holds one JSON request a line; they are sent in turn. Prints one JSON object: answers by status, answers a
second, latency percentiles, and the share of its core that it used: near 1, it measures itself and not the server.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

LENGTH = re.compile(rb"\r\ncontent-length: ?([0-9]+)", re.IGNORECASE)
STALLED_S = 30.0


@dataclass(slots=True)
class Wire:
    """One connection with at most one request under way, sent at ``sent``; ``data`` is what came of its answer."""

    socket: socket.socket
    sent: float = 0.0
    data: bytes = b""


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


def drive(url: str, bodies: list[bytes], connections: int, seconds: float, warm: float) -> dict[str, object]:
    """Return what ``connections`` clients saw within ``seconds`` after ``warm``."""
    place = urlsplit(url)
    requests = itertools.cycle([_request(place.netloc, place.path, body) for body in bodies])
    wires = [Wire(_connected(place.hostname or "", place.port or 80)) for _ in range(connections)]
    begin, used = time.perf_counter() + warm, time.process_time()
    tally = Tally(begin, begin + seconds, requests)
    _run(wires, tally)
    busy = (time.process_time() - used) / (time.perf_counter() - begin + warm)
    times = sorted(tally.seconds)
    return {
        "answers": {status.decode(): count for status, count in tally.statuses.items()},
        "all_answers": tally.all,
        "broken": tally.broken,
        "requests_per_s": tally.statuses[b"200"] / seconds,
        "p50_ms": 1e3 * times[len(times) // 2] if times else None,
        "p99_ms": 1e3 * times[len(times) * 99 // 100] if times else None,
        "driver_busy": busy,
    }


def _run(wires: list[Wire], tally: Tally) -> None:
    """Send on every connection until the end; then wait for the answers that are under way."""
    poll, open_ = select.epoll(), {wire.socket.fileno(): wire for wire in wires}
    for number, wire in open_.items():
        poll.register(number, select.EPOLLIN)
        _send(wire, tally)
    while open_ and time.perf_counter() < tally.end + STALLED_S:
        for number, _ in poll.poll(1.0):
            if not _heard(open_[number], tally):
                poll.unregister(number)
                open_.pop(number).socket.close()
    tally.broken += len(open_)


def _heard(wire: Wire, tally: Tally) -> bool:
    """Take what came on a connection; whether it goes on."""
    part = wire.socket.recv(262144)
    wire.data = data = wire.data + part if wire.data else part
    head = data.find(b"\r\n\r\n")
    found = LENGTH.search(data, 0, head + 2) if head >= 0 else None
    if not part:
        tally.broken += 1
        return False
    if found is None or len(data) < head + 4 + int(found[1]):
        return True
    now, wire.data = time.perf_counter(), b""
    tally.all += 1
    if tally.begin <= now < tally.end:
        tally.statuses[data[9:12]] += 1
        tally.seconds.append(now - wire.sent)
    if now >= tally.end:
        return False
    _send(wire, tally)
    return True


def _send(wire: Wire, tally: Tally) -> None:
    wire.sent = time.perf_counter()
    wire.socket.sendall(next(tally.requests))


def _connected(host: str, port: int) -> socket.socket:
    found = socket.create_connection((host, port), timeout=STALLED_S)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


def _request(host: str, path: str, body: bytes) -> bytes:
    lines = (f"POST {path} HTTP/1.1", f"host: {host}", "content-type: application/json", f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


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
    print(json.dumps(drive(given.url, bodies, given.connections, given.seconds, given.warm)))


if __name__ == "__main__":
    main()
