"""Clients that are slow, silent, huge or wrong, a full disk and a clock that jumps: none of them harms the others."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.serving.client import Reply, Server, read, request, rows, serving

INFER = "/v2/models/total/infer"
DIARY = "/v2/models/diary/infer"


@pytest.fixture(scope="module")
def hasty() -> Iterator[Server]:
    """A server that gives a request two seconds to come."""
    with serving("total", "patience=2") as server:
        yield server


def fine(server: Server) -> bool:
    """Whether a plain request is answered."""
    return server.ask(INFER, rows([1, 1, 1])).status == 200


def rss_mib(server: Server) -> float:
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def ended(wire: socket.socket, seconds: float = 20.0) -> bool:
    """Whether the server ends a connection."""
    wire.settimeout(seconds)
    try:
        while wire.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


@pytest.mark.parametrize("cut", [1, 20, 60, -4], ids=["verb", "path", "head", "body"])
@pytest.mark.parametrize("path", [INFER, "/v2/models/total/versions/1/infer"])
def test_slow_clients_are_let_go(hasty: Server, path: str, cut: int) -> None:
    """A hundred clients that never end their request leave others undisturbed, and are cut off in time."""
    whole = request(path, rows([1, 2, 3]))
    wires = [hasty.connect() for _ in range(100)]
    for wire in wires:
        wire.sendall(whole[:cut])
    assert all(fine(hasty) for _ in range(20))
    assert all(ended(wire) for wire in wires)
    for wire in wires:
        wire.close()


def test_a_client_that_drips_is_let_go(hasty: Server) -> None:
    """A byte now and then does not keep a connection: the whole request must come in time."""
    whole = request(INFER, rows([1, 2, 3]))
    with hasty.connect() as wire, pytest.raises(OSError, match=r"reset|pipe|abort"):
        send_each(wire, [whole[at : at + 1] for at in range(len(whole) - 1)], 0.1)


def send_each(wire: socket.socket, parts: list[bytes], pause_s: float = 0.0) -> None:
    """Send one part after the other."""
    for part in parts:
        wire.sendall(part)
        time.sleep(pause_s)


@pytest.mark.parametrize("path", [INFER, "/v2/models/total/versions/1/infer"])
def test_a_client_that_takes_no_answers_is_let_go(hasty: Server, path: str) -> None:
    """A client that sends and never reads is not answered without end: memory stays, and the connection is cut."""
    before = rss_mib(hasty)
    ask = request(path, rows(*[[1, 2, 3]] * 500))
    with hasty.connect() as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.settimeout(10)
        with pytest.raises(OSError, match=r"reset|pipe|abort"):
            send_each(wire, [ask] * 100_000)
    assert rss_mib(hasty) - before < 30
    assert fine(hasty)


def test_a_client_that_said_all_hears_its_answer() -> None:
    """A connection that is closed on the client's side alone is answered, then closed."""
    with serving("total", "delay=0.2") as server, server.connect() as wire:
        wire.sendall(request(INFER, rows([1, 2, 3])))
        wire.shutdown(socket.SHUT_WR)
        assert read(wire).status == 200
        assert wire.recv(1) == b""


def test_sigterm_answers_connections_not_yet_accepted() -> None:
    """A client with an open connection is answered, though SIGTERM comes before the server has accepted it."""
    with serving("total") as server:
        server.process.send_signal(signal.SIGSTOP)
        wires = [server.connect() for _ in range(40)]
        for wire in wires:
            wire.sendall(request(INFER, rows([1, 2, 3])))
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGCONT)
        assert [read(wire).status for wire in wires] == [200] * 40
        assert server.process.wait(20) == 0
        for wire in wires:
            wire.close()


def test_half_open_connections_do_not_keep_the_server(hasty: Server) -> None:
    """Clients that vanish without a word, before a request, in it or after it, hold up neither others nor the end."""
    whole = request(INFER, rows([1, 2, 3]))
    with serving("total") as server:
        wires = [server.connect() for _ in range(60)]
        for at, wire in enumerate(wires):
            wire.sendall(whole[: (0, 30, len(whole))[at % 3]])
        assert all(fine(server) for _ in range(10))
        began = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - began < 15
        for wire in wires:
            wire.close()


