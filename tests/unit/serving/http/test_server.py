"""The whole server in a process of its own, over real sockets."""

from __future__ import annotations

import gzip
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.unit.serving.client import Reply, Server, read, request, rows, serving
from unfoldkit.serving.http.workers import ending_signals

pytestmark = pytest.mark.timed

INFER = "/v2/models/total/infer"
SIZED = "inference-header-content-length"
METRIC = re.compile(r"^(unfold_[a-z_]+?)(?:_bucket|_sum|_count|_total|_created)?(?:\{.*\})? ", re.MULTILINE)


@pytest.fixture(scope="module")
def total() -> Iterator[Server]:
    with serving("total") as server:
        yield server


def test_the_paths_of_the_protocol(total: Server) -> None:
    """Server, health, metadata and readiness answer as the protocol specifies."""
    assert total.ask("/v2").json.keys() == {"name", "version", "extensions"}
    extensions = ["binary_tensor_data", "model_configuration", "model_repository", "statistics"]
    assert total.ask("/v2").json["extensions"] == extensions
    assert total.ask("/v2/health/live").json == {"live": True}
    assert total.ask("/v2/health/ready").json == {"ready": True}
    assert total.ask("/v2/models/total/ready").json == {"name": "total", "ready": True}
    about = total.ask("/v2/models/total").json
    assert about["inputs"] == [{"name": "x", "datatype": "FP64", "shape": [-1, 3]}]
    assert about["parameters"] == {"kind": "toy"}
    assert total.ask("/v2/models/total/versions/1").json == about


def test_the_index_names_the_models(total: Server) -> None:
    """The index lists the loaded models with their state, or only the ready ones on request."""
    known = [{"name": "total", "version": "1", "state": "READY", "reason": ""}]
    for body in (b"", {}, {"ready": True}, {"ready": None}):
        assert total.ask("/v2/repository/index", body).json == known
    for body, status in ((b"[", 400), ({"ready": 1}, 400), (b" " * 5000, 413)):
        assert total.ask("/v2/repository/index", body).status == status


def test_an_answer(total: Server) -> None:
    """An answer holds model, version, id and outputs, the same by the fast lane and the long way."""
    body = rows([1, 2, 3], [4, 5, 6], id="a", parameters={"entity": "p"})
    fast = total.ask(INFER, body)
    slow = total.ask("/v2/models/total/versions/1/infer", body)
    odd = total.ask(INFER, body, headers="connection: close\r\n")
    assert fast.status == slow.status == odd.status == 200
    assert fast.json == slow.json == odd.json
    assert fast.json["outputs"][0] == {"name": "total", "datatype": "FP64", "shape": [2], "data": [6, 15]}
    assert (fast.json["id"], fast.json["parameters"]) == ("a", {"entity": "p", "ignored": ["entity"]})
    assert "date" in fast.headers


@pytest.mark.parametrize(
    ("path", "body", "method", "status", "expected"),
    [
        ("/nowhere", None, "", 404, "/openapi.json"),
        ("/v2/models/other", None, "", 404, "no such model: 'other'; there is total"),
        ("/v2/models/other/infer", {}, "", 404, "no such model"),
        (INFER, None, "", 405, "GET is not for"),
        ("/v2", {}, "", 405, "POST is not for"),
        ("/v2/models/total", {}, "DELETE", 405, "DELETE"),
        (INFER, b"{", "", 400, "truncated"),
        (INFER, {}, "", 400, "missing required field `inputs`"),
        (INFER, rows([1, 2, 3], [4, 5]), "", 400, "a row of 2 values"),
        (INFER, rows([666, 0, 0]), "", 500, "the model failed: ZeroDivisionError"),
        (INFER, rows([409, 0, 0]), "", 409, "no"),
        (INFER, b" " * 200_000, "", 413, "at most 100000"),
        (INFER, rows(*[[1, 1, 1]] * 1025), "", 413, "1025 rows in one request; at most 1024"),
    ],
)
def test_a_wrong_request_gets_a_reason(
    total: Server, path: str, body: Any, method: str, status: int, expected: str
) -> None:
    """Each mistake has its status and a JSON error that explains it; the server goes on."""
    reply = total.ask(path, body, method=method)
    assert reply.status == status
    assert expected in reply.json["error"]
    assert total.ask(INFER, rows([1, 1, 1])).status == 200


@pytest.mark.parametrize("header", ["content-encoding: gzip", "content-encoding: br", f"{SIZED}: 3"])
def test_what_is_not_as_its_headers_say_is_refused(total: Server, header: str) -> None:
    """A body that contradicts its headers is refused, not misread."""
    assert total.ask(INFER, rows([1, 2, 3]), headers=header + "\r\n").status == 400


