"""The start of a service, told to the user: what its lifespan says when it fails, instead of a trace of the server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from unfoldkit.errors import UnfoldError, internal_error, user_error
from unfoldkit.serving.service import ASGIApp, Message, Receive, Scope, Send

FAILED = "lifespan.startup.failed"
COMPLETE = "lifespan.startup.complete"


@dataclass(slots=True)
class Start:
    """What became of a start: whether it is over, and the error with which it failed, if it did."""

    error: UnfoldError | None = None
    over: bool = False

    def heard(self, message: Message) -> Message:
        """Keep what a failed start says; what it leaves for the server's own log."""
        self.over |= message["type"] in (COMPLETE, FAILED)
        if message["type"] != FAILED:
            return message
        given = message.get("error")
        words = str(message.get("message") or "the service did not start")
        self.error = given if isinstance(given, UnfoldError) else user_error(words)
        return {"type": FAILED}


def heard(app: ASGIApp, start: Start) -> ASGIApp:
    """Return ``app``, its start told to ``start``."""

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return

        async def told(message: Message) -> None:
            await send(start.heard(message))

        try:
            await app(scope, receive, told)
        except Exception as error:
            if start.over:
                raise
            await told({"type": FAILED, "error": error if isinstance(error, UnfoldError) else _unforeseen(error)})
        except asyncio.CancelledError:
            # a start that is given up has failed, and there is nothing to say about it
            if start.over:
                raise

    return inner


def _unforeseen(error: Exception) -> UnfoldError:
    return internal_error(f"the service did not start: {type(error).__name__}: {error}")
