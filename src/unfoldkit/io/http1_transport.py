"""A transport of httpx for HTTP/1.1 on aiohttp: its parser is compiled and joins the chunks that have arrived.

The default transport runs a dozen frames of Python for every chunk of a stream. A language model sends a chunk for each
token, so these frames are most of what a relay adds to a stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    import aiohttp

MAX_FIELD_BYTES = 64 << 10
"""Longest line and field of a head of a response."""


class JoinedParts(httpx.AsyncByteStream):
    """The body of a response; each part is all that has arrived."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the parts of the body, compressed as they were sent."""
        with map_faults():
            async for part in self._response.content.iter_any():
                yield part

    async def aclose(self) -> None:
        """Give the connection back, or close it if the body was not read to its end."""
        self._response.close()


class Http1Transport(httpx.AsyncBaseTransport):
    """Sends requests of httpx by aiohttp: a pool of connections, no redirects, cookies, proxies or retries."""

    def __init__(self, limits: httpx.Limits) -> None:
        self._limits = limits
        # it takes milliseconds, which no request should wait for
        self._context = httpx.create_ssl_context(trust_env=False)
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request with its body in memory, and return the response once its head has arrived.

        Raises:
            httpx.TransportError: As the default transport raises it.
        """
        import aiohttp
        from yarl import URL

        if self._session is None:
            self._session = self._open_session()
        timeouts = request.extensions.get("timeout", {})
        times = aiohttp.ClientTimeout(
            total=None,
            connect=timeouts.get("pool"),
            sock_connect=timeouts.get("connect"),
            sock_read=timeouts.get("read"),
        )
        with map_faults():
            response = await self._session.request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw],
                data=request.content or None,
                allow_redirects=False,
                timeout=times,
            )
        return httpx.Response(response.status, headers=list(response.raw_headers), stream=JoinedParts(response))

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open_session(self) -> aiohttp.ClientSession:
        import aiohttp

        connector = aiohttp.TCPConnector(
            limit=self._limits.max_connections or 0,
            keepalive_timeout=self._limits.keepalive_expiry,
            ssl=self._context,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            max_line_size=MAX_FIELD_BYTES,
            max_field_size=MAX_FIELD_BYTES,
        )


@contextmanager
def map_faults() -> Iterator[None]:
    """Convert faults of aiohttp; only those before a byte was sent become faults of connecting.

    Raises:
        httpx.TransportError: Of the same meaning.
    """
    import aiohttp

    try:
        yield
    except aiohttp.ConnectionTimeoutError as problem:
        raise httpx.ConnectTimeout(str(problem)) from problem
    except (TimeoutError, aiohttp.ServerTimeoutError) as problem:
        raise httpx.ReadTimeout(str(problem)) from problem
    except aiohttp.ClientConnectorError as problem:
        raise httpx.ConnectError(str(problem)) from problem
    except aiohttp.InvalidURL as problem:
        raise httpx.UnsupportedProtocol(str(problem)) from problem
    except aiohttp.ClientResponseError as problem:
        raise httpx.RemoteProtocolError(str(problem)) from problem
    except (aiohttp.ClientError, OSError) as problem:
        raise httpx.ReadError(str(problem)) from problem
    except ValueError as problem:
        # a header that cannot be sent
        raise httpx.LocalProtocolError(str(problem)) from problem
