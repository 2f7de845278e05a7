"""The fast lane: a plain inference request is answered between the socket and the batcher, without ASGI.

A connection is uvicorn's own, with a look at what comes in first. As long as it brings nothing but plain requests for
paths of the lane (one at a time, a whole head at once, a Content-Length, nothing unusual), they are answered here. With
the first bytes that are anything else (another path, a chunked body, a pipelined request, any malformed head) it is
uvicorn's for the rest of its life, so that the two never disagree on where a request ends.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from unfoldkit.serving.http.overload import Sweep, Verdict
from unfoldkit.serving.http.read_limits import Ahead
from unfoldkit.serving.observability.access_log import ID, PARENT, Note, Observer, known_id, new_id
from unfoldkit.serving.responses import Header, Reply, full
from unfoldkit.serving.service import Answer, Gate

_PLAIN = re.compile(rb"(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*)+\r\n")
# an upgrade is an offer that a server may leave alone; some clients make it with every first request
_KEEPS = rb"[ \t]*(?:keep-alive|upgrade|http2-settings)[ \t]*"
_UNUSUAL = re.compile(
    rb"\r\n(?:transfer-encoding|expect|trailer|content-encoding|inference-header-content-length"
    rb"|sec-fetch-site):"
    rb"|\r\nconnection:(?!%b(?:,%b)*\r\n)" % (_KEEPS, _KEEPS),
    re.IGNORECASE,
)
_LENGTH = re.compile(rb"\r\n(content-length|host):[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)", re.IGNORECASE)
_TOKEN = re.compile(rb"\r\nauthorization:[ \t]*([^\r\n]*)", re.IGNORECASE)
# of a head with one of these there is no second one, or it must not be kept
_OWN = re.compile(rb"\r\n(?:authorization|x-request-id|traceparent):", re.IGNORECASE)
_HEAD_BYTES = 16384
_KNOWN_HEADS = 1024
_AT_ONCE = struct.pack("ii", 1, 0)
_STATUS = {code.value: b"HTTP/1.1 %d %b\r\n" % (code.value, code.phrase.encode()) for code in HTTPStatus}


def open_gate() -> Gate:
    """Return a gate that refuses nobody."""
    return Gate(lambda: 0, lambda _count: None)


@dataclass(frozen=True, slots=True)
class Lane:
    """What the lane answers: by the first line of a request, the function that takes its body.

    ``limit`` bounds a body; ``allowed`` judges an Authorization header (empty without one); ``closing`` says that
    connections end with their next answer; ``headers`` are lines that go with every answer; ``observer`` is told of
    every request; ``gates``, by path, refuse one before its body is read; ``near`` judges a Host header.
    """

    answers: Mapping[bytes, Answer]
    limit: int
    allowed: Callable[[bytes], bool]
    closing: Callable[[], bool]
    headers: Callable[[], bytes]
    observer: Observer | None = None
    gates: Mapping[str, Gate] = field(default_factory=dict)
    near: Callable[[bytes], bool] = bool
    known: dict[bytes, Head] = field(default_factory=dict)
    refusals: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)

    def judge(self, head: bytes) -> Verdict:
        """Return what becomes of requests with this head while the loop does nothing else: none has -1 bytes."""
        found = self.known.get(head)
        if found is None or self.closing() or not (retry_s := found.gate.full()):
            return Verdict(-1)
        return Verdict(found.end, self.refusal(retry_s), found.gate.refuse)

    def refusal(self, retry_s: int) -> bytes:
        """Return the whole answer to one who is refused, written once as long as its headers are good for."""
        headers = self.headers()
        known = self.refusals.get(retry_s)
        if known is None or known[0] is not headers:
            known = self.refusals[retry_s] = (headers, written(full(retry_s), headers, last=False))
        return known[1]


@dataclass(frozen=True, slots=True)
class Head:
    """A request of the lane: who answers it, where its body begins, where it ends, its path, id and trace parent.

    ``gate`` may refuse it.
    """

    answer: Answer
    begin: int
    end: int
    path: str = ""
    id: str = ""
    parent: str = ""
    gate: Gate = field(default_factory=open_gate)


def first_lines(posts: Mapping[str, Answer]) -> dict[bytes, Answer]:
    """Return the answers by the first line of their requests."""
    return {b"POST %b HTTP/1.1" % path.encode(): answer for path, answer in posts.items()}


def read_head(data: bytes, lane: Lane) -> Head | None:
    """Return the head of the request that ``data`` begins with, if it is a plain one of the lane."""
    stop = data.find(b"\r\n\r\n", 0, _HEAD_BYTES) + 4
    head = data[: max(stop, 4)]
    found = lane.known.get(head)
    if found is None and stop > 3 and (found := _parsed(head, lane)) and not _OWN.search(head):
        # a client sends the same few heads again and again
        if len(lane.known) >= _KNOWN_HEADS:
            lane.known.clear()
        lane.known[head] = found
    return found


def _parsed(head: bytes, lane: Lane) -> Head | None:
    line = head.find(b"\r\n", 0, 400)
    answer = lane.answers.get(head[:line]) if line > 0 else None
    if answer is None:
        return None
    rest = head[line:-2]
    fields = _LENGTH.findall(rest)
    named = {name.lower(): value for name, value in fields}
    size = named.get(b"content-length", b"")
    once = len(named) == len(fields) == 2 and size.isdigit() and len(size) < 11
    plain = once and lane.near(named[b"host"]) and _PLAIN.fullmatch(rest) is not None and not _UNUSUAL.search(rest)
    if not plain or int(size) > lane.limit or not _allowed(rest, lane):
        return None
    path = head[5 : line - 9].decode()
    gate = lane.gates.get(path) or open_gate()
    return Head(answer, len(head), len(head) + int(size), path, _named(rest, ID), _named(rest, PARENT), gate)


def _named(head: bytes, name: bytes) -> str:
    """Return a header that is fit to be repeated."""
    found = re.search(rb"\r\n%b:[ \t]*([^\r\n]*)" % name, head, re.IGNORECASE)
    return known_id(found[1].strip()) if found else ""


def _allowed(head: bytes, lane: Lane) -> bool:
    given = _TOKEN.findall(head)
    return len(given) < 2 and lane.allowed(given[0].rstrip() if given else b"")


def lines(headers: Iterable[Header]) -> bytes:
    """Return headers as they go over the wire."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def written(reply: Reply, headers: bytes, *, last: bool, name: str = "") -> bytes:
    """Return a reply as it goes over the wire; ``last`` tells the client that the connection ends with it."""
    more = lines(reply.headers) if reply.headers else b""
    if name:
        more += b"%b: %b\r\n" % (ID, name.encode())
    if last and (b"connection", b"close") not in reply.headers:
        more += b"connection: close\r\n"
    return b"%b%b%bcontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        _STATUS[reply.status],
        headers,
        more,
        reply.content_type,
        len(reply.body),
        reply.body,
    )