@pytest.mark.parametrize("path", [INFER, "/v2/models/total/versions/1/infer", "/nowhere"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_huge_bodies_are_refused_unread(hasty: Server, path: str, *, chunked: bool) -> None:
    """100 MB are refused with 413 (or 404) before they are there; memory does not grow with them."""
    before = rss_mib(hasty)
    how = "transfer-encoding: chunked" if chunked else "content-length: 100000000"
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\n{how}\r\n\r\n".encode()
    part = b"10000\r\n" + b" " * 65536 + b"\r\n" if chunked else b" " * 65536
    with hasty.connect() as wire:
        reply = flooded(wire, head, part, 1600)
    assert reply is None or reply.status in (404, 413)
    assert rss_mib(hasty) - before < 20
    assert fine(hasty)


def flooded(wire: socket.socket, head: bytes, part: bytes, parts: int) -> Reply | None:
    """Send a body that does not end; return the answer, or nothing if the connection was reset meanwhile."""
    try:
        wire.sendall(head)
        for _ in range(parts):
            wire.sendall(part)
    except OSError:
        pass
    try:
        return read(wire)
    except OSError:
        return None


CHUNKED = b"POST %b HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" % INFER.encode()
FIELDS = b"a: b\r\n" * 20_000


def send_until_cut(wire: socket.socket, parts: list[bytes]) -> str:
    """Send parts one by one; return how the connection was cut, empty if it was not."""
    try:
        send_each(wire, parts)
    except OSError as error:
        return str(error) or type(error).__name__
    return ""


@pytest.mark.parametrize(
    ("begin", "part"),
    [
        (b"GET /v2 HTTP/1.1\r\nhost: a\r\n", FIELDS),
        (b"GET /v2 HTTP/1.1\r\nhost: a\r\na: ", b"b" * 100_000),
        (b"GET /v2 HTTP/1.1\r\nhost: a\r\n\r\nGET /v2 HTTP/1.1\r\na: ", b"b" * 100_000),
        (b"GET /", b"b" * 100_000),
        (CHUNKED + b"0\r\n", FIELDS),
        (CHUNKED + b"0\r\na: ", b"b" * 100_000),
    ],
    ids=["headers", "value", "second", "path", "trailers", "trailer"],
)
def test_a_head_without_end_is_cut_off(hasty: Server, begin: bytes, part: bytes) -> None:
    """A head, or what follows a body, is not kept beyond some megabytes, and others are answered meanwhile.

    The connection is cut, or the client that sends all of it before it reads gets 400.
    """
    before = rss_mib(hasty)
    with hasty.connect() as wire:
        wire.settimeout(1.5)
        cut = send_until_cut(wire, [begin, *[part] * 300])
        assert ("reset" in cut or "Broken pipe" in cut) if cut else read(wire).status == 400
    assert fine(hasty)
    assert rss_mib(hasty) - before < 40


def test_an_unauthorized_request_with_a_huge_body_gets_401() -> None:
    """A client without the token that sends all of a huge body before it reads gets 401, not a cut connection."""
    with serving("total", "token=sesame") as server, server.connect() as wire:
        wire.sendall(b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-length: 20000000\r\n\r\n" % INFER.encode())
        send_each(wire, [b" " * 1_000_000] * 20)
        assert read(wire).status == 401


def test_a_body_in_the_smallest_chunks_is_answered(hasty: Server) -> None:
    """What chunks add to a body does not count as a head."""
    body = json.dumps(rows([1, 2, 3])).encode() + b" " * 90_000
    with hasty.connect() as wire:
        wire.sendall(CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        assert read(wire).status == 200


def test_a_huge_body_is_rejected_with_413(hasty: Server) -> None:
    """A client that waits for the answer to a head announcing 100 MB gets 413, and the connection ends."""
    with hasty.connect() as wire:
        wire.sendall(f"POST {INFER} HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000\r\n\r\n".encode())
        reply = read(wire)
        assert (reply.status, reply.headers["connection"]) == (413, "close")
        assert ended(wire)


def tensor(shape: Any, data: Any, datatype: str = "FP64") -> bytes:
    x = {"name": "x", "shape": shape, "datatype": datatype, "data": data}
    return json.dumps({"inputs": [x]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        tensor([1, 3], [1, 2, float("nan")]),
        tensor([1, 3], [1, 2, float("inf")]),
        tensor([1, 3], [1, 2, None]),
        tensor([1, 3], [1, 2, "3"]),
        tensor([1, 3], [1, 2, True]),
        tensor([1, 3], [1, 2, [3]]),
        tensor([1, 3], [1, 2]),
        tensor([1, 3], [1, 2, 3, 4]),
        tensor([2, 3], [1, 2, 3]),
        tensor([3], [1, 2, 3]),
        tensor([1, 1, 3], [1, 2, 3]),
        tensor([0, 3], []),
        tensor([-1, 3], [1, 2, 3]),
        tensor([10**9, 3], [1, 2, 3]),
        tensor([10**30, 3], [1, 2, 3]),
        tensor([1.0, 3], [1, 2, 3]),
        tensor([1, 3], [1, 2, 3], "COMPLEX"),
        tensor([1, 3], []),
        b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP64","data":[1,2,1e999]}]}',
        b"[" * 1000,
        b"\xff\xfe",
        b"null",
        b"",
        b'{"inputs":[]}',
        b'{"inputs":{}}',
    ],
)
def test_wrong_values_are_refused(hasty: Server, body: bytes) -> None:
    """NaN, infinity, null, wrong types and shapes, and invalid JSON are answered with 400; nothing fails."""
    reply = hasty.ask(INFER, body)
    assert reply.status == 400
    assert reply.json["error"]


def hour(when: int, value: float = 1.0) -> dict[str, Any]:
    x = {"name": "x", "shape": [1], "datatype": "FP64", "data": [value]}
    return {"inputs": [x], "parameters": {"entity": "p", "time": when}}


def test_a_full_disk_loses_no_stage(tmp_path: Path) -> None:
    """While the disk is full, hours are refused with 503 and no stage changes; with room again it goes on there."""
    with serving("diary", f"store={tmp_path / 's.db'}") as server:
        assert [server.ask(DIARY, hour(when)).status for when in range(3)] == [200] * 3
        hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1024, hard))
        refused = [server.ask(DIARY, hour(when)) for when in (3, 3, 4)]
        assert [reply.status for reply in refused] == [503] * 3
        assert server.ask("/v2/health/ready").status == 200
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        found = server.ask(DIARY, hour(3)).json
        assert json.loads(found["outputs"][0]["data"][0]) == [[when, 1.0] for when in range(4)]
        assert server.end() == 0


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path) -> None:
    """A wall clock that goes days ahead and back leaves connections, stages and queue as they are."""
    with serving("diary", f"store={tmp_path / 's.db'}") as server, server.connect() as wire:
        for when in range(4):
            wire.sendall(request(DIARY, hour(when)))
            assert json.loads(read(wire).json["outputs"][0]["data"][0])[-1] == [when, 1.0]
            os.kill(server.process.pid, signal.SIGUSR1)
            time.sleep(1.2)  # a sweep of the connections passes
        assert server.ask("/v2/health/live").status == 200
        assert server.end() == 0
