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
GATEWAY_HEALTH = "/health"
OPEN_PATHS = (LIVE, READY, GATEWAY_HEALTH)
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
    """Whether an Authorization header is the expected one.

    Its scheme may have any case, and blanks around the token do not count (RFC 9110, sections 5.5, 11.1 and 11.4).
    """
    scheme, _, token = header.partition(b" ")
    return hmac.compare_digest(b"%b %b" % (scheme.capitalize(), token.strip(b" \t")), expected)


def _has_token(scope: Scope, expected: bytes) -> bool:
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    # a proxy may have checked another one of several
    return len(values) == 1 and is_authorized(expected, values[0])


FOREIGN_HOST = (
    "a service without a token rejects this Host header, which a web page could control; "
    "use localhost or an address, let a proxy send such a Host, or set UNFOLD_TOKEN"
)
CROSS_SITE = "a service without a token rejects requests from pages of other sites; set UNFOLD_TOKEN"
HOST_NEEDED = "an HTTP/1.1 request needs exactly one valid Host header, that of its target if the target names one"
OTHER_VERSION = "this server speaks HTTP/1.1"
CODING_OF_HTTP_1_0 = "HTTP/1.0 has no Transfer-Encoding"
OTHER_CODING = "the only transfer coding is chunked; compress a body with Content-Encoding"
SAFE_SITES = frozenset((b"same-origin", b"same-site", b"none"))
# RFC 3986, section 3.2.2 and 3.2.3: registered name or address, and port; empty if the target has no authority
_HOST = re.compile(rb"(?:[\w.~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?", re.ASCII)
_ORIGIN_SCHEME = re.compile(rb"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
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


def require_clear_head(app: ASGIApp) -> ASGIApp:
    """Wrap ``app`` to reject requests which a proxy before it may have read in another way.

    They have no single valid ``Host`` (400; RFC 9112, section 3.2), a transfer coding other than ``chunked`` (501;
    section 6.1), or any in HTTP/1.0 (400), or another version (505).
    """

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        status, problem = _find_unclear_part(scope) if scope["type"] == "http" else (0, "")
        if problem:
            # the proxy may have read another host or another end, so the connection is not reused
            await send_reply(error_reply(status, problem, ((b"connection", b"close"),)), send)
        else:
            await app(scope, receive, send)

    return wrapped


def _find_unclear_part(scope: Scope) -> tuple[int, str]:
    """Return status and message of what is unclear in a head; 0 and nothing if it is clear."""
    version = scope.get("http_version", "1.1")
    if version not in ("1.0", "1.1"):
        return 505, OTHER_VERSION
    if not has_valid_host(scope["headers"], version):
        return 400, HOST_NEEDED
    codings = [value.strip().lower() for name, value in scope["headers"] if name == b"transfer-encoding"]
    if codings and version == "1.0":
        return 400, CODING_OF_HTTP_1_0
    return (501, OTHER_CODING) if codings not in ([], [b"chunked"]) else (0, "")


def has_valid_host(headers: Iterable[Header], http_version: str) -> bool:
    """Whether the headers of a request have exactly one valid ``Host``; HTTP/1.0 needs none."""
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1:
        return not hosts and http_version == "1.0"
    return is_valid_host(hosts[0])


def is_valid_host(host: bytes) -> bool:
    """Whether a ``Host`` has the form that RFC 9110, section 7.2, demands."""
    return _HOST.fullmatch(host) is not None


def find_foreign_origin(headers: Iterable[Header]) -> str:
    """Return why a request with these headers is rejected; empty if it is not.

    Each header counts by itself: older browsers send ``Origin`` only, and no browser sends it with every request.
    """
    for name, value in headers:
        if name == b"host" and not is_private_host(value):
            return FOREIGN_HOST
        if name == b"sec-fetch-site" and value.strip().lower() not in SAFE_SITES:
            return CROSS_SITE
        if name == b"origin" and not is_private_origin(value):
            return CROSS_SITE
    return ""


def is_private_origin(origin: bytes) -> bool:
    """Whether the page of an ``Origin`` is not one of the web; ``null`` (a sandboxed or local page) may be one."""
    scheme = _ORIGIN_SCHEME.match(origin.strip())
    return scheme is not None and is_private_host(origin.strip()[scheme.end() :])


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
