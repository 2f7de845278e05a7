"""Bounded HTTP requests of a controller: a limit of time and size for each, over connections that stay open."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from unfoldkit.api import require_packages, user_error

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 5.0
KEEPALIVE_S = 60.0
"""How long an unused connection stays open: longer than between two steps of a controller."""
MAX_BODY_BYTES = 32 << 20


class HttpError(Exception):
    """The server did not respond, or not within the bounds; the text is a sentence."""


@dataclass(frozen=True, slots=True)
class HttpReply:
    """A complete response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class BoundedClient:
    """Sends requests to few servers; safe to use from several threads.

    Attributes:
        client: Sends them, and keeps connections open.
        loop: Runs in a thread of its own: only an event loop can end a response that comes byte by byte.
        timeout_s: Time limit of a request.
    """

    client: httpx.AsyncClient
    loop: asyncio.AbstractEventLoop
    timeout_s: float = TIMEOUT_S

    def send(self, method: str, url: str, **options: Any) -> HttpReply:
        """Return the response to a request, which is sent again if a connection breaks: it must be repeatable.

        Args:
            method: HTTP method.
            url: The address.
            options: ``data``, ``json`` or ``params``, as httpx takes them.

        Raises:
            HttpError: There is none within the time limit and 32 MiB.
        """
        import httpx

        try:
            return asyncio.run_coroutine_threadsafe(self._send(method, url, options), self.loop).result()
        except TimeoutError as error:
            message = f"{url} did not complete its response within {self.timeout_s:.0f} s"
            raise HttpError(message) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise HttpError(f"{url} does not respond: {str(error) or type(error).__name__}") from error

    async def _send(self, method: str, url: str, options: Mapping[str, Any]) -> HttpReply:
        import httpx

        async with asyncio.timeout(self.timeout_s):
            try:
                return await self._receive(method, url, options)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                # the server closed the connection, which had been idle, at this moment
                return await self._receive(method, url, options)

    async def _receive(self, method: str, url: str, options: Mapping[str, Any]) -> HttpReply:
        body = bytearray()
        async with self.client.stream(method, url, **options) as response:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise HttpError(f"{url} returned more than {MAX_BODY_BYTES >> 20} MiB")
        return HttpReply(response.status_code, response.headers, bytes(body))


def split_credentials(url: str) -> tuple[str, tuple[str, str] | None]:
    """Return an address that may be shown, and the user and password that it held."""
    parts = urlsplit(url)
    if parts.username is None:
        return url, None
    credentials = unquote(parts.username), unquote(parts.password or "")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), credentials


def build_authorization(key: str, user: str | None) -> str:
    """Return the header ``Authorization`` for a bearer token, or for a user with a password."""
    return f"Bearer {key}" if user is None else f"Basic {b64encode(f'{user}:{key}'.encode()).decode()}"


def read_key_file(path: str) -> str:
    """Return the key in a file, which others replace before it expires.

    Raises:
        HttpError: It cannot be read, or is empty.
    """
    try:
        key = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise HttpError(f"cannot read {path}: {error.strerror if isinstance(error, OSError) else 'no text'}") from error
    if not key:
        raise HttpError(f"{path} is empty")
    return key


def open_client(
    token: str = "", timeout_s: float = TIMEOUT_S, authorization: Callable[[], str] | None = None
) -> BoundedClient:
    """Open a client that proves its rights with each request.

    Args:
        token: A bearer token for all requests, empty for none.
        timeout_s: Time limit of a request.
        authorization: Returns the header of the next request, instead of a token.

    Raises:
        UnfoldError: httpx is not installed, or the certificates of authorities cannot be read.
    """
    require_packages("a controller", "httpx")
    import httpx

    def authorize(request: httpx.Request) -> httpx.Request:
        if authorization is not None:
            request.headers["Authorization"] = authorization()
        return request

    headers = {"Accept": "application/json", **({"Authorization": build_authorization(token, None)} if token else {})}
    try:
        client = httpx.AsyncClient(
            timeout=timeout_s,
            headers=headers,
            auth=authorize,
            follow_redirects=False,
            limits=httpx.Limits(keepalive_expiry=KEEPALIVE_S),
        )
    except OSError as error:
        message = f"cannot read the certificates of authorities: {error.strerror or error}"
        raise user_error(message, hint="the environment variable SSL_CERT_FILE names a PEM file") from error
    loop = asyncio.new_event_loop()
    bounded = BoundedClient(client, loop, timeout_s)
    Thread(target=_run_loop, args=(bounded,), name="http", daemon=True).start()
    return bounded


def _run_loop(client: BoundedClient) -> None:
    """Run the loop of a client until the process ends; the thread keeps its open connections from being collected."""
    client.loop.run_forever()