@dataclass(slots=True, eq=False)
class Connection:
    """One connection of the server: an ``asyncio.Protocol`` by shape, around ``inner``, uvicorn's.

    ``slow`` once it is uvicorn's for good; ``busy`` while an answer is due; ``data`` is what waits to be whole, and
    ``began`` when its first bytes came; ``deaf`` while the client does not take its answers; ``held`` while nothing is
    read; ``name`` is the id of the request that is answered, and ``head`` its head if somebody observes. ``refused``
    is a request, and when it may come back, of whose body ``skips`` bytes are still to come, to be dropped. ``calm`` is
    what the sweep wants to know, ``number`` its file descriptor once it is under the sweep.
    """

    inner: Any
    lane: Lane
    connections: set[Any]
    now: Callable[[], float]
    sweep: Sweep | None = None
    transport: asyncio.Transport | None = None
    slow: bool = False
    busy: bool = False
    ending: bool = False
    deaf: bool = False
    held: bool = False
    data: bytes = b""
    seen: float = 0.0
    began: float = 0.0
    name: str = ""
    head: Head | None = None
    refused: tuple[Head, int] | None = None
    skips: int = 0
    calm: bool = False
    number: int = -1
    ahead: Ahead = field(default_factory=Ahead)

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Take the place of uvicorn's protocol among the connections that are shut down."""
        self.transport, self.seen = transport, self.now()
        self.inner.connection_made(transport)
        self.connections.discard(self.inner)
        self.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell uvicorn's protocol."""
        self.connections.discard(self)
        self._unswept()
        self.transport = None
        # nobody hears the answers to what else was asked
        self.inner.pipeline.clear()
        self.inner.connection_lost(error)

    def data_received(self, data: bytes) -> None:
        """Answer a request of the lane, or hand the bytes on."""
        self.calm = False
        if self.slow:
            self._hand_on(data)
            return
        if self.skips:
            data = self._skip(data)
            if not data:
                return
        self.data = self.data + data if self.data else data
        if not self.busy and not self.deaf:
            self._next()
        else:
            self._hold()

    def eof_received(self) -> bool:
        """Let a client that has said all still hear its answer."""
        self.inner.eof_received()
        self.ending, self.calm = True, False
        return self.busy

    def pause_writing(self) -> None:
        """Read nothing more from a client that does not take its answers."""
        self.inner.pause_writing()
        self.deaf, self.calm, self.began = True, False, self.now()
        if not self.slow:
            self._hold()

    def resume_writing(self) -> None:
        """Go on with a client that takes its answers again."""
        self.inner.resume_writing()
        self.deaf = False
        if not self.slow and not self.busy:
            self._go_on()

    def shutdown(self) -> None:
        """End the connection, after the answer that it waits for."""
        self.ending, self.calm = True, False
        if not self.busy and not self.data and not self.skips:
            self.inner.shutdown()

    def is_calm(self) -> bool:
        """Whether nothing is under way in either direction."""
        taken = self.slow or self.busy or self.deaf or self.ending or bool(self.skips or self.data)
        if taken or self.transport is None or self.transport.is_closing():
            return False
        self.calm = self.transport.get_write_buffer_size() == 0
        return self.calm

    def send(self, data: bytes) -> None:
        """Write bytes behind what is still to be written."""
        if self.transport is not None:
            self.calm = False
            self.transport.write(data)

    def is_idle(self, since: float) -> bool:
        """Whether nothing came for too long; connections that are uvicorn's have its own timer."""
        return not self.slow and not self.busy and not self.skips and self.seen < since

    def is_stuck(self, since: float) -> bool:
        """Whether a request has been coming, or an answer going, for too long."""
        if self.deaf:
            return self.began < since
        if self.slow:
            cycle = self.inner.cycle
            answering = cycle is not None and not cycle.response_complete and not cycle.more_body
            if answering or self.inner.timeout_keep_alive_task is not None:
                self.began = self.now()
                return False
            return self.began < since
        return bool(self.data or self.skips) and not self.busy and self.began < since

    def cut(self) -> None:
        """End the connection now, whatever is still to be written."""
        self.calm = False
        if self.inner.cycle is not None:
            self.inner.cycle.disconnected = True
        self.inner.pipeline.clear()
        if self.transport is not None:
            # the kernel would keep what is still to be sent, and tell the client only behind it
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            self.transport.abort()

    def _hand_on(self, data: bytes) -> None:
        """Give bytes to uvicorn, and cut a client that sends on and on."""
        if self.ahead.feed(self.inner, data):
            self.cut()

    def _next(self) -> None:
        head = read_head(self.data, self.lane)
        if head is None or len(self.data) > head.end:
            self.slow, self.began = True, self.now()
            self._unswept()
            data, self.data = self.data, b""
            self._hand_on(data)
        elif len(self.data) == head.end:
            data, self.data = self.data, b""
            if retry_s := head.gate.ask():
                self._refuse(head, retry_s)
                return
            self.busy = True
            self._begin(head)
            head.answer(data[head.begin :], self._reply)
        elif not self.began:
            self.began = self.now()
            if retry_s := head.gate.ask():
                self.refused = (head, retry_s)
                self.skips, self.data = head.end - len(self.data), b""

    def _begin(self, head: Head) -> None:
        self.seen, self.began = self.now(), 0.0
        self.name = head.id
        if self.lane.observer is not None:
            self.name = head.id or new_id()
            self.head = head

    def _skip(self, data: bytes) -> bytes:
        """Drop what belongs to a refused request, answer at its end; return what comes after it."""
        rest = data[self.skips :]
        self.skips = max(self.skips - len(data), 0)
        if not self.skips and self.refused is not None:
            self._refuse(*self.refused)
        return b"" if self.transport is None or self.transport.is_closing() else rest

    def _refuse(self, head: Head, retry_s: int) -> None:
        self._begin(head)
        if self.name or self.ending or self.lane.closing():
            self._reply(full(retry_s))
        elif self.transport is not None:
            # written before: under overload this is what happens most often
            self.transport.write(self.lane.refusal(retry_s))
            self._under_sweep(self.transport)

    def _under_sweep(self, transport: asyncio.Transport) -> None:
        if self.sweep is not None:
            if self.number < 0:
                self.number = transport.get_extra_info("socket").fileno()
            self.sweep.watch(self, self.number)

    def _unswept(self) -> None:
        if self.sweep is not None and self.number >= 0:
            self.calm = False
            self.sweep.forget(self, self.number)
            self.number = -1

    def _reply(self, reply: Reply) -> None:
        self.busy = False
        if self.lane.observer is not None and (head := self.head) is not None:
            self.lane.observer(Note(self.name, "POST", head.path, reply.status, self.now() - self.seen, head.parent))
        if self.transport is None or self.transport.is_closing():
            return
        last = self.ending or self.lane.closing() or (b"connection", b"close") in reply.headers
        self.transport.write(written(reply, self.lane.headers(), last=last, name=self.name))
        if last:
            self.transport.close()
        elif self.held and not self.deaf:
            self._go_on()

    def _hold(self) -> None:
        self.held = True
        if self.transport is not None:
            self.transport.pause_reading()

    def _go_on(self) -> None:
        self.held = False
        if self.transport is not None:
            self.transport.resume_reading()
        if self.data:
            self._next()
