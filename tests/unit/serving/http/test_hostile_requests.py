"""What a hostile client may send over a plain socket: every request ends with its status, and the server goes on."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.unit.serving.client import Server, read, rows, serving
from tests.unit.serving.grpc.test_server import both, call, raw_request
from unfoldkit.serving.grpc.messages import SERVICE, build_messages
from unfoldkit.serving.observability.access_log import limit_repeats

INFER = b"/v2/models/total/infer"
BODY = json.dumps(rows([1, 2, 3])).encode()
CHUNKED = b"transfer-encoding: chunked\r\n"


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Server, int]]:
    with both() as pair:
        yield pair


def post(headers: bytes = b"", body: bytes = BODY, *, path: bytes = INFER, host: bytes = b"host: test\r\n") -> bytes:
    """Return a request; its length is left out if the headers frame its body."""
    is_framed = b"content-length" in headers or b"transfer-encoding" in headers
    length = b"" if is_framed else b"content-length: %d\r\n" % len(body)
    return b"POST %b HTTP/1.1\r\n%b%b%b\r\n%b" % (path, host, length, headers, body)


def chunks(body: bytes = BODY, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n0\r\n%b\r\n" % (len(body), extension, body, trailers)


def tensor(**change: Any) -> bytes:
    item = {"name": "x", "datatype": "FP64", "shape": [1, 3], "data": [1, 2, 3]} | change
    return json.dumps({"inputs": [item]}).encode()


def binary(size: Any, tail: bytes, **change: Any) -> bytes:
    item = {"name": "x", "datatype": "FP64", "shape": [1, 3], "parameters": {"binary_data_size": size}} | change
    head = json.dumps({"inputs": [item]}).encode()
    return post(b"inference-header-content-length: %d\r\n" % len(head), head + tail)


def exchange(port: int, data: bytes) -> bytes:
    """Send bytes, stop sending, and return all that comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
        received = b""
        try:
            wire.sendall(data)
            wire.shutdown(socket.SHUT_WR)
            while part := wire.recv(65536):
                received += part
        except OSError:
            # the server may close before it has read everything
            pass
        return received