def test_a_packed_body_with_raw_tensors_is_answered_as_its_json(total: Server) -> None:
    """Compression and raw tensors change how a request comes, and not its answer; a bomb is not unpacked."""
    raw = np.array([[1, 2, 3], [4, 5, 6]], "<f4").tobytes()
    tensor = {"name": "x", "shape": [2, 3], "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    sized = f"{SIZED}: {len(head)}\r\n"
    wanted = total.ask(INFER, rows([1, 2, 3], [4, 5, 6])).json
    assert total.ask(INFER, head + raw, headers=sized).json == wanted
    packed = "content-encoding: gzip\r\n"
    assert total.ask(INFER, gzip.compress(head + raw), headers=packed + sized).json == wanted
    assert total.ask(INFER, gzip.compress(b" " * 10_000_000), headers=packed).status == 413


RAW, JSON = {"parameters": {"binary_data": True}}, {"parameters": {"binary_data": False}}
EVERY = {"parameters": {"binary_data_output": True}}


@pytest.mark.parametrize(
    ("more", "raw"),
    [
        (EVERY, {"total", "twice"}),
        ({"outputs": [{"name": "twice"} | RAW, {"name": "total"}]}, {"twice"}),
        (EVERY | {"outputs": [{"name": "total"}, {"name": "twice"} | JSON]}, {"total"}),
        ({"outputs": [{"name": "total"} | JSON]}, set()),
    ],
)
@pytest.mark.parametrize("path", [INFER, "/v2/models/total/versions/1/infer"])
def test_outputs_come_as_bytes_where_they_are_asked_for(
    total: Server, path: str, more: dict[str, Any], raw: set[str]
) -> None:
    """Tensors come as bytes behind the JSON on request, of one or of all, with the values that it would have."""
    given = rows([0.1, 2, 3], [4, 5, 6], id="a")
    names = {"outputs": [{"name": one["name"]} for one in more["outputs"]]} if "outputs" in more else {}
    plain, found = total.ask(path, given | names), total.ask(path, given | more)
    size = int(found.headers.get(SIZED, len(found.body)))
    header, at = json.loads(found.body[:size]), size
    assert (found.headers["content-type"] == "application/octet-stream") is bool(raw)
    for tensor in header["outputs"]:
        if tensor["name"] in raw:
            at, first = at + tensor.pop("parameters")["binary_data_size"], at
            tensor["data"] = np.frombuffer(found.body[first:at]).reshape(tensor["shape"]).tolist()
    assert at == len(found.body)
    assert header == plain.json


def test_requests_may_come_in_any_pieces(total: Server) -> None:
    """Split, chunked and pipelined requests on one connection are all answered, in order."""
    whole = request(INFER, rows([1, 2, 3]))
    chunk = json.dumps(rows([2, 2, 2])).encode()
    chunked = b"POST %b HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" % INFER.encode()
    with total.connect() as wire:
        for part in (whole[:40], whole[40:-5], whole[-5:]):
            wire.sendall(part)
            time.sleep(0.02)
        assert read(wire).json["outputs"][0]["data"] == [6]
    with total.connect() as wire:
        head = whole.index(b"\r\n\r\n") + 4
        wire.sendall(whole[:head])
        time.sleep(0.02)
        wire.sendall(whole[head:])
        assert read(wire).status == 200
        wire.sendall(whole)
        assert read(wire).status == 200
        wire.sendall(chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(chunk), chunk))
        assert read(wire).json["outputs"][0]["data"] == [6]
        wire.sendall(whole)
        assert read(wire).status == 200


def test_pipelined_requests_are_answered_in_order(total: Server) -> None:
    """Two requests in one packet get two answers, the first one first, whichever way each goes."""
    both = request(INFER, rows([1, 0, 0])) + request("/v2/health/live")
    with total.connect() as wire:
        wire.sendall(both)
        data = b""
        while data.count(b"HTTP/1.1 200") < 2 or b"live" not in data:
            more = wire.recv(65536)
            assert more
            data += more
    assert data.index(b"total") < data.index(b"live")


def test_a_client_that_leaves_harms_no_other(total: Server) -> None:
    """Connections that are cut at any point leave the server as it was."""
    whole = request(INFER, rows([1, 2, 3]))
    for cut in (1, 30, len(whole) - 3, len(whole)):
        with total.connect() as wire:
            wire.sendall(whole[:cut])
    assert total.ask(INFER, rows([1, 1, 1])).status == 200


