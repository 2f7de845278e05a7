"""A connection that answers plain requests itself and passes everything else to uvicorn."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from unfoldkit.serving.http.access_control import OPEN_PATHS
from unfoldkit.serving.http.fast_path.head import FastPath, Head, format_response, parse_head
from unfoldkit.serving.http.fast_path.overload import OverloadRejecter
from unfoldkit.serving.http.fast_path.uvicorn_internals import ReadAheadLimit, list_due, mark_hang_up, watch_for_hang_up
from unfoldkit.serving.http.resource_limits import Holding, ResourceUsage, overload_reply
from unfoldkit.serving.observability.access_log import CLIENT_LEFT, RequestNote, new_id
from unfoldkit.serving.responses import Reply, too_many_requests
from unfoldkit.serving.service import Scope

_CLOSE_AT_ONCE = struct.pack("ii", 1, 0)
MAX_PROBE_BYTES = 4096
MIN_COSTLY_BYTES = 2**14
MAX_TURN_S = 0.002
PAUSE_FACTOR = 4.0
"""A client that held up the event loop for longer with its bytes is not read for so many times that duration."""
LINGER_S = 5.0
"""How long the unread rest of a body is dropped, so that its client can read the response."""
MAX_LINGER_BYTES = 64 * 2**20
INFERENCE_PATHS = ("/v1/models/", "/v2/models/")
PROBE_LINES = tuple(b"GET %b HTTP/1." % path.encode() for path in OPEN_PATHS)


@dataclass(slots=True, eq=False)
class Connection:
    """One connection of the server: an ``asyncio.Protocol`` by shape, around uvicorn's protocol ``inner``.

    Args:
        inner: The protocol of uvicorn.
        fast_path: What is answered here.
        connections: The open connections of the server.
        now: A monotonic clock in s.
        usage: What all connections of the process hold.
        rejecter: Rejects requests under overload; ``None`` without one.
        transport: The transport while the connection is open.
        is_uvicorns: The connection belongs to uvicorn for good.
        is_busy: A response is due.
        is_ending: The connection ends with its next response.
        has_hung_up: The client has closed the connection, or its side of it.
        is_write_paused: The client does not read its responses.
        is_read_paused: Nothing is read from the client.
        buffer: Bytes of an incomplete request.
        pending: The head of that request, if it is a plain one.
        holding: What this connection holds; ``None`` if it was not admitted.
        last_active_s: When a request was last complete.
        began_s: When the current request, or the write pause, began; 0 for none.
        request_id: The id of the request that is answered.
        head: Its head, if an observer receives notes.
        rejected: A rejected request with its retry time in s, while ``skip_bytes`` of its body are still to come.
        skip_bytes: Bytes of a rejected body to drop.
        is_quiet: Nothing was under way when the rejecter last looked, and nothing has happened since.
        descriptor: The file descriptor while the rejecter watches the connection, else -1.
        is_lingering: The last response is written, and what the client still sends is dropped.
        dropped_bytes: How much that is so far.
        read_ahead: Limits what is read ahead of uvicorn's responses.
    """

    inner: Any
    fast_path: FastPath
    connections: set[Any]
    now: Callable[[], float]
    usage: ResourceUsage
    rejecter: OverloadRejecter | None = None
    transport: asyncio.Transport | None = None
    is_uvicorns: bool = False
    is_busy: bool = False
    is_ending: bool = False
    has_hung_up: bool = False
    is_write_paused: bool = False
    is_read_paused: bool = False
    buffer: bytearray = field(default_factory=bytearray)
    pending: Head | None = None
    holding: Holding | None = None
    last_active_s: float = 0.0
    began_s: float = 0.0
    request_id: str = ""
    head: Head | None = None
    rejected: tuple[Head, int] | None = None
    skip_bytes: int = 0
    is_quiet: bool = False
    descriptor: int = -1
    is_lingering: bool = False
    dropped_bytes: int = 0
    read_ahead: ReadAheadLimit = field(default_factory=ReadAheadLimit)

    @property
    def is_probe(self) -> bool:
        """Whether the connection exceeds the bound and is there for a health check only."""
        return self.holding is not None and self.holding.is_probe

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Replace uvicorn's protocol in the set of connections, which is used for the shutdown."""
        self.transport, self.last_active_s = transport, self.now()
        self.inner.connection_made(_InnerTransport(transport, self))
        self.connections.discard(self.inner)
        self.connections.add(self)
        peer = transport.get_extra_info("peername")
        self.holding = self.usage.admit(peer[0] if isinstance(peer, tuple) else "", self.abort)
        if self.holding is None:
            self._refuse()
        elif self.is_probe:
            self.began_s = self.last_active_s

    def connection_lost(self, error: Exception | None) -> None:
        """Inform uvicorn's protocol."""
        self.connections.discard(self)
        self._unwatch()
        self.transport = None
        if self.holding is not None:
            self.holding.release()
            self.holding = None
        # the client cannot receive the responses to pipelined requests
        self.inner.pipeline.clear()
        self.inner.connection_lost(error)

    def data_received(self, data: bytes) -> None:
        """Answer a plain request, or pass the bytes to uvicorn; bytes that take long earn their client a pause."""
        if len(data) < MIN_COSTLY_BYTES:
            self._receive(data)
            return
        start_s = self.now()
        self._receive(data)
        elapsed_s = self.now() - start_s
        if elapsed_s > MAX_TURN_S and self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(PAUSE_FACTOR * elapsed_s, self._end_pause)

    def _end_pause(self) -> None:
        """Read again after a pause, unless something else has stopped the reading meanwhile."""
        is_stopped = self.inner.flow.read_paused if self.is_uvicorns else self.is_read_paused
        if (self.is_lingering or not is_stopped) and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def _receive(self, data: bytes) -> None:
        self.is_quiet = False
        if self.is_lingering:
            self._drop(data)
        elif self.is_uvicorns:
            self._pass_on(data)
        elif self.skip_bytes:
            if remaining := self._skip(data):
                self._begin(remaining)
        elif self.is_busy or self.is_write_paused:
            self.buffer += data
            self._pause_reading()
        elif self.pending is not None:
            self.buffer += data
            self._continue(self.pending)
        elif self.holding is None or self.holding.is_probe:
            self._answer_probe(data)
        else:
            self._begin(data)

    def eof_received(self) -> bool:
        """Keep the connection open while a response is due."""
        self.inner.eof_received()
        mark_hang_up(self.inner)
        self.is_ending, self.is_quiet, self.has_hung_up = True, False, True
        if self.is_lingering:
            return False
        return self.is_busy or (self.is_uvicorns and self._is_inference_due())

    def _is_inference_due(self) -> bool:
        """Whether uvicorn owes responses to complete inference requests only; the connection ends with the last.

        Other requests may stream or cost money, so that a client that stops sending counts as gone.
        """
        last = self.inner.cycle
        if last is None or last.response_complete or last.more_body:
            return False
        if not all(_is_inference(cycle.scope) for cycle in list_due(self.inner)):
            return False
        last.keep_alive = False
        return True

    def pause_writing(self) -> None:
        """Stop reading from a client that does not read its responses."""
        self.inner.pause_writing()
        self.is_write_paused, self.is_quiet, self.began_s = True, False, self.now()
        if not self.is_uvicorns:
            self._pause_reading()

    def resume_writing(self) -> None:
        """Continue with a client that reads its responses again."""
        self.inner.resume_writing()
        self.is_write_paused = False
        if not self.is_uvicorns and not self.is_busy:
            self._resume_reading()

    def shutdown(self) -> None:
        """End the connection after the response that is due."""
        self.is_ending, self.is_quiet = True, False
        if not self.is_busy and not self.buffer and not self.skip_bytes:
            self.inner.shutdown()

    def check_quiet(self) -> bool:
        """Whether nothing is under way in either direction; the result is kept in ``is_quiet``."""
        is_active = self.is_uvicorns or self.is_busy or self.is_write_paused or self.is_ending
        if is_active or self.skip_bytes or self.buffer or self.transport is None or self.transport.is_closing():
            return False
        self.is_quiet = self.transport.get_write_buffer_size() == 0
        return self.is_quiet

    def send(self, data: bytes) -> None:
        """Write bytes after those that are still to be written."""
        if self.transport is not None:
            self.is_quiet = False
            self.transport.write(data)

    def is_idle(self, since_s: float) -> bool:
        """Whether no request came since then; uvicorn has its own timer for its connections."""
        return not self.is_uvicorns and not self.is_busy and not self.skip_bytes and self.last_active_s < since_s

    @property
    def is_free(self) -> bool:
        """Whether no request is under way."""
        cycle = self.inner.cycle
        is_answering = self.is_busy or (cycle is not None and not cycle.response_complete)
        return not is_answering and not self.buffer and not self.skip_bytes

    def is_stalled(self, since_s: float) -> bool:
        """Whether a request has been arriving, or a response has not been read, since then."""
        if self.is_write_paused:
            return self.began_s < since_s
        if self.is_uvicorns:
            cycle = self.inner.cycle
            is_answering = cycle is not None and not cycle.response_complete and not cycle.more_body
            if is_answering or self.inner.timeout_keep_alive_task is not None:
                self.began_s = self.now()
                return False
            return self.began_s < since_s
        return bool(self.buffer or self.skip_bytes or self.is_probe) and not self.is_busy and self.began_s < since_s

    def end(self) -> None:
        """Close the connection after its last response.

        Bytes that arrive at a closed connection are answered by a reset, which destroys a response that the client has
        not read. So the server first stops writing only, and drops what still arrives (RFC 9112, section 9.6).
        """
        if self.transport is None or self.transport.is_closing():
            return
        cycle = self.inner.cycle
        is_received = self.is_uvicorns and cycle is not None and not cycle.more_body
        if self.is_lingering or self.is_ending or is_received:
            self.transport.close()
            return
        self.is_lingering = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.transport.resume_reading()
        asyncio.get_running_loop().call_later(LINGER_S, self.transport.close)

    def abort(self) -> None:
        """Close the connection now and drop what is still to be written."""
        self.is_quiet = False
        if self.inner.cycle is not None:
            self.inner.cycle.disconnected = True
        self.inner.pipeline.clear()
        if self.transport is not None:
            # otherwise the kernel keeps the unsent bytes, and resets the connection only after them
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CLOSE_AT_ONCE)
            self.transport.abort()

    def _drop(self, data: bytes) -> None:
        """Drop bytes that follow the last response."""
        self.dropped_bytes += len(data)
        if self.dropped_bytes > MAX_LINGER_BYTES and self.transport is not None:
            self.transport.close()

    def _pass_on(self, data: bytes) -> None:
        """Pass bytes to uvicorn, and abort if the client runs too far ahead."""
        exceeds_limits = self.read_ahead.feed(self.inner, data)
        if self.is_lingering:
            # it was refused, and an abort would destroy the response
            return
        if exceeds_limits:
            self.abort()
        elif self.holding is not None and self.holding.hold(self.read_ahead.held_bytes(self.inner), 0):
            self.usage.reject("head_bytes")
            self.abort()
        else:
            watch_for_hang_up(self.inner)

    def _give_to_uvicorn(self, data: bytes) -> None:
        """Leave the connection to uvicorn for good, with what the client has sent so far."""
        self.is_uvicorns, self.began_s = True, self.now()
        self.pending, self.buffer = None, bytearray()
        self._unwatch()
        self._hold_body(0)
        self._pass_on(data)

    def _begin(self, data: bytes) -> None:
        """Process the first bytes of a request."""
        head = parse_head(data, self.fast_path)
        if head is None or len(data) > head.end:
            self._give_to_uvicorn(data)
        elif len(data) == head.end:
            self._complete(head, data)
        else:
            self.began_s = self.now()
            if retry_s := head.admission.ask():
                self.rejected = (head, retry_s)
                self.skip_bytes = head.end - len(data)
            else:
                self.pending, self.buffer = head, bytearray(data)
                self._hold_body(len(data))

    def _continue(self, head: Head) -> None:
        """Wait for the rest of a body, or process the request which is complete now."""
        if len(self.buffer) < head.end:
            self._hold_body(len(self.buffer))
            return
        data, self.pending, self.buffer = bytes(self.buffer), None, bytearray()
        if len(data) > head.end:
            self._give_to_uvicorn(data)
        else:
            self._complete(head, data)

    def _complete(self, head: Head, data: bytes) -> None:
        if retry_s := head.admission.ask():
            self._hold_body(0)
            self._reject(head, retry_s)
            return
        if len(data) >= MIN_COSTLY_BYTES and not self._hold_body(len(data)):
            return
        self.is_busy = True
        self._start_request(head)
        head.responder(data[head.body_start :], self._reply)

    def _hold_body(self, size: int) -> bool:
        """Record the bytes of a body that is held until its response, and refuse what exceeds the bounds.

        Returns:
            Whether the request may go on.
        """
        # most requests are small, arrive at once and hold nothing
        if self.holding is None or self.holding.body_bytes == size or not self.holding.hold(0, size):
            return True
        self.usage.reject("body_bytes")
        self._refuse()
        return False

    def _refuse(self) -> None:
        """Answer with 503, and close the connection."""
        # one that exceeds the bound of connections must not take up a descriptor for longer
        is_admitted = self.holding is not None and not self.holding.is_probe
        self.pending, self.buffer = None, bytearray()
        if self.holding is not None:
            self.holding.hold(0, 0)
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(format_response(overload_reply(), self.fast_path.default_headers(), is_last=True))
            self.is_ending = self.is_ending or not is_admitted
            self.end()

    def _answer_probe(self, data: bytes) -> None:
        """Pass a health check to uvicorn, and refuse any other request."""
        self.buffer += data
        if self.buffer.startswith(PROBE_LINES) and len(self.buffer) <= MAX_PROBE_BYTES:
            if b"\r\n\r\n" in self.buffer:
                self.is_ending = True
                self._give_to_uvicorn(bytes(self.buffer))
                self.inner.shutdown()
        elif not any(line.startswith(self.buffer[: len(line)]) for line in PROBE_LINES):
            self._refuse()

    def _start_request(self, head: Head) -> None:
        self.last_active_s, self.began_s = self.now(), 0.0
        self.request_id = head.id
        if self.fast_path.observer is not None:
            self.request_id = head.id or new_id()
            self.head = head

    def _skip(self, data: bytes) -> bytes:
        """Drop the body of a rejected request, respond at its end, and return the bytes after it."""
        remaining = data[self.skip_bytes :]
        self.skip_bytes = max(self.skip_bytes - len(data), 0)
        if not self.skip_bytes and self.rejected is not None:
            self._reject(*self.rejected)
        return b"" if self.transport is None or self.transport.is_closing() else remaining

    def _reject(self, head: Head, retry_s: int) -> None:
        self._start_request(head)
        if self.request_id or self.is_ending or self.fast_path.is_closing():
            self._reply(too_many_requests(retry_s))
        elif self.transport is not None:
            # under overload this is the most frequent response, so it is formatted in advance
            self.transport.write(self.fast_path.format_rejection(retry_s))
            self._watch(self.transport)

    def _watch(self, transport: asyncio.Transport) -> None:
        if self.rejecter is not None:
            if self.descriptor < 0:
                self.descriptor = transport.get_extra_info("socket").fileno()
            self.rejecter.watch(self, self.descriptor)

    def _unwatch(self) -> None:
        if self.rejecter is not None and self.descriptor >= 0:
            self.is_quiet = False
            self.rejecter.unwatch(self, self.descriptor)
            self.descriptor = -1

    def _reply(self, reply: Reply) -> None:
        self.is_busy = False
        self._hold_body(0)
        self._notify(reply.status)
        if self.transport is None or self.transport.is_closing():
            return
        is_last = self.is_ending or self.fast_path.is_closing() or (b"connection", b"close") in reply.headers
        headers = self.fast_path.default_headers()
        self.transport.write(format_response(reply, headers, is_last=is_last, request_id=self.request_id))
        if is_last:
            self.transport.close()
        elif self.is_read_paused and not self.is_write_paused:
            self._resume_reading()

    def _notify(self, status: int) -> None:
        if self.fast_path.observer is not None and (head := self.head) is not None:
            status = CLIENT_LEFT if self.has_hung_up or self.transport is None else status
            duration_s = self.now() - self.last_active_s
            self.fast_path.observer(RequestNote(self.request_id, "POST", head.path, status, duration_s, head.parent))

    def _pause_reading(self) -> None:
        self.is_read_paused = True
        if self.transport is not None:
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        self.is_read_paused = False
        if self.transport is not None:
            self.transport.resume_reading()
        if self.pending is not None:
            self._continue(self.pending)
        elif self.buffer:
            data, self.buffer = bytes(self.buffer), bytearray()
            self._begin(data)


class _InnerTransport:
    """The transport as uvicorn's protocol sees it: its close leaves a client that still sends time to read."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self.transport, self.connection = transport, connection

    def write(self, data: bytes) -> None:
        # an application may still answer the head of a request after a 400 has answered its body
        if not self.connection.is_lingering:
            self.transport.write(data)

    def close(self) -> None:
        self.connection.end()

    def is_closing(self) -> bool:
        return self.connection.is_lingering or self.transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


def _is_inference(scope: Scope) -> bool:
    return bool(scope["method"] == "POST" and scope["path"].startswith(INFERENCE_PATHS))