ATTACKS = {
    "nul in a name": (post(b"a\0b: 1\r\n"), 400),
    "space in a name": (post(b"a b: 1\r\n"), 400),
    "space before the colon": (post(b"a : 1\r\n"), 400),
    "folded line": (post(b"a: 1\r\n 2\r\n"), 400),
    "bare line feed": (post(b"a: 1\nb: 2\r\n"), 400),
    "chunk extension of 1 MB": (post(CHUNKED, chunks(extension=b";" + b"a" * 10**6)), 200),
    "chunk size overflows": (post(CHUNKED, b"fffffffffffffffff\r\n" + BODY), 400),
    "negative chunk": (post(CHUNKED, b"-5\r\n" + BODY), 400),
    "trailers are dropped": (post(CHUNKED, chunks(trailers=b"host: evil\r\n")), 200),
    "both lengths": (post(b"content-length: 10\r\n" + CHUNKED, chunks()), 400),
    "two lengths": (post(b"content-length: 3\r\ncontent-length: 4\r\n"), 400),
    "signed length": (post(b"content-length: +3\r\n"), 400),
    "unknown coding": (post(b"transfer-encoding: xchunked\r\n", chunks()), 400),
    "two codings": (post(b"transfer-encoding: gzip, chunked\r\n", chunks()), 501),
    "coding twice": (post(CHUNKED * 2, chunks()), 400),
    "coding of HTTP/1.0": (b"POST %b HTTP/1.0\r\n%b\r\n%b" % (INFER, CHUNKED, chunks()), 400),
    "absolute form": (post(path=b"http://test" + INFER), 200),
    "connect": (b"CONNECT test:80 HTTP/1.1\r\nhost: test\r\n\r\n", 400),
    "list of hosts": (post(host=b"host: a, b\r\n"), 400),
    "two hosts": (post(host=b"host: a\r\nhost: a\r\n"), 400),
    "preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS on a plain port": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\7" * 300, 400),
    "offer of h2c": (post(b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMA\r\n"), 200),
    "websocket": (b"GET %b HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n" % INFER, 405),
    "gzip": (post(b"content-encoding: gzip\r\n", gzip.compress(BODY)), 200),
    "gzip bomb": (post(b"content-encoding: gzip\r\n", gzip.compress(b" " * 30_000_000)), 413),
    "deflate bomb": (post(b"content-encoding: deflate\r\n", zlib.compress(b" " * 30_000_000)), 413),
    "gzip within gzip": (post(b"content-encoding: gzip, gzip\r\n", gzip.compress(gzip.compress(BODY))), 400),
    "many gzip members": (post(b"content-encoding: gzip\r\n", gzip.compress(b"") * 4000), 400),
    "unknown compression": (post(b"content-encoding: br\r\n"), 400),
    "many keys": (post(body=b"{" + b",".join(b'"%d":1' % number for number in range(9000)) + b"}"), 413),
    "deep JSON": (post(body=b"[" * 50_000), 413),
    "not a number": (post(body=tensor(data=[float("nan"), 1, 2])), 400),
    "number overflows": (post(body=tensor().replace(b"[1, 2, 3]", b"[1e999,2,3]")), 400),
    "integer of 20,000 digits": (post(body=tensor().replace(b"[1, 2, 3]", b"[" + b"9" * 20_000 + b",2,3]")), 400),
    "dimension of 20,000 digits": (post(body=tensor().replace(b"[1, 3]", b"[" + b"9" * 20_000 + b",3]")), 400),
    "lone surrogate": (post(body=b'{"id":"\\ud800","inputs":[]}'), 400),
    "negative shape": (post(body=tensor(shape=[-1, 3])), 400),
    "shape overflows": (post(body=tensor(shape=[2**62, 4])), 400),
    "output twice": (post(body=BODY[:-1] + b',"outputs":[{"name":"total"},{"name":"total"}]}'), 400),
    "tensor is longer": (binary(24, b"1234"), 400),
    "negative tensor": (binary(-24, b"1" * 24), 400),
    "tensor and data": (binary(24, b"1" * 24, data=[1, 2, 3]), 400),
    "text is longer": (binary(12, struct.pack("<I", 2**32 - 1) + b"abcdefgh", datatype="BYTES", shape=[3]), 400),
    "deep version 1": (post(path=b"/v1/models/total:predict", body=b'{"instances":' + b"[" * 50_000), 413),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_ends_with_its_status(hosts: tuple[Server, int], name: str) -> None:
    """No attack gets an error of the server, an empty response or a second one; large messages are not repeated."""
    data, status = ATTACKS[name]
    received = exchange(hosts[0].port, data)
    assert received.startswith(b"HTTP/1.1 %d " % status), received[:300]
    assert received.count(b"HTTP/1.1 %d " % status) == 1
    assert len(received) < 1000


@pytest.mark.parametrize(
    "headers", [b"".join(b"a%d: 1\r\n" % number for number in range(2000)), b"a: %0100000d\r\n" % 1]
)
def test_a_large_head_is_refused(hosts: tuple[Server, int], headers: bytes) -> None:
    """More headers or bytes than a head may have get 400."""
    assert exchange(hosts[0].port, post(headers)).startswith(b"HTTP/1.1 400 ")
    assert exchange(hosts[0].port, post()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("headers", [b"", CHUNKED])
def test_a_client_that_sends_all_before_it_reads_gets_413(hosts: tuple[Server, int], headers: bytes) -> None:
    """The rest of a body that is too large is dropped: a reset would destroy the response before it is read."""
    body = b" " * 10_000_000
    received = exchange(hosts[0].port, post(headers, chunks(body) if headers else body))
    assert received.startswith(b"HTTP/1.1 413 "), received[:300]
    assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.timed
def test_a_client_that_never_finishes_its_body_does_not_delay_the_end() -> None:
    """The server ends at once although it still drops the body of a rejected request."""
    with serving("total") as server, server.connect() as wire:
        wire.sendall(post(b"content-length: 10000000\r\n"))
        assert read(wire).status == 413
        wire.sendall(b" " * 1000)
        begin_s = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - begin_s < 3


OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA\r\n"


@pytest.mark.parametrize("cut", [0, 1, 5])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_request_that_offers_an_upgrade_keeps_its_body(hosts: tuple[Server, int], cut: int, is_chunked: bool) -> None:
    """Java's client offers HTTP/2 with its first request. What follows the body is the next request, in any packets."""
    body = b'{"instances":[[1,2,3]]}'
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if is_chunked else body
    length = b"transfer-encoding: chunked" if is_chunked else b"content-length: %d" % len(body)
    head = b"POST /v1/models/total:predict HTTP/1.1\r\nhost: a\r\n" + OFFER + length + b"\r\n\r\n"
    with hosts[0].connect() as wire:
        for _ in range(2):
            if cut:
                wire.sendall(head)
                time.sleep(0.05)
                wire.sendall(sent[:cut])
                time.sleep(0.05)
                wire.sendall(sent[cut:])
            else:
                wire.sendall(head + sent + head + sent)
            # two answers may come in one packet
            count, answers = 1 if cut else 2, b""
            while answers.count(b"predictions") < count:
                answers += wire.recv(65536)
            assert answers.count(b"HTTP/1.1 200") == count


def test_a_body_behind_an_offer_is_no_request(hosts: tuple[Server, int]) -> None:
    """A proxy that passes the offer on counts one request; so does the server."""
    hidden = b"GET /v2/health/live HTTP/1.1\r\nhost: a\r\n\r\n"
    head = b"POST /v1/models/total:predict HTTP/1.1\r\nhost: a\r\n" + OFFER + b"content-length: %d\r\n\r\n"
    with hosts[0].connect() as wire:
        wire.sendall(head % len(hidden))
        time.sleep(0.05)
        wire.sendall(hidden)
        assert read(wire).status == 400
        wire.sendall(hidden)
        assert read(wire).body == b'{"live":true}'


def test_an_upgrade_is_logged_without_advice(hosts: tuple[Server, int]) -> None:
    """No installed library would make the service speak WebSockets."""
    exchange(hosts[0].port, ATTACKS["websocket"][0])
    assert "a client asked for an upgrade" in hosts[0].output()
    assert "pip install" not in hosts[0].output()


def test_requests_before_a_half_close_are_answered(hosts: tuple[Server, int]) -> None:
    """A client that stops sending gets every response to its inference requests, also those that uvicorn reads."""
    for path in (INFER, b"/v2/models/total/versions/1/infer", b"/v1/models/total:predict"):
        body = b'{"instances":[[1,2,3]]}' if b"v1/" in path else BODY
        assert exchange(hosts[0].port, post(path=path, body=body) * 20).count(b"HTTP/1.1 200 OK") == 20
    assert exchange(hosts[0].port, post(b"content-length: 1000\r\n")) == b""


def test_hostile_messages_of_grpc_end_with_their_status(hosts: tuple[Server, int]) -> None:
    """Garbage, two forms of one tensor and repeated outputs are invalid; error texts do not repeat long shapes."""
    messages = build_messages()
    twice = raw_request(messages, [[1, 2, 3]])
    twice.inputs[0].contents.fp64_contents.extend([1, 2, 3])
    mixed = messages.ModelInferRequest(model_name="total")
    item = mixed.inputs.add(name="x", datatype="FP64", shape=[1, 3])
    item.contents.fp64_contents.extend([1, 2, 3])
    item.contents.int_contents.append(1)
    repeated = raw_request(messages, [[1, 2, 3]])
    for _ in range(1000):
        repeated.outputs.add(name="total")
    shaped = messages.ModelInferRequest(model_name="total", raw_input_contents=[b"1" * 24])
    shaped.inputs.add(name="x", datatype="FP64", shape=[1] * 5000)
    with grpc.insecure_channel(f"127.0.0.1:{hosts[1]}") as channel:
        for request in (twice, mixed, repeated, shaped):
            with pytest.raises(grpc.RpcError) as caught:
                call(channel, messages, "ModelInfer", request)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert len(caught.value.details()) < 200
        for garbage in (b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x7f"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/{SERVICE}/ModelInfer")(garbage, timeout=10)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_flood_of_calls_is_answered(hosts: tuple[Server, int]) -> None:
    """Of many calls at a time, each is answered, or rejected with a status that clients repeat; none is cut."""
    messages = build_messages()
    with grpc.insecure_channel(f"127.0.0.1:{hosts[1]}") as channel:
        method = channel.unary_unary(
            f"/{SERVICE}/ModelReady",
            request_serializer=messages.ModelReadyRequest.SerializeToString,
            response_deserializer=messages.ModelReadyResponse.FromString,
        )
        calls = [method.future(messages.ModelReadyRequest(name="total"), timeout=60) for _ in range(1500)]
        codes = [item.code() for item in calls]
        assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert codes.count(grpc.StatusCode.OK) > 500


def test_hostile_requests_do_not_fill_the_log(hosts: tuple[Server, int]) -> None:
    """All attacks together leave a line of each kind, and no traceback."""
    for _ in range(50):
        exchange(hosts[0].port, b"nonsense\r\n\r\n")
    text = hosts[0].output()
    assert text.count("Invalid HTTP request received") == 1
    assert "Traceback" not in text


def test_a_message_passes_once_a_minute() -> None:
    """A repeated message passes again after a minute; one with a traceback always passes."""
    import logging

    times = iter([0.0, 1.0, 59.0, 60.0, 61.0, 62.0])
    passes = limit_repeats(lambda: next(times))
    plain = logging.makeLogRecord({"msg": "a %s"})
    assert [passes(plain) for _ in range(4)] == [True, False, False, True]
    failed = logging.makeLogRecord({"msg": "a %s", "exc_info": (ValueError, ValueError(), None)})
    assert [passes(failed), passes(failed)] == [True, True]
