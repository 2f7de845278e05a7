"""Sends frames: all of one turn of the loop together, and messages as far as the windows of the client allow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from unfoldkit.serving.grpc.http2.calls import PREFIX_BYTES, Call
from unfoldkit.serving.grpc.http2.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    FIRST_WINDOW,
    HEADERS,
    MAX_FRAME_BYTES,
    pack_frame,
    pack_head,
)
from unfoldkit.serving.grpc.http2.headers import RESPONSE_HEAD

MAX_BURST_BYTES = 2**18
"""Bytes of waiting responses that are written in one turn of the loop."""
READ_S = 30.0
"""How long a client may take to read a response, besides a time for its bytes."""
MIN_READ_BYTES_PER_S = 2**14


@dataclass(slots=True, eq=False, repr=False)
class Sender:
    """What one connection sends.

    Args:
        loop: The event loop.
        close: Called with a call once its last frame was written.
        hold: Counts what a call holds; false if that is too much, and the call has ended.
        refund: Called with the number of bytes of messages that the client has room for.
        transport: The transport while the connection is open.
        window: Bytes that the client accepts on all streams.
        max_frame_bytes: The largest payload that it accepts.
        blocked: Calls with bytes that wait for a window.
        out: Frames to be written at the end of this turn of the loop.
        is_flush_due: They will be.
        is_burst: More of what waits may be written in the next turn.
        is_paused: The client does not read.
    """

    loop: asyncio.AbstractEventLoop
    close: Callable[[Call], None]
    hold: Callable[[Call], bool]
    refund: Callable[[int], None]
    transport: asyncio.Transport | None = None
    window: int = FIRST_WINDOW
    max_frame_bytes: int = MAX_FRAME_BYTES
    blocked: dict[int, Call] = field(default_factory=dict)
    out: list[bytes] = field(default_factory=list)
    is_flush_due: bool = False
    is_burst: bool = False
    is_paused: bool = False

    def write(self, data: bytes) -> None:
        """Write bytes at the end of this turn of the loop, with all others."""
        self.out.append(data)
        if not self.is_flush_due:
            self.is_flush_due = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write all frames now."""
        self.is_flush_due = False
        if self.out and self.transport is not None:
            data, self.out = b"".join(self.out), []
            if not self.transport.is_closing():
                self.transport.write(data)
            if self.is_burst:
                self.send_blocked()

    def respond_at_once(self, call: Call, message: bytes, trailers: bytes) -> bool:
        """Send a whole response, and return true; false if it does not fit into the windows or one frame."""
        size, stream_id = len(message), call.id
        length = PREFIX_BYTES + size
        if length > MAX_FRAME_BYTES or length > self.window or length > call.send_window or self.is_paused:
            return False
        self.window -= length
        self.write(
            b"%b%b%b\x00%b%b%b%b"
            % (
                pack_head(len(RESPONSE_HEAD), HEADERS, END_HEADERS, stream_id),
                RESPONSE_HEAD,
                pack_head(length, DATA, 0, stream_id),
                size.to_bytes(4, "big"),
                message,
                pack_head(len(trailers), HEADERS, END_HEADERS | END_STREAM, stream_id),
                trailers,
            )
        )
        return True

    def send(self, call: Call, data: bytes) -> None:
        """Send bytes as far as the windows allow; the rest waits and counts as held."""
        is_first = not call.pending
        call.pending += data
        if is_first:
            self._send_pending(call)
        if call.pending:
            self.blocked[call.id] = call
            call.late_s = self.loop.time() + READ_S + len(call.pending) / MIN_READ_BYTES_PER_S
            self.hold(call)

    def _send_pending(self, call: Call) -> int:
        """Send what waits as far as the windows allow, and return how much it was."""
        sent = 0
        while call.pending and sent < MAX_BURST_BYTES and not self.is_paused:
            size = min(len(call.pending), self.window, call.send_window, self.max_frame_bytes)
            if size <= 0:
                break
            self.write(pack_head(size, DATA, 0, call.id) + call.pending[:size])
            del call.pending[:size]
            self.window -= size
            call.send_window -= size
            sent += size
            self.refund(size)
        self.is_burst = self.is_burst or sent >= MAX_BURST_BYTES
        if not call.pending and call.trailers is not None:
            self.end(call)
        return sent

    def send_blocked(self) -> None:
        """Send what waits, each call in turn."""
        sent = 0
        for call in list(self.blocked.values()):
            if sent >= MAX_BURST_BYTES or self.window <= 0 or self.is_paused:
                break
            if call.send_window > 0:
                sent += self.advance(call)
        self.is_burst = sent >= MAX_BURST_BYTES

    def advance(self, call: Call) -> int:
        """Send what waits of one call, and return how much it was."""
        sent = self._send_pending(call)
        self.blocked.pop(call.id, None)
        self.hold(call)
        if call.pending:
            # behind the others
            self.blocked[call.id] = call
        else:
            call.late_s = 0.0
            if call.writer is not None and not call.writer.done():
                call.writer.set_result(None)
        return sent

    def end(self, call: Call) -> None:
        """Write the last frame of a call."""
        if call.trailers:
            self.write(pack_frame(HEADERS, END_HEADERS | END_STREAM, call.id, call.trailers))
        else:
            self.write(pack_head(0, DATA, END_STREAM, call.id))
        self.close(call)
