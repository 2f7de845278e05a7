"""Decide which requests are answered: those with the bearer token or, without a token, those of no web page.

A web page that a browser on this machine has open can send requests to a service on loopback. A browser marks them by
``Sec-Fetch-Site`` and withholds the response from the page, unless the page's own name points to this machine by now
(DNS rebinding). Then the name is in the ``Host`` header.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Iterable

from unfoldkit.serving.responses import Header, error_reply, send_reply
from unfoldkit.serving.service import ASGIApp, Receive, Scope, Send

LIVE = "/v2/health/live"
READY = "/v2/health/ready"
OPEN_PATHS = (LIVE, READY)
"""Paths for probes, which have no token."""


def require_token(app: ASGIApp, token: str) -> ASGIApp:
    """Wrap ``app`` so that requests need the bearer token, compared in constant time; health stays open."""
    expected = expected_header(token)

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in OPEN_PATHS or _has_token(scope, expected):
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send_reply(error_reply(401, "a bearer token is needed", ((b"www-authenticate", b"Bearer"),)), send)

    return guard


def expected_header(token: str) -> bytes:
    """Return the Authorization header that bears ``token``."""
    return f"Bearer {token}".encode()


def is_authorized(expected: bytes, header: bytes) -> bool:
    """Whether an Authorization header is the expected one; its scheme may have any case (RFC 9110, section 11.1)."""
    scheme, _, token = header.partition(b" ")
    return hmac.compare_digest(b"%b %b" % (scheme.capitalize(), token), expected)


def _has_token(scope: Scope, expected: bytes) -> bool:
    header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    return is_authorized(expected, header)


FOREIGN_HOST = (
    "a service without a token rejects this Host header, which a web page could control; "
    "use localhost or an address, let a proxy send such a Host, or set UNFOLD_TOKEN"
)
CROSS_SITE = "a service without a token rejects requests from pages of other sites; set UNFOLD_TOKEN"
_PORT = re.compile(rb":[0-9]*\Z")


def reject_foreign_origins(app: ASGIApp, open_paths: Iterable[str]) -> ASGIApp:
    """Wrap ``app`` to reject (403) what web pages may have sent, except for ``open_paths``."""
    exempt = frozenset(open_paths)

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        is_exempt = scope["type"] == "lifespan" or scope.get("path") in exempt
        problem = "" if is_exempt else find_foreign_origin(scope["headers"])
        if problem:
            await send_reply(error_reply(403, problem), send)
        else:
            await app(scope, receive, send)

    return wrapped


def find_foreign_origin(headers: Iterable[Header]) -> str:
    """Return why a request with these headers is rejected; empty if it is not."""
    for name, value in headers:
        if name == b"host" and not is_private_host(value):
            return FOREIGN_HOST
        if name == b"sec-fetch-site" and value == b"cross-site":
            return CROSS_SITE
    return ""


def is_private_host(host: bytes) -> bool:
    """Whether a ``Host`` cannot be registered by others: an address, a name without a dot, or a reserved suffix."""
    name = _PORT.sub(b"", host).decode("latin-1").strip("[]").rstrip(".").lower()
    if "." not in name or name.endswith((".localhost", ".internal")):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