def test_metrics_are_named_by_convention(total: Server) -> None:
    """Names start with unfold_, are in base units, counters end in _total; the counts are what was asked."""
    before = _metric(total, r'unfold_requests_total\{code="200",model="total"\}')
    total.ask(INFER, rows([1, 1, 1], [2, 2, 2]))
    text = total.ask("/metrics").body.decode()
    names = set(METRIC.findall(text))
    assert names == {
        "unfold_requests",
        "unfold_request_duration_seconds",
        "unfold_rows",
        "unfold_batch_rows",
        "unfold_predict_duration_seconds",
        "unfold_queue_rows",
        "unfold_connections",
        "unfold_connections_limit",
        "unfold_head_bytes",
        "unfold_body_bytes",
        "unfold_resource_rejections",
    }
    assert _metric(total, r'unfold_requests_total\{code="200",model="total"\}') == before + 1
    assert 'unfold_request_duration_seconds_bucket{le="+Inf",model="total"}' in text
    assert {line.split()[3] for line in text.splitlines() if line.startswith("# TYPE unfold_requests_total")} == {
        "counter"
    }


def _metric(server: Server, pattern: str) -> float:
    found = re.search(rf"^{pattern} (\S+)$", server.ask("/metrics").body.decode(), re.MULTILINE)
    assert found, pattern
    return float(found[1])


def test_the_openapi_document_is_kept(total: Server) -> None:
    """The document describes every path, and requests and answers are valid by its schemas."""
    document = total.ask("/openapi.json").json
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) >= {"/v2", "/v2/models/total", INFER, "/metrics"}
    for path, item in document["paths"].items():
        if "get" in item:
            assert total.ask(path).status == 200, path
    post = document["paths"][INFER]["post"]
    asks = post["requestBody"]["content"]["application/json"]["schema"]
    answers = post["responses"]["200"]["content"]["application/json"]["schema"]
    body = rows([1, 2, 3], id="a", parameters={"entity": "p"}, outputs=[{"name": "twice"}])
    jsonschema.validate(body, asks)
    jsonschema.validate(total.ask(INFER, body).json, answers)
    jsonschema.validate(total.ask(INFER, rows([1, 2, 3])).json, answers)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(rows([1, 2, "3"]), asks)


