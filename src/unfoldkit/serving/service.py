"""What ``serve`` returns: an ASGI application, and what to do around it. The host owns socket, signals and token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Service:
    """A running answer to requests.

    ``paths`` and ``lines`` (each a title and a text) are told to the user at start; lifespan events of ``app`` open
    and close what it holds.
    """

    name: str
    app: ASGIApp
    paths: tuple[str, ...] = ()
    lines: tuple[tuple[str, str], ...] = ()
