"""The gRPC server of a service: the calls of the protocol, health and reflection, on the event loop of HTTP."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from unfoldkit.errors import user_error
from unfoldkit.serving.grpc.http2.calls import Method
from unfoldkit.serving.grpc.messages import METHODS, SERVICE, STREAM_METHOD, build_messages
from unfoldkit.serving.grpc.servicer import (
    MAX_CONCURRENT_CALLS,
    GrpcOptions,
    InferenceServicer,
    client_address,
    parse_message,
)
from unfoldkit.serving.grpc.streams import hold_stream
from unfoldkit.serving.oip.inference import Endpoint

MAX_STREAMS = 2 * MAX_CONCURRENT_CALLS
"""Calls of one connection: more than are answered at a time, so that their clients get the reason."""
MAX_OPEN_CALLS = 4 * MAX_CONCURRENT_CALLS
"""Calls of all connections that may wait for their requests; the servicer rejects before."""
MAX_CONNECTIONS = 1024
MAX_METADATA_BYTES = 16_384
IDLE_S = 300.0
HANDSHAKE_S = 10.0
HEALTH = "grpc.health.v1.Health"


async def start_grpc_server(endpoints: Mapping[str, Endpoint], options: GrpcOptions) -> Any:
    """Start the gRPC server of models on the running event loop, with health and reflection; return it.

    Raises:
        UnfoldError: The address cannot be bound.
    """
    servicer = InferenceServicer(endpoints, options, build_messages())
    methods = dict(_build_methods(servicer))
    max_bytes = max(endpoint.batcher.limits.body_bytes for endpoint in endpoints.values())
    start = _start_native if options.is_native and _has_hpack() else _start_aio
    try:
        return await start(methods, options, max_bytes)
    except (OSError, RuntimeError) as error:
        raise user_error(f"cannot listen on {options.address} for gRPC", hint="choose another --grpc-port") from error


def _has_hpack() -> bool:
    """Whether header fields can be decoded; if not, the log says what that means."""
    if importlib.util.find_spec("hpack") is not None:
        return True
    logging.getLogger("unfoldkit.serving").warning("gRPC is answered by grpcio: hpack is not installed")
    return False


async def _start_native(methods: Mapping[str, Method], options: GrpcOptions, max_bytes: int) -> Any:
    from unfoldkit.serving.grpc.http2.host import Host
    from unfoldkit.serving.grpc.http2.server import start_http2_server

    host = Host(
        methods=methods,
        hold_body=options.hold_body,
        hold_connection=options.hold_connection,
        max_message_bytes=max_bytes,
        max_streams=MAX_STREAMS,
        max_calls=MAX_OPEN_CALLS,
        max_connections=MAX_CONNECTIONS,
        idle_s=IDLE_S,
        handshake_s=HANDSHAKE_S,
        log=logging.getLogger("unfoldkit.serving"),
    )
    return await start_http2_server(host, options.address, options.context)


async def _start_aio(methods: Mapping[str, Method], options: GrpcOptions, max_bytes: int) -> Any:
    import grpc

    server = grpc.aio.server(
        interceptors=options.interceptors,
        # beyond it, the library cancels calls, which clients do not repeat; the servicer rejects them before
        maximum_concurrent_rpcs=MAX_OPEN_CALLS,
        options=[
            ("grpc.max_concurrent_streams", MAX_STREAMS),
            # calls that no one has taken yet: from 1,000 on, the library would cancel some at random
            ("grpc.server.max_pending_requests", MAX_STREAMS),
            ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_STREAMS),
            ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
            ("grpc.max_connection_idle_ms", int(1e3 * IDLE_S)),
            ("grpc.server_handshake_timeout_ms", int(1e3 * HANDSHAKE_S)),
            ("grpc.max_receive_message_length", max_bytes),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.so_reuseport", 1),
        ],
    )
    services: dict[str, dict[str, Any]] = {}
    for path, method in methods.items():
        _, service, name = path.split("/")
        build = grpc.stream_stream_rpc_method_handler if method.is_stream else grpc.unary_unary_rpc_method_handler
        services.setdefault(service, {})[name] = build(method.answer, method.parse, method.serialize)
    server.add_generic_rpc_handlers(tuple(map(grpc.method_handlers_generic_handler, services, services.values())))
    if options.credentials is None:
        server.add_insecure_port(options.address)
    else:
        server.add_secure_port(options.address, options.credentials)
    await server.start()
    return server


def _build_methods(servicer: InferenceServicer) -> Iterator[tuple[str, Method]]:
    """Yield path and method of all calls of the service, with health and reflection."""
    classes = servicer.messages.classes
    for name in METHODS:
        yield (
            f"/{SERVICE}/{name}",
            Method(
                parse=functools.partial(parse_message, classes[f"{name}Request"]),
                serialize=classes[f"{name}Response"].SerializeToString,
                answer=_build_answer(servicer, name),
                # while models are loaded and unloaded, a task tracks the requests
                start=servicer.start_infer if name == "ModelInfer" and servicer.options.repository is None else None,
            ),
        )

    async def answer_stream(_requests: Any, context: Any) -> None:
        await servicer.answer_stream(context)

    yield (
        f"/{SERVICE}/{STREAM_METHOD}",
        Method(
            parse=functools.partial(parse_message, classes["ModelInferRequest"]),
            serialize=classes[f"{STREAM_METHOD}Response"].SerializeToString,
            answer=answer_stream,
            is_stream=True,
        ),
    )
    yield _build_health(servicer)
    if servicer.options.is_authorized is None:
        # a service with a token reveals nothing without it
        yield _build_reflection(servicer)


def _build_answer(servicer: InferenceServicer, name: str) -> Any:
    async def answer(request: Any, context: Any) -> Any:
        return await servicer.answer(name, request, context)

    return answer


def _build_health(servicer: InferenceServicer) -> tuple[str, Method]:
    """Build the method of the health checks of Kubernetes and of load balancers."""
    import grpc
    from grpc_health.v1 import health_pb2

    status = health_pb2.HealthCheckResponse

    async def check(request: Any, context: Any) -> Any:
        """Return whether requests are answered."""
        if request is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the bytes are not a HealthCheckRequest")
        repository = servicer.options.repository
        unloaded = set(repository.versions) - set(servicer.endpoints) if repository else set()
        if request.service not in ("", SERVICE, *servicer.endpoints, *unloaded):
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        is_serving = servicer.is_ready and request.service not in unloaded
        return status(status=status.SERVING if is_serving else status.NOT_SERVING)

    parse = functools.partial(parse_message, health_pb2.HealthCheckRequest)
    return f"/{HEALTH}/Check", Method(parse=parse, serialize=status.SerializeToString, answer=check)


def _build_reflection(servicer: InferenceServicer) -> tuple[str, Method]:
    import grpc
    from grpc_health.v1 import health_pb2
    from grpc_reflection.v1alpha import reflection, reflection_pb2

    pool = servicer.messages.pool
    for module in (health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    service = reflection.aio.ReflectionServicer((SERVICE, HEALTH, reflection.SERVICE_NAME), pool=pool)

    async def answer(requests: Any, context: Any) -> Any:
        with hold_stream(servicer.open_streams, client_address(context.peer())) as exceeded:
            if exceeded:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the server is at its limit of streams")
            async for response in service.ServerReflectionInfo(requests, context):
                yield response

    return (
        f"/{reflection.SERVICE_NAME}/ServerReflectionInfo",
        Method(
            parse=reflection_pb2.ServerReflectionRequest.FromString,
            serialize=reflection_pb2.ServerReflectionResponse.SerializeToString,
            answer=answer,
            is_stream=True,
        ),
    )
