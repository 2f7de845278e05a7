"""Bearer tokens: every path but the two of health needs the token of the service."""

from __future__ import annotations

import hmac

from unfoldkit.serving.responses import error_reply, send_reply
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
