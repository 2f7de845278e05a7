"""The transport for HTTP/1.1: whole bodies, connections used again, and faults by what was sent before them."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx
import pytest

from unfoldkit.io.http1_transport import Http1Transport

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


@dataclass(slots=True)
class Wire:
    """A server that answers every request with the same bytes, and may then close its connection."""

    reply: bytes
    closes: bool = False
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                self.heads.append(head)
                writer.write(self.reply)
                await writer.drain()
                if self.closes:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


def _run(wire: Wire, work: Callable[[httpx.AsyncClient, str], Awaitable[None]]) -> None:
    async def main() -> None:
        server = await asyncio.start_server(wire.answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat?q=%20a"
        async with server, httpx.AsyncClient(transport=Http1Transport(httpx.Limits()), timeout=2.0) as client:
            await work(client, url)

    asyncio.run(main())


def test_bodies_arrive_whole_over_one_connection() -> None:
    """Chunks come joined and in order, compressed bodies as text, and requests as httpx formats them."""
    zipped = gzip.compress(b"plain text")
    parts = [b"data: %d\n\n" % k for k in range(500)]
    wire = Wire(CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n")

    async def work(client: httpx.AsyncClient, url: str) -> None:
        async with client.stream("POST", url, content=b"{}", headers={"x-key": "k"}) as response:
            pieces = [piece async for piece in response.aiter_bytes()]
        assert b"".join(pieces) == b"".join(parts)
        assert len(pieces) < len(parts) / 2
        wire.reply = OK + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(zipped) + zipped
        assert (await client.post(url, content=b"{}")).text == "plain text"

    _run(wire, work)
    assert wire.connections == 1
    head = wire.heads[0].lower()
    assert head.startswith(b"post /v1/chat?q=%20a http/1.1\r\n")
    assert (head.count(b"x-key: k"), head.count(b"host:"), head.count(b"user-agent:")) == (1, 1, 1)


def test_a_connection_with_an_unread_body_is_closed() -> None:
    """What is left of an answer never becomes the start of the next one."""
    wire = Wire(CHUNKED + b"3\r\nabc\r\n")

    async def work(client: httpx.AsyncClient, url: str) -> None:
        for _ in range(2):
            async with client.stream("POST", url, content=b"{}") as response:
                assert await anext(response.aiter_bytes()) == b"abc"

    _run(wire, work)
    assert wire.connections == 2


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        (b"", httpx.ReadError),
        (b"HTTP/1.1 2", httpx.TransportError),
        (b"nonsense\r\n\r\n", httpx.RemoteProtocolError),
        (OK + b"content-length: 10\r\n\r\nabc", httpx.ReadError),
        (CHUNKED + b"5\r\nabc", httpx.ReadError),
        (CHUNKED + b"zz\r\nabc\r\n", httpx.TransportError),
    ],
)
def test_an_answer_that_breaks_is_no_fault_of_connecting(reply: bytes, fault: type[httpx.TransportError]) -> None:
    """The request was sent, so it may have been billed; and it is sent once."""
    wire = Wire(reply, closes=True)

    async def work(client: httpx.AsyncClient, url: str) -> None:
        with pytest.raises(fault) as raised:
            await client.post(url, content=b"{}")
        assert not isinstance(raised.value, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout))

    _run(wire, work)
    assert len(wire.heads) == 1


def test_waits_are_bounded() -> None:
    """An answer that stalls is a timeout of reading; a port where nothing listens is a fault of connecting."""

    async def work(client: httpx.AsyncClient, url: str) -> None:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(url, content=b"{}", timeout=0.05)
        with pytest.raises(httpx.ConnectError):
            await client.post("http://127.0.0.1:1/", content=b"{}")

    _run(Wire(OK + b"content-length: 10\r\n\r\nabc"), work)


def test_a_header_that_would_start_another_is_not_sent() -> None:
    """A key with a line end is a fault of the request."""
    wire = Wire(OK + b"content-length: 0\r\n\r\n")

    async def work(client: httpx.AsyncClient, url: str) -> None:
        with pytest.raises(httpx.LocalProtocolError):
            await client.post(url, content=b"{}", headers={"authorization": "Bearer a\r\nx-evil: 1"})

    _run(wire, work)
    assert wire.heads == []
