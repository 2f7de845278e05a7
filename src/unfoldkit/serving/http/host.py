"""Runs an ASGI application: loopback by default, a token elsewhere, a clean end on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import hmac
import ipaddress
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from signal import SIGINT, Signals
from typing import TYPE_CHECKING, Any, cast

from unfoldkit.errors import internal_error, user_error
from unfoldkit.serving.http.fast_path import Connection, Lane, first_lines, lines
from unfoldkit.serving.http.origin_guard import guest, is_near
from unfoldkit.serving.http.overload import Sweep
from unfoldkit.serving.http.startup import Start, heard
from unfoldkit.serving.http.workers import endings
from unfoldkit.serving.observability.access_log import Observer, observed
from unfoldkit.serving.observability.live_page import watched, with_page
from unfoldkit.serving.responses import Header, error, send_reply
from unfoldkit.serving.service import ASGIApp, Message, Receive, Scope, Send, Service

if TYPE_CHECKING:
    import uvicorn

READY = "/v2/health/ready"
OPEN_PATHS = ("/v2/health/live", READY)
CLOSE = (b"connection", b"close")
LINGER_S = 1.0
SWEEP_S = 1.0
KEEP_S = 75
PATIENCE_S = 30.0
SWITCH_S = 0.0005
PORT_TROUBLES = (errno.EADDRINUSE, errno.EACCES, errno.EPERM)
Beat = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a service listens. ``token`` is needed when ``host`` is not this machine alone."""

    host: str = "127.0.0.1"
    port: int = 8080
    token: str = ""

    @property
    def place(self) -> str:
        """Host and port as they stand in an address of the web."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(address: Address, *, many: bool = False) -> socket.socket:
    """Return a listening socket; with ``many``, one of several processes that share the port.

    Raises:
        UnfoldError: the address is open to others and there is no token, or it cannot be bound.
    """
    bound = bind(address, many=many)
    # from here on callers wait instead of being refused: the address is announced before the service is ready
    bound.listen(2048)
    return bound


def bind(address: Address, *, many: bool = False) -> socket.socket:
    """Return a socket that holds the address; nobody is heard on it yet.

    Raises:
        UnfoldError: as ``listen``.
    """
    _check(address)
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if many:
        # the kernel hands each new connection to one of the processes
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind((address.host, address.port))
    except OSError as error:
        bound.close()
        raise user_error(
            f"cannot listen on {address.place}: {error.strerror}",
            hint="--port 0 takes a free one"
            if error.errno in PORT_TROUBLES
            else "--host takes an address of this machine",
        ) from error
    return bound


def is_heard(address: Address) -> bool:
    """Whether a service listens there already; those of many processes can, and the kernel deals out their clients."""
    with socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _check(address: Address) -> None:
    if not is_loopback(address.host) and not address.token:
        raise user_error(
            f"{address.host} can be reached from other machines, so a token is needed",
            hint="set UNFOLD_TOKEN, or leave --host out",
        )
    if not address.token.isprintable():
        raise user_error("the token holds characters that no header can carry", hint="UNFOLD_TOKEN is one line of text")


@dataclass(frozen=True, slots=True)
class Terms:
    """How a service is hosted.

    ``token`` is asked of every request; an end waits ``drain_s`` for answers; a request must come, and its answer be
    taken, within ``patience_s``; ``beat`` is called again and again while requests are heard and models come back;
    ``observer`` is told of every request. ``logs`` says that the program has set up its log, where all else goes too.
    """

    token: str = ""
    drain_s: int = 10
    patience_s: float = PATIENCE_S
    beat: Beat | None = None
    observer: Observer | None = None
    logs: bool = False


def host(service: Service, bound: socket.socket, terms: Terms | None = None) -> None:
    """Serve until SIGTERM, SIGHUP or Ctrl-C; requests that were accepted are answered first.

    Raises:
        KeyboardInterrupt: Ctrl-C ended it, after the last answer.
    """
    # a batch in its thread waits for the lock of Python at its end: not five milliseconds, whatever the loop does
    sys.setswitchinterval(SWITCH_S)
    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        if runner.run(_serve(service, bound, terms or Terms())) is SIGINT:
            raise KeyboardInterrupt


async def _serve(service: Service, bound: socket.socket, terms: Terms) -> Signals | None:
    drain, start = Drain(), Start()
    server = _server(replace(service, app=heard(service.app, start)), terms, drain)
    for which in endings():
        asyncio.get_running_loop().add_signal_handler(which, drain.begin, which)
    # uvicorn would put its own handlers over these, and raise the signal again at the end
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    # the first beat comes before the first request, which may hang this process: from then on its silence is heard
    _beat(service, terms)
    ends = asyncio.create_task(_run(server, bound, start))
    await _until(lambda: server.started or ends.done() or drain.asked.is_set())
    if not server.started:
        if drain.asked.is_set():
            # whoever loads a large model need not wait for it to end
            ends.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ends
        return drain.signal
    freeze()
    while not ends.done() and not drain.asked.is_set():
        _beat(service, terms)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(drain.asked.wait(), SWEEP_S)
        _sweep(server, terms.patience_s)
    await _let_go(server, bound)
    await ends
    return drain.signal


async def _run(server: uvicorn.Server, bound: socket.socket, start: Start) -> None:
    try:
        await server.serve(sockets=[bound])
    except SystemExit:
        # so newer versions of uvicorn end when the lifespan of the application failed; older ones just return
        raise start.error or internal_error("the service did not start") from None
    if start.error is not None:
        raise start.error


def _beat(service: Service, terms: Terms) -> None:
    if terms.beat is not None and service.healthy():
        terms.beat()


def _server(service: Service, terms: Terms, drain: Drain) -> uvicorn.Server:
    import uvicorn
    from uvicorn.config import LOGGING_CONFIG
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    def connection(config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> Connection:
        inner = HttpToolsProtocol(config, server_state, app_state, _loop)
        return Connection(inner, lane, server_state.connections, time.monotonic, sweep)

    config = uvicorn.Config(
        observed(drained(outfit(service, terms.token, drain), drain), terms.observer),
        http=cast("Any", connection),
        # a start that fails is no reason to go on without one
        lifespan="on",
        log_level="warning",
        log_config=None if terms.logs else LOGGING_CONFIG,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=KEEP_S,
        timeout_graceful_shutdown=terms.drain_s,
    )
    server = uvicorn.Server(config)
    expected = f"Bearer {terms.token}".encode()
    lane = Lane(
        first_lines(service.posts),
        service.body_bytes,
        functools.partial(bears, expected) if terms.token else lambda _given: True,
        drain.asked.is_set,
        _Dated(server).headers,
        terms.observer,
        service.gates,
        near=(lambda _host: True) if terms.token else is_near,
    )
    # an observer is told of each request in its turn; only Linux has epoll
    swept = terms.observer is None and hasattr(select, "epoll")
    sweep = Sweep(lane.judge, asyncio.get_running_loop().call_soon, time.monotonic) if swept else None
    return server


def outfit(service: Service, token: str, drain: Drain) -> ASGIApp:
    """Return the application of a service, with its live page around it.

    The token guards all but the bare page; without one, pages of the web are kept out.
    """
    app = watched(service.app, service.watch, drain.asked) if service.watch else service.app
    app = guarded(app, token) if token else guest(app, OPEN_PATHS)
    return with_page(app) if service.watch else app


@dataclass(slots=True)
class _Dated:
    """The headers that uvicorn adds to every answer, written once for each second that they are good for."""

    server: uvicorn.Server
    known: list[Header] = field(default_factory=list)
    text: bytes = b""

    def headers(self) -> bytes:
        """Return the lines of the headers."""
        now = self.server.server_state.default_headers
        if now is not self.known:
            self.known, self.text = now, lines(now)
        return self.text


def _sweep(server: uvicorn.Server, patience_s: float) -> None:
    """Close connections on which nothing came for long, and those that take too long with a request or an answer."""
    now = time.monotonic()
    for connection in list(server.server_state.connections):
        if isinstance(connection, Connection) and connection.transport:
            if connection.is_stuck(now - patience_s):
                connection.cut()
            elif connection.is_idle(now - KEEP_S):
                connection.transport.close()


async def _let_go(server: uvicorn.Server, bound: socket.socket) -> None:
    """Take no new connection, let each open one end with its next answer, then stop."""
    await _shut(server, bound)
    late = time.monotonic() + LINGER_S
    await _until(lambda: not server.server_state.connections or time.monotonic() > late)
    server.should_exit = True


async def _shut(server: uvicorn.Server, bound: socket.socket) -> None:
    """Stop listening, but take in who is connected already: the kernel would cut those off."""
    config, loop = server.config, asyncio.get_running_loop()
    late = list(_at_the_door(bound))
    for listener in server.servers:
        listener.close()
    for wire in late:
        made = cast("Callable[..., Connection]", config.http_protocol_class)
        protocol = functools.partial(made, config, server.server_state, server.lifespan.state)
        await loop.connect_accepted_socket(cast("Any", protocol), wire)


def _at_the_door(bound: socket.socket) -> Iterator[socket.socket]:
    """Give each connection that stands and was not taken in yet; files may run out before they do."""
    with contextlib.suppress(OSError):
        while True:
            wire, _ = bound.accept()
            wire.setblocking(False)
            yield wire


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - uvicorn has no event for these
        await asyncio.sleep(0.01)


def freeze() -> None:
    """Put all that was made so far out of the garbage collector's sight: it lives as long as the process."""
    gc.collect()
    gc.freeze()


