"""Observe every request: ids, and an access log in JSON lines."""

from __future__ import annotations

import logging
import math
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
CLIENT_LEFT = 499
"""nginx's status of a request if the client closed the connection, or its side of it, before the response, and of a
call that was cancelled or missed its deadline."""
HUNG_UP = "unfoldkit.hung_up"
"""Key of an ASGI scope that marks such a request."""
REPEAT_S = 60.0
# ids go into logs and back to clients: nothing in them may end a line or a header
_SAFE_ID = re.compile(rb"[\w.:@/+=-]{1,128}")


@dataclass(frozen=True, slots=True)
class RequestNote:
    """A finished request: its id, method, path, HTTP status, duration in s, and W3C trace parent."""

    id: str
    method: str
    path: str
    status: int
    seconds: float
    parent: str = ""


Observer = Callable[[RequestNote], object]


def sanitize_id(value: bytes) -> str:
    """Return the id that a client sent, or an empty string if it is not safe to repeat."""
    return value.decode() if _SAFE_ID.fullmatch(value) else ""


def new_id() -> str:
    """Make a unique request id."""
    return uuid.uuid4().hex


def combine_observers(observers: Sequence[Observer]) -> Observer | None:
    """Return one observer that calls all; ``None`` for none, which costs a request nothing."""
    if len(observers) < 2:
        return observers[0] if observers else None

    def notify_all(note: RequestNote) -> None:
        for observer in observers:
            observer(note)

    return notify_all


def json_access_log(log: logging.Logger) -> Observer:
    """Make an observer that logs one JSON line per request, without headers, bodies and query strings."""

    def write(note: RequestNote) -> None:
        level = logging.ERROR if note.status >= 500 else logging.INFO
        log.log(level, "request", extra={"fields": _log_fields(note)})

    return write


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON: time, level, message, and its extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Encode a record as one JSON object: time, level, message, its fields, and the traceback if there is one."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return msgspec.json.encode(fields).decode()


def limit_texts(now: Callable[[], float] = time.monotonic) -> Callable[[str], bool]:
    """Make a check that passes each text once a minute, so that hostile clients cannot fill a disk.

    Args:
        now: A monotonic clock in s.
    """
    last_s: dict[str, float] = {}

    def passes(text: str) -> bool:
        current_s = now()
        if current_s - last_s.get(text, -math.inf) < REPEAT_S:
            return False
        last_s[text] = current_s
        return True

    return passes


def limit_repeats(now: Callable[[], float] = time.monotonic) -> Callable[[logging.LogRecord], bool]:
    """Make a filter of a log that passes each message once a minute, and every record with a traceback.

    Args:
        now: A monotonic clock in s.
    """
    passes = limit_texts(now)
    # the text before its arguments: its number is that of the messages in the code
    return lambda record: passes(str(record.msg)) or bool(record.exc_info)


def observe_requests(
    app: ASGIApp, observer: Observer | None, clock: Callable[[], float] = time.perf_counter
) -> ASGIApp:
    """Wrap ``app``: each response repeats the id of its request, and ``observer`` receives a note of it."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        is_http = scope["type"] == "http"
        headers = dict(scope["headers"]) if is_http else {}
        request_id = sanitize_id(headers.get(ID, b"")) or (new_id() if observer and is_http else "")
        if not request_id:
            await app(scope, receive, send)
            return
        start_s, status = clock(), [500]
        try:
            await app(scope, receive, _send_with_id(send, request_id, status))
        finally:
            if observer is not None:
                parent = sanitize_id(headers.get(PARENT, b""))
                duration_s = clock() - start_s
                seen = CLIENT_LEFT if scope.get(HUNG_UP) else status[0]
                observer(RequestNote(request_id, scope["method"], scope["path"], seen, duration_s, parent))

    return wrapped


def _log_fields(note: RequestNote) -> dict[str, Any]:
    fields = {"id": note.id, "method": note.method, "path": note.path, "status": note.status}
    return fields | {"ms": round(note.seconds * 1e3, 3)} | ({"traceparent": note.parent} if note.parent else {})


def _send_with_id(send: Send, request_id: str, status: list[int]) -> Send:
    async def send_message(message: Message) -> None:
        if message["type"] == "http.response.start":
            status[0] = message["status"]
            others = (header for header in message.get("headers", ()) if header[0] != ID)
            message["headers"] = [*others, (ID, request_id.encode())]
        await send(message)

    return send_message
