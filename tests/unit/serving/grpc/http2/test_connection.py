"""A connection of HTTP/2: what a client may do, and how it ends when the client does something else."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator

import pytest

from tests.unit.serving.grpc.http2.wire import HEAD, OPENING, Frame, Service, Wire, data, prefixed, run
from unfoldkit.serving.grpc.http2 import frames
from unfoldkit.serving.grpc.http2.connection import (
    ALLOWANCE,
    CONNECTION_WINDOW,
    MAX_BLOCK_BYTES,
    MAX_TURN_FRAMES,
    PART_S,
    PROBE,
)
from unfoldkit.serving.grpc.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MAX_WINDOW,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    pack_frame,
    pack_reset,
    pack_settings,
    pack_window_update,
)

CANCEL, PROTOCOL, SIZE = ErrorCode.CANCEL, ErrorCode.PROTOCOL_ERROR, ErrorCode.FRAME_SIZE_ERROR
COMPRESSION = ErrorCode.COMPRESSION_ERROR


def ends(found: list[Frame], kind: int = GOAWAY) -> list[ErrorCode]:
    """Return the errors of frames that end streams or connections."""
    return [ErrorCode(frame.code) for frame in found if frame.kind == kind]


def test_calls_are_answered_on_their_streams() -> None:
    """A preface, settings and calls that arrive byte by byte, or at once, have the same answers."""

    async def scenario(service: Service) -> None:
        for size in (1, 7, 100_000):
            wire = service.connect()
            sent = OPENING + b"".join(wire.call(stream, b"%d" % stream) for stream in range(1, 20, 2))
            found = await wire.send(*(sent[at : at + size] for at in range(0, len(sent), size)))
            assert wire.answers(found) == {n: (prefixed(b"%d" % n), "0") for n in range(1, 20, 2)}
            assert [frame.flags for frame in found if frame.kind == SETTINGS] == [0, ACK]

    run(scenario)


def test_a_repeated_head_is_that_of_its_table() -> None:
    """A cached head is not used once the table that its indices refer to has changed."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        first, second = wire.head(1), wire.head(3)
        assert len(second) < len(first)
        await wire.send(first + data(1, prefixed(b"a"), end=True), second + data(3, prefixed(b"b"), end=True))
        assert len(wire.connection.heads.cached) == 1
        shifted = wire.head(5, path="/test/Fail") + data(5, prefixed(b""), end=True)
        found = await wire.send(shifted, wire.call(7), wire.call(9))
        assert {stream: status for stream, (_, status) in wire.answers(found).items()} == {5: "2", 7: "0", 9: "0"}

    run(scenario)


def test_one_client_leaves_turns_to_others() -> None:
    """Of many calls in one packet only some are answered in a turn of the loop; in the end, all are."""

    async def scenario(service: Service) -> None:
        wire = await service.open(max_streams=1000, max_calls=4000)
        wire.connection.data_received(b"".join(wire.call(2 * number + 1) for number in range(1000)))
        assert len(service.started) == MAX_TURN_FRAMES // 2
        assert wire.transport.is_paused
        assert len(wire.answers(await wire.frames())) == 1000
        assert not wire.transport.is_paused

    run(scenario)


