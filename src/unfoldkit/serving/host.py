"""Runs an ASGI application: loopback by default, a token elsewhere, a clean end on SIGTERM."""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from unfoldkit.errors import fail
from unfoldkit.serving.service import ASGIApp, Message, Scope, Service

OPEN_PATHS = ("/v2/health/live", "/v2/health/ready")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a service listens. ``token`` is needed when ``host`` is not this machine alone."""

    host: str = "127.0.0.1"
    port: int = 8080
    token: str = ""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(address: Address) -> socket.socket:
    """Return a bound socket.

    Raises:
        UnfoldError: the address is open to others and there is no token, or it cannot be bound.
    """
    if not is_loopback(address.host) and not address.token:
        raise fail(
            f"{address.host} can be reached from other machines, so a token is needed",
            hint="set UNFOLD_TOKEN, or leave --host out",
        )
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((address.host, address.port))
    except OSError as error:
        bound.close()
        raise fail(
            f"cannot listen on {address.host}:{address.port}: {error.strerror}",
            hint="--port 0 takes a free one",
        ) from error
    return bound


def host(service: Service, bound: socket.socket, *, token: str = "", drain_s: int = 10) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that were accepted are answered first."""
    import uvicorn

    app = guarded(service.app, token) if token else service.app
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=drain_s,
        lifespan="auto",
    )
    uvicorn.Server(config).run(sockets=[bound])


def guarded(app: ASGIApp, token: str) -> ASGIApp:
    """Return ``app`` behind a bearer token, compared in constant time; the health paths stay open."""
    expected = f"Bearer {token}".encode()

    async def guard(
        scope: Scope, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS or _allowed(scope, expected):
            await app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"error":"a bearer token is needed"}'})

    return guard


def _allowed(scope: Scope, expected: bytes) -> bool:
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    return hmac.compare_digest(given, expected)
