"""The server of our own against ``grpc.aio``: any traffic is answered alike, and none does harm."""

from __future__ import annotations

import logging
import random
import socket
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hpack import Encoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.serving.grpc.http2.wire import HEAD, OPENING, Service, data, prefixed, run
from tests.unit.serving.grpc.test_server import both, raw_request
from unfoldkit.serving.grpc.http2 import frames
from unfoldkit.serving.grpc.http2.calls import STREAM_WINDOW
from unfoldkit.serving.grpc.http2.frames import PING, SETTINGS, ErrorCode, pack_frame, pack_settings
from unfoldkit.serving.grpc.http2.headers import MAX_LIST_BYTES
from unfoldkit.serving.grpc.messages import METHODS, SERVICE, build_messages
from unfoldkit.serving.grpc.server import MAX_STREAMS

MESSAGES = build_messages()
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, int]]:
    """Return the ports of our own server and of ``grpc.aio``, with the same model."""
    with both() as (_, own), both("fast_path=0") as (_, aio):
        yield own, aio


@pytest.fixture(scope="module")
def channels(ports: tuple[int, int]) -> Iterator[tuple[grpc.Channel, grpc.Channel]]:
    ours, theirs = (grpc.insecure_channel(f"127.0.0.1:{port}") for port in ports)
    with ours, theirs:
        yield ours, theirs


def outcome(channel: grpc.Channel, path: str, request: bytes, **more: Any) -> tuple[Any, ...]:
    """Return response, status, message and metadata of a call."""
    call = channel.unary_unary(path).future(request, timeout=20, wait_for_ready=True, **more)
    code = call.code()
    response = call.result() if code is grpc.StatusCode.OK else b""
    return response, code, call.details(), sorted(map(tuple, call.trailing_metadata()))


def test_the_two_servers_are_what_they_are_taken_for(ports: tuple[int, int]) -> None:
    """By default our own server answers, with its settings; ``--no-fast-path`` leaves gRPC to grpcio."""
    opening = pack_settings({
        frames.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
        frames.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
        frames.MAX_HEADER_LIST_SIZE: MAX_LIST_BYTES,
    })  # fmt: skip
    for port, is_own in zip(ports, (True, False), strict=True):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
            wire.sendall(OPENING)
            assert (wire.recv(len(opening)) == opening) is is_own


TENSORS = st.tuples(
    st.lists(st.floats(width=32), min_size=3, max_size=12),
    st.sampled_from([("<f8", "FP64"), ("<f4", "FP32"), ("<i4", "INT32"), ("<f8", "FP32")]),
    st.sampled_from(["", "a", "ä" * 50, "x" * 1100]),
    st.sampled_from([None, ("total",), ("total", "other"), ("total", "total")]),
    st.sampled_from([None, ("priority", 3), ("entity", "ward"), ("timeout", 5)]),
)


