"""The gateway behind the host of ``unfold serve``: what raw HTTP clients and proxies send, and how the process ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

from plugins.cascade.tests.language_models.scripted_upstream import Upstream, serve_upstream
from tests.served import serving, unfold

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[4]
HOST = "host: localhost"


@dataclass(frozen=True, slots=True)
class Served:
    """A served run, its upstream and its process."""

    url: str
    upstream: Upstream
    process: subprocess.Popen[str]

    def send(self, data: bytes, *, replies: int = 1, patience_s: float = 10.0) -> bytes:
        """Send bytes on a connection of their own, and read until it ends or so many replies are whole."""
        with self.open() as client:
            client.settimeout(patience_s)
            client.sendall(data)
            received = b""
            while part := client.recv(65536):
                received += part
                if count_whole(received) >= replies:
                    break
            return received

    def open(self) -> socket.socket:
        """Open a connection."""
        place = urlparse(self.url)
        return socket.create_connection((place.hostname or "", place.port or 0))


def count_whole(data: bytes) -> int:
    """Count the replies with a length, or with chunks, that are complete at the start of the data."""
    count = 0
    while data:
        head, end, rest = data.partition(b"\r\n\r\n")
        lower = head.lower()
        if not end:
            return count
        if b"content-length:" in lower:
            length = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
            if len(rest) < length:
                return count
            data = rest[length:]
        elif b"chunked" in lower:
            _, end, data = rest.partition(b"\r\n0\r\n\r\n")
            if not end:
                return count
        else:
            return count
        count += 1
    return count


def _answer(request: dict[str, Any], _number: int) -> dict[str, Any]:
    text = request["messages"][-1]["content"]
    if "endless" in text:
        return {"text": " ".join(["w"] * 100), "logprob": -0.0001, "pace": 0.1}
    return {"text": f"re: {text[:40]}", "logprob": -0.0001, "delay": 1.0 if "slow" in text else 0.0}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("gateway")
    with serve_upstream(_answer) as upstream:
        settings = [
            argument for m in range(3) for argument in ("--set", f"stages[0].models[{m}].endpoint.url={upstream.url}")
        ]
        planned = unfold(folder, "plan", str(ROOT / "configs/cascade/llm.yaml"), "--run", "run", *settings)
        assert planned.returncode == 0, planned.stderr
        with serving(folder, "run", patience=280) as (process, url):
            served = Served(url, upstream, process)
            # connections wait while the gateway starts and probes its models
            health = f"GET /health HTTP/1.1\r\n{HOST}\r\n\r\n".encode()
            assert b" 200 " in served.send(health, patience_s=60).partition(b"\r\n")[0]
            yield served


def format_request(text: str, *headers: str, version: str = "1.1", **fields: Any) -> bytes:
    """Format a chat request."""
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": text}], **fields}).encode()
    lines = [f"POST /v1/chat/completions HTTP/{version}", HOST, f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    """Three requests in one write, the first of them slow: three replies, each to its request."""
    texts = ("slow a", "b", "c")
    data = served.send(b"".join(format_request(text) for text in texts), replies=3)
    assert count_whole(data) == 3
    positions = [data.find(f"re: {text}".encode()) for text in texts]
    assert positions == sorted(positions)
    assert -1 not in positions


@pytest.mark.parametrize("stream", [False, True])
def test_http_1_0_gets_no_chunks(served: Served, stream: bool) -> None:
    """A client of HTTP/1.0, as some proxies are, cannot read chunked replies."""
    data = served.send(format_request("x", "connection: close", version="1.0", stream=stream), replies=9)
    head, _, body = data.partition(b"\r\n\r\n")
    assert b" 200 " in head.split(b"\r\n")[0]
    assert b"transfer-encoding" not in head.lower()
    if stream:
        assert body.startswith(b"data: {")
        assert body.endswith(b"data: [DONE]\n\n")
    else:
        assert json.loads(body)["choices"]


def test_a_chunked_request_is_read_whole(served: Served) -> None:
    """Clients that stream their body send no length; a character may be divided by a chunk."""
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "日本"}]}, ensure_ascii=False).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\n{HOST}\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = b"".join(b"1\r\n%b\r\n" % body[k : k + 1] for k in range(len(body))) + b"0\r\n\r\n"
    data = served.send(head.encode() + chunks)
    assert json.loads(data.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"] == "re: 日本"


def test_too_many_headers_are_rejected_and_the_gateway_lives(served: Served) -> None:
    """They reach no upstream, and the next request is answered."""
    before = len(served.upstream.requests)
    try:
        data = served.send(format_request("many", *(f"x-{k}: {k}" for k in range(20_000))))
    except ConnectionError:
        data = b""
    assert b" 200 " not in data.partition(b"\r\n")[0]
    assert len(served.upstream.requests) == before
    assert b" 200 " in served.send(format_request("x")).partition(b"\r\n")[0]


def test_a_huge_header_goes_no_further_than_the_gateway(served: Served) -> None:
    """The host bounds heads by their sum; whatever a client sends in its head, no upstream sees it."""
    data = served.send(format_request("huge", "x-long: " + "a" * 50_000))
    assert b" 200 " in data.partition(b"\r\n")[0]
    assert "x-long" not in served.upstream.headers[-1]
    before = len(served.upstream.requests)
    data = served.send(format_request("huge", "x-long: " + "a" * 200_000))
    assert b" 400 " in data.partition(b"\r\n")[0]
    assert len(served.upstream.requests) == before


def test_headers_of_common_size_pass(served: Served) -> None:
    """Cookies and traces of some thousand bytes are usual."""
    assert b" 200 " in served.send(format_request("x", "cookie: " + "a" * 8000)).partition(b"\r\n")[0]


def test_two_lengths_or_a_torn_body_reach_no_upstream(served: Served) -> None:
    """Ambiguous framing is an error, and a body that never comes is no request."""
    before = len(served.upstream.requests)
    whole = format_request("x")
    assert b" 200 " not in served.send(whole.replace(HOST.encode(), HOST.encode() + b"\r\ncontent-length: 3"))[:20]
    with served.open() as client:
        client.sendall(whole[:-10])
    assert len(served.upstream.requests) == before


@pytest.mark.parametrize("behind", [0, 1, 20])
def test_a_hang_up_is_noticed_behind_the_host(served: Served, behind: int) -> None:
    """The upstream call of a client that left is cancelled, also if it had pipelined further requests."""
    before, count = served.upstream.hang_ups, len(served.upstream.requests)
    with served.open() as client:
        client.sendall(format_request("endless", stream=True) + behind * format_request("behind"))
        end = time.monotonic() + 5
        while len(served.upstream.requests) == count:
            assert time.monotonic() < end
            time.sleep(0.02)
    end = time.monotonic() + 6
    while served.upstream.hang_ups == before:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert not any(r["messages"][-1]["content"] == "behind" for r in served.upstream.requests[count:])


def test_the_live_page_is_served_at_the_root(served: Served) -> None:
    """The page and its events come from the host, as for every served kind."""
    place = urlparse(served.url).netloc
    page = served.send(f"GET / HTTP/1.1\r\nhost: {place}\r\n\r\n".encode())
    assert b" 200 " in page.partition(b"\r\n")[0]
    assert b"text/html" in page
    with served.open() as client:
        client.settimeout(10)
        client.sendall(f"GET /events HTTP/1.1\r\nhost: {place}\r\n\r\n".encode())
        received = b""
        while b"requests by model" not in received:
            part = client.recv(65536)
            assert part
            received += part


def test_a_reply_has_one_request_id(served: Served) -> None:
    """That of the client, if it sent one."""
    for headers, shown in (((), b"x-request-id: unfold-"), (("x-request-id: mine",), b"x-request-id: mine")):
        head = served.send(format_request("hi", *headers)).partition(b"\r\n\r\n")[0].lower()
        assert (head.count(b"x-request-id:"), shown in head) == (1, True)


def test_health_is_open_to_every_prober(served: Served) -> None:
    """Load balancers probe by their own names; nothing else is answered for them."""
    for path, status in (("/health", b" 200 "), ("/v1/models", b" 403 ")):
        reply = served.send(f"GET {path} HTTP/1.1\r\nhost: balancer.example\r\n\r\n".encode())
        assert status in reply.partition(b"\r\n")[0]


def test_a_stop_answers_what_is_under_way(served: Served) -> None:
    """SIGTERM: the slow answer arrives, and the process ends with 0."""
    with served.open() as client:
        client.settimeout(10)
        client.sendall(format_request("slow last"))
        time.sleep(0.3)
        served.process.send_signal(signal.SIGTERM)
        received = b""
        while count_whole(received) < 1:
            part = client.recv(65536)
            assert part
            received += part
    assert b"re: slow last" in received
    assert served.process.wait(20) == 0
