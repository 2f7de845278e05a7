"""The internals of uvicorn that a connection relies on: whether they exist, and the limits that uvicorn itself lacks.

``find_incompatibility`` runs at start; ``pyproject.toml`` bounds the version too. ``ReadAheadLimit`` bounds what a
client may send ahead of its responses, all of which uvicorn would keep.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httptools

from unfoldkit.serving.observability.access_log import HUNG_UP
from unfoldkit.serving.responses import Header

METHODS = (
    *("connection_made", "connection_lost", "data_received", "eof_received", "pause_writing", "resume_writing"),
    *("shutdown", "send_400_response", "_unset_keepalive_if_required"),
)
PROTOCOL_ATTRIBUTES = ("connections", "cycle", "flow", "headers", "parser", "pipeline", "timeout_keep_alive_task")
CYCLE_ATTRIBUTES = (
    *("body", "disconnected", "keep_alive", "message_event", "more_body", "response_complete", "scope"),
)
STATE_ATTRIBUTES = ("connections", "default_headers")


def find_incompatibility(config: Any) -> str:
    """Return what the installed uvicorn lacks; empty if a connection can wrap its protocol.

    Args:
        config: A ``uvicorn.Config``, which is loaded if it is not yet.
    """
    import uvicorn

    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
        from uvicorn.server import ServerState

        if not config.loaded:
            config.load()
        state = ServerState()
        protocol = HttpToolsProtocol(config, state, {})
    except (ImportError, AttributeError, TypeError) as error:
        return f"uvicorn {uvicorn.__version__}: {error}"
    stored = RequestResponseCycle.__init__.__code__.co_names
    missing = [
        *(f"HttpToolsProtocol.{name}" for name in (*METHODS, *PROTOCOL_ATTRIBUTES) if not hasattr(protocol, name)),
        *(f"RequestResponseCycle.{name}" for name in CYCLE_ATTRIBUTES if name not in stored),
        *(f"ServerState.{name}" for name in STATE_ATTRIBUTES if not hasattr(state, name)),
    ]
    return f"uvicorn {uvicorn.__version__} has no {', '.join(missing)}" if missing else ""


MAX_BYTES = 4 * 2**20
MAX_WATCHED_BYTES = 256 * 2**10
"""Up to so many bytes of pipelined requests a connection is read on, so that a hang-up behind them is noticed."""
MAX_HEADERS = 1000
MAX_HEAD_BYTES = 64 * 2**10
"""Names and values of the headers of one request; more gives 400."""
_AUTHORITY = re.compile(rb"[a-z][a-z0-9+.-]*://([^/?#]*)", re.IGNORECASE)
_OFFER = frozenset((b"upgrade", b"http2-settings"))
_CYCLE_BYTES = 4096
# each byte of a chunked body may come in a chunk of its own
_CHUNK_BYTES = 16


def build_protocol_class() -> Any:
    """Build uvicorn's protocol without its merging of trailers, and without copying a body for each of its chunks.

    uvicorn adds the trailers of a chunked body to the headers of its request, which RFC 9110, section 6.5.1, forbids:
    a client could send headers past a proxy that checks or removes them. And it reports a hang-up to the last request
    that it has read, not to the one that it answers.
    """
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Protocol(ignore_upgrades(HttpToolsProtocol)):  # type: ignore[misc]
        answered: Any = None
        headers: Any
        header_bytes = 0

        def on_header(self, name: bytes, value: bytes) -> None:
            super().on_header(name, value)
            self.header_bytes += len(name) + len(value)
            _check_head_size(self.header_bytes, len(self.headers))

        def on_headers_complete(self) -> None:
            # a proxy may go by either; two hosts are rejected
            self.headers += _find_other_host(self.url, self.headers)
            super().on_headers_complete()
            # what follows goes into a list that is never read
            self.headers, self.header_bytes = [], 0
            if not self.pipeline:
                self.answered = self.cycle

        def on_response_complete(self) -> None:
            if self.pipeline:
                self.answered = self.pipeline[-1][0]
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            mark_hang_up(self)
            if self.answered is not None and not self.answered.response_complete:
                self.answered.disconnected = True
                self.answered.message_event.set()
            super().connection_lost(exc)

        def on_body(self, body: bytes) -> None:
            if not isinstance(self.cycle.body, bytearray):
                # it grows in place, where bytes are copied each time
                self.cycle.body = bytearray(self.cycle.body)
            super().on_body(body)

    return Protocol


def ignore_upgrades(protocol_class: Any) -> Any:
    """Build a protocol that ignores offers to upgrade, such as Java's HTTP client makes with its first request.

    The parser skips the body of such a request: uvicorn would answer it without, and take the body for a request.
    """

    class Protocol(protocol_class):  # type: ignore[misc]
        plain_head = b""

        def data_received(self, data: bytes) -> None:
            self._unset_keepalive_if_required()
            while data:
                data = _feed(self, data)

        def on_headers_complete(self) -> None:
            if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
                # the parser skips the body, so another one reads the request without the offer
                self.logger.warning("a client asked for an upgrade, such as a WebSocket; it is answered over HTTP/1.1")
                self.plain_head = _format_plain_head(self.parser, self.url, self.headers)
            else:
                super().on_headers_complete()

        def on_message_complete(self) -> None:
            if not self.plain_head:
                super().on_message_complete()

    return Protocol


def _feed(protocol: Any, data: bytes) -> bytes:
    """Feed the parser of a protocol, and return what it is to be fed next."""
    try:
        protocol.parser.feed_data(data)
    except httptools.HttpParserUpgrade as offer:
        if protocol.plain_head:
            data = protocol.plain_head + data[offer.args[0] :]
            protocol.plain_head, protocol.parser = b"", httptools.HttpRequestParser(protocol)
            return data
        _refuse(protocol)
    except httptools.HttpParserError:
        _refuse(protocol)
    return b""


def _refuse(protocol: Any) -> None:
    protocol.logger.warning("Invalid HTTP request received.")
    protocol.send_400_response("Invalid HTTP request received.")


def _find_other_host(target: bytes, headers: Iterable[Header]) -> list[Header]:
    """Return the authority of a target in absolute form as a ``Host``, unless it is the one among the headers.

    RFC 9112, section 3.2.2. The port of HTTP may be left out.
    """
    match = _AUTHORITY.match(target)
    if match is None:
        return []
    hosts = [value.lower().removesuffix(b":80") for name, value in headers if name == b"host"]
    return [] if match[1].lower().removesuffix(b":80") in hosts else [(b"host", match[1])]


def _format_plain_head(parser: Any, target: bytes, headers: Iterable[Header]) -> bytes:
    """Write the head of a request without its offer to upgrade; names and values hold no ends of lines."""
    lines = [b"%b %b HTTP/%b" % (parser.get_method(), target, parser.get_http_version().encode())]
    for name, value in headers:
        kept = value
        if name == b"connection":
            options = (option.strip() for option in value.split(b","))
            kept = b", ".join(option for option in options if option.lower() not in _OFFER)
        if name not in _OFFER:
            lines.append(name + b": " + kept)
    return b"\r\n".join([*lines, b"", b""])


def _check_head_size(size: int, count: int) -> None:
    """Raise if a head is too large: the parser wraps the error, and uvicorn answers 400 and closes the connection."""
    if size > MAX_HEAD_BYTES or count > MAX_HEADERS:
        raise ValueError("the head is too large")


@dataclass(slots=True)
class ReadAheadLimit:
    """Counts the bytes since the last complete head that are not part of a body: heads and trailers.

    A body with a Content-Length has no trailers; what remains of it after the response is dropped and costs nothing.

    Args:
        cycle: The request that uvicorn is reading or answering.
        count: The bytes counted so far.
        has_length: Whether the body of the request has a Content-Length.
    """

    cycle: Any = None
    count: int = 0
    has_length: bool = False

    def held_bytes(self, inner: Any) -> int:
        """Return how many bytes uvicorn holds of an incomplete head or trailer, and of pipelined requests."""
        return self.count + _pipelined_bytes(inner)

    def feed(self, inner: Any, data: bytes) -> bool:
        """Pass bytes to uvicorn's protocol, and return whether the client exceeds the limits."""
        before = _body_size(inner)
        inner.data_received(data)
        if inner.cycle is not self.cycle:
            self.cycle, self.count, self.has_length = inner.cycle, 0, not _is_chunked(inner.cycle)
        elif not (self.has_length and inner.cycle.more_body):
            self.count += max(len(data) - _CHUNK_BYTES * (_body_size(inner) - before), 0)
        exceeds_bytes = self.count > MAX_BYTES or _pipelined_bytes(inner) > MAX_BYTES
        return exceeds_bytes or len(inner.headers or ()) > MAX_HEADERS


def watch_for_hang_up(inner: Any) -> None:
    """Read on behind a few pipelined requests: uvicorn pauses there, and a paused connection shows no hang-up."""
    if inner.pipeline and _pipelined_bytes(inner) <= MAX_WATCHED_BYTES:
        inner.flow.resume_reading()


def list_due(inner: Any) -> list[Any]:
    """Return the requests that uvicorn answers, has read, or is reading."""
    cycles = [inner.cycle, inner.answered, *(cycle for cycle, _ in inner.pipeline)]
    return [cycle for cycle in cycles if cycle is not None and not cycle.response_complete]


def mark_hang_up(inner: Any) -> None:
    """Mark the requests of a client that hangs up before their responses are complete, for the access log."""
    for cycle in list_due(inner):
        cycle.scope[HUNG_UP] = True


def _is_chunked(cycle: Any) -> bool:
    return any(name == b"transfer-encoding" for name, _ in cycle.scope["headers"])


def _body_size(inner: Any) -> int:
    return 0 if inner.cycle is None else len(inner.cycle.body)


def _pipelined_bytes(inner: Any) -> int:
    return sum(len(cycle.body) + _CYCLE_BYTES for cycle, _ in inner.pipeline)