@dataclass(slots=True)
class Drain:
    """Whether the server is on its way out, and which signal said so."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    signal: Signals | None = None

    def begin(self, which: Signals) -> None:
        """Begin to drain."""
        self.signal = which
        self.asked.set()


def drained(app: ASGIApp, drain: Drain) -> ASGIApp:
    """Return ``app``; while it drains it is not ready, and every answer closes its connection."""

    async def passing(scope: Scope, receive: Receive, send: Send) -> None:
        if not drain.asked.is_set() or scope["type"] != "http":
            await app(scope, receive, send)
        elif scope["path"] == READY:
            await send_reply(error(503, "this server is about to stop", (CLOSE,)), send)
        else:
            await app(scope, receive, _closing(send))

    return passing


def _closing(send: Send) -> Send:
    async def last(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), CLOSE]
        await send(message)

    return last


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    return uvloop.new_event_loop


def guarded(app: ASGIApp, token: str) -> ASGIApp:
    """Return ``app`` behind a bearer token, compared in constant time; the health paths stay open."""
    expected = f"Bearer {token}".encode()

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in OPEN_PATHS or _allowed(scope, expected):
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send_reply(error(401, "a bearer token is needed", ((b"www-authenticate", b"Bearer"),)), send)

    return guard


def _allowed(scope: Scope, expected: bytes) -> bool:
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    return bears(expected, given)


def bears(expected: bytes, given: bytes) -> bool:
    """Whether an Authorization header is the expected one; the scheme's name has any case (RFC 9110, 11.1)."""
    scheme, _, token = given.partition(b" ")
    return hmac.compare_digest(b"%b %b" % (scheme.capitalize(), token), expected)
