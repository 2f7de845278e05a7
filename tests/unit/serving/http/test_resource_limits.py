"""The bounds of what all connections hold together."""

from __future__ import annotations

import json
import re
import resource
import socket
import time
from contextlib import ExitStack
from typing import Any

import pytest

from tests.unit.serving.client import Server, read, request, rows, serving
from unfoldkit.serving.http.resource_limits import Held, ResourceLimits, ResourceUsage

pytestmark = pytest.mark.timed

INFER = "/v2/models/total/infer"
SLOW = "/v2/models/total/versions/1/infer"
HEALTH = "/v2/health/live"


def usage(**limits: Any) -> ResourceUsage:
    bound = ResourceUsage(ResourceLimits(**limits), [].append)
    bound.max_connections = limits.get("connections", 10)
    return bound


def test_one_client_gets_a_share_and_others_the_rest() -> None:
    """Of ten connections one address gets five; another address still gets its own."""
    bound = usage(connections=10, probes=0)
    first = [bound.admit("a", int) for _ in range(8)]
    assert [item is not None for item in first] == [True] * 5 + [False] * 3
    assert all(bound.admit("b", int) for _ in range(5))
    assert bound.admit("c", int) is None
    for item in first:
        if item is not None:
            item.release()
    assert (bound.total.connections, set(bound.clients)) == (5, {"b"})


def test_bytes_are_counted_until_they_are_given_back() -> None:
    """Heads and bodies count for their client and overall; what ends leaves no trace."""
    bound = usage(connections=10, head_bytes=100, body_bytes=1000, client_share=0.5)
    a, b, c = (bound.admit(client, int) for client in "abc")
    assert a is not None
    assert b is not None
    assert c is not None
    assert (a.hold(50, 0), a.hold(50, 500), a.hold(51, 500), a.hold(50, 501)) == ("", "", "head_bytes", "body_bytes")
    assert a.hold(0, 500) == ""
    assert b.hold(0, 500) == ""
    assert c.hold(0, 1) == "body_bytes"
    for item in (a, b, c):
        item.release()
    assert (bound.total, bound.clients) == (Held(), {})


def test_a_call_without_bytes_leaves_no_trace() -> None:
    """An empty call is answered at the bound, and its client is forgotten."""
    bound = usage(body_bytes=10)
    assert bound.hold_call("a", 11) == "bytes"
    assert (bound.hold_call("b", 0), bound.hold_call("b", -0)) == ("", "")
    bound.hold_call("a", -11)
    assert (bound.total, bound.clients) == (Held(), {})


def test_connections_of_both_protocols_count_together() -> None:
    """A client that used up its share over gRPC gets no connection over HTTP, and the other way round."""
    bound = usage(connections=10, probes=0)
    assert [bound.hold_connection("a", 1) for _ in range(6)] == [""] * 5 + ["connections"]
    assert bound.admit("a", int) is None
    held = [bound.admit("b", int) for _ in range(5)]
    assert bound.hold_connection("b", 1) == "connections"
    bound.hold_connection("a", -1)
    assert bound.hold_connection("c", 1) == ""
    for item in held:
        assert item is not None
        item.release()
    for client, count in (("a", 4), ("c", 1)):
        for _ in range(count):
            bound.hold_connection(client, -1)
    assert bound.total.is_empty
    assert not bound.clients


def test_a_probe_beyond_the_reserved_ones_ends_the_oldest() -> None:
    """Silent connections cannot keep health checks out: the oldest of them gives way."""
    ended: list[int] = []
    bound = usage(connections=1, probes=2, client_share=1.0)
    assert bound.admit("a", int)
    for number in range(3):
        item = bound.admit("a", lambda number=number: ended.append(number))
        assert item is not None
        assert item.is_probe
    assert ended == [0]


def test_a_bound_is_reported_once_per_minute() -> None:
    """A flood of rejections writes one line per minute and bound, and counts each."""
    lines: list[str] = []
    seconds = [0.0]
    bound = ResourceUsage(ResourceLimits(), lines.append, lambda: seconds[0])
    for at in (0, 1, 59, 60, 61):
        seconds[0] = at
        bound.reject("connections")
    bound.reject("body_bytes")
    assert [line.split()[0] for line in lines] == ["0", "0", "0"]
    assert bound.rejected == {"connections": 5, "head_bytes": 0, "body_bytes": 1, "descriptors": 0}


def metric(server: Server, name: str) -> float:
    found = re.search(rf"^{name} ([0-9.e+]+)$", server.ask("/metrics").body.decode(), re.MULTILINE)
    assert found, name
    return float(found[1])


