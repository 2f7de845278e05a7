"""The server of our own as it listens and stops."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from tests.unit.serving.grpc.http2.wire import OPENING, Service
from unfoldkit.serving.grpc.http2.frames import GOAWAY, read_head
from unfoldkit.serving.grpc.http2.host import Host
from unfoldkit.serving.grpc.http2.server import Http2Server, start_http2_server

pytestmark = pytest.mark.timed


def host(service: Service) -> Host:
    return Host(
        methods=service.methods(), hold_body=service.hold, hold_connection=service.count, max_message_bytes=1000,
        max_streams=10, max_calls=20, max_connections=10, idle_s=300.0, handshake_s=10.0, log=logging.getLogger("test"),
    )  # fmt: skip


def port_of(server: Http2Server) -> int:
    return int(server.listener.sockets[0].getsockname()[1])


async def kinds_until_end(reader: asyncio.StreamReader) -> list[int]:
    """Return the types of all frames that come until the server closes the connection."""
    received, kinds, start = await asyncio.wait_for(reader.read(), 10), [], 0
    while start < len(received):
        upper, lower, kind, _, _ = read_head(received, start)
        kinds.append(kind)
        start += 9 + (upper << 8 | lower)
    return kinds


@pytest.mark.parametrize(
    ("address", "clients"),
    [("127.0.0.1:0", ("127.0.0.1",)), ("localhost:0", ("127.0.0.1",)), ("[::]:0", ("::1", "127.0.0.1"))],
)
def test_a_server_listens_on_its_address_and_says_when_it_stops(address: str, clients: tuple[str, ...]) -> None:
    """IPv4, a name, and any address of both versions; a stop ends idle connections by a GOAWAY."""
    if "[" in address and not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")

    async def scenario() -> None:
        service = Service()
        server = await start_http2_server(host(service), address, None)
        pairs = [await asyncio.open_connection(client, port_of(server)) for client in clients]
        for _, writer in pairs:
            writer.write(OPENING)
        await asyncio.sleep(0.1)
        assert service.connections.total() == len(clients)
        ended = [asyncio.create_task(kinds_until_end(reader)) for reader, _ in pairs]
        await server.stop(5)
        for kinds in ended:
            assert (await kinds).count(GOAWAY) == 2
        for _, writer in pairs:
            writer.close()
        assert not service.connections.total()

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_several_servers_share_a_port() -> None:
    """Processes of one service listen on the same port; an address of no machine is an error."""

    async def scenario() -> None:
        first = await start_http2_server(host(Service()), "127.0.0.1:0", None)
        second = await start_http2_server(host(Service()), f"127.0.0.1:{port_of(first)}", None)
        assert port_of(first) == port_of(second)
        for server in (first, second):
            await server.stop(1)
        with pytest.raises(OSError, match="assign"):
            await start_http2_server(host(Service()), "192.0.2.1:0", None)

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_calls_that_last_too_long_do_not_delay_the_end() -> None:
    """After the time of grace what is left is cancelled."""

    async def scenario() -> None:
        service = Service()
        server = await start_http2_server(host(service), "127.0.0.1:0", None)
        _, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
        wire = service.connect()
        writer.write(OPENING + wire.call(1, path="/test/Wait"))
        await asyncio.sleep(0.1)
        assert service.started
        await server.stop(0.2)
        await asyncio.sleep(0.1)
        assert service.ended == {"cancelled": 1}
        writer.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))
