"""A client of HTTP/2 without a socket: it feeds a connection with frames, and reads what the connection writes."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc
from hpack import Decoder, Encoder

from unfoldkit.serving.grpc.http2 import frames
from unfoldkit.serving.grpc.http2.calls import Method
from unfoldkit.serving.grpc.http2.connection import Connection
from unfoldkit.serving.grpc.http2.frames import DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, pack_frame
from unfoldkit.serving.grpc.http2.host import Host

MAX_MESSAGE_BYTES = 100_000
OPENING = PREFACE + frames.pack_settings({}) + frames.pack_window_update(0, 2**20)
HEAD = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/test/Echo"),
    (":authority", "here"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)


@dataclass(frozen=True, slots=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """The error of RST_STREAM and GOAWAY."""
        return int.from_bytes(self.payload[-4:] if self.kind == frames.RST_STREAM else self.payload[4:8])


@dataclass(slots=True)
class Transport:
    """A transport with a peer that reads all, or nothing while it ``is_full``."""

    protocol: Any = None
    written: bytearray = field(default_factory=bytearray)
    is_over: bool = False
    is_paused: bool = False
    peer: Any = ("127.0.0.1", 5000)

    def write(self, data: bytes) -> None:
        self.written += data

    def get_extra_info(self, _name: str) -> Any:
        return self.peer

    def is_closing(self) -> bool:
        return self.is_over

    def close(self) -> None:
        if not self.is_over:
            self.is_over = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


@dataclass(slots=True)
class Wire:
    """A client, and the connection that it feeds."""

    connection: Connection
    transport: Transport
    encoder: Any = field(default_factory=Encoder)
    decoder: Any = field(default_factory=Decoder)
    read_bytes: int = 0

    async def send(self, *data: bytes) -> list[Frame]:
        """Send bytes, let the loop turn, and return the frames that came back."""
        for part in data:
            if not self.transport.is_over:
                self.connection.data_received(part)
        return await self.frames()

    async def frames(self) -> list[Frame]:
        for _ in range(10):
            await asyncio.sleep(0)
        found = []
        written = self.transport.written
        while len(written) - self.read_bytes >= 9:
            upper, lower, kind, flags, stream = frames.read_head(written, self.read_bytes)
            end = self.read_bytes + 9 + (upper << 8 | lower)
            assert end <= len(written)
            found.append(Frame(kind, flags, stream, bytes(written[self.read_bytes + 9 : end])))
            self.read_bytes = end
        return found

    def head(self, stream: int, *, end: bool = False, fields: Iterable[Any] = HEAD, **changes: Any) -> bytes:
        """Return a frame of HEADERS; changes replace fields, with ``_`` for ``-``, or are added to them."""
        names = {f":{name}": name for name in ("method", "scheme", "path", "authority")}
        items = [(name, changes.pop(names.get(name, name.replace("-", "_")), value)) for name, value in fields]
        items += [(name.replace("_", "-"), value) for name, value in changes.items()]
        block = self.encoder.encode(items)
        return pack_frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block)

    def call(self, stream: int, message: bytes = b"hello", **changes: Any) -> bytes:
        """Return the frames of a call."""
        return self.head(stream, **changes) + data(stream, prefixed(message), end=True)

    def read_fields(self, frame: Frame) -> dict[str, str]:
        return dict(self.decoder.decode(frame.payload))

    def answers(self, found: Iterable[Frame]) -> dict[int, tuple[bytes, str]]:
        """Return message bytes and status of each stream that has ended."""
        messages: dict[int, bytearray] = {}
        ended = {}
        for frame in found:
            if frame.kind == DATA:
                messages.setdefault(frame.stream, bytearray()).extend(frame.payload)
            if frame.kind == HEADERS:
                fields = self.read_fields(frame)
                if frame.flags & END_STREAM:
                    ended[frame.stream] = (bytes(messages.get(frame.stream, b"")), fields["grpc-status"])
        return ended


def prefixed(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


def data(stream: int, payload: bytes, *, end: bool = False) -> bytes:
    """Return frames of DATA of at most 16 KiB each."""
    parts = [payload[start : start + 16_384] for start in range(0, len(payload), 16_384)] or [b""]
    return b"".join(pack_frame(DATA, END_STREAM if end and part is parts[-1] else 0, stream, part) for part in parts)


@dataclass(slots=True)
class Service:
    """Handlers: Echo answers at once, Wait after ``release``, Fail by a failure, and Talk a stream with a stream."""

    release: asyncio.Event = field(default_factory=asyncio.Event)
    started: list[bytes] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)
    connections: Counter[str] = field(default_factory=Counter)
    max_held: int = 2**20

    def methods(self) -> dict[str, Method]:
        plain: dict[str, Any] = {"parse": bytes, "serialize": bytes}
        return {
            "/test/Echo": Method(**plain, answer=self.wait, start=self.echo),
            "/test/Wait": Method(**plain, answer=self.wait),
            "/test/Fail": Method(**plain, answer=self.fail),
            "/test/Talk": Method(**plain, answer=self.talk, is_stream=True),
            "/test/Large": Method(**plain, answer=self.enlarge),
        }

    def echo(self, message: bytes, call: Any) -> None:
        self.started.append(message)
        call.respond(message)

    async def wait(self, message: bytes, _call: Any) -> bytes:
        self.started.append(message)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.ended["cancelled"] += 1
            raise
        self.ended["answered"] += 1
        return message

    async def fail(self, _message: bytes, _call: Any) -> bytes:
        raise ZeroDivisionError

    async def enlarge(self, message: bytes, _call: Any) -> bytes:
        return b"x" * int(message)

    async def talk(self, _requests: Any, call: Any) -> None:
        try:
            while (request := await call.read()) is not grpc.aio.EOF:
                self.started.append(request)
                await call.write(request)
        finally:
            self.ended["talks"] += 1

    def hold(self, client: str, size: int) -> str:
        self.held[client] += size
        return "bytes" if size > 0 and self.held.total() > self.max_held else ""

    def count(self, client: str, count: int) -> str:
        self.connections[client] += count
        return ""

    def connect(self, **limits: Any) -> Wire:
        host = Host(**{
            "methods": self.methods(), "hold_body": self.hold, "hold_connection": self.count,
            "max_message_bytes": MAX_MESSAGE_BYTES, "max_streams": 100, "max_calls": 200, "max_connections": 10,
            "idle_s": 300.0, "handshake_s": 10.0, "log": logging.getLogger("test"), **limits,
        })  # fmt: skip
        return self.join(host)

    def join(self, host: Host) -> Wire:
        """Open one more connection to a server."""
        transport = Transport()
        connection = Connection(host, asyncio.get_running_loop())
        transport.protocol = connection
        connection.connection_made(transport)  # type: ignore[arg-type]
        return Wire(connection, transport)

    async def open(self, **limits: Any) -> Wire:
        """Connect, and exchange settings."""
        wire = self.connect(**limits)
        await wire.send(OPENING)
        return wire


def run(scenario: Callable[[Service], Any]) -> None:
    """Run a scenario; at its end nothing may be held, and no task may be left."""

    async def main() -> None:
        service = Service()
        await asyncio.wait_for(scenario(service), 30)
        await asyncio.sleep(0.01)
        assert not service.held.total()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
