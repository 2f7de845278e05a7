"""Addresses, tokens and the guard."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from unfoldkit.cli.commands.serve import ServeOptions
from unfoldkit.errors import ExitCode, UnfoldError
from unfoldkit.serving.http.access_control import require_token
from unfoldkit.serving.http.address import Address, bind_socket, is_listening, is_loopback, open_listener


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("192.168.1.1", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_loopback_is_known(host: str, *, expected: bool) -> None:
    """Only an address of this machine alone counts as loopback."""
    assert is_loopback(host) is expected


def test_an_open_address_needs_a_token() -> None:
    """An address that others can reach is refused without a token and bound with one."""
    with pytest.raises(UnfoldError, match=r"a token is needed.*UNFOLD_TOKEN") as caught:
        open_listener(Address("0.0.0.0", 0))  # noqa: S104 - that it is refused is the test
    assert caught.value.code is ExitCode.USAGE
    with pytest.raises(UnfoldError, match=r"plain text.*--tls-cert.*--insecure"):
        open_listener(Address("0.0.0.0", 0, "secret"))  # noqa: S104 - as above
    for more in ({"is_encrypted": True}, {"is_insecure": True}):
        open_listener(Address("0.0.0.0", 0, "secret", **more)).close()  # noqa: S104 - as above
    open_listener(Address("0.0.0.0", 0, is_encrypted=True, knows_clients=True)).close()  # noqa: S104 - as above


def test_a_port_in_use_is_reported() -> None:
    """A port that another socket listens on is the caller's fault, with a way out."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UnfoldError, match=r"cannot listen on 127\.0\.0\.1:.*--port 0"):
            open_listener(Address(port=other.getsockname()[1]))


def test_an_address_of_version_6_stands_in_brackets() -> None:
    """The reported address of a service can be pasted into a browser, and taken from there."""
    assert Address("::1", 80).place == "[::1]:80"
    assert Address("127.0.0.1", 80).place == "127.0.0.1:80"
    assert ServeOptions(host="[::1]", port=80).address == Address("::1", 80)


def test_an_invalid_host_is_distinguished_from_a_port_in_use() -> None:
    """Another port does not help where the address is not of this machine."""
    with pytest.raises(UnfoldError, match=r"cannot listen on 192\.0\.2\.1:0: .*--host takes an address"):
        open_listener(Address("192.0.2.1", 0, "secret", is_insecure=True))


@pytest.mark.parametrize("host", ["\u00fc" * 70, "a" * 70, "a..b"])
def test_what_is_no_host_name_is_refused(host: str) -> None:
    """No label has more than 63 letters or none; the socket would raise a TypeError."""
    for function in (open_listener, is_listening):
        with pytest.raises(UnfoldError, match=r"--host .*: not a host name"):
            function(Address(host, 0, "secret", is_insecure=True))


@pytest.mark.parametrize("token", ["two\nlines", "s\u00e9same"])
def test_a_token_that_clients_cannot_send_is_refused(token: str) -> None:
    """A service that is unreachable does not start: gRPC sends ASCII only, and browsers send Latin-1."""
    with pytest.raises(UnfoldError, match=r"the token holds characters .*one line of ASCII"):
        open_listener(Address(port=0, token=token))


def test_a_service_of_several_processes_reports_another_listener() -> None:
    """A port with a listener is distinguished from one that is free or only bound, though all can be bound."""
    with bind_socket(Address(port=0), many=True) as held:
        address = Address(port=held.getsockname()[1])
        assert not is_listening(address)
        with open_listener(address, many=True):
            assert is_listening(address)
            bind_socket(address, many=True).close()
        assert not is_listening(address)


async def _app(scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "path": scope.get("path")})


def answered(scope: dict[str, Any]) -> Any:
    """Return the first message of the answer behind a guard with the token ``secret``."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {}

    async def ask() -> None:
        await require_token(_app, "secret")(scope, receive, send)

    asyncio.run(ask())
    return sent[0]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", [], 401),
        ("/", [(b"authorization", b"Bearer wrong")], 401),
        ("/", [(b"authorization", b"secret")], 401),
        ("/", [(b"authorization", b"Bearer secret")], 200),
        ("/", [(b"authorization", b"Bearer  secret \t")], 200),
        ("/", [(b"authorization", b"Bearer sec ret")], 401),
        ("/", [(b"authorization", b"Bearer secret"), (b"authorization", b"Bearer wrong")], 401),
        ("/", [(b"authorization", b"Bearer wrong"), (b"authorization", b"Bearer secret")], 401),
        ("/v2/health/live", [], 200),
        ("/v2/health/ready", [], 200),
        ("/v2/health/ready/../../", [], 401),
    ],
)
def test_the_guard_asks_for_the_token(path: str, headers: list[tuple[bytes, bytes]], status: int) -> None:
    """Every path but the two of health needs the bearer token, whole and in the only header of its name."""
    assert answered({"type": "http", "path": path, "headers": headers})["status"] == status


def test_a_websocket_needs_the_token_too() -> None:
    """A websocket is not let past the guard without the token."""
    assert answered({"type": "websocket", "path": "/", "headers": []}) == {"type": "websocket.close", "code": 1008}
    held = {"type": "websocket", "path": "/", "headers": [(b"authorization", b"Bearer secret")]}
    assert answered(held)["status"] == 200