def test_overload_is_refused_at_once() -> None:
    """When the queue is full, requests get 429 with Retry-After, soon; those that were queued are answered."""
    with serving("total", "queue=8", "delay=0.2") as server:
        wires = [server.connect() for _ in range(40)]
        for wire in wires:
            wire.sendall(request(INFER, rows([1, 1, 1])))
        replies = [read(wire) for wire in wires]
        for wire in wires:
            wire.close()
    statuses = [reply.status for reply in replies]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 8
    refused = next(reply for reply in replies if reply.status == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert "retry later" in refused.json["error"]


def test_a_refused_request_costs_only_itself() -> None:
    """Each refused request, whole or in pieces, gets one answer, with its id; it is counted, its connection goes on."""
    body = json.dumps(rows([1, 1, 1])).encode()
    small, large = request(INFER, body), request(INFER, body + b" " * 90_000)
    asked = [small, request(INFER, body, headers="x-request-id: mine\r\n"), large, large, small]
    with serving("total", "queue=1", "delay=1") as server, server.connect() as first, server.connect() as second:
        for wire in (first, second):
            wire.sendall(small)
            time.sleep(0.1)
        with server.connect() as wire:
            replies = [_in_pieces(wire, data) for data in asked]
            # the next request comes with the end of a body that is dropped
            both = _in_pieces(wire, large + small)
            last = both.body if b"HTTP" in both.body else b"HTTP/1.1 %d" % read(wire).status
        with server.connect() as wire:
            replies.append(_in_pieces(wire, request(INFER, body, headers="expect:\r\n")))
        assert [read(wire).status for wire in (first, second)] == [200, 200]
        counted = server.ask("/metrics").body.decode()
    assert [reply.status for reply in replies] == [429] * 6
    assert [reply.headers.get("x-request-id") for reply in replies] == [None, "mine", None, None, None, None]
    assert (both.status, last.count(b"HTTP/1.1 429")) == (429, 1)
    assert 'unfold_requests_total{code="429",model="total"} 8.0' in counted


@pytest.mark.e2e
def test_a_long_overload_answers_each_request_once() -> None:
    """Of clients that ask again and again, whole or in pieces, each gets as many answers as it asked; none is odd."""
    statuses: list[int] = []
    with serving("total", "queue=4", "delay=0.02") as server:
        threads = [threading.Thread(target=_asks_again, args=(server, statuses, 1 + n % 3)) for n in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counted = server.ask("/metrics").body.decode()
        assert server.ask(INFER, rows([1, 2, 3])).json["outputs"][0]["data"] == [6]
    assert len(statuses) == 24 * 100
    assert set(statuses) == {200, 429}
    assert f'unfold_requests_total{{code="429",model="total"}} {statuses.count(429):.1f}' in counted


def _asks_again(server: Server, statuses: list[int], pieces: int) -> None:
    asked = request(INFER, rows([1, 2, 3]))
    size = -(-len(asked) // pieces)
    with server.connect() as wire:
        for _ in range(100):
            for begin in range(0, len(asked), size):
                wire.sendall(asked[begin : begin + size])
                time.sleep(0.001 if pieces > 1 else 0)
            reply = read(wire)
            statuses.append(reply.status)
            if reply.status == 200:
                assert reply.json["outputs"][0]["data"] == [6]


def _in_pieces(wire: socket.socket, data: bytes) -> Reply:
    """Send a request, a large one in three pieces, and return all that is answered soon."""
    for begin, end in ((0, 500), (500, 40_000), (40_000, len(data))):
        wire.sendall(data[begin:end])
        time.sleep(0.02 if len(data) > 500 else 0)
    return read(wire)


@pytest.mark.e2e
@pytest.mark.parametrize("delay", ["0", "0.02"])
@pytest.mark.parametrize("headers", ["", "x-long-way: yes\r\nexpect:\r\n"])
def test_sigterm_under_load_loses_no_accepted_request(delay: str, headers: str) -> None:
    """Every request sent on an open connection before the server closed it is answered completely."""
    lost: list[Exception] = []
    counts: list[int] = []

    def client(server: Server, stop: threading.Event) -> None:
        done = 0
        with server.connect() as wire:
            while not stop.is_set():
                try:
                    # below 409, which the toy refuses: a quick server answers a client that often
                    wire.sendall(request(INFER, rows([done % 400, 1, 1]), headers=headers))
                    reply = read(wire)
                except OSError as error:
                    lost.append(error)
                    break
                assert reply.json["outputs"][0]["data"] == [done % 400 + 2]
                done += 1
                if reply.headers.get("connection") == "close":
                    break
        counts.append(done)

    with serving("total", f"delay={delay}") as server:
        stop = threading.Event()
        clients = [threading.Thread(target=client, args=(server, stop)) for _ in range(12)]
        for one in clients:
            one.start()
        time.sleep(0.5)
        code = server.end()
        stop.set()
        for one in clients:
            one.join(20)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", server.port), timeout=2)
    assert not lost
    assert code == 0
    assert len(counts) == 12
    assert min(counts) > 0


def test_a_token_guards_both_ways() -> None:
    """With a token every path but health asks for it, by the fast lane and the long way; its scheme has any case."""
    with serving("total", "token=secret") as server:
        good = "authorization: Bearer secret\r\n"
        assert server.ask(INFER, rows([1, 2, 3])).status == 401
        assert server.ask(INFER, rows([1, 2, 3]), headers="authorization: Bearer wrong\r\n").status == 401
        assert server.ask(INFER, rows([1, 2, 3]), headers=good).status == 200
        for path, body in ((INFER, rows([1, 2, 3])), ("/metrics", None)):
            for same in ("bearer", "BEARER"):
                assert server.ask(path, body, headers=f"authorization: {same} secret\r\n").status == 200
            assert server.ask(path, body, headers="authorization: Bearer Secret\r\n").status == 401
        assert server.ask("/metrics").status == 401
        assert server.ask("/metrics", headers=good).status == 200
        assert server.ask("/v2/health/live").status == 200


def _hour(when: int, value: float) -> dict[str, Any]:
    x = {"name": "x", "shape": [1], "datatype": "FP64", "data": [value]}
    return {"inputs": [x], "parameters": {"entity": "p", "time": when}}


@pytest.mark.e2e
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_keeps_what_was_known(tmp_path: Path, how: signal.Signals) -> None:
    """After a stop or a kill the next server goes on where the last answer was; late hours stay late."""
    path, words = "/v2/models/diary/infer", ("diary", f"store={tmp_path / 's.db'}")
    with serving(*words) as server:
        for when in range(3):
            assert server.ask(path, _hour(when, 1.5)).status == 200
        server.end(how)
    with serving(*words) as server:
        assert server.ask(path, _hour(1, 1.5)).status == 409
        found = server.ask(path, _hour(3, 2.5)).json
        assert json.loads(found["outputs"][0]["data"][0]) == [[0, 1.5], [1, 1.5], [2, 1.5], [3, 2.5]]


@pytest.mark.e2e
@pytest.mark.parametrize("words", [(), ("processes=2",)])
def test_a_terminal_that_is_closed_ends_the_server_as_sigterm_does(words: tuple[str, ...]) -> None:
    """On SIGHUP what was sent is answered before the end, by one process and by several."""
    with serving("total", "delay=0.5", *words) as server, server.connect() as wire:
        wire.sendall(request(INFER, rows([1, 2, 3])))
        time.sleep(0.2)
        code = server.end(signal.SIGHUP)
        assert (read(wire).status, code) == (200, 0)


def test_a_server_can_outlive_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SIGHUP is ignored, as nohup has it, it ends nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda _number: signal.SIG_DFL)
        assert signal.SIGHUP in ending_signals()
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda _number: signal.SIG_IGN)
        assert signal.SIGHUP not in ending_signals()