def test_health_answers_beyond_the_bound_of_connections() -> None:
    """Beyond the bound health is answered, all else gets 503 with Retry-After; the rejections are counted."""
    with serving("total", "connections=20") as server, ExitStack() as open_wires:
        time.sleep(1.2)  # the bound is set with the first sweep
        wires = [open_wires.enter_context(server.connect()) for _ in range(20)]
        for wire in wires:
            wire.sendall(request(INFER, rows([1, 2, 3])))
            assert read(wire).status == 200
        for _ in range(3):
            assert server.ask(HEALTH).status == 200
            reply = server.ask(INFER, rows([1, 2, 3]))
            assert (reply.status, reply.headers["retry-after"], reply.headers["connection"]) == (503, "1", "close")
        silent = [open_wires.enter_context(server.connect()) for _ in range(60)]
        assert server.ask(HEALTH).status == 200
        # those that were open before are served on
        wires[0].sendall(request("/metrics"))
        text = read(wires[0]).body.decode()
        assert re.search(r'unfold_resource_rejections_total\{bound="connections"\} [1-9]', text)
        for wire in (*wires, *silent):
            wire.close()
        assert ready(server)
        assert len(re.findall("connections are open; further ones", server.output())) == 1


def ready(server: Server) -> bool:
    """Whether a plain request is answered within a few seconds."""
    for _ in range(100):
        try:
            if server.ask(INFER, rows([1, 1, 1])).status == 200:
                return True
        except OSError:
            pass
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(("path", "chunked"), [(INFER, False), (SLOW, False), (SLOW, True)])
def test_bodies_in_flight_are_bounded(path: str, *, chunked: bool) -> None:
    """Bodies that do not end hold no more than the bound; the next gets 503, a plain request its answer."""
    with serving("total", "body_bytes=200000") as server, ExitStack() as open_wires:
        size = "transfer-encoding: chunked\r\n\r\n11170\r\n" if chunked else "content-length: 90000\r\n\r\n"
        part = f"POST {path} HTTP/1.1\r\nhost: a\r\n{size}".encode() + b" " * 70_000
        for _ in range(2):
            open_wires.enter_context(server.connect()).sendall(part)
        time.sleep(0.3)
        assert 100_000 < metric(server, "unfold_body_bytes") <= 200_000
        late = open_wires.enter_context(server.connect())
        late.sendall(part)
        reply = read(late)
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert server.ask(INFER, rows([1, 2, 3])).status == 200
        open_wires.close()
        assert ready(server)
        time.sleep(0.2)
        assert metric(server, "unfold_body_bytes") == 0


@pytest.mark.slow
def test_a_complete_body_counts_until_its_response() -> None:
    """A large body that has arrived is held while it waits for its batch, and counts."""
    with serving("total", "body_bytes=100000", "delay=1") as server, ExitStack() as open_wires:
        body = json.dumps(rows([1, 2, 3])).encode() + b" " * 60_000
        first, second = (open_wires.enter_context(server.connect()) for _ in range(2))
        first.sendall(request(INFER, body))
        time.sleep(0.3)
        assert 60_000 < metric(server, "unfold_body_bytes") < 100_000
        second.sendall(request(INFER, body))
        assert read(second).status == 503
        assert read(first).status == 200
        assert metric(server, "unfold_body_bytes") == 0


def test_incomplete_heads_are_bounded() -> None:
    """Heads that do not end hold no more than the bound; further ones are closed, others are served."""
    with serving("total", "head_bytes=100000") as server, ExitStack() as open_wires:
        wires = [open_wires.enter_context(server.connect()) for _ in range(10)]
        for wire in wires:
            wire.sendall(b"GET /v2 HTTP/1.1\r\nhost: a\r\na: " + b"b" * 30_000)
        time.sleep(0.3)
        assert 60_000 < metric(server, "unfold_head_bytes") <= 100_000
        assert server.ask(INFER, rows([1, 2, 3])).status == 200
        assert sum(is_closed(wire) for wire in wires) == 7


def is_closed(wire: socket.socket) -> bool:
    wire.settimeout(0.2)
    try:
        return wire.recv(100) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize("limit", [64, 128])
def test_health_answers_when_descriptors_run_out(limit: int) -> None:
    """A process that loses its descriptors during a flood still answers health, and logs one line."""
    with serving("total") as server, ExitStack() as open_wires:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        time.sleep(1.2)
        for _ in range(3 * limit):
            open_wires.enter_context(server.connect())
        for _ in range(5):
            assert server.ask(HEALTH).status == 200
        open_wires.close()
        assert ready(server)
        assert server.output().count("next report in a minute") <= 2
