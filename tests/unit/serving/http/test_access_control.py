"""Pages of the web that a browser on the machine of a service has open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.serving.client import Server, read, request, rows, serving
from unfoldkit.serving.http.access_control import find_foreign_origin, is_private_host

INFER = "/v2/models/total/infer"
SLOW = "/v2/models/total/versions/1/infer"
ROW = rows([1, 2, 3])


@pytest.fixture(scope="module")
def total() -> Iterator[Server]:
    with serving("total") as server:
        yield server


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("localhost", True),
        ("LOCALHOST:8080", True),
        ("wards.localhost:80", True),
        ("host.docker.internal:8080", True),
        ("unfold", True),
        ("", True),
        ("127.0.0.1:8080", True),
        ("10.0.0.7", True),
        ("[::1]:8080", True),
        ("[::ffff:127.0.0.1]:8080", True),
        ("evil.example", False),
        ("evil.example.:8080", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:80", False),
        ("evil.example:80:80", False),
        ("\xfc.example", False),
    ],
)
def test_a_name_that_anybody_may_buy_is_not_near(host: str, *, near: bool) -> None:
    """Addresses and names without a dot are near; a name of the public DNS, which may point anywhere, is not."""
    assert is_private_host(host.encode("latin-1")) == near


@pytest.mark.parametrize(
    ("name", "value", "foreign"),
    [
        ("sec-fetch-site", "same-origin", False),
        ("sec-fetch-site", "Same-Site", False),
        ("sec-fetch-site", "none", False),
        ("sec-fetch-site", "cross-site", True),
        ("sec-fetch-site", "Cross-Site", True),
        ("sec-fetch-site", " CROSS-SITE", True),
        ("sec-fetch-site", "something-new", True),
        ("origin", "http://localhost:3000", False),
        ("origin", "HTTP://LOCALHOST:3000", False),
        ("origin", "https://127.0.0.1", False),
        ("origin", "https://a.example", True),
        ("origin", "HTTPS://A.EXAMPLE:8443", True),
        ("origin", "null", True),
        ("origin", "", True),
        ("origin", "a.example", True),
        ("host", "a.example", True),
        ("accept", "cross-site", False),
    ],
)
def test_each_mark_of_a_foreign_page_suffices(name: str, value: str, *, foreign: bool) -> None:
    """A request is rejected for its Host, its Origin or the site of its page, each alone and in any case."""
    home = (b"host", b"localhost")
    assert bool(find_foreign_origin([home, (name.encode(), value.encode())])) == foreign


@pytest.mark.parametrize(
    ("lines", "version", "status"),
    [
        ("host: a\r\n", "1.1", 200),
        ("HOST: a:80\r\n", "1.1", 200),
        ("host: [::1]:80\r\n", "1.1", 200),
        ("host:\r\n", "1.1", 200),
        ("", "1.1", 400),
        ("host: a\r\nhost: a\r\n", "1.1", 400),
        ("host: a\r\nHost: b\r\n", "1.1", 400),
        ("host: a b\r\n", "1.1", 400),
        ("host: a/b\r\n", "1.1", 400),
        ("host: http://a\r\n", "1.1", 400),
        ("host: a:8o\r\n", "1.1", 400),
        ("host: u@a\r\n", "1.1", 400),
        ("", "1.0", 200),
        ("host: a\r\nhost: b\r\n", "1.0", 400),
    ],
)
@pytest.mark.parametrize("path", [INFER, SLOW, "/v2/health/live"])
def test_a_request_needs_one_host(total: Server, path: str, lines: str, version: str, status: int) -> None:
    """A missing, repeated or malformed Host gives 400 on every path (RFC 9112, section 3.2)."""
    body = b"" if path.endswith("live") else json.dumps(ROW).encode()
    verb = "GET" if path.endswith("live") else "POST"
    head = f"{verb} {path} HTTP/{version}\r\n{lines}content-length: {len(body)}\r\n\r\n".encode()
    with total.connect() as wire:
        wire.sendall(head + body)
        assert read(wire).status == status


@pytest.mark.parametrize(
    ("target", "lines", "version", "status"),
    [
        ("http://a/metrics", "host: a\r\n", "1.1", 200),
        ("HTTP://A:80/metrics", "host: a\r\n", "1.1", 200),
        ("http://evil.example/metrics", "host: localhost\r\n", "1.1", 400),
        ("http://a/metrics", "host: b\r\n", "1.1", 400),
        ("http://u@a/metrics", "host: a\r\n", "1.1", 400),
        ("http://evil.example/metrics", "host: evil.example\r\n", "1.1", 403),
        ("http://evil.example/metrics", "", "1.0", 403),
        ("http://evil.example/metrics", "host: a\r\n", "1.0", 400),
        ("/metrics?next=http://b/", "host: a\r\n", "1.1", 200),
        ("/metrics", "host: a\r\n", "2.0", 505),
    ],
)
def test_a_target_names_the_host_of_its_request(
    total: Server, target: str, lines: str, version: str, status: int
) -> None:
    """A target in absolute form, as proxies get it, names the same host (RFC 9112, section 3.2.2)."""
    with total.connect() as wire:
        wire.sendall(f"GET {target} HTTP/{version}\r\n{lines}\r\n".encode())
        assert read(wire).status == status


@pytest.mark.parametrize(("path", "body"), [(INFER, ROW), (SLOW, ROW), ("/metrics", None), ("/events", None)])
def test_a_page_of_the_web_is_not_answered(total: Server, path: str, body: Any) -> None:
    """A service without a token refuses what a page of the web can send, before a plain request and after it."""
    plain = request(path, body)
    foreign = plain.replace(b"host: test", b"host: a.example")
    cross = request(path, body, headers="Sec-Fetch-Site: Cross-Site\r\n")
    origin = request(path, body, headers="ORIGIN: https://a.example\r\n")
    for said in (foreign, cross, origin):
        with total.connect() as wire:
            wire.sendall(said)
            assert read(wire).status == 403
    with total.connect() as wire:
        wire.sendall(request(INFER, ROW))
        assert read(wire).status == 200
        wire.sendall(foreign)
        assert read(wire).status == 403


def test_health_answers_any_host(total: Server) -> None:
    """Probes may use any host name."""
    with total.connect() as wire:
        wire.sendall(request("/v2/health/ready").replace(b"host: test", b"host: a.example"))
        assert read(wire).status == 200


@pytest.mark.e2e
@pytest.mark.parametrize("path", [INFER, SLOW])
def test_who_bears_the_token_is_heard_under_any_name(path: str) -> None:
    """Where a token is asked for, a proxy may hand on the name that it is called by."""
    with serving("total", "token=sesame") as server, server.connect() as wire:
        said = request(path, ROW, headers="authorization: Bearer sesame\r\n")
        wire.sendall(said.replace(b"host: test", b"host: a.example"))
        assert read(wire).status == 200


def test_a_trailer_is_no_header(total: Server) -> None:
    """What follows a chunked body does not count as a header of its request."""
    body = json.dumps(ROW).encode()
    head = f"POST {SLOW} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{len(body):x}\r\n".encode()
    for trailer in (b"content-encoding: br", b"host: b", b"sec-fetch-site: cross-site", b"x-request-id: t"):
        with total.connect() as wire:
            wire.sendall(head + body + b"\r\n0\r\n" + trailer + b"\r\n\r\n")
            reply = read(wire)
            assert (reply.status, reply.headers.get("x-request-id")) == (200, None)