FAULTS: dict[str, tuple[Callable[[Wire], bytes], ErrorCode]] = {
    "frame too large": (lambda _: pack_frame(DATA, 0, 1, b"x" * 16_385), SIZE),
    "data on an idle stream": (lambda _: data(1, b"x"), PROTOCOL),
    "reset of an idle stream": (lambda _: pack_reset(1, CANCEL), PROTOCOL),
    "window of an idle stream": (lambda _: pack_window_update(1, 1), PROTOCOL),
    "data on the connection": (lambda _: data(0, b"x"), PROTOCOL),
    "even stream": (lambda w: w.head(2), PROTOCOL),
    "head on the connection": (lambda w: w.head(0), PROTOCOL),
    "head on a closed stream": (lambda w: w.call(1) + w.call(1), ErrorCode.STREAM_CLOSED),
    "older stream": (lambda w: w.call(3) + w.call(1), ErrorCode.STREAM_CLOSED),
    "push": (lambda _: pack_frame(PUSH_PROMISE, 0, 1, b"x" * 4), PROTOCOL),
    "continuation of nothing": (lambda _: pack_frame(CONTINUATION, 0, 1, b""), PROTOCOL),
    "interrupted block": (lambda _: pack_frame(HEADERS, 0, 1, b"\x83") + data(1, b""), PROTOCOL),
    "another goes on": (lambda _: pack_frame(HEADERS, 0, 1, b"") + pack_frame(CONTINUATION, 0, 3, b""), PROTOCOL),
    "all padding": (lambda w: w.head(1) + pack_frame(DATA, PADDED, 1, b"\x05abcd"), PROTOCOL),
    "padding without a length": (lambda w: w.head(1) + pack_frame(DATA, PADDED, 1, b""), PROTOCOL),
    "padded head": (lambda _: pack_frame(HEADERS, PADDED | END_HEADERS, 1, b"\x09\x83"), PROTOCOL),
    "priority cut off": (lambda _: pack_frame(HEADERS, 0x20 | END_HEADERS, 1, b"\x00"), SIZE),
    "priority of the connection": (lambda _: pack_frame(PRIORITY, 0, 0, b"x" * 5), PROTOCOL),
    "short ping": (lambda _: pack_frame(PING, 0, 0, b"x"), SIZE),
    "ping of a stream": (lambda _: pack_frame(PING, 0, 1, b"x" * 8), PROTOCOL),
    "settings cut off": (lambda _: pack_frame(SETTINGS, 0, 0, b"x"), SIZE),
    "settings with an acknowledgement": (lambda _: pack_frame(SETTINGS, ACK, 0, b"x" * 6), SIZE),
    "settings of a stream": (lambda _: pack_frame(SETTINGS, 0, 1, b""), PROTOCOL),
    "push enabled twice": (lambda _: pack_settings({frames.ENABLE_PUSH: 2}), PROTOCOL),
    "tiny frames": (lambda _: pack_settings({frames.FRAME_SIZE: 100}), PROTOCOL),
    "huge first window": (lambda _: pack_settings({frames.INITIAL_WINDOW_SIZE: 2**31}), ErrorCode.FLOW_CONTROL_ERROR),
    "short reset": (lambda w: w.head(1) + pack_frame(RST_STREAM, 0, 1, b""), SIZE),
    "short goaway": (lambda _: pack_frame(GOAWAY, 0, 0, b""), SIZE),
    "goaway of a stream": (lambda _: pack_frame(GOAWAY, 0, 1, b"x" * 8), PROTOCOL),
    "short window update": (lambda _: pack_frame(WINDOW_UPDATE, 0, 0, b""), SIZE),
    "window grows by nothing": (lambda _: pack_window_update(0, 0), PROTOCOL),
    "window too large": (lambda _: pack_window_update(0, MAX_WINDOW), ErrorCode.FLOW_CONTROL_ERROR),
    "index out of the table": (lambda _: pack_frame(HEADERS, END_HEADERS, 1, b"\xff\x7f"), COMPRESSION),
    "endless integer": (lambda _: pack_frame(HEADERS, END_HEADERS, 1, b"\xff" * 1000), COMPRESSION),
    "table too large": (lambda _: pack_frame(HEADERS, END_HEADERS, 1, b"\x3f\xff\xff\x03"), COMPRESSION),
    "text cut off": (lambda _: pack_frame(HEADERS, END_HEADERS, 1, b"\x00\x7f\x10a"), COMPRESSION),
    "table size after fields": (lambda _: pack_frame(HEADERS, END_HEADERS, 1, b"\x83\x20"), COMPRESSION),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_connection_ends_it(name: str) -> None:
    """The client learns the error of RFC 9113, and which streams were taken; nothing is read after it."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        build, code = FAULTS[name]
        found = await wire.send(build(wire), wire.call(99))
        assert ends(found) == [code]
        assert wire.transport.is_over
        assert not service.connections.total()

    run(scenario)


@pytest.mark.parametrize(
    "opening",
    [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", PREFACE[:-1] + b"x", PREFACE + pack_frame(PING, 0, 0, b"x" * 8),
     PREFACE + pack_frame(SETTINGS, ACK, 0, b""), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"],
)  # fmt: skip
def test_what_is_not_http2_ends_the_connection(opening: bytes) -> None:
    """HTTP/1.1, TLS, a wrong preface, or one without settings behind it."""

    async def scenario(service: Service) -> None:
        for size in (1, 100):
            wire = service.connect()
            parts = [opening[at : at + size] for at in range(0, len(opening), size)]
            assert ends(await wire.send(*parts)) == [ErrorCode.PROTOCOL_ERROR]

    run(scenario)


STREAM_FAULTS: dict[str, tuple[Callable[[Wire], bytes], ErrorCode]] = {
    "upper-case name": (lambda w: w.head(1, X_a="1"), PROTOCOL),
    "two paths": (lambda w: w.head(1, fields=(HEAD[2], *HEAD)), PROTOCOL),
    "no path": (lambda w: w.head(1, fields=[*HEAD[:2], *HEAD[3:]]), PROTOCOL),
    "empty path": (lambda w: w.head(1, path=""), PROTOCOL),
    "unknown pseudo field": (lambda w: w.head(1, fields=[(":x", "y"), *HEAD]), PROTOCOL),
    "pseudo field of responses": (lambda w: w.head(1, fields=[(":status", "200"), *HEAD]), PROTOCOL),
    "pseudo field after others": (lambda w: w.head(1, fields=[*HEAD[:2], *HEAD[4:], *HEAD[2:4]]), PROTOCOL),
    "connection": (lambda w: w.head(1, connection="close"), PROTOCOL),
    "transfer-encoding": (lambda w: w.head(1, transfer_encoding="chunked"), PROTOCOL),
    "upgrade": (lambda w: w.head(1, upgrade="h2c"), PROTOCOL),
    "te": (lambda w: w.head(1, te="gzip"), PROTOCOL),
    "line end in a value": (lambda w: w.head(1, x="a\r\ny: b"), PROTOCOL),
    "zero in a value": (lambda w: w.head(1, x="a\0"), PROTOCOL),
    "space before a value": (lambda w: w.head(1, x=" a"), PROTOCOL),
    "space in a name": (lambda w: w.head(1, fields=[*HEAD, ("a b", "c")]), PROTOCOL),
    "length that is not a number": (lambda w: w.head(1, content_length="x"), PROTOCOL),
    "length in other digits": (lambda w: w.head(1, content_length="\u00b2".encode("latin-1")), PROTOCOL),
    "two lengths": (lambda w: w.head(1, fields=[*HEAD, *[("content-length", "10")] * 2]), PROTOCOL),
    "too short": (lambda w: w.call(1, content_length="11"), PROTOCOL),
    "too long": (lambda w: w.head(1, content_length="3") + data(1, b"1234"), PROTOCOL),
    "depends on itself": (lambda _: pack_frame(PRIORITY, 0, 1, b"\x00\x00\x00\x01\x00"), PROTOCOL),
    "short priority": (lambda _: pack_frame(PRIORITY, 0, 1, b""), SIZE),
    "trailers go on": (lambda w: w.head(1) + w.head(1, fields=[("a", "b")]), PROTOCOL),
    "pseudo field in trailers": (lambda w: w.head(1) + w.head(1, end=True, fields=[(":path", "/")]), PROTOCOL),
    "more after the end": (lambda w: w.call(1, path="/test/Wait") + data(1, b"x"), ErrorCode.STREAM_CLOSED),
    "head after the end": (lambda w: w.call(1, path="/test/Wait") + w.head(1), ErrorCode.STREAM_CLOSED),
    "data on a closed stream": (lambda w: w.call(1) + data(1, b"x"), ErrorCode.STREAM_CLOSED),
    "stream window too large": (lambda w: w.head(1) + pack_window_update(1, MAX_WINDOW), ErrorCode.FLOW_CONTROL_ERROR),
    "stream window grows by nothing": (lambda w: w.head(1) + pack_window_update(1, 0), PROTOCOL),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAM_FAULTS)
def test_a_fault_of_a_stream_ends_only_that(name: str) -> None:
    """The stream is reset by the error of RFC 9113, and the next call is answered."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        build, code = STREAM_FAULTS[name]
        found = await wire.send(build(wire), wire.call(5))
        assert ends(found, RST_STREAM) == [code]
        assert wire.answers(found)[5] == (prefixed(b"hello"), "0")

    run(scenario)


def test_padding_and_priority_are_no_part_of_a_call() -> None:
    """Padded frames, a priority in the head, trailers and unknown frames and settings change no answer."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        block = wire.encoder.encode(HEAD)
        padded = b"\x03" + b"\x00\x00\x00\x00\x10" + block + b"\0" * 3
        found = await wire.send(
            pack_settings({999: 1}) + pack_frame(200, 255, 7, b"any"),
            pack_frame(HEADERS, END_HEADERS | PADDED | 0x20, 1, padded),
            pack_frame(DATA, PADDED, 1, b"\x02" + prefixed(b"hello")[:4] + b"\0\0"),
            pack_frame(DATA, PADDED, 1, b"\x00" + prefixed(b"hello")[4:]),
            pack_frame(PRIORITY, 0, 1, b"\x00\x00\x00\x03\x00"),
            wire.head(1, end=True, fields=[("checksum", "1")]),
        )
        assert wire.answers(found) == {1: (prefixed(b"hello"), "0")}

    run(scenario)


def floods() -> Iterator[tuple[str, Callable[[Wire, int], bytes]]]:
    yield "ping", lambda _wire, _n: pack_frame(PING, 0, 0, b"x" * 8)
    yield "settings", lambda _wire, _n: pack_settings({})
    yield "empty data", lambda _wire, _n: data(1, b"")
    yield "window", lambda _wire, _n: pack_window_update(0, 1)
    yield "window of a stream", lambda _wire, _n: pack_window_update(1, 1)
    yield "priority", lambda _wire, _n: pack_frame(PRIORITY, 0, 1, b"\x00\x00\x00\x03\x00")
    yield "unknown frames", lambda _wire, _n: pack_frame(77, 0, 0, b"")
    yield "rapid reset", lambda wire, n: wire.call(2 * n + 3, path="/test/Wait") + pack_reset(2 * n + 3, CANCEL)
    yield "made reset", lambda wire, n: wire.call(2 * n + 3, path="/test/Wait") + pack_window_update(2 * n + 3, 0)
    yield "malformed heads", lambda wire, n: wire.head(2 * n + 3, te="x")
    yield "resets of closed streams", lambda _wire, _n: pack_reset(1, CANCEL)
    yield "data on a closed stream", lambda wire, n: (wire.call(3) if not n else b"") + data(3, b"x")


@pytest.mark.parametrize(("name", "build"), list(floods()))
def test_a_flood_ends_the_connection(name: str, build: Callable[[Wire, int], bytes]) -> None:
    """Frames without a message end the connection after a bounded number, and leave nothing behind."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        await wire.send(wire.head(1))
        for number in range(ALLOWANCE + 100):
            wire.connection.data_received(build(wire, number))
            found = await wire.frames() if number % 100 == 99 else []
            if wire.transport.is_over:
                break
        assert ends(found + await wire.frames()) == [ErrorCode.ENHANCE_YOUR_CALM]
        assert wire.transport.is_over
        assert number < ALLOWANCE + 10
        assert not wire.connection.calls

    run(scenario)


def test_a_busy_client_may_send_control_frames() -> None:
    """A client with a window update and a ping for each call is served for as long as it likes."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        ping = pack_frame(PING, 0, 0, b"x" * 8)
        for stream in range(1, 2 * ALLOWANCE, 2):
            wire.connection.data_received(wire.call(stream) + pack_window_update(0, 10) + ping)
            if stream % 101 == 0:
                await asyncio.sleep(0)
        assert not wire.transport.is_over
        assert len(service.started) == ALLOWANCE

    run(scenario)


def test_a_client_may_renew_its_windows_as_it_reads() -> None:
    """Whoever reads large responses and long streams pays nothing for the window updates that they need."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        service.max_held = 2**30
        for stream in range(1, 401, 2):
            await wire.send(wire.call(stream, b"400000", path="/test/Large"))
            for _ in range(100):
                await wire.send(pack_window_update(stream, 4096) + pack_window_update(0, 4096))
        assert not wire.connection.calls
        await wire.send(wire.head(1001, path="/test/Talk"))
        for _ in range(3 * ALLOWANCE // 4):
            await wire.send(
                data(1001, prefixed(b"a")) + b"".join([pack_window_update(1001, 6), pack_window_update(0, 6)] * 2)
            )
        assert not wire.transport.is_over
        wire.transport.close()
        await wire.frames()

    run(scenario)


def test_a_flood_of_continuations_ends_the_connection() -> None:
    """A header block has a bounded number of frames, empty ones too, and of bytes."""

    async def scenario(service: Service) -> None:
        for part, most in ((b"", 20), (b"\x83" * 16_000, MAX_BLOCK_BYTES // 16_000 + 1)):
            wire = await service.open()
            sent = 0
            await wire.send(pack_frame(HEADERS, 0, 1, b"\x83"))
            while not wire.transport.is_over:
                found = await wire.send(pack_frame(CONTINUATION, 0, 1, part))
                sent += 1
            assert ends(found) == [ErrorCode.ENHANCE_YOUR_CALM]
            assert sent <= most

    run(scenario)


def test_a_bomb_of_header_fields_is_not_expanded() -> None:
    """One large entry of the table, named again and again, ends the connection; a list that is too long its call."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        block = wire.encoder.encode([*HEAD, ("x", "y" * 3000)])
        await wire.send(pack_frame(HEADERS, END_HEADERS, 1, block))
        found = await wire.send(pack_frame(HEADERS, END_HEADERS, 3, wire.encoder.encode(HEAD) + b"\xbe" * 16_000))
        assert ends(found) == [ErrorCode.ENHANCE_YOUR_CALM]
        wire = await service.open()
        fields = [*HEAD, *((f"x{number}", "y" * 1000) for number in range(20))]
        block = wire.encoder.encode(fields, huffman=False)
        parts = pack_frame(HEADERS, END_STREAM, 1, block[:16_000]) + pack_frame(
            CONTINUATION, END_HEADERS, 1, block[16_000:]
        )
        found = await wire.send(parts, wire.call(3))
        assert {stream: status for stream, (_, status) in wire.answers(found).items()} == {1: "8", 3: "0"}

    run(scenario)


def test_bytes_beyond_a_window_end_the_connection() -> None:
    """Whoever sends more than the windows allow is cut off; within them the windows are renewed."""

    async def scenario(service: Service) -> None:
        wire = await service.open(max_message_bytes=2**24)
        service.max_held = 2**30
        await wire.send(wire.head(1))
        for _ in range(3 * CONNECTION_WINDOW // 16_000):
            await wire.send(data(1, b"\0\0\xff\xff\xff" + b"x" * 15_995))
        assert not wire.transport.is_over
        updates: list[Frame] = []
        talk = await service.open(max_message_bytes=2**24)
        await talk.send(talk.head(1, path="/test/Talk"), pack_settings({frames.INITIAL_WINDOW_SIZE: 0}))
        for _ in range(2**20 // 1000 + 100):
            updates += await talk.send(data(1, prefixed(b"x" * 995)))
        # the first message waits for the client's window, and the others behind it
        assert ends(updates, RST_STREAM)[:1] == [ErrorCode.FLOW_CONTROL_ERROR]
        wire.transport.close()
        await wire.frames()

    run(scenario)


def test_a_slow_reader_holds_a_bounded_memory_and_time() -> None:
    """Responses wait for a window; they count as held, go on as it opens, and are dropped after a time."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        closed = pack_settings({frames.INITIAL_WINDOW_SIZE: 10})
        found = await wire.send(closed, wire.call(1, b"100000", path="/test/Large"))
        assert sum(len(frame.payload) for frame in found if frame.kind == DATA) == 10
        assert service.held["127.0.0.1"] == 99_995
        found += await wire.send(pack_window_update(1, 100_000), pack_window_update(0, 100_000))
        assert wire.answers(found)[1] == (prefixed(b"x" * 100_000), "0")
        assert not service.held.total()
        await wire.send(wire.call(3, b"1000", path="/test/Large"))
        # a window that opens byte by byte is no excuse
        for _ in range(100):
            await wire.send(pack_window_update(3, 1))
        late = asyncio.get_running_loop().time() + PART_S + 10
        wire.connection.check_time(late)
        assert ends(await wire.frames(), RST_STREAM) == [CANCEL]
        streams = itertools.count(5, 2)
        found = await wire.send(*(wire.call(next(streams), b"100000", path="/test/Large") for _ in range(30)))
        assert ErrorCode.ENHANCE_YOUR_CALM in ends(found, RST_STREAM)
        assert service.held.total() <= service.max_held
        wire.transport.close()
        await wire.frames()

    run(scenario)


def test_a_large_response_needs_no_further_word_of_the_client() -> None:
    """With open windows, and large frames, a response of megabytes is sent in turns of the loop."""

    async def scenario(service: Service) -> None:
        service.max_held = 2**30
        wire = await service.open()
        await wire.send(
            pack_settings({frames.INITIAL_WINDOW_SIZE: 2**30, frames.FRAME_SIZE: 2**20}), pack_window_update(0, 2**30)
        )
        found = await wire.send(
            wire.call(1, b"3000000", path="/test/Large"), wire.call(3, b"3000000", path="/test/Large")
        )
        for _ in range(10):
            found += await wire.frames()
        assert wire.answers(found) == dict.fromkeys((1, 3), (prefixed(b"x" * 3_000_000), "0"))

    run(scenario)


def test_a_client_that_reads_nothing_is_not_read() -> None:
    """While the kernel takes no bytes, nothing is read or written; after a time the connection ends."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        wire.connection.pause_writing()
        assert wire.transport.is_paused
        found = await wire.send(wire.call(1, b"50000", path="/test/Large"))
        assert not [frame for frame in found if frame.kind == DATA]
        wire.connection.resume_writing()
        assert wire.answers(found + await wire.frames())[1][1] == "0"
        wire.connection.pause_writing()
        wire.connection.check_time(asyncio.get_running_loop().time() + PART_S + 1)
        assert wire.transport.is_over

    run(scenario)


def test_what_is_incomplete_ends_after_a_time() -> None:
    """No preface, half a frame, half a header block, half a message, and no calls at all."""

    async def scenario(service: Service) -> None:
        now = asyncio.get_running_loop().time
        silent = service.connect()
        silent.connection.check_time(now() + 9)
        assert not silent.transport.is_over
        silent.connection.check_time(now() + 11)
        assert silent.transport.is_over
        for part in (b"\x00\x00\x10\x00", pack_frame(HEADERS, 0, 1, b"")):
            wire = await service.open()
            await wire.send(part)
            wire.connection.check_time(now() + PART_S + 1)
            assert ends(await wire.frames()) == [ErrorCode.ENHANCE_YOUR_CALM]
        wire = await service.open()
        await wire.send(wire.head(1), data(1, b"\0\0\0\0\x10abc"))
        wire.connection.check_time(now() + PART_S + 1)
        assert wire.answers(await wire.frames()) == {1: (b"", "4")}
        wire.connection.check_time(now() + 301)
        wire.connection.check_time(now() + 303)
        assert ends(await wire.frames()) == [ErrorCode.NO_ERROR] * 2
        assert not service.connections.total()

    run(scenario)


def test_connections_streams_and_calls_are_bounded() -> None:
    """One connection too many is closed, one stream refused, and one call answered by RESOURCE_EXHAUSTED."""

    async def scenario(service: Service) -> None:
        wires = [await service.open(max_streams=3, max_calls=8, max_connections=3)]
        host = wires[0].connection.host
        wires += [service.join(host) for _ in range(2)]
        assert service.join(host).transport.is_over
        for wire in wires[1:]:
            await wire.send(OPENING)
        found = await wires[0].send(*(wires[0].call(n, path="/test/Wait") for n in (1, 3, 5, 7)))
        assert ends(found, RST_STREAM) == [ErrorCode.REFUSED_STREAM]
        found = await wires[1].send(wires[1].call(1, path="/test/Wait"), wires[1].call(3, path="/test/Wait"))
        assert wires[1].answers(found) == {3: (b"", "8")}
        service.release.set()
        assert len(wires[0].answers(await wires[0].frames())) == 3
        assert wires[1].answers(await wires[1].frames()) == {1: (prefixed(b"hello"), "0")}
        assert not host.call_count
        assert not host.open_calls

    run(scenario)


def test_a_drained_connection_answers_what_was_sent() -> None:
    """The client is asked to stop; calls on their way are answered, later ones are not taken, and it closes."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        await wire.send(wire.call(1, path="/test/Wait"))
        wire.connection.drain()
        found = await wire.frames()
        assert [frame.kind for frame in found] == [GOAWAY, PING]
        found = await wire.send(wire.call(3), pack_frame(PING, ACK, 0, PROBE), wire.call(5))
        assert wire.answers(found) == {3: (prefixed(b"hello"), "0")}
        (goaway,) = (frame for frame in found if frame.kind == GOAWAY)
        assert (int.from_bytes(goaway.payload[:4]), goaway.code) == (3, ErrorCode.NO_ERROR)
        assert not wire.transport.is_over
        service.release.set()
        assert wire.answers(await wire.frames()) == {1: (prefixed(b"hello"), "0")}
        assert wire.transport.is_over
        assert service.started == [b"hello", b"hello"]

    run(scenario)


def test_a_client_that_ignores_the_end_is_closed() -> None:
    """A client that does not answer the ping is not waited for."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        wire.connection.drain()
        wire.connection.check_time(asyncio.get_running_loop().time() + 2)
        await wire.frames()
        assert wire.transport.is_over

    run(scenario)


def test_a_lost_connection_ends_its_calls() -> None:
    """Handlers are cancelled, and nothing stays counted."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        await wire.send(wire.call(1, path="/test/Wait"), wire.head(3, path="/test/Talk"), wire.head(5) + data(5, b"\0"))
        assert service.held.total()
        wire.transport.close()
        await wire.frames()
        assert service.ended == {"cancelled": 1, "talks": 1}
        assert not wire.connection.host.call_count

    run(scenario)
