"""The live page and its events, over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.serving.client import Server, request, rows, serving
from unfoldkit.serving.observability import live_page
from unfoldkit.serving.observability.dashboard import Dashboard, Distribution, Tile, TimeSeries
from unfoldkit.serving.observability.live_page import serve_events
from unfoldkit.serving.service import Message


@pytest.fixture(scope="module")
def total() -> Iterator[Server]:
    with serving("total") as server:
        yield server


def events(wire: socket.socket, many: int) -> list[Any]:
    """Return the data of the first events on a connection."""
    data = b""
    while data.count(b"data: ") < many or not data.endswith(b"\n\n\r\n"):
        data += wire.recv(65536)
    return [json.loads(part.split(b"\n\n")[0]) for part in data.split(b"data: ")[1:]]


def test_the_page_is_three_files_that_ask_nothing_of_others(total: Server) -> None:
    """Page, style and script come from the server itself, under a policy that allows nothing else."""
    kinds = {"/": "text/html", "/live.css": "text/css", "/live.js": "text/javascript"}
    for path, kind in kinds.items():
        reply = total.ask(path)
        assert reply.status == 200
        assert reply.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert b"http://" not in reply.body.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https://" not in reply.body
        # behind a proxy all of it may lie under a prefix
        assert not re.search(rb'(?:href=|src=|fetch\()"/', reply.body)


def test_events_count_what_was_asked(total: Server) -> None:
    """An event a second reports the requests so far; the next one has those that came in between."""
    with total.connect() as wire:
        wire.sendall(request("/events"))
        (before, *_) = events(wire, 1)
        for _ in range(3):
            assert total.ask("/v2/models/total/infer", rows([1, 2, 3])).status == 200
        (after, *_) = events(wire, 1)
    counts = [board["lines"][0]["values"]["200"] for board in (before, after)]
    assert counts[1] - counts[0] == 3
    assert sum(after["spreads"][0]["counts"]) - sum(before["spreads"][0]["counts"]) == 3
    assert after["name"] == "total"


def test_a_token_guards_the_events_and_not_the_bare_page() -> None:
    """Behind a token the page still loads, since it holds no data, and the events need the token."""
    with serving("total", "token=secret") as server:
        assert server.ask("/").status == 200
        assert server.ask("/events").status == 401
        with server.connect() as wire:
            wire.sendall(request("/events", headers="authorization: Bearer secret\r\n"))
            assert events(wire, 1)[0]["kind"] == "toy"


@pytest.mark.timed
def test_watchers_do_not_hold_the_end_up() -> None:
    """With somebody watching, SIGTERM still ends the server with 0 within three seconds."""
    with serving("total") as server, server.connect() as wire:
        wire.sendall(request("/events"))
        events(wire, 1)
        began = time.monotonic()
        assert server.end(signal.SIGTERM) == 0
        assert time.monotonic() - began < 3.0


@pytest.mark.timed
def test_watchers_that_leave_are_forgotten(total: Server) -> None:
    """A watcher that goes away leaves nothing behind: the server has as many open files as before."""
    files = f"/proc/{total.process.pid}/fd"
    before = open_files(files)
    for _ in range(20):
        with total.connect() as wire:
            wire.sendall(request("/events"))
            events(wire, 1)
    deadline = time.monotonic() + 5
    while open_files(files) > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert open_files(files) <= before


def open_files(folder: str) -> int:
    """Return how many files a process has open."""
    return len(list(Path(folder).iterdir()))


def test_many_who_watch_cost_one_board() -> None:
    """Whoever watches at the same time sees the same board, which is made once."""
    made: list[int] = []

    def watch() -> Dashboard:
        made.append(1)
        return Dashboard("a", "toy")

    async def scene() -> list[bytes]:
        drains, heard = asyncio.Event(), list[bytes]()
        page = serve_events(nothing, watch, drains)

        async def receive() -> Message:
            await drains.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            heard.append(message.get("body", b""))
            if sum(map(bool, heard)) == 20:
                drains.set()

        scope = {"type": "http", "path": "/events", "method": "GET"}
        await asyncio.gather(*(page(dict(scope), receive, send) for _ in range(20)))
        return [body for body in heard if body]

    found = asyncio.run(asyncio.wait_for(scene(), 30))
    assert len(found) == 20
    assert len(set(found)) == 1
    # on a busy machine the next board may be due meanwhile
    assert len(made) <= 2


def test_a_page_that_opens_later_gets_the_recent_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first event has what the charts drew before, within bounds; a failure of the source leaves a gap."""
    monkeypatch.setattr(live_page, "HISTORY_EVERY_S", 0.02)
    monkeypatch.setattr(live_page, "EVERY_S", 0.03)
    made: list[int] = []
    pages: list[int] = []
    enough = asyncio.Event()

    def watch() -> Dashboard:
        made.append(1)
        if len(made) == live_page.HISTORY_POINTS + 20:
            enough.set()
        if len(made) == 3:
            raise RuntimeError("not now")
        lines = (TimeSeries("answers", "/s", {"200": float(len(made))}, counts=True),)
        return Dashboard("a", "toy", (Tile("large", "text"),), lines, (Distribution("time", "s", (1.0,), (2.0, 3.0)),))

    def watch_page() -> Dashboard:
        pages.append(1)
        return watch()

    async def scene() -> tuple[list[bytes], bool]:
        drains, bodies = asyncio.Event(), list[bytes]()

        async def live(_scope: Message, _receive: object, _send: object) -> None:
            await drains.wait()

        page = serve_events(live, watch_page, drains, watch)

        async def receive() -> Message:
            await drains.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            bodies.append(message.get("body", b""))
            if sum(map(bool, bodies)) == 2:
                drains.set()

        service = asyncio.create_task(page({"type": "lifespan"}, receive, send))
        await enough.wait()
        await page({"type": "http", "path": "/events", "method": "GET"}, receive, send)
        await service
        ended = len(made)
        await asyncio.sleep(0.1)
        return [body for body in bodies if body], len(made) == ended

    bodies, is_over = asyncio.run(asyncio.wait_for(scene(), 30))
    first, second = (json.loads(body.removeprefix(b"data: ")) for body in bodies)
    assert len(first["history"]) == live_page.HISTORY_POINTS
    ages = [past["ago_s"] for past in first["history"]]
    assert ages == sorted(ages, reverse=True)
    values = [past["lines"]["answers"]["200"] for past in first["history"]]
    assert values == sorted(values)
    assert 3.0 not in values
    assert values[-1] <= first["lines"][0]["values"]["200"]
    assert first["history"][0]["spreads"] == {"time": [2.0, 3.0]}
    assert second["history"] == []
    assert is_over
    assert len(pages) == 2


async def nothing(_scope: Message, _receive: object, _send: object) -> None:
    """Answer nothing."""
