"""The start of a service, told to the user: what its lifespan says when it fails, instead of a trace of the server."""

from __future__ import annotations

from dataclasses import dataclass

from unfoldkit.errors import UnfoldError, fail
from unfoldkit.serving.service import ASGIApp, Message, Receive, Scope, Send

FAILED = "lifespan.startup.failed"


@dataclass(slots=True)
class Start:
    """What became of a start: the error with which it failed, if it did."""

    error: UnfoldError | None = None

    def heard(self, message: Message) -> Message:
        """Keep what a failed start says; what it leaves for the server's own log."""
        if message["type"] != FAILED:
            return message
        given = message.get("error")
        words = str(message.get("message") or "the service did not start")
        self.error = given if isinstance(given, UnfoldError) else fail(words)
        return {"type": FAILED}


def heard(app: ASGIApp, start: Start) -> ASGIApp:
    """Return ``app``, its start told to ``start``."""

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return

        async def told(message: Message) -> None:
            await send(start.heard(message))

        await app(scope, receive, told)

    return inner
