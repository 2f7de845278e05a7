"""Calls of gRPC over our own HTTP/2: messages, deadlines, cancellation and statuses, by bare frames."""

from __future__ import annotations

import asyncio
import gzip
import logging
import zlib
from typing import Any

import pytest

from tests.unit.serving.grpc.http2.wire import HEAD, MAX_MESSAGE_BYTES, Frame, Service, Wire, data, prefixed, run
from unfoldkit.serving.grpc.http2.connection import BAD_MEDIA_TEXT
from unfoldkit.serving.grpc.http2.frames import (
    DATA,
    END_STREAM,
    HEADERS,
    RST_STREAM,
    WINDOW_UPDATE,
    ErrorCode,
    pack_reset,
)

pytestmark = pytest.mark.timed

WAIT, TALK = "/test/Wait", "/test/Talk"


def statuses(wire: Wire, found: list[Frame]) -> dict[int, str]:
    return {stream: status for stream, (_, status) in wire.answers(found).items()}


def test_a_message_may_come_in_parts() -> None:
    """Messages split over frames, of any size up to the limit, and empty ones are answered as whole ones."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        for number, message in enumerate((b"", b"x", b"y" * 16_384, b"z" * (MAX_MESSAGE_BYTES - 50_000))):
            stream, sent = 2 * number + 1, prefixed(message)
            parts = [sent[at : at + 4000] for at in range(0, len(sent), 4000)]
            found = await wire.send(
                wire.head(stream), *(data(stream, part) for part in parts), data(stream, b"", end=True)
            )
            assert wire.answers(found) == {stream: (sent, "0")}

    run(scenario)


def test_a_message_may_be_compressed() -> None:
    """Messages by gzip and deflate are undone, within the bound of a message; what is damaged has a status."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        text = b"hello" * 1000
        bomb = gzip.compress(b"\0" * 10 * MAX_MESSAGE_BYTES)
        cases: list[tuple[str, bytes, int, bytes, str]] = [
            ("gzip", gzip.compress(text), 1, text, "0"),
            ("deflate", zlib.compress(text), 1, text, "0"),
            ("gzip", text, 0, text, "0"),
            ("identity", text, 0, text, "0"),
            ("gzip", bomb, 1, b"", "8"),
            ("gzip", b"damaged", 1, b"", "13"),
            ("gzip", gzip.compress(text)[:-1], 1, b"", "13"),
            ("identity", text, 1, b"", "13"),
            ("gzip", text, 2, b"", "13"),
            ("snappy", text, 1, b"", "12"),
        ]
        for number, (encoding, message, flag, answer, status) in enumerate(cases):
            stream = 2 * number + 1
            head = wire.head(stream, grpc_encoding=encoding)
            found = await wire.send(head, data(stream, prefixed(message, flag), end=True))
            assert wire.answers(found) == {stream: (prefixed(answer) if status == "0" else b"", status)}

    run(scenario)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (data(1, b"\0\0\xff\xff\xff"), "8"),
        (data(1, b"\0\0\xff\xff\xff", end=True), "8"),
        (data(1, prefixed(b"x" * (MAX_MESSAGE_BYTES + 1))), "8"),
        (data(1, b"", end=True), "13"),
        (data(1, b"\0\0\0\0", end=True), "13"),
        (data(1, b"\0\0\0\0\5abc", end=True), "13"),
        (data(1, prefixed(b"a") * 2), "13"),
        (data(1, prefixed(b"a") + b"\0", end=True), "13"),
        (data(1, prefixed(b"a") * 2, end=True), "13"),
    ],
)
def test_a_wrong_request_has_its_status(sent: bytes, status: str) -> None:
    """Too large (known from the length alone), none, cut off, or more than one: nothing starts, nothing is held."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        found = await wire.send(wire.head(1) + sent)
        assert statuses(wire, found) == {1: status}
        assert not service.held.total()
        assert not service.started
        # if the client has not ended the stream, it is asked to stop, and what is on its way is ignored
        resets = [frame.code for frame in found if frame.kind == RST_STREAM]
        assert resets == ([] if sent[4] & END_STREAM else [ErrorCode.NO_ERROR])
        found = await wire.send(data(1, b"x" * 100), wire.call(3))
        assert statuses(wire, found) == {3: "0"}

    run(scenario)


def test_requests_that_arrive_count_toward_the_bound_of_bodies() -> None:
    """Incomplete messages of many streams are held up to the bound; the one beyond it is rejected."""

    async def scenario(service: Service) -> None:
        service.max_held = 100_000
        wire = await service.open()
        found: list[Frame] = []
        for stream in range(1, 20, 2):
            found += await wire.send(wire.head(stream), data(stream, prefixed(b"x" * 20_000)[:-1]))
        assert set(statuses(wire, found).values()) == {"8"}
        assert len(wire.connection.calls) == 4
        for stream in range(1, 9, 2):
            found = await wire.send(data(stream, b"x", end=True))
            assert statuses(wire, found) == {stream: "0"}

    run(scenario)


def test_a_deadline_ends_a_call() -> None:
    """The handler is cancelled, and the client gets DEADLINE_EXCEEDED; a call in time is not affected."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        await wire.send(
            wire.call(1, path=WAIT, grpc_timeout="20m"), wire.call(3, path=WAIT, grpc_timeout="1H"),
            wire.head(5, grpc_timeout="20000u"), wire.call(7, grpc_timeout="99999999H"),
            wire.head(9, path=TALK, grpc_timeout="20m"),
        )  # fmt: skip
        await asyncio.sleep(0.1)
        service.release.set()
        found = await wire.frames()
        assert statuses(wire, found) == {1: "4", 3: "0", 5: "4", 9: "4"}
        assert service.ended == {"cancelled": 1, "answered": 1, "talks": 1}
        assert statuses(wire, await wire.send(wire.call(11, grpc_timeout="soon"))) == {11: "13"}

    run(scenario)


