"""A connection that answers plain requests itself and passes everything else to uvicorn."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from unfoldkit.serving.http.fast_path.head import FastPath, Head, format_response, parse_head
from unfoldkit.serving.http.fast_path.overload import OverloadRejecter
from unfoldkit.serving.http.fast_path.uvicorn_internals import ReadAheadLimit
from unfoldkit.serving.observability.access_log import RequestNote, new_id
from unfoldkit.serving.responses import Reply, too_many_requests

_CLOSE_AT_ONCE = struct.pack("ii", 1, 0)


@dataclass(slots=True, eq=False)
class Connection:
    """One connection of the server: an ``asyncio.Protocol`` by shape, around uvicorn's protocol ``inner``.

    Args:
        inner: The protocol of uvicorn.
        fast_path: What is answered here.
        connections: The open connections of the server.
        now: A monotonic clock in s.
        rejecter: Rejects requests under overload; ``None`` without one.
        transport: The transport while the connection is open.
        is_uvicorns: The connection belongs to uvicorn for good.
        is_busy: A response is due.
        is_ending: The connection ends with its next response.
        is_write_paused: The client does not read its responses.
        is_read_paused: Nothing is read from the client.
        data: Bytes of an incomplete request.
        last_active_s: When a request was last complete.
        began_s: When the current request, or the write pause, began; 0 for none.
        request_id: The id of the request that is answered.
        head: Its head, if an observer receives notes.
        rejected: A rejected request with its retry time in s, while ``skip_bytes`` of its body are still to come.
        skip_bytes: Bytes of a rejected body to drop.
        is_quiet: Nothing was under way when the rejecter last looked, and nothing has happened since.
        descriptor: The file descriptor while the rejecter watches the connection, else -1.
        read_ahead: Limits what is read ahead of uvicorn's responses.
    """

    inner: Any
    fast_path: FastPath
    connections: set[Any]
    now: Callable[[], float]
    rejecter: OverloadRejecter | None = None
    transport: asyncio.Transport | None = None
    is_uvicorns: bool = False
    is_busy: bool = False
    is_ending: bool = False
    is_write_paused: bool = False
    is_read_paused: bool = False
    data: bytes = b""
    last_active_s: float = 0.0
    began_s: float = 0.0
    request_id: str = ""
    head: Head | None = None
    rejected: tuple[Head, int] | None = None
    skip_bytes: int = 0
    is_quiet: bool = False
    descriptor: int = -1
    read_ahead: ReadAheadLimit = field(default_factory=ReadAheadLimit)

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Replace uvicorn's protocol in the set of connections, which is used for the shutdown."""
        self.transport, self.last_active_s = transport, self.now()
        self.inner.connection_made(transport)
        self.connections.discard(self.inner)
        self.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Inform uvicorn's protocol."""
        self.connections.discard(self)
        self._unwatch()
        self.transport = None
        # the client cannot receive the responses to pipelined requests
        self.inner.pipeline.clear()
        self.inner.connection_lost(error)

    def data_received(self, data: bytes) -> None:
        """Answer a plain request, or pass the bytes to uvicorn."""
        self.is_quiet = False
        if self.is_uvicorns:
            self._pass_on(data)
            return
        if self.skip_bytes:
            data = self._skip(data)
            if not data:
                return
        self.data = self.data + data if self.data else data
        if not self.is_busy and not self.is_write_paused:
            self._process()
        else:
            self._pause_reading()

    def eof_received(self) -> bool:
        """Keep the connection open while a response is due."""
        self.inner.eof_received()
        self.is_ending, self.is_quiet = True, False
        return self.is_busy

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
        if not self.is_busy and not self.data and not self.skip_bytes:
            self.inner.shutdown()

    def check_quiet(self) -> bool:
        """Whether nothing is under way in either direction; the result is kept in ``is_quiet``."""
        is_active = self.is_uvicorns or self.is_busy or self.is_write_paused or self.is_ending
        if is_active or self.skip_bytes or self.data or self.transport is None or self.transport.is_closing():
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
        return bool(self.data or self.skip_bytes) and not self.is_busy and self.began_s < since_s

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

    def _pass_on(self, data: bytes) -> None:
        """Pass bytes to uvicorn, and abort if the client runs too far ahead."""
        if self.read_ahead.feed(self.inner, data):
            self.abort()

    def _process(self) -> None:
        head = parse_head(self.data, self.fast_path)
        if head is None or len(self.data) > head.end:
            self.is_uvicorns, self.began_s = True, self.now()
            self._unwatch()
            data, self.data = self.data, b""
            self._pass_on(data)
        elif len(self.data) == head.end:
            data, self.data = self.data, b""
            if retry_s := head.admission.ask():
                self._reject(head, retry_s)
                return
            self.is_busy = True
            self._start_request(head)
            head.responder(data[head.body_start :], self._reply)
        elif not self.began_s:
            self.began_s = self.now()
            if retry_s := head.admission.ask():
                self.rejected = (head, retry_s)
                self.skip_bytes, self.data = head.end - len(self.data), b""

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
        if self.data:
            self._process()
