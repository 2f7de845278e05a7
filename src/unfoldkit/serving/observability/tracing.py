"""Spans of OpenTelemetry, if a provider is set up: by its own instrumentation, or else one per finished request.

The extra ``telemetry`` installs the instrumentation of ASGI and gRPC, so that spans, metrics, baggage and sampling are
those of any other service. Without it, an observer records a span after each request.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unfoldkit.serving.observability.access_log import ID, Observer, RequestNote
from unfoldkit.serving.service import ASGIApp, Message, Receive, Scope, Send

ASGI, GRPC = "asgi", "grpc_aio_server"
"""The names of the two in ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS``."""
_MODULES = ("opentelemetry.instrumentation.asgi", "opentelemetry.instrumentation.grpc")


@dataclass(frozen=True, slots=True)
class Instrumentation:
    """OpenTelemetry's own instrumentation of a server.

    Args:
        providers: The arguments ``tracer_provider`` and ``meter_provider``; the global ones where they are left out.
        disabled: The instrumentations that the environment turns off.
    """

    providers: Mapping[str, Any]
    disabled: frozenset[str] = frozenset()

    def wrap_app(self, app: ASGIApp) -> ASGIApp:
        """Wrap an application: a span and the metrics of HTTP for every request that no variable excludes."""
        if ASGI in self.disabled:
            return app
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.util.http import get_excluded_urls

        # a span for each message of a request would treble their number
        wrapped: ASGIApp = OpenTelemetryMiddleware(
            _annotate_spans(app),
            excluded_urls=get_excluded_urls("ASGI"),
            exclude_spans=["receive", "send"],
            **self.providers,
        )
        return wrapped

    def build_interceptors(self) -> Sequence[Any]:
        """Build the interceptors of the gRPC server; none where the agent of OpenTelemetry adds its own."""
        from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorServer, aio_server_interceptor, filters

        if GRPC in self.disabled or GrpcAioInstrumentorServer().is_instrumented_by_opentelemetry:
            return ()
        skip_probes = filters.negate(filters.health_check())
        return (aio_server_interceptor(self.providers.get("tracer_provider"), filter_=skip_probes),)


def find_instrumentation(provider: Any = None, meters: Any = None) -> Instrumentation | None:
    """Return the instrumentation, or ``None`` if it is not installed or OpenTelemetry is not set up.

    Args:
        provider: A tracer provider; without it the global one, which ``opentelemetry-instrument`` sets.
        meters: A meter provider; without it the global one.
    """
    if _find_provider(provider) is None or not all(map(_is_installed, _MODULES)):
        return None
    names = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")
    providers = {"tracer_provider": provider, "meter_provider": meters}
    return Instrumentation(
        {key: value for key, value in providers.items() if value is not None}, frozenset(map(str.strip, names))
    )


def request_tracer(provider: Any = None) -> Observer | None:
    """Make an observer that records a span per request, if OpenTelemetry is installed and has an exporter.

    A span is a server span named after method and path, a child of the request's ``traceparent``. Its attributes are
    those of the HTTP semantic conventions of OpenTelemetry.

    Args:
        provider: As of ``find_instrumentation``.
    """
    provider = _find_provider(provider)
    return None if provider is None else functools.partial(_record_span, provider.get_tracer("unfoldkit.serving"))


def _find_provider(provider: Any) -> Any:
    """Return the tracer provider, or ``None`` if none was set up."""
    if not _is_installed("opentelemetry"):
        return None
    from opentelemetry import trace

    provider = provider or trace.get_tracer_provider()
    return None if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)) else provider


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _annotate_spans(app: ASGIApp) -> ASGIApp:
    """Wrap ``app``: the current span gets the id of its request, and no made-up path as its name."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        from opentelemetry import trace

        span = trace.get_current_span()

        async def annotate(message: Message) -> None:
            if message["type"] == "http.response.start" and span.is_recording():
                ids = [value.decode() for name, value in message.get("headers", ()) if name == ID]
                if ids:
                    span.set_attribute("unfold.request_id", ids[0])
                if message["status"] == 404:
                    # clients can make up any path; span names must stay few
                    span.update_name(scope["method"])
            await send(message)

        await app(scope, receive, annotate if scope["type"] == "http" else send)

    return wrapped


def _record_span(tracer: Any, note: RequestNote) -> None:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    end_ns = time.time_ns()
    parent = TraceContextTextMapPropagator().extract({"traceparent": note.parent})
    attributes: dict[str, Any] = {
        "http.request.method": note.method,
        "url.path": note.path,
        "url.scheme": "http",
        "http.response.status_code": note.status,
        "unfold.request_id": note.id,
    }
    if note.status >= 500:
        attributes["error.type"] = str(note.status)
    span = tracer.start_span(
        note.method if note.status == 404 else f"{note.method} {note.path}",
        parent,
        trace.SpanKind.SERVER,
        attributes,
        start_time=end_ns - int(note.seconds * 1e9),
    )
    if note.status >= 500:
        span.set_status(trace.StatusCode.ERROR)
    span.end(end_ns)
