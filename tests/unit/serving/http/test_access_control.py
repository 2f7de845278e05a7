"""Pages of the web that a browser on the machine of a service has open."""

from __future__ import annotations

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


def test_what_a_browser_says_of_its_page_is_heard() -> None:
    """A request is refused for its Host or for the site of its page, and only for those."""
    home = (b"host", b"localhost")
    assert not find_foreign_origin([home, (b"sec-fetch-site", b"same-origin"), (b"origin", b"https://a.example")])
    assert find_foreign_origin([home, (b"sec-fetch-site", b"cross-site")])
    assert find_foreign_origin([(b"host", b"a.example")])


@pytest.mark.parametrize(("path", "body"), [(INFER, ROW), (SLOW, ROW), ("/metrics", None), ("/events", None)])
def test_a_page_of_the_web_is_not_answered(total: Server, path: str, body: Any) -> None:
    """A service without a token refuses what a page of the web can send, before a plain request and after it."""
    plain = request(path, body)
    foreign = plain.replace(b"host: test", b"host: a.example")
    cross = request(path, body, headers="Sec-Fetch-Site: cross-site\r\n")
    for said in (foreign, cross):
        with total.connect() as wire:
            wire.sendall(said)
            assert read(wire).status == 403
    with total.connect() as wire:
        wire.sendall(request(INFER, ROW))
        assert read(wire).status == 200
        wire.sendall(foreign)
        assert read(wire).status == 403


def test_health_is_told_to_everybody(total: Server) -> None:
    """Probes may ask under any name."""
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
