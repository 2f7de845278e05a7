"""What becomes of each request, for those who watch: lines of JSON, and spans where OpenTelemetry is set up."""

from __future__ import annotations

import importlib.util
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from unfoldkit.serving.service import ASGIApp, Message, Receive, Scope, Send

ID = b"x-request-id"
PARENT = b"traceparent"
# what goes into logs and back to the client: nothing that could end a line or a header
_FIT = re.compile(rb"[\w.:@/+=-]{1,128}")


@dataclass(frozen=True, slots=True)
class Note:
    """One request: its id, what it asked, how it ended (an HTTP status), how long it took, and its W3C trace parent."""

    id: str
    method: str
    path: str
    status: int
    seconds: float
    parent: str = ""


Observer = Callable[[Note], object]


def known_id(given: bytes) -> str:
    """Return the id that a client gave, or nothing if it is not fit to be repeated."""
    return given.decode() if _FIT.fullmatch(given) else ""


def new_id() -> str:
    """Return an id that no other request has."""
    return uuid.uuid4().hex


def together(observers: Sequence[Observer]) -> Observer | None:
    """Return one observer for all; ``None`` for none, which costs a request nothing."""
    if len(observers) < 2:
        return observers[0] if observers else None

    def each(note: Note) -> None:
        for observer in observers:
            observer(note)

    return each


def lines(log: logging.Logger) -> Observer:
    """Return what writes one line of JSON a request; neither headers nor bodies nor what follows a ``?`` is in it."""

    def write(note: Note) -> None:
        level = logging.ERROR if note.status >= 500 else logging.INFO
        log.log(level, "request", extra={"fields": _fields(note)})

    return write


def _fields(note: Note) -> dict[str, Any]:
    found = {"id": note.id, "method": note.method, "path": note.path, "status": note.status}
    return found | {"ms": round(note.seconds * 1e3, 3)} | ({"traceparent": note.parent} if note.parent else {})


class JsonLines(logging.Formatter):
    """Formats every record as one line of JSON: time, level, message, and the fields that came with it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        about = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            about["error"] = self.formatException(record.exc_info)
        return msgspec.json.encode(about).decode()


def tracing(provider: Any = None) -> Observer | None:
    """Return what makes a span of each request, if OpenTelemetry is installed and has somewhere to send it.

    The span is a server's, named after method and path, child of the request's ``traceparent``, with the attributes of
    OpenTelemetry's conventions for HTTP. Without ``provider`` the global one is asked, as ``opentelemetry-instrument``
    sets it.
    """
    if importlib.util.find_spec("opentelemetry") is None:
        return None
    from opentelemetry import trace

    provider = provider or trace.get_tracer_provider()
    if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        return None
    tracer = provider.get_tracer("unfoldkit.serving")

    def span(note: Note) -> None:
        _span(tracer, note)

    return span


def _span(tracer: Any, note: Note) -> None:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    end = time.time_ns()
    parent = TraceContextTextMapPropagator().extract({"traceparent": note.parent})
    attributes: dict[str, Any] = {
        "http.request.method": note.method,
        "url.path": note.path,
        "url.scheme": "http",
        "http.response.status_code": note.status,
        "unfold.request_id": note.id,
    }
    if note.status >= 500:
        attributes["error.type"] = str(note.status)
    # what nobody serves has any name that a client makes up, and names of spans should be few
    made = tracer.start_span(
        note.method if note.status == 404 else f"{note.method} {note.path}",
        parent,
        trace.SpanKind.SERVER,
        attributes,
        start_time=end - int(note.seconds * 1e9),
    )
    if note.status >= 500:
        made.set_status(trace.StatusCode.ERROR)
    made.end(end)


def observed(app: ASGIApp, observer: Observer | None, clock: Callable[[], float] = time.perf_counter) -> ASGIApp:
    """Return ``app``: each answer repeats the id of its request, and ``observer`` is told of it."""

    async def passing(scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope["headers"]) if scope["type"] == "http" else {}
        name = known_id(given.get(ID, b"")) or (new_id() if observer and scope["type"] == "http" else "")
        if not name:
            await app(scope, receive, send)
            return
        began, status = clock(), [500]
        try:
            await app(scope, receive, _named(send, name, status))
        finally:
            if observer is not None:
                parent = known_id(given.get(PARENT, b""))
                observer(Note(name, scope["method"], scope["path"], status[0], clock() - began, parent))

    return passing


def _named(send: Send, name: str, status: list[int]) -> Send:
    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            status[0] = message["status"]
            message["headers"] = [*message.get("headers", ()), (ID, name.encode())]
        await send(message)

    return named
