"""Spans with the real SDK of OpenTelemetry: by its own instrumentation, and by the observer without it."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import grpc
import pytest

from tests.unit.serving.client import Server, read, request, rows, serving
from tests.unit.serving.grpc.test_server import await_port, call, raw_request
from unfoldkit.serving.grpc.messages import SERVICE, build_messages
from unfoldkit.serving.observability import tracing
from unfoldkit.serving.observability.access_log import RequestNote
from unfoldkit.serving.observability.tracing import find_instrumentation, request_tracer

INFER = "/v2/models/total/infer"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
INSTRUMENTATION = ("opentelemetry.sdk", *tracing._MODULES)


def read_spans(server: Server, count: int) -> list[dict[str, Any]]:
    for _ in range(100):
        lines = [json.loads(line) for line in server.output().splitlines() if line.startswith("{")]
        if len(spans := [line for line in lines if "context" in line]) >= count:
            return spans
        time.sleep(0.05)
    raise AssertionError(f"{len(spans)} spans of {count}: {server.output()}")


def test_both_protocols_use_the_instrumentation_of_opentelemetry() -> None:
    """HTTP and gRPC make one server span per request, children of their parents; probes of gRPC make none."""
    for module in INSTRUMENTATION:
        pytest.importorskip(module, reason="the extra telemetry is not installed; nox -s faults has it")
    messages = build_messages()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving("total", "spans=1", "log=1", f"grpc={port}") as server:
        await_port(port)
        known = len(read_spans(server, 1))
        with server.connect() as wire:
            for path, body in ((INFER, rows([1, 2, 3])), (INFER, rows([666, 0, 0])), ("/made-up", None)):
                wire.sendall(request(path, body, headers=f"traceparent: {PARENT}\r\nx-request-id: mine\r\n"))
                read(wire)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            sent = (("traceparent", PARENT), ("x-request-id", "mine"))
            _, state = call_with_state(channel, messages, raw_request(messages, [[1, 2, 3]]), sent)
            assert dict(state.trailing_metadata())["x-request-id"] == "mine"
            with pytest.raises(grpc.RpcError):
                call(channel, messages, "ModelInfer", raw_request(messages, [[666.0, 0, 0]]), metadata=sent)
            probe = channel.unary_unary("/grpc.health.v1.Health/Check")
            assert probe(b"", timeout=10)
        good, bad, lost, remote, failed = read_spans(server, known + 5)[known:]
        assert server.end() == 0
        log = server.output()
    assert {span["kind"] for span in (good, bad, lost, remote, failed)} == {"SpanKind.SERVER"}
    names = [span["name"] for span in (good, bad, lost, remote)]
    assert names == [f"POST {INFER}", f"POST {INFER}", "GET", f"/{SERVICE}/ModelInfer"]
    for span in (good, bad, lost, remote, failed):
        assert span["context"]["trace_id"] == "0x" + PARENT.split("-")[1]
        assert span["parent_id"] == "0x" + PARENT.split("-")[2]
    assert good["attributes"]["unfold.request_id"] == "mine"
    assert (bad["status"]["status_code"], failed["status"]["status_code"]) == ("ERROR", "ERROR")
    assert good["status"]["status_code"] != "ERROR"
    # requests of both protocols are lines of the log, and metrics of HTTP are those of OpenTelemetry
    lines = [json.loads(line) for line in log.splitlines() if '"request"' in line]
    notes = [(line["path"], line["status"], line["id"]) for line in lines if line.get("traceparent") == PARENT]
    remote_path = f"/{SERVICE}/ModelInfer"
    assert notes == [
        (INFER, 200, "mine"), (INFER, 500, "mine"), ("/made-up", 404, "mine"),
        (remote_path, 200, "mine"), (remote_path, 500, "mine"),
    ]  # fmt: skip


def call_with_state(channel: grpc.Channel, messages: Any, message: Any, metadata: Any) -> Any:
    method = channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        request_serializer=type(message).SerializeToString,
        response_deserializer=messages.ModelInferResponse.FromString,
    )
    return method.with_call(message, timeout=10, metadata=metadata)


def test_the_environment_turns_an_instrumentation_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disabled instrumentation wraps nothing; without the packages there is none."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="the extra telemetry is not installed")
    provider = sdk.TracerProvider()
    monkeypatch.setenv("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "asgi, grpc_aio_server")
    disabled = find_instrumentation(provider)
    if disabled is not None:
        app: Any = object()
        assert disabled.wrap_app(app) is app
        assert disabled.build_interceptors() == ()
    monkeypatch.setattr(tracing, "_MODULES", ("opentelemetry.instrumentation.of_nothing",))
    assert find_instrumentation(provider) is None
    assert request_tracer(provider) is not None


def test_a_request_is_a_span() -> None:
    """With the SDK a request is a span of a server, child of its trace parent, with HTTP's attributes and its time."""
    sdk = pytest.importorskip(
        "opentelemetry.sdk.trace", reason="opentelemetry-sdk is not installed; nox -s faults has it"
    )
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import SpanKind, StatusCode

    memory, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    observer = request_tracer(provider)
    assert observer
    observer(RequestNote("i", "POST", "/p", 200, 0.25, PARENT))
    observer(RequestNote("j", "POST", "/p", 503, 0.0))
    observer(RequestNote("k", "GET", "/made-up-1", 404, 0.0))
    good, bad, lost = memory.get_finished_spans()
    assert (good.name, good.kind) == ("POST /p", SpanKind.SERVER)
    assert format(good.context.trace_id, "032x") == PARENT.split("-")[1]
    assert format(good.parent.span_id, "016x") == PARENT.split("-")[2]
    assert good.attributes["http.response.status_code"] == 200
    assert good.attributes["unfold.request_id"] == "i"
    assert abs((good.end_time - good.start_time) / 1e9 - 0.25) < 0.01
    assert good.attributes["url.scheme"] == "http"
    assert "error.type" not in good.attributes
    assert (bad.parent, bad.status.status_code) == (None, StatusCode.ERROR)
    assert bad.attributes["error.type"] == "503"
    # a client that makes up paths makes up no names of spans
    assert (lost.name, lost.attributes["url.path"]) == ("GET", "/made-up-1")


def test_without_a_provider_nothing_is_traced() -> None:
    """Without a provider of OpenTelemetry there is no observer, and no instrumentation."""
    assert request_tracer() is None
    assert find_instrumentation() is None
