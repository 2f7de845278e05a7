"""What ``serve`` returns: an ASGI application, and what to do around it. The host owns socket, signals and token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unfoldkit.serving.observability.dashboard import Watch

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Answer = Callable[[bytes, Callable[[Any], None]], None]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Share = Callable[[Path], Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Gate:
    """What is asked before a body is read.

    ``full`` returns 0 where one more request can wait, else when to come back, in seconds; ``refuse`` is told how many
    were sent away.
    """

    full: Callable[[], int]
    refuse: Callable[[int], object]

    def ask(self) -> int:
        """Return ``full`` for one request, which counts as sent away where there is no room."""
        if retry_s := self.full():
            self.refuse(1)
        return retry_s


def well() -> bool:
    """Say that all is well."""
    return True


@dataclass(frozen=True, slots=True)
class Service:
    """A running answer to requests.

    ``paths`` and ``lines`` (each a title and a text) are told to the user at start; lifespan events of ``app`` open
    and close what it holds. ``posts`` are paths of ``app`` whose POST requests with at most ``body_bytes`` may be
    answered past it: each function is given a body, and calls back with the reply. ``gates``, by path, are asked first:
    above 0 the request is refused, its body unread, to come back after so many seconds. ``watch`` tells what the live
    page at ``/`` shows; without it there is no page. ``share`` makes one service of several processes: it is given the
    folder in which each keeps what it counts, and returns what keeps it there. ``healthy`` is whether models come back.
    """

    name: str
    app: ASGIApp
    paths: tuple[str, ...] = ()
    posts: Mapping[str, Answer] = field(default_factory=dict)
    body_bytes: int = 0
    lines: tuple[tuple[str, str], ...] = ()
    watch: Watch | None = None
    gates: Mapping[str, Gate] = field(default_factory=dict)
    share: Share | None = None
    healthy: Callable[[], bool] = well
