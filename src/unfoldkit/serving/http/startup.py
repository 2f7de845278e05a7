"""The start of a service: a failed lifespan becomes an error message instead of a traceback of the server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from unfoldkit.errors import UnfoldError, internal_error, user_error
from unfoldkit.serving.service import ASGIApp, Message, Receive, Scope, Send

FAILED = "lifespan.startup.failed"
COMPLETE = "lifespan.startup.complete"


@dataclass(slots=True)
class StartResult:
    """Whether a start is over, and the error with which it failed."""

    error: UnfoldError | None = None
    is_over: bool = False

    def record(self, message: Message) -> Message:
        """Record the outcome of a start; return the message for the server, without the text that it would log."""
        self.is_over |= message["type"] in (COMPLETE, FAILED)
        if message["type"] != FAILED:
            return message
        error = message.get("error")
        text = str(message.get("message") or "the service did not start")
        self.error = error if isinstance(error, UnfoldError) else user_error(text)
        return {"type": FAILED}


def record_start(app: ASGIApp, start: StartResult) -> ASGIApp:
    """Wrap ``app`` so that ``start`` records how its start ended."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return

        async def send_recorded(message: Message) -> None:
            await send(start.record(message))

        try:
            await app(scope, receive, send_recorded)
        except Exception as error:
            if start.is_over:
                raise
            known = error if isinstance(error, UnfoldError) else _unexpected(error)
            await send_recorded({"type": FAILED, "error": known})
        except asyncio.CancelledError:
            # a cancelled start has failed, and there is nothing to report
            if start.is_over:
                raise

    return wrapped


def _unexpected(error: Exception) -> UnfoldError:
    return internal_error(f"the service did not start: {type(error).__name__}: {error}")
