"""A connection of HTTP/2 (RFC 9113) with calls of gRPC: frames, streams, windows, and what clients may not do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from unfoldkit.serving.grpc.http2 import frames
from unfoldkit.serving.grpc.http2.calls import ENCODINGS, MESSAGE_S, STREAM_WINDOW, Call, Code, Method
from unfoldkit.serving.grpc.http2.frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    FIRST_WINDOW,
    HEAD_BYTES,
    HEADERS,
    ID_MASK,
    MAX_FRAME_BYTES,
    MAX_WINDOW,
    PREFACE,
    ConnectionFault,
    ErrorCode,
    StreamFault,
    pack_frame,
    pack_goaway,
    pack_reset,
    pack_window_update,
    read_head,
    strip_padding,
)
from unfoldkit.serving.grpc.http2.headers import (
    MALFORMED,
    MAX_LIST_BYTES,
    OK_TRAILERS,
    RESPONSE_HEAD,
    UNSUPPORTED_MEDIA,
    HeadReader,
    Metadata,
    are_valid_trailers,
    write_trailers,
)
from unfoldkit.serving.grpc.http2.host import Host
from unfoldkit.serving.grpc.http2.sending import MAX_BURST_BYTES, Sender

CONNECTION_WINDOW = 4 * 2**20
"""Bytes that a client may send on all streams before they are counted."""
MAX_BLOCK_BYTES = 2 * MAX_LIST_BYTES
MAX_BLOCK_FRAMES = 16
ALLOWANCE = 10_000
"""Frames without a message that a client may send at once; each message and each second brings some back."""
ALLOWANCE_PER_MESSAGE, ALLOWANCE_PER_S, BYTES_PER_ALLOWANCE = 8, 1000, 1024
RESET_COST = 4
MAX_ABANDONED = 256
"""Streams that ended before their client had sent all, and on which frames may still arrive."""
MAX_TURN_FRAMES = 256
"""Frames that are read in one turn of the loop."""
PART_S = 30.0
"""How long a frame or a header block may take to arrive, and a client to read what was written."""
CLOSE_S = 5.0
PROBE_S = 1.0
"""How long a client has to notice the end of the server before its new calls are refused."""
PROBE = b"unfolded"
BAD_MEDIA_TEXT = b"this server speaks gRPC: POST with content-type application/grpc\n"
NO_METHOD = Method(parse=bytes, serialize=bytes, answer=lambda _request, _call: None)


@dataclass(slots=True, eq=False, repr=False)
class Connection:
    """One connection: an ``asyncio.Protocol`` by shape.

    Args:
        host: What it shares with others.
        loop: The event loop.
        sender: Writes frames.
        transport: The transport while the connection is open.
        client: The address of the client.
        peer: The same as gRPC writes it, with the port.
        heads: Decodes header blocks.
        calls: The open calls by stream.
        abandoned: Streams that ended before the client had sent all.
        buffer: Bytes of an incomplete frame.
        needed_bytes: How many it has at least.
        began_s: When it, or a header block, began to arrive; 0 for none.
        fragments: The header block that is arriving.
        fragment_count: Its frames.
        opening: Stream and flags of that block; ``None`` for no block.
        last_id: The last stream that the client opened.
        last_taken_id: The last one that is answered.
        has_settings: The preface and the settings of the client have arrived.
        receive_window: Bytes that it may send on all streams.
        first_window: Bytes that it accepts on a new stream.
        allowance: Frames without a message that it may still send.
        is_closed: Nothing is read or begun any more.
        is_refusing: New calls are refused: the server stops.
        since_s: When the connection became idle, paused, closed or draining.
        is_yielding: Frames are left for the next turn of the loop.
        is_draining: The client was asked to open no more calls.
        is_admitted: The connection is counted.
    """

    host: Host
    loop: asyncio.AbstractEventLoop
    sender: Sender = field(init=False)
    transport: asyncio.Transport | None = None
    client: str = ""
    peer: str = ""
    heads: HeadReader = field(default_factory=HeadReader)
    calls: dict[int, Call] = field(default_factory=dict)
    abandoned: dict[int, None] = field(default_factory=dict)
    buffer: bytearray = field(default_factory=bytearray)
    needed_bytes: int = 0
    began_s: float = 0.0
    fragments: bytearray = field(default_factory=bytearray)
    fragment_count: int = 0
    opening: tuple[int, int] | None = None
    last_id: int = 0
    last_taken_id: int = 0
    has_settings: bool = False
    receive_window: int = CONNECTION_WINDOW
    first_window: int = FIRST_WINDOW
    allowance: int = ALLOWANCE
    is_closed: bool = False
    is_refusing: bool = False
    since_s: float = 0.0
    is_yielding: bool = False
    is_draining: bool = False
    is_admitted: bool = False

    def __post_init__(self) -> None:
        self.sender = Sender(self.loop, self._close_answered, self.hold, self._refund_bytes)

    @property
    def max_message_bytes(self) -> int:
        """The largest message that is accepted."""
        return self.host.max_message_bytes

    @property
    def log(self) -> logging.Logger:
        """Receives failures of handlers."""
        return self.host.log

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """The running handlers of all connections."""
        return self.host.tasks

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Send the settings, or close the connection if there are too many."""
        self.transport = self.sender.transport = transport
        self.since_s = self.loop.time()
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            self.client = peer[0]
            self.peer = f"ipv6:[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"ipv4:{peer[0]}:{peer[1]}"
        if len(self.host.connections) >= self.host.max_connections or self.host.hold_connection(self.client, 1):
            self.is_closed = True
            transport.abort()
            return
        self.is_admitted = True
        self.host.connections.add(self)
        settings = {
            frames.MAX_CONCURRENT_STREAMS: self.host.max_streams,
            frames.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            frames.MAX_HEADER_LIST_SIZE: MAX_LIST_BYTES,
        }
        self.sender.write(frames.pack_settings(settings) + pack_window_update(0, CONNECTION_WINDOW - FIRST_WINDOW))
        if self.host.is_draining:
            self.drain()

    def connection_lost(self, _error: Exception | None) -> None:
        """Cancel the calls, which no one waits for."""
        self.transport = self.sender.transport = None
        self.is_closed = True
        self._drop_calls()
        if self.is_admitted:
            self.host.connections.discard(self)
            self.host.hold_connection(self.client, -1)

    def eof_received(self) -> bool:
        """Close the connection: a client of gRPC stops sending when it has gone."""
        return False

    def pause_writing(self) -> None:
        """Stop reading from a client that does not read."""
        self.sender.is_paused, self.since_s = True, self.loop.time()
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        """Continue with a client that reads again."""
        self.sender.is_paused = False
        if self.transport is not None and not self.is_closed:
            self.since_s = self.loop.time()
            if not self.is_yielding:
                self.transport.resume_reading()
            self.sender.send_blocked()

    def data_received(self, data: bytes) -> None:
        """Read all complete frames."""
        if self.is_closed:
            return
        if self.buffer:
            self.buffer += data
            if len(self.buffer) < self.needed_bytes:
                return
            data, self.buffer = bytes(self.buffer), bytearray()
        try:
            end = self._read_frames(data)
        except ConnectionFault as fault:
            self._shut(fault.code, str(fault))
            return
        except Exception:
            # asyncio would log all that the connection holds
            self.host.log.exception("a connection of gRPC failed")
            self._shut(ErrorCode.INTERNAL_ERROR)
            return
        if end < len(data):
            self.buffer += data[end:]
        if self.is_yielding and self.transport is not None:
            self.transport.pause_reading()
            self.loop.call_soon(self._go_on)
        if not self.buffer and self.opening is None:
            self.began_s = 0.0
        elif end or not self.began_s:
            self.began_s = self.loop.time()

    def _go_on(self) -> None:
        """Read the frames that are left of the last turn of the loop."""
        self.is_yielding, self.needed_bytes = False, 0
        if self.transport is not None and not self.is_closed:
            if not self.sender.is_paused:
                self.transport.resume_reading()
            self.data_received(b"")

    def _read_frames(self, data: bytes) -> int:
        """Read the complete frames of ``data``, up to a number, and return where the rest begins."""
        start, size, count = 0, len(data), 0
        if not self.has_settings and (start := self._read_preface(data)) < len(PREFACE):
            return 0
        while size - start >= HEAD_BYTES:
            upper, lower, kind, flags, stream_id = read_head(data, start)
            length = upper << 8 | lower
            if length > MAX_FRAME_BYTES:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame has {length} bytes")
            end = start + HEAD_BYTES + length
            if end > size:
                self.needed_bytes = HEAD_BYTES + length
                return start if self.has_settings else 0
            payload = data[start + HEAD_BYTES : end]
            try:
                self._read_frame(kind, flags, stream_id & ID_MASK, payload)
            except StreamFault as fault:
                self._reset(fault.stream_id, fault.code)
            if self.is_closed:
                return size
            start, count = end, count + 1
            if count == MAX_TURN_FRAMES:
                # the other connections come first
                self.is_yielding = True
                break
        self.needed_bytes = HEAD_BYTES
        return start if self.has_settings else 0

    def _read_preface(self, data: bytes) -> int:
        """Return the length of a correct preface; less while it is incomplete."""
        if not PREFACE.startswith(data[: len(PREFACE)]):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "this server speaks HTTP/2 with prior knowledge")
        self.needed_bytes = len(PREFACE)
        return min(len(data), len(PREFACE))

    def _read_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self.opening is not None and kind != frames.CONTINUATION:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block is interrupted")
        if not self.has_settings:
            if kind != frames.SETTINGS or flags & ACK:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame holds no settings")
            self.has_settings = True
        if kind == DATA:
            self.read_data(flags, stream_id, payload)
        elif kind == HEADERS:
            self.read_headers(flags, stream_id, payload)
        elif kind < len(READERS):
            READERS[kind](self, flags, stream_id, payload)
        else:
            self._pay(1)

    def _pay(self, cost: int) -> None:
        """Take the cost of a frame without a message from the allowance of the client."""
        self.allowance -= cost
        if self.allowance < 0:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames without messages")

    def _refund(self, count: int) -> None:
        """Allow frames in return for a message, or for bytes that the client reads."""
        if self.allowance < ALLOWANCE:
            self.allowance += count

    def _refund_bytes(self, size: int) -> None:
        self._refund(size // BYTES_PER_ALLOWANCE)

    def read_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Read a part of a request."""
        size = len(payload)
        self.receive_window -= size
        if self.receive_window < CONNECTION_WINDOW // 2:
            if self.receive_window < 0:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more bytes than the window of the connection")
            self.sender.write(pack_window_update(0, CONNECTION_WINDOW - self.receive_window))
            self.receive_window = CONNECTION_WINDOW
        call = self.calls.get(stream_id)
        if flags & frames.PADDED:
            payload = strip_padding(flags, payload)
        is_end = bool(flags & END_STREAM)
        if not payload and not is_end:
            self._pay(1)
        if call is None or call.is_received:
            self._check_opened(stream_id)
            if stream_id in self.abandoned:
                self._pay(1)
                return
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED)
        call.receive_window -= size
        if call.receive_window < 0:
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR)
        self._deliver(call, payload, is_end=is_end)

    def _deliver(self, call: Call, payload: bytes, *, is_end: bool) -> None:
        """Pass a part of the request on, unless no one reads it."""
        self._check_length(call, len(payload), is_end=is_end)
        if call.is_over:
            # its last bytes wait for a window
            call.is_received = is_end
        elif call.head.is_call:
            call.receive(payload, is_end=is_end)
        elif is_end:
            call.is_received = True
            self._reject_media(call)

    def _check_length(self, call: Call, size: int, *, is_end: bool) -> None:
        call.received_bytes += size
        stated = call.head.content_length
        if stated >= 0 and (call.received_bytes > stated or (is_end and call.received_bytes < stated)):
            raise StreamFault(call.id, ErrorCode.PROTOCOL_ERROR)

    def _check_opened(self, stream_id: int) -> None:
        """Raise if the client has not opened a stream."""
        if not stream_id or stream_id > self.last_id or not stream_id % 2:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"stream {stream_id} is not open")

    def read_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Read the beginning of a header block, or all of it."""
        if not stream_id % 2:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a client cannot open stream {stream_id}")
        if flags & (frames.PADDED | frames.HAS_PRIORITY):
            payload = strip_padding(flags, payload)
            if flags & frames.HAS_PRIORITY:
                if len(payload) < 5:
                    raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a priority is cut off")
                if int.from_bytes(payload[:4]) & ID_MASK == stream_id:
                    # the block must be decoded anyway
                    flags |= SELF_DEPENDENT
                payload = payload[5:]
        if flags & END_HEADERS:
            self._read_block(flags, stream_id, payload)
        else:
            self.opening, self.fragments, self.fragment_count = (stream_id, flags), bytearray(payload), 1

    def read_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Read the next part of a header block."""
        if self.opening is None or self.opening[0] != stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a continuation of no header block")
        self.fragments += payload
        self.fragment_count += 1
        if len(self.fragments) > MAX_BLOCK_BYTES or self.fragment_count > MAX_BLOCK_FRAMES:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block is too large")
        if flags & END_HEADERS:
            block, opening_flags, self.opening = bytes(self.fragments), self.opening[1], None
            self.fragments = bytearray()
            self._read_block(opening_flags, stream_id, block)

    def _read_block(self, flags: int, stream_id: int, block: bytes) -> None:
        """Open a call, or end the request of one."""
        if stream_id <= self.last_id:
            self._read_trailers(flags, stream_id, block)
            return
        head = self.heads.read(block)
        self.last_id = stream_id
        if self.is_refusing:
            self._abandon(stream_id)
            return
        self.last_taken_id = stream_id
        if head is MALFORMED or flags & SELF_DEPENDENT:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR)
        if len(self.calls) >= self.host.max_streams:
            raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM)
        self._open(Call(self, stream_id, head, NO_METHOD, self.first_window), is_received=bool(flags & END_STREAM))

    def _read_trailers(self, flags: int, stream_id: int, block: bytes) -> None:
        fields = self.heads.decode(block)
        call = self.calls.get(stream_id)
        if call is None:
            if stream_id in self.abandoned:
                self._pay(1)
                return
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"stream {stream_id} is closed")
        if call.is_received:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED)
        if not flags & END_STREAM or not are_valid_trailers(fields):
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR)
        self._deliver(call, b"", is_end=True)

    def _open(self, call: Call, *, is_received: bool) -> None:
        """Begin a call, or reject it by its head."""
        head, host = call.head, self.host
        self.calls[call.id] = call
        host.count_call(self.client, 1)
        call.is_received = is_received
        method = host.methods.get(head.path)
        call.late_s = self.loop.time() + MESSAGE_S
        if not head.is_call:
            if is_received:
                self._reject_media(call)
        elif head.problem:
            self.finish(call, head.problem_code, head.problem)
        elif method is None:
            self.finish(call, Code.UNIMPLEMENTED.value[0], "Method not found!")
        elif head.encoding not in ENCODINGS:
            message = "a message may be compressed by gzip or deflate only"
            metadata = (("grpc-accept-encoding", "identity,deflate,gzip"),)
            self.finish(call, Code.UNIMPLEMENTED.value[0], message, metadata)
        elif host.is_full(self.client):
            message = "the server is at its limit of calls; retry later"
            self.finish(call, Code.RESOURCE_EXHAUSTED.value[0], message, (("retry-after", "1"),))
        else:
            call.method = method
            if head.timeout_s is not None:
                call.timer = self.loop.call_later(head.timeout_s, self._expire, call)
            if method.is_stream:
                call.late_s = 0.0
                call.run()
            elif is_received:
                call.receive(b"", is_end=True)

    def _reject_media(self, call: Call) -> None:
        """Answer what is no call of gRPC with status 415 of HTTP."""
        self.sender.write(pack_frame(HEADERS, END_HEADERS, call.id, UNSUPPORTED_MEDIA))
        call.has_head, call.trailers, call.is_over = True, b"", True
        self.sender.send(call, BAD_MEDIA_TEXT)

    def _expire(self, call: Call) -> None:
        """End a call for which its client no longer waits."""
        if call.pending:
            self._reset(call.id, ErrorCode.CANCEL)
        else:
            self.finish(call, Code.DEADLINE_EXCEEDED.value[0], "the deadline of the client has passed")

    def read_priority(self, _flags: int, stream_id: int, payload: bytes) -> None:
        """Ignore a priority, which RFC 9113 deprecates."""
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a priority of no stream")
        self._pay(1)
        if len(payload) != 5:
            raise StreamFault(stream_id, ErrorCode.FRAME_SIZE_ERROR)
        if int.from_bytes(payload[:4]) & ID_MASK == stream_id:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR)

    def read_reset(self, _flags: int, stream_id: int, payload: bytes) -> None:
        """End a call that the client cancels."""
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a frame has another size than its type")
        self._check_opened(stream_id)
        self._pay(RESET_COST)
        self.abandoned.pop(stream_id, None)
        if (call := self.calls.get(stream_id)) is not None:
            call.is_received = True
            self._close(call)

    def read_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Take over the settings of the client."""
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "settings of a stream")
        if len(payload) % 6 or (flags & ACK and payload):
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "settings are cut off")
        self._pay(1)
        if flags & ACK:
            return
        window = self.first_window
        for key, value in frames.read_setting(payload):
            _check_setting(key, value)
            if key == frames.FRAME_SIZE:
                self.sender.max_frame_bytes = min(value, MAX_BURST_BYTES)
            elif key == frames.INITIAL_WINDOW_SIZE:
                window = value
        self.sender.write(pack_frame(frames.SETTINGS, ACK, 0, b""))
        if window != self.first_window:
            self._change_windows(window)

    def _change_windows(self, window: int) -> None:
        """Adapt the windows of all calls to a new first window."""
        self._pay(len(self.calls))
        change, self.first_window = window - self.first_window, window
        for call in self.calls.values():
            call.send_window += change
            if call.send_window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a window is too large")
        self.sender.send_blocked()

    def read_push(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        """Refuse a push, which only servers send."""
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client cannot push")

    def read_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Acknowledge a ping; if it answers ours, the client knows of the drain, and new calls are refused."""
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a ping of a stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a frame has another size than its type")
        self._pay(1)
        if not flags & ACK:
            self.sender.write(pack_frame(frames.PING, ACK, 0, payload))
        elif self.is_draining and payload == PROBE:
            self._refuse_calls()

    def read_goaway(self, _flags: int, stream_id: int, payload: bytes) -> None:
        """Go on: the client only announces that it opens no more calls."""
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a GOAWAY of a stream")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a GOAWAY is cut off")
        self._pay(1)

    def read_window_update(self, _flags: int, stream_id: int, payload: bytes) -> None:
        """Let responses go on."""
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a frame has another size than its type")
        size = int.from_bytes(payload) & MAX_WINDOW
        # it may look at all calls that wait
        self._pay(1 + len(self.sender.blocked) // 64)
        if not stream_id:
            self.sender.window += size
            if not size:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a window grows by nothing")
            if self.sender.window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a window is too large")
            self.sender.send_blocked()
            return
        self._check_opened(stream_id)
        if not size:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR)
        if (call := self.calls.get(stream_id)) is not None:
            call.send_window += size
            if call.send_window > MAX_WINDOW:
                raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR)
            if call.pending:
                self.sender.advance(call)

    def respond(self, call: Call, message: bytes) -> None:
        """Send the only response to a call, and end it."""
        if call.is_over:
            return
        trailers = OK_TRAILERS if not call.trailing else write_trailers(0, "", call.trailing)
        if self.sender.respond_at_once(call, message, trailers):
            self._close_answered(call)
            return
        self.send_message(call, message)
        self.finish(call, 0, "", call.trailing)

    def send_message(self, call: Call, message: bytes) -> None:
        """Send one response of a stream."""
        if call.is_over:
            return
        if not call.has_head:
            call.has_head = True
            self.sender.write(pack_frame(HEADERS, END_HEADERS, call.id, RESPONSE_HEAD))
        self._refund(ALLOWANCE_PER_MESSAGE)
        self.sender.send(call, b"\x00%b%b" % (len(message).to_bytes(4, "big"), message))

    def finish(self, call: Call, code: int, message: str = "", metadata: Metadata = ()) -> None:
        """End a call with a status, after the responses that are still to be sent."""
        if call.is_over:
            return
        call.is_over = True
        trailers = write_trailers(code, message, metadata)
        call.trailers = trailers if call.has_head else RESPONSE_HEAD + trailers
        if not call.pending:
            self.sender.end(call)

    def _reset(self, stream_id: int, code: ErrorCode) -> None:
        """End a stream by a frame, whether there is a call or not."""
        self.allowance -= RESET_COST
        if self.allowance < 0:
            self._shut(ErrorCode.ENHANCE_YOUR_CALM, "too many streams end by an error")
            return
        self.sender.write(pack_reset(stream_id, code))
        if (call := self.calls.get(stream_id)) is not None:
            if not call.is_received:
                self._abandon(stream_id)
            call.is_received = True
            self._close(call)
        elif stream_id <= self.last_id:
            self._abandon(stream_id)

    def _abandon(self, stream_id: int) -> None:
        """Remember that frames may still arrive on a stream that has ended."""
        self.abandoned[stream_id] = None
        if len(self.abandoned) > MAX_ABANDONED:
            del self.abandoned[next(iter(self.abandoned))]

    def _close_answered(self, call: Call) -> None:
        """Forget a call after its last frame."""
        if call.is_received:
            self._refund(ALLOWANCE_PER_MESSAGE)
        self._close(call)

    def _close(self, call: Call) -> None:
        """Forget a call, and end what works on it."""
        if self.calls.pop(call.id, None) is None:
            return
        self.host.count_call(self.client, -1)
        self.sender.blocked.pop(call.id, None)
        call.is_over, call.late_s = True, 0.0
        call.messages.clear()
        call.pending.clear()
        if not call.is_received:
            # the client may stop sending
            self.sender.write(pack_reset(call.id, ErrorCode.NO_ERROR))
            self._abandon(call.id)
            # whoever still reads sees the end
            call.is_received = True
        if call.timer is not None:
            call.timer.cancel()
        if call.held_bytes:
            self.host.hold_body(self.client, -call.held_bytes)
            call.held_bytes = 0
        if call.task is not None and call.task is not asyncio.current_task(self.loop):
            call.task.cancel()
        if not self.calls:
            self.since_s = self.loop.time()
            if self.is_refusing:
                self._shut(ErrorCode.NO_ERROR)

    def hold(self, call: Call) -> bool:
        """Count the bytes that a call holds now; end it where they are too many, and return false."""
        size = call.size - call.held_bytes
        if not size or call.id not in self.calls:
            return True
        call.held_bytes += size
        exceeded = self.host.hold_body(self.client, size)
        if not exceeded:
            return True
        if call.pending:
            self._reset(call.id, ErrorCode.ENHANCE_YOUR_CALM)
        else:
            message = f"the server is at its limit of {exceeded}; retry later"
            self.finish(call, Code.RESOURCE_EXHAUSTED.value[0], message, (("retry-after", "1"),))
        return False

    def grant(self, call: Call, size: int) -> None:
        """Let the client send so many more bytes."""
        if call.id in self.calls:
            self.sender.write(pack_window_update(call.id, size))

    def _shut(self, code: ErrorCode, reason: str = "") -> None:
        """Close the connection after what was written; all calls end."""
        if self.is_closed:
            return
        self.is_closed, self.since_s = True, self.loop.time()
        self.sender.is_burst = False
        self._drop_calls()
        self.sender.write(pack_goaway(self.last_taken_id, code, reason))
        self.sender.flush()
        if self.transport is not None:
            self.transport.close()

    def _drop_calls(self) -> None:
        for call in list(self.calls.values()):
            call.is_received = True
            self._close(call)

    def drain(self) -> None:
        """Ask the client to open no more calls here, and answer those that are on their way."""
        self.is_draining, self.since_s = True, self.loop.time()
        self.sender.write(pack_goaway(MAX_WINDOW, ErrorCode.NO_ERROR) + pack_frame(frames.PING, 0, 0, PROBE))

    def _refuse_calls(self) -> None:
        """Answer the calls that are under way, and then close the connection."""
        if self.is_refusing or self.is_closed:
            return
        self.is_refusing = True
        if self.calls:
            self.sender.write(pack_goaway(self.last_taken_id, ErrorCode.NO_ERROR))
        else:
            self._shut(ErrorCode.NO_ERROR)

    def abort(self) -> None:
        """Close the connection now, and drop what is still to be written."""
        self.is_closed = True
        if self.transport is not None:
            self.transport.abort()

    def check_time(self, now: float) -> None:
        """End what takes too long; called once a second."""
        self.allowance = min(self.allowance + ALLOWANCE_PER_S, ALLOWANCE)
        age_s = now - self.since_s
        is_unread = (self.sender.is_paused and age_s > PART_S) or (self.is_closed and age_s > CLOSE_S)
        if is_unread or (not self.has_settings and age_s > self.host.handshake_s):
            self.abort()
        elif not self.is_closed:
            self._check_progress(now)

    def _check_progress(self, now: float) -> None:
        age_s = now - self.since_s
        if self.began_s and now - self.began_s > PART_S:
            self._shut(ErrorCode.ENHANCE_YOUR_CALM, "a frame takes too long to arrive")
        elif self.is_draining and not self.is_refusing and age_s > PROBE_S:
            self._refuse_calls()
        elif not self.calls and not self.is_draining and age_s > self.host.idle_s:
            self.drain()
        for call in [item for item in self.calls.values() if 0 < item.late_s < now]:
            if call.pending:
                self._reset(call.id, ErrorCode.CANCEL)
            else:
                self.finish(call, Code.DEADLINE_EXCEEDED.value[0], f"the request did not arrive within {MESSAGE_S:g} s")


def _check_setting(key: int, value: int) -> None:
    if key == frames.ENABLE_PUSH and value > 1:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")
    if key == frames.FRAME_SIZE and not MAX_FRAME_BYTES <= value < 2**24:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "MAX_FRAME_SIZE is out of range")
    if key == frames.INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
        raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is out of range")


SELF_DEPENDENT = 0x100
"""A flag of our own: a stream depends on itself by its priority."""
READERS: tuple[Callable[[Connection, int, int, bytes], None], ...] = (
    Connection.read_data,
    Connection.read_headers,
    Connection.read_priority,
    Connection.read_reset,
    Connection.read_settings,
    Connection.read_push,
    Connection.read_ping,
    Connection.read_goaway,
    Connection.read_window_update,
    Connection.read_continuation,
)
"""What reads a frame, by its type."""
