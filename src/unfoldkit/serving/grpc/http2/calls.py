"""A call of gRPC on a stream of HTTP/2: its messages, its status, and the context that its handler gets."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.message import DecodeError

from unfoldkit.serving.grpc.http2.headers import Head, Metadata
from unfoldkit.serving.oip.content_encoding import BodyEncoding
from unfoldkit.serving.oip.errors import InvalidRequest, TooLarge

STREAM_WINDOW = 2**20
"""Bytes that a client may send on a stream ahead of what is read."""
PREFIX_BYTES = 5
"""A message follows a flag, whether it is compressed, and its length in four bytes."""
MESSAGE_COST_BYTES = 128
"""What a message costs in memory besides its bytes."""
WINDOW_BITS = {"gzip": 31, "deflate": 15}
ENCODINGS = frozenset(("identity", *WINDOW_BITS))
MESSAGE_S = 30.0
"""How long a request may take to arrive."""
STREAM_IDLE_S = 330.0
"""How long a stream may wait for its next message; a little more than handlers with a time of their own."""
Code = grpc.StatusCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How a method is answered.

    Args:
        parse: Reads a request from its bytes.
        serialize: Writes a response.
        answer: Answers a request in the context of its call; a stream is answered by what reads and writes messages.
        is_stream: Requests and responses are streams.
        start: Answers a request without a task: takes its bytes and the call, and calls ``respond`` or ``fail``.
    """

    parse: Callable[[bytes], Any]
    serialize: Callable[[Any], bytes]
    answer: Callable[[Any, Any], Any]
    is_stream: bool = False
    start: Callable[[bytes, Any], None] | None = None


class Abort(Exception):  # noqa: N818 - how a handler ends a call
    """A handler ends its call with a status."""

    def __init__(self, code: int, message: str, metadata: Metadata) -> None:
        super().__init__(message)
        self.code, self.message, self.metadata = code, message, metadata


class Wire(Protocol):
    """What a call needs of its connection."""

    @property
    def peer(self) -> str:
        """The address of the client as gRPC writes it."""

    @property
    def max_message_bytes(self) -> int:
        """The largest message that is accepted."""

    @property
    def log(self) -> logging.Logger:
        """Receives failures of handlers."""

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """The tasks that are running."""

    def respond(self, call: Call, message: bytes) -> None:
        """Send the only response to a call, and end it."""

    def send_message(self, call: Call, message: bytes) -> None:
        """Send one response of a stream."""

    def finish(self, call: Call, code: int, message: str = "", metadata: Metadata = ()) -> None:
        """End a call with a status, after the responses that are still to be sent."""

    def hold(self, call: Call) -> bool:
        """Count the bytes that a call holds now; end it where they are too many, and return false."""

    def grant(self, call: Call, size: int) -> None:
        """Let the client send so many more bytes."""


