"""Reflectors lose no change: what fails for the moment comes again, and what always fails blocks no other."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from unfoldkit.kubernetes import reflector as module
from unfoldkit.kubernetes.api import Api, ApiError, Body, UnreachableError, WatchEvent
from unfoldkit.kubernetes.reflector import Reflector

pytestmark = pytest.mark.timed


def item(name: str, version: int) -> Body:
    """Return an object of a version."""
    return {"metadata": {"name": name, "namespace": "team", "resourceVersion": str(version)}}


@dataclass
class Server:
    """A server with a list, and events after it; a watch from a version sends what came later."""

    items: list[Body] = field(default_factory=list)
    events: list[WatchEvent] = field(default_factory=list)
    oldest: int = 0
    lists: int = 0
    closed: bool = False

    def get(self, _path: str, **_query: str) -> Body:
        """Return the list, at the version of its newest object."""
        self.lists += 1
        newest = max([0, *(int(body["metadata"]["resourceVersion"]) for body in self.items)])
        return {"items": list(self.items), "metadata": {"resourceVersion": str(newest)}}

    def watch(self, _path: str, version: str, **_query: str) -> Iterator[WatchEvent]:
        """Yield the events after a version; one that is too old is refused."""
        if int(version) < self.oldest:
            raise ApiError(410, "Expired", "too old")
        for event in list(self.events):
            if int(event.body["metadata"]["resourceVersion"]) > int(version):
                yield event
        time.sleep(0.01)


@dataclass
class Handler:
    """Records objects; ``failures`` are raised first, by name."""

    failures: dict[str, list[Exception]] = field(default_factory=dict)
    seen: list[tuple[str, bool]] = field(default_factory=list)

    def __call__(self, body: Body, *, is_gone: bool = False) -> None:
        """Process an object."""
        name = body["metadata"]["name"]
        if waiting := self.failures.get(name):
            raise waiting.pop(0)
        self.seen.append((name, is_gone))


def follow(server: Server, handler: Handler, count: int) -> None:
    """Follow a server until the handler has seen so many objects."""
    reflector = Reflector(cast("Api", server), "/api/v1/pods", cast("Any", handler), lambda _: ())
    thread = reflector.start()
    end_s = time.monotonic() + 10
    while len(handler.seen) < count:
        assert time.monotonic() < end_s, handler.seen
        time.sleep(0.005)
    server.closed = True
    thread.join(5)
    assert not thread.is_alive()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pause briefly."""
    monkeypatch.setattr(module, "PAUSE_S", 0.01)


@pytest.mark.parametrize(
    "failure", [ApiError(500, "InternalError", "x"), ApiError(409, "Conflict", "x"), UnreachableError()]
)
def test_a_change_that_fails_for_the_moment_comes_again(failure: Exception) -> None:
    """A server that restarts while a handler asks it something costs no event: the pod would never be seen."""
    server = Server([item("a", 1)], [WatchEvent("ADDED", item("b", 2)), WatchEvent("DELETED", item("a", 3))])
    handler = Handler({"b": [failure, failure]})
    follow(server, handler, 3)
    assert handler.seen == [("a", False), ("b", False), ("a", True)]
    assert server.lists == 1


@pytest.mark.parametrize("failure", [ApiError(403, "Forbidden", "not allowed"), KeyError("spec")])
def test_an_object_that_cannot_be_processed_blocks_no_other(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named in the log, in a list as in a watch; what comes after it is processed."""
    server = Server([item("bad", 1), item("a", 2)], [WatchEvent("ADDED", item("b", 3))])
    handler = Handler({"bad": [failure]})
    with caplog.at_level(logging.WARNING, "unfoldkit"):
        follow(server, handler, 2)
    assert handler.seen == [("a", False), ("b", False)]
    assert "team/bad of /api/v1/pods is left out" in caplog.text


def test_an_expired_watch_lists_again() -> None:
    """After 410 the whole list is read, so that no change between is lost."""
    server, handler = Server([item("a", 1)], oldest=5), Handler()
    follow(server, handler, 2)
    assert server.lists >= 2
    assert handler.seen[:2] == [("a", False), ("a", False)]


def test_a_server_that_starts_denies_nothing_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Until it has read its roles it denies every list: each is followed soon after, and no line is logged."""
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    server, handler, denials = Server([item("a", 1)]), Handler(), [403, 403, 403]

    def watch(_path: str, version: str, **_query: str) -> Iterator[WatchEvent]:
        if denials:
            raise ApiError(denials.pop(), "Forbidden", "no roles yet")
        yield from Server.watch(server, _path, version)

    server.watch = watch  # type: ignore[method-assign]
    server.events = [WatchEvent("ADDED", item("b", 2))]
    reflector = Reflector(
        cast("Api", server), "/apis/batch/v1/jobs", cast("Any", handler), lambda _: (), absent_pause_s=30.0
    )
    thread, end_s = reflector.start(), time.monotonic() + 5.0
    while len(handler.seen) < 2:
        assert time.monotonic() < end_s, handler.seen
        time.sleep(0.005)
    server.closed = True
    thread.join(5)
    assert reflector.refusals == 0
    assert caplog.text == ""