def test_a_reset_cancels_a_call() -> None:
    """The handler is cancelled, nothing is written for the stream any more, and others go on."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        await wire.send(wire.call(1, path=WAIT), wire.head(3, path=TALK), wire.call(5, path=WAIT), wire.head(7))
        found = await wire.send(*(pack_reset(stream, ErrorCode.CANCEL) for stream in (1, 3, 7)))
        service.release.set()
        found += await wire.frames()
        assert statuses(wire, found) == {5: "0"}
        assert {frame.stream for frame in found if frame.kind != WINDOW_UPDATE} == {5}
        assert service.ended == {"cancelled": 1, "talks": 1, "answered": 1}

    run(scenario)


def test_a_failure_of_a_handler_is_no_failure_of_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets UNKNOWN without a word about Python; the log has the traceback."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        with caplog.at_level(logging.CRITICAL + 1):
            found = await wire.send(wire.call(1, path="/test/Fail"), wire.call(3))
        assert statuses(wire, found) == {1: "2", 3: "0"}

    run(scenario)


@pytest.mark.parametrize(
    "changes",
    [
        {"content_type": "application/json"},
        {"content_type": "application/grpc-web"},
        {"method": "GET"},
        {"fields": HEAD[:5]},
    ],
)
def test_what_is_no_call_has_status_415(changes: dict[str, Any]) -> None:
    """Another method or content type is answered in HTTP, once all of it has arrived."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        assert not [frame for frame in await wire.send(wire.head(1, **changes)) if frame.kind == HEADERS]
        found = await wire.send(data(1, b"x" * 100, end=True), wire.head(3, end=True, **changes), wire.call(5))
        answers = [wire.read_fields(frame) for frame in found if frame.kind == HEADERS]
        assert [fields.get(":status") for fields in answers] == ["415", "415", "200", None]
        texts = [frame.payload for frame in found if frame.kind == DATA and frame.stream < 5 and frame.payload]
        assert texts == [BAD_MEDIA_TEXT] * 2

    run(scenario)


def test_content_types_of_grpc_are_taken() -> None:
    """A format or a parameter may follow ``application/grpc``."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        for number, kind in enumerate(("application/grpc+proto", "application/grpc;charset=utf-8")):
            found = await wire.send(wire.call(2 * number + 1, content_type=kind))
            assert statuses(wire, found) == {2 * number + 1: "0"}
        assert statuses(wire, await wire.send(wire.call(9, path="/test/None"))) == {9: "12"}

    run(scenario)


def test_a_stream_answers_as_messages_come() -> None:
    """Several messages in one frame, one in several, and the end; responses come before the end of the requests."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        found = await wire.send(wire.head(1, path=TALK), data(1, prefixed(b"a") + prefixed(b"b") + prefixed(b"c")[:3]))
        assert b"".join(frame.payload for frame in found if frame.kind == DATA) == prefixed(b"a") + prefixed(b"b")
        found = await wire.send(data(1, prefixed(b"c")[3:]), data(1, b"", end=True))
        assert wire.answers(found) == {1: (prefixed(b"c"), "0")}
        found = await wire.send(wire.head(3, path=TALK, end=True), wire.head(5, path=TALK, grpc_encoding="gzip"))
        assert wire.answers(found) == {3: (b"", "0")}
        found = await wire.send(data(5, prefixed(gzip.compress(b"hello"), 1)), data(5, prefixed(b"damaged", 1)))
        assert wire.answers(found) == {5: (prefixed(b"hello"), "13")}
        assert service.ended["talks"] == 3

    run(scenario)


def test_a_stream_that_waits_for_ever_ends() -> None:
    """A stream from a client that sends nothing more is ended after a time."""

    async def scenario(service: Service) -> None:
        wire = await service.open()
        await wire.send(wire.head(1, path=TALK), data(1, prefixed(b"a")))
        wire.connection.check_time(asyncio.get_running_loop().time() + 320)
        assert statuses(wire, await wire.frames()) == {}
        wire.connection.check_time(asyncio.get_running_loop().time() + 340)
        assert statuses(wire, await wire.frames()) == {1: "4"}

    run(scenario)
