"""Who is heard without a token: not the pages of the web that a browser on this machine has open.

Such a page can send requests to a service on loopback. Browsers tell so by ``Sec-Fetch-Site`` and keep the answer from
it, unless the page comes under a name of its own that it has let point to this machine since (DNS rebinding): then
the name is in ``Host``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from unfoldkit.serving.responses import Header, error, send_reply
from unfoldkit.serving.service import ASGIApp, Receive, Scope, Send

FOREIGN = (
    "a service without a token is not asked by this Host, which a page of the web could have made its own; "
    "ask for localhost or an address, let a proxy send such a Host, or set UNFOLD_TOKEN"
)
CROSS = "a service without a token is not asked by pages of other sites; set UNFOLD_TOKEN"
_PORT = re.compile(rb":[0-9]*\Z")


def guest(app: ASGIApp, open_paths: Iterable[str]) -> ASGIApp:
    """Return ``app``, refusing (403) what pages of the web may have sent; ``open_paths`` are for everybody."""
    free = frozenset(open_paths)

    async def passing(scope: Scope, receive: Receive, send: Send) -> None:
        problem = "" if scope["type"] == "lifespan" or scope.get("path") in free else barred(scope["headers"])
        if problem:
            await send_reply(error(403, problem), send)
        else:
            await app(scope, receive, send)

    return passing


def barred(headers: Iterable[Header]) -> str:
    """Return why a request with these headers is refused; nothing where it is not."""
    for name, value in headers:
        if name == b"host" and not is_near(value):
            return FOREIGN
        if name == b"sec-fetch-site" and value == b"cross-site":
            return CROSS
    return ""


def is_near(host: bytes) -> bool:
    """Whether a ``Host`` is one that nobody can buy: an address, a name without a dot, or one kept for use at home."""
    name = _PORT.sub(b"", host).decode("latin-1").strip("[]").rstrip(".").lower()
    if "." not in name or name.endswith((".localhost", ".internal")):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