@dataclass(slots=True, eq=False, repr=False)
class Call:
    """One call, also the context of its handler.

    Args:
        wire: The connection.
        id: The stream.
        head: What the client asks for.
        method: How it is answered.
        send_window: Bytes that the client accepts now.
        receive_window: Bytes that the client may send now.
        late_s: When what is under way (a request arriving, a response not read) takes too long; 0 for nothing.
        body: Bytes of an incomplete message.
        received_bytes: Bytes of all messages, for ``content-length``.
        messages: Complete messages that were not read yet, each with its flag.
        queued_bytes: Their bytes.
        held_bytes: What was counted by ``Wire.hold``.
        is_received: The client sends nothing more.
        is_over: The call has ended, or its last bytes wait to be sent.
        has_head: The head of the response was sent.
        pending: Bytes of responses that wait for a window.
        trailers: The block that follows them, once the call has ended.
        task: Runs the handler.
        timer: Ends the call when the client no longer waits.
        reader: Wakes the handler that waits for a message.
        writer: Wakes the handler that waits until its response is sent.
        trailing: The metadata that the handler adds.
    """

    wire: Wire
    id: int
    head: Head
    method: Method
    send_window: int
    late_s: float = 0.0
    receive_window: int = STREAM_WINDOW
    body: bytearray = field(default_factory=bytearray)
    received_bytes: int = 0
    messages: deque[tuple[int, bytes]] = field(default_factory=deque)
    queued_bytes: int = 0
    held_bytes: int = 0
    is_received: bool = False
    is_over: bool = False
    has_head: bool = False
    pending: bytearray = field(default_factory=bytearray)
    trailers: bytes | None = None
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    reader: asyncio.Future[None] | None = None
    writer: asyncio.Future[None] | None = None
    trailing: Metadata = ()

    def receive(self, payload: bytes, *, is_end: bool) -> None:
        """Take the payload of a frame."""
        self.is_received = is_end
        size = len(payload) - PREFIX_BYTES
        is_whole = is_end and not self.body and not self.method.is_stream and not self.messages
        if is_whole and size >= 0 and not payload[0] and int.from_bytes(payload[1:5]) == size:
            if size <= self.wire.max_message_bytes:
                self._start(payload[PREFIX_BYTES:])
            else:
                self._reject_size(size)
            return
        self.body += payload
        if self._split_messages() and self.wire.hold(self):
            self._go_on()

    @property
    def size(self) -> int:
        """The bytes that the call holds, of its request until it is read, and of its response."""
        return len(self.body) + self.queued_bytes + MESSAGE_COST_BYTES * len(self.messages) + len(self.pending)

    def _split_messages(self) -> bool:
        """Take complete messages from the body; return whether the call goes on."""
        body = self.body
        while len(body) >= PREFIX_BYTES:
            size = int.from_bytes(body[1:PREFIX_BYTES])
            if size > self.wire.max_message_bytes:
                self._reject_size(size)
                return False
            end = PREFIX_BYTES + size
            if len(body) < end:
                break
            self.messages.append((body[0], bytes(body[PREFIX_BYTES:end])))
            self.queued_bytes += end
            del body[:end]
            if not self.method.is_stream and len(self.messages) > 1:
                self._fail(Code.INTERNAL, "the call takes one message")
                return False
        if self.is_received and (body or not (self.messages or self.method.is_stream)):
            self._fail(Code.INTERNAL, "the request ends before its message does")
            return False
        return True

    def _go_on(self) -> None:
        """Start the handler of a complete request, or wake that of a stream."""
        if not self.method.is_stream:
            if self.is_received:
                if (message := self._take_message()) is not None:
                    self._start(message)
                return
        elif self.reader is not None and not self.reader.done():
            self.reader.set_result(None)
        self._renew_window()

    def _renew_window(self) -> None:
        """Let the client send more, but for what waits to be read."""
        room = STREAM_WINDOW - self.queued_bytes * self.method.is_stream - self.receive_window
        if room >= STREAM_WINDOW // 2 and not self.is_received:
            self.receive_window += room
            self.wire.grant(self, room)

    def _start(self, message: bytes) -> None:
        self.late_s = 0.0
        if self.method.start is None:
            self.run(message)
            return
        try:
            self.method.start(message, self)
        except Exception as error:  # noqa: BLE001 - as below
            self._log_failure(error)

    def run(self, message: bytes = b"") -> None:
        """Run the handler in a task."""
        self.task = task = asyncio.get_running_loop().create_task(self._run(message))
        # a call that has ended forgets its task, which may still have to clean up
        self.wire.tasks.add(task)
        task.add_done_callback(self.wire.tasks.discard)

    async def _run(self, message: bytes) -> None:
        try:
            if self.method.is_stream:
                await self._run_stream()
                self.wire.finish(self, 0, "", self.trailing)
            else:
                response = await self.method.answer(self.method.parse(message), self)
                self.respond(self.method.serialize(response))
        except Abort as error:
            self.wire.finish(self, error.code, error.message, (*self.trailing, *error.metadata))
        except Exception as error:  # noqa: BLE001 - a handler may raise anything
            self._log_failure(error)

    def _log_failure(self, error: Exception) -> None:
        self.wire.log.error("a call failed: %s", self.head.path, exc_info=error)
        self._fail(Code.UNKNOWN, "the call failed")

    async def _run_stream(self) -> None:
        answer = self.method.answer(self._read_all(), self)
        if isinstance(answer, AsyncGenerator):
            async with contextlib.aclosing(answer):
                async for response in answer:
                    await self.write(response)
        else:
            await answer

    async def _read_all(self) -> AsyncIterator[Any]:
        while (request := await self.read()) is not grpc.aio.EOF:
            yield request

    def _take_message(self) -> bytes | None:
        """Return the next message, decompressed; end the call and return ``None`` if that fails."""
        flag, message = self.messages.popleft()
        self.queued_bytes -= PREFIX_BYTES + len(message)
        self.wire.hold(self)
        if not flag:
            return message
        bits = WINDOW_BITS.get(self.head.encoding)
        if bits is None or flag != 1:
            self._fail(Code.INTERNAL, "a message is compressed, and grpc-encoding does not say how")
            return None
        try:
            return BodyEncoding(bits).decompress(message, self.wire.max_message_bytes)
        except InvalidRequest:
            self._fail(Code.INTERNAL, "a message is not compressed as grpc-encoding says")
        except TooLarge as error:
            self._fail(Code.RESOURCE_EXHAUSTED, str(error))
        return None

    def _reject_size(self, size: int) -> None:
        message = f"a message has {size} bytes; at most {self.wire.max_message_bytes} are accepted"
        self._fail(Code.RESOURCE_EXHAUSTED, message)

    def _fail(self, code: grpc.StatusCode, message: str) -> None:
        self.wire.finish(self, code.value[0], message)

    def respond(self, message: bytes) -> None:
        """Send the only response, unless the client has given up."""
        self.wire.respond(self, message)

    def fail(self, code: str, message: str, metadata: Metadata = ()) -> None:
        """End the call with a status by its name."""
        self.wire.finish(self, Code[code].value[0], message, metadata)

    def peer(self) -> str:
        """Return the address of the client, as ``grpc.aio`` writes it."""
        return self.wire.peer

    def invocation_metadata(self) -> Metadata:
        """Return the metadata of the client."""
        return self.head.metadata

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Set the metadata that follow the response."""
        self.trailing = tuple(metadata)

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> NoReturn:
        """End the call with a status.

        Raises:
            Abort: Always.
        """
        raise Abort(code.value[0], details, tuple(trailing_metadata))

    async def read(self) -> Any:
        """Return the next request of a stream; ``grpc.aio.EOF`` after the last."""
        while not self.messages:
            if self.is_received:
                return grpc.aio.EOF
            loop = asyncio.get_running_loop()
            self.late_s, self.reader = loop.time() + STREAM_IDLE_S, loop.create_future()
            await self.reader
        if not self.pending:
            self.late_s = 0.0
        message = self._take_message()
        self._renew_window()
        if message is not None:
            try:
                return self.method.parse(message)
            except DecodeError:
                self._fail(Code.INTERNAL, "the bytes are not a request of this method")
        raise asyncio.CancelledError

    async def write(self, response: Any) -> None:
        """Send a response of a stream, and wait until the client has room for it."""
        self.wire.send_message(self, self.method.serialize(response))
        while self.pending and not self.is_over:
            self.writer = asyncio.get_running_loop().create_future()
            await self.writer