def build_request(parts: Any) -> bytes:
    values, (dtype, datatype), name, outputs, parameter = parts
    whole = [0.0 if dtype == "<i4" else value for value in values[: len(values) // 3 * 3]]
    request = raw_request(MESSAGES, np.array(whole).reshape(-1, 3), dtype, datatype, id=name)
    for output in outputs or ():
        request.outputs.add(name=output)
    if parameter is not None:
        key, value = parameter
        setattr(request.parameters[key], "string_param" if isinstance(value, str) else "int64_param", value)
    return bytes(request.SerializeToString())


@FEW
@given(parts=TENSORS, compression=st.sampled_from([None, grpc.Compression.Gzip, grpc.Compression.Deflate]))
def test_inference_is_answered_as_by_grpcio(
    channels: tuple[grpc.Channel, grpc.Channel], parts: Any, compression: Any
) -> None:
    """Response, status, message and metadata are equal, bit by bit, whatever a request holds."""
    request, sent = build_request(parts), (("x-request-id", "mine"), ("any-bin", b"\xff\0"))
    found = [
        outcome(channel, f"/{SERVICE}/ModelInfer", request, metadata=sent, compression=compression)
        for channel in channels
    ]
    responses = [MESSAGES.ModelInferResponse.FromString(one[0]) for one in found]
    assert responses[0] == responses[1]
    assert found[0][1:] == found[1][1:]


@FEW
@given(st.sampled_from(METHODS), st.binary(max_size=40) | st.sampled_from([b"\n\5total", b"\n\5other", b""]))
def test_calls_are_answered_as_by_grpcio(
    channels: tuple[grpc.Channel, grpc.Channel], name: str, request: bytes
) -> None:
    """Every method, with valid requests and with any bytes, has the same status, message and response."""
    path = f"/{SERVICE}/{name}"
    ours, theirs = (outcome(channel, path, request) for channel in channels)
    assert ours[1:] == theirs[1:]
    if name != "ModelStatistics":
        parse = getattr(MESSAGES, f"{name}Response").FromString
        assert parse(ours[0]) == parse(theirs[0])


@pytest.mark.parametrize("path", [f"/{SERVICE}/None", "/none.None/Call", "/grpc.health.v1.Health/Check"])
def test_other_methods_are_answered_as_by_grpcio(channels: tuple[grpc.Channel, grpc.Channel], path: str) -> None:
    """Unknown methods and health have the same status and message."""
    for request in (b"", b"\n\5total", b"\n\4none", b"\xff"):
        ours, theirs = (outcome(channel, path, request) for channel in channels)
        assert ours == theirs


def traffic(service_calls: list[tuple[str, bytes, int]], chooser: random.Random) -> tuple[bytes, dict[int, bytes]]:
    """Return a connection's bytes with calls in mixed frames, and the expected answer to each call."""
    expected: dict[int, bytes] = {}
    encoder = Encoder()
    waiting: list[list[bytes]] = []
    sent = [OPENING]
    for number, (path, message, cut) in enumerate(service_calls):
        stream = 2 * number + 1
        fields = [*HEAD[:2], (":path", path), *HEAD[3:], ("x-number", str(number))]
        block, body = encoder.encode(fields), prefixed(message)
        at = min(cut, len(block))
        sent.append(pack_frame(frames.HEADERS, 0, stream, block[:at]))
        sent.append(pack_frame(frames.CONTINUATION, frames.END_HEADERS, stream, block[at:]))
        at = min(cut, len(body))
        waiting.append([data(stream, body[:at]), data(stream, body[at:], end=True)])
        expected[stream] = body
        while waiting and chooser.random() < 0.5:
            parts = chooser.choice(waiting)
            sent.append(parts.pop(0))
            waiting = [item for item in waiting if item]
        if chooser.random() < 0.2:
            sent.append(pack_frame(PING, 0, 0, b"12345678"))
    sent += [part for parts in waiting for part in parts]
    return b"".join(sent), expected


CALLS = st.lists(
    st.tuples(st.sampled_from(["/test/Echo", "/test/Talk"]), st.binary(max_size=600), st.integers(0, 40)),
    min_size=1, max_size=12,
)  # fmt: skip


def chunks(sent: bytes, chooser: random.Random) -> Iterator[bytes]:
    start = 0
    while start < len(sent):
        size = chooser.choice((1, 3, 9, 50, 1000))
        yield sent[start : start + size]
        start += size


@settings(max_examples=100, deadline=None)
@given(CALLS, st.integers(0, 2**32))
def test_valid_traffic_is_answered_however_it_is_cut(calls: list[tuple[str, bytes, int]], seed: int) -> None:
    """Mixed frames of many calls, in chunks of any size, have all their answers."""
    chooser = random.Random(seed)  # noqa: S311 - no secret

    async def scenario(service: Service) -> None:
        wire = service.connect()
        sent, expected = traffic(calls, chooser)
        found = await wire.send(*chunks(sent, chooser))
        assert {stream: body for stream, (body, status) in wire.answers(found).items() if status == "0"} == expected
        wire.transport.close()
        await wire.frames()

    run(scenario)


@settings(max_examples=300, deadline=None)
@given(CALLS, st.integers(0, 2**32))
def test_mutated_traffic_does_no_harm(calls: list[tuple[str, bytes, int]], seed: int) -> None:
    """Flipped, lost, repeated and moved bytes raise nothing, hold nothing, and end in frames that are valid."""
    chooser = random.Random(seed)  # noqa: S311 - as above

    async def scenario(service: Service) -> None:
        wire = service.connect()
        wire.connection.host.log.setLevel(logging.CRITICAL)
        sent, _ = traffic(calls, chooser)
        mutated = bytearray(sent)
        for _ in range(chooser.randrange(1, 6)):
            at = chooser.randrange(len(OPENING) if chooser.random() < 0.8 else 1, len(mutated))
            kind = chooser.randrange(4)
            if kind == 0:
                mutated[at] ^= 1 << chooser.randrange(8)
            elif kind == 1:
                del mutated[at : at + chooser.randrange(1, 30)]
            elif kind == 2:
                mutated[at:at] = mutated[max(0, at - chooser.randrange(1, 40)) : at]
            else:
                mutated[at : at + 2] = bytes(chooser.randrange(256) for _ in range(2))
            if len(mutated) <= len(OPENING):
                break
        found = await wire.send(*chunks(bytes(mutated), chooser))
        service.release.set()
        found += await wire.frames()
        assert found[0].kind == SETTINGS
        assert wire.read_bytes == len(wire.transport.written)
        codes = [ErrorCode(frame.code) for frame in found if frame.kind in (frames.GOAWAY, frames.RST_STREAM)]
        assert ErrorCode.INTERNAL_ERROR not in codes
        if not wire.transport.is_over:
            wire.transport.close()
        await wire.frames()
        assert not wire.connection.host.call_count

    run(scenario)
