"""Host an ASGI application: one event loop, one listener, one process. It ends cleanly on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from signal import SIGINT, Signals
from typing import TYPE_CHECKING, Any, cast

from unfoldkit.errors import internal_error, user_error
from unfoldkit.serving.http.access_control import (
    OPEN_PATHS,
    expected_header,
    is_authorized,
    is_private_host,
    reject_foreign_origins,
    require_clear_head,
    require_token,
)
from unfoldkit.serving.http.drain import Drain, close_while_draining, stop_server, wait_until
from unfoldkit.serving.http.early_probes import EarlyProbes
from unfoldkit.serving.http.fast_path.connection import Connection
from unfoldkit.serving.http.fast_path.head import FastPath, format_headers
from unfoldkit.serving.http.fast_path.overload import OverloadRejecter
from unfoldkit.serving.http.fast_path.uvicorn_internals import build_protocol_class, find_incompatibility
from unfoldkit.serving.http.resource_limits import ResourceLimits, ResourceUsage, bound_bodies, has_descriptors
from unfoldkit.serving.http.startup import StartResult, record_start
from unfoldkit.serving.http.tls import TlsFiles, reload_certificate
from unfoldkit.serving.http.workers import ending_signals, hangup_signal
from unfoldkit.serving.observability.access_log import Observer, limit_repeats, observe_requests
from unfoldkit.serving.observability.live_page import serve_events, serve_page
from unfoldkit.serving.observability.tracing import Instrumentation
from unfoldkit.serving.responses import Header
from unfoldkit.serving.service import ASGIApp, Service

if TYPE_CHECKING:
    import uvicorn

CHECK_EVERY_S = 1.0
KEEP_ALIVE_S = 75
REQUEST_TIMEOUT_S = 30.0
PROBE_TIMEOUT_S = 2.0
SWITCH_INTERVAL_S = 0.0005
Heartbeat = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOptions:
    """How a service is hosted.

    Args:
        token: The bearer token that requests need; empty for none.
        drain_s: How long the end waits for responses.
        request_timeout_s: How long a request may take to come in, and a client to read its response.
        heartbeat: Called regularly while requests are accepted and models respond.
        observer: Receives a note of every request.
        instrumentation: OpenTelemetry's instrumentation, which the fast path would bypass; ``None`` without it.
        own_log: The program has set up its log; uvicorn must not set up another.
        fast_path: Answer plain inference requests without ASGI, see :mod:`unfoldkit.serving.http.fast_path`, and gRPC
            without grpcio, see :mod:`unfoldkit.serving.grpc.http2`.
        limits: Bounds of what all connections hold.
        tls: The files of TLS; ``None`` for plain HTTP.
        grpc_address: Host and port for gRPC; empty for HTTP only.
    """

    token: str = ""
    drain_s: int = 10
    request_timeout_s: float = REQUEST_TIMEOUT_S
    heartbeat: Heartbeat | None = None
    observer: Observer | None = None
    instrumentation: Instrumentation | None = None
    own_log: bool = False
    fast_path: bool = True
    limits: ResourceLimits = field(default_factory=ResourceLimits)
    tls: TlsFiles | None = None
    grpc_address: str = ""


def run_service(service: Service, listener: socket.socket, options: HostOptions | None = None) -> None:
    """Serve until SIGTERM, SIGHUP or Ctrl-C, and answer accepted requests before the end.

    Raises:
        KeyboardInterrupt: Ctrl-C ended it, after the last response.
        UnfoldError: The application did not start.
    """
    # a batch in its thread must not wait five milliseconds for the lock of the interpreter
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        if runner.run(_serve(service, listener, options or HostOptions())) is SIGINT:
            raise KeyboardInterrupt


def freeze_objects() -> None:
    """Exempt all objects made so far from garbage collection: they live as long as the process."""
    gc.collect()
    gc.freeze()


async def _serve(service: Service, listener: socket.socket, options: HostOptions) -> Signals | None:
    drain, start = Drain(), StartResult()
    usage = ResourceUsage(options.limits, _service_log().warning)
    if service.registry is not None:
        service.registry.register(usage)
    app = record_start(bound_bodies(service.app, usage), start)
    server = _build_server(replace(service, app=app), options, drain, usage)
    loop, hangup = asyncio.get_running_loop(), hangup_signal()
    for which in ending_signals(reloads=options.tls is not None):
        loop.add_signal_handler(which, drain.begin, which)
    grpc_context = options.tls.build_context("h2") if options.tls is not None and options.grpc_address else None
    contexts = [context for context in (server.config.ssl, grpc_context) if context is not None]
    if options.tls is not None and hangup is not None and contexts:
        loop.add_signal_handler(hangup, reload_certificate, options.tls, contexts, _service_log().warning)
    # uvicorn would replace these handlers, and raise the signal again at the end
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    # the first heartbeat precedes the first request, which may block this process: its silence is then noticed
    _beat(service, options)
    serving = asyncio.create_task(_run(server, listener, start))
    await _wait_for_start(server, listener, lambda: serving.done() or drain.started.is_set())
    if not server.started:
        if drain.started.is_set():
            # do not wait for a large model that is still loading
            serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        return drain.signal
    grpc_server = None
    if options.grpc_address:
        grpc_server = await _start_grpc(service, options, drain, usage, grpc_context)
    freeze_objects()
    usage.refresh()
    while not serving.done() and not drain.started.is_set():
        _beat(service, options)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(drain.started.wait(), CHECK_EVERY_S)
        _close_stalled(server, options.request_timeout_s)
        usage.refresh()
        _free_descriptors(server, usage)
    if grpc_server is not None:
        # it takes no new calls, and answers those under way, while HTTP drains
        stopping = asyncio.create_task(grpc_server.stop(options.drain_s))
        await stop_server(server, listener)
        await stopping
    else:
        await stop_server(server, listener)
    await serving
    return drain.signal


async def _start_grpc(
    service: Service, options: HostOptions, drain: Drain, usage: ResourceUsage, context: ssl.SSLContext | None
) -> Any:
    """Start the gRPC server with the token, the TLS and the bounds of HTTP.

    Raises:
        UnfoldError: The service has no models, or the address cannot be bound.
    """
    from unfoldkit.serving.grpc.server import start_grpc_server
    from unfoldkit.serving.grpc.servicer import GrpcOptions

    if not service.endpoints:
        raise user_error(f"{service.name} has no models to offer over gRPC", hint="leave --grpc-port out")
    is_token = functools.partial(is_authorized, expected_header(options.token))
    grpc_options = GrpcOptions(
        address=options.grpc_address,
        is_authorized=is_token if options.token else None,
        # the instrumentation of OpenTelemetry works with grpc.aio only
        is_native=options.fast_path and options.instrumentation is None,
        context=context,
        credentials=options.tls.build_grpc_credentials() if options.tls else None,
        hold_body=usage.hold_call,
        hold_connection=usage.hold_connection,
        is_draining=drain.started.is_set,
        repository=service.repository,
        observer=options.observer,
        interceptors=tuple(options.instrumentation.build_interceptors()) if options.instrumentation else (),
    )
    return await start_grpc_server(service.endpoints, grpc_options)


async def _run(server: uvicorn.Server, listener: socket.socket, start: StartResult) -> None:
    try:
        await server.serve(sockets=[listener])
    except SystemExit:
        # newer versions of uvicorn exit when the lifespan failed; older versions return
        raise start.error or internal_error("the service did not start") from None
    if start.error is not None:
        raise start.error


def _service_log() -> logging.Logger:
    return logging.getLogger("unfoldkit.serving")


def _beat(service: Service, options: HostOptions) -> None:
    if options.heartbeat is not None and service.healthy():
        options.heartbeat()


def _build_server(service: Service, options: HostOptions, drain: Drain, usage: ResourceUsage) -> uvicorn.Server:
    import uvicorn
    from uvicorn.config import LOGGING_CONFIG

    app = close_while_draining(require_clear_head(wrap_application(service, options.token, drain)), drain)
    app = observe_requests(app, options.observer)
    config = uvicorn.Config(
        options.instrumentation.wrap_app(app) if options.instrumentation else app,
        http="httptools",
        # a failed start is no reason to go on without one
        lifespan="on",
        log_level="warning",
        log_config=None if options.own_log else LOGGING_CONFIG,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=options.drain_s,
    )
    server = uvicorn.Server(config)
    # it warns of every malformed request
    logging.getLogger("uvicorn.error").addFilter(limit_repeats())
    if problem := find_incompatibility(config):
        logging.getLogger("uvicorn.error").warning("fast path and read limits are off: %s", problem)
    else:
        config.http_protocol_class = cast("Any", _connection_factory(server, service, options, drain, usage))
    if options.tls is not None:
        if not config.loaded:
            config.load()
        config.ssl = options.tls.build_context()
    return server


async def _wait_for_start(server: uvicorn.Server, listener: socket.socket, is_over: Callable[[], bool]) -> None:
    """Wait until the service has started or its end has come, and answer probes meanwhile.

    TLS would have to answer before a probe can be read: there, probes wait as other requests do.
    """
    if server.config.ssl is not None:
        await wait_until(lambda: server.started or is_over())
        return
    probes = EarlyProbes(listener.dup())
    probes.start()
    await wait_until(lambda: server.started or is_over())
    await probes.hand_over(_connector(server) if server.started else None)


def _connector(server: uvicorn.Server) -> Callable[[], asyncio.Protocol]:
    """Return what makes the protocol of a connection, as uvicorn does for those that it accepts itself."""
    make = cast("Any", server.config.http_protocol_class)
    return lambda: cast(
        "asyncio.Protocol",
        make(config=server.config, server_state=server.server_state, app_state=server.lifespan.state),
    )


def _connection_factory(
    server: uvicorn.Server, service: Service, options: HostOptions, drain: Drain, usage: ResourceUsage
) -> Callable[..., Connection]:
    protocol_class = build_protocol_class()
    is_token = functools.partial(is_authorized, expected_header(options.token))
    is_fast = options.fast_path and options.instrumentation is None
    fast_path = FastPath(
        responders=service.posts if is_fast else {},
        max_body_bytes=service.body_bytes,
        is_authorized=is_token if options.token else lambda _header: True,
        is_closing=drain.started.is_set,
        default_headers=_DefaultHeaders(server).format,
        observer=options.observer,
        admission_checks=service.gates,
        is_allowed_host=(lambda _host: True) if options.token else is_private_host,
    )
    # an observer sees each request in turn; only Linux has epoll; TLS cannot be read from the descriptor
    is_plain = options.observer is None and options.tls is None
    rejects_early = is_fast and is_plain and hasattr(select, "epoll")
    call_soon = asyncio.get_running_loop().call_soon
    rejecter = OverloadRejecter(fast_path.rejection_for, call_soon, time.monotonic) if rejects_early else None

    def connect(config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> Connection:
        inner = protocol_class(config, server_state, app_state, _loop)
        return Connection(inner, fast_path, server_state.connections, time.monotonic, usage, rejecter)

    return connect


def wrap_application(service: Service, token: str, drain: Drain) -> ASGIApp:
    """Wrap the application of a service with its live page and its access control.

    A token guards everything but the page's static files. Without a token, requests from foreign origins are rejected.
    """
    app = service.app
    if service.watch is not None:
        app = serve_events(app, service.watch, drain.started, service.charts)
    app = require_token(app, token) if token else reject_foreign_origins(app, OPEN_PATHS)
    return serve_page(app) if service.watch else app


@dataclass(slots=True)
class _DefaultHeaders:
    """The headers that uvicorn adds to every response, formatted once per second."""

    server: uvicorn.Server
    headers: list[Header] = field(default_factory=list)
    text: bytes = b""

    def format(self) -> bytes:
        """Return the lines of the headers."""
        current = self.server.server_state.default_headers
        if current is not self.headers:
            self.headers, self.text = current, format_headers(current)
        return self.text


def _close_stalled(server: uvicorn.Server, timeout_s: float) -> None:
    """Close idle connections, and those that take too long with a request or a response."""
    now = time.monotonic()
    for connection in list(server.server_state.connections):
        if isinstance(connection, Connection) and connection.transport:
            if connection.is_stalled(now - (min(timeout_s, PROBE_TIMEOUT_S) if connection.is_probe else timeout_s)):
                connection.abort()
            elif connection.is_idle(now - KEEP_ALIVE_S):
                connection.transport.close()


def _free_descriptors(server: uvicorn.Server, usage: ResourceUsage) -> None:
    """Close the connections which have been idle longest if no descriptor is left: health checks need a few."""
    if has_descriptors():
        return
    usage.reject("descriptors")
    connections: list[Any] = [item for item in server.server_state.connections if isinstance(item, Connection)]
    free: list[Connection] = [connection for connection in connections if connection.is_free]
    for connection in sorted(free, key=lambda item: item.last_active_s)[: 2 * usage.limits.probes]:
        connection.abort()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    return uvloop.new_event_loop
