"""The protocol over gRPC, by the client library of Triton and by bare calls."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from tests.unit.serving.client import Server, rows, serving
from tests.unit.serving.http.test_tls import certificate, client, wait_for
from tests.unit.serving.models import Total
from unfoldkit.errors import user_error
from unfoldkit.serving.batching.batcher import QueueFull
from unfoldkit.serving.grpc.messages import FIELDS, METHODS, SERVICE, Messages, build_messages
from unfoldkit.serving.grpc.server import start_grpc_server
from unfoldkit.serving.grpc.servicer import GrpcOptions, build_call_error, client_address
from unfoldkit.serving.oip.app import build_application, build_service

INFER = "/v2/models/total/infer"


@pytest.fixture(scope="module")
def messages() -> Messages:
    return build_messages()


@contextmanager
def both(*words: str, tls: ssl.SSLContext | None = None) -> Iterator[tuple[Server, int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serving("total", f"grpc={port}", *words, tls=tls) as server:
        await_port(port)
        yield server, port


def await_port(port: int) -> None:
    """Wait until the second port accepts connections: HTTP may be ready before gRPC."""
    for _ in range(400):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")


@pytest.fixture(scope="module")
def total() -> Iterator[tuple[Server, int]]:
    with both() as pair:
        yield pair


def call(channel: grpc.Channel, messages: Messages, name: str, request: Any = None, **more: Any) -> Any:
    request = getattr(messages, f"{name}Request")() if request is None else request
    method = channel.unary_unary(
        f"/{SERVICE}/{name}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=getattr(messages, f"{name}Response").FromString,
    )
    return method(request, **{"timeout": 10, "wait_for_ready": True, **more})


def raw_request(messages: Messages, values: Any, dtype: str = "<f8", datatype: str = "FP64", **more: Any) -> Any:
    array = np.array(values, dtype)
    request = messages.ModelInferRequest(model_name="total", raw_input_contents=[array.tobytes()], **more)
    request.inputs.add(name="x", datatype=datatype, shape=array.shape)
    return request


def list_fields(message: Any) -> Iterator[tuple[str, int, int, Any]]:
    """Yield name, number, type and type of the message of each field."""
    for field in message.fields:
        yield field.name, field.number, field.type, field.message_type is None


@pytest.mark.targets
def test_messages_are_those_of_the_published_protocol(messages: Messages) -> None:
    """Field by field, every message is that which tritonclient has, or a part of it."""
    pb2 = pytest.importorskip("tritonclient.grpc").service_pb2
    published = {**{name: getattr(pb2, name) for name in FIELDS if hasattr(pb2, name)}, **nested(pb2)}
    compared = 0
    for name in FIELDS:
        fields = {field[:2]: field[2:] for field in list_fields(messages.classes[name].DESCRIPTOR)}
        theirs = {field[:2]: field[2:] for field in list_fields(published[name].DESCRIPTOR)}
        assert fields.items() <= theirs.items(), name
        compared += 1
    assert compared == len(FIELDS)
    methods = pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    assert set(METHODS) <= set(methods)


def nested(pb2: Any) -> dict[str, Any]:
    return {
        "TensorMetadata": pb2.ModelMetadataResponse.TensorMetadata,
        "InferTensor": pb2.ModelInferRequest.InferInputTensor,
        "InferRequestedOutputTensor": pb2.ModelInferRequest.InferRequestedOutputTensor,
        "ModelIndex": pb2.RepositoryIndexResponse.ModelIndex,
        **{name: getattr(pb2, name, None) or getattr(model_config(), name) for name in ("ModelInput", "ModelOutput")},
        "ModelConfig": model_config().ModelConfig,
    }


def model_config() -> Any:
    from tritonclient.grpc import model_config_pb2

    return model_config_pb2


def test_an_answer_is_that_of_http(total: tuple[Server, int], messages: Messages) -> None:
    """Raw bytes, typed contents and JSON over HTTP give the same numbers; id and ignored parameters come back."""
    server, port = total
    expected = server.ask(INFER, rows([1, 2, 3], [4, 5, 6])).json["outputs"]
    typed = messages.ModelInferRequest(model_name="total", id="a")
    typed.inputs.add(name="x", datatype="FP32", shape=[2, 3]).contents.fp32_contents.extend([1, 2, 3, 4, 5, 6])
    typed.parameters["priority"].int64_param = 3
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for request in (raw_request(messages, [[1, 2, 3], [4, 5, 6]]), typed):
            answer = call(channel, messages, "ModelInfer", request)
            for output, raw, known in zip(answer.outputs, answer.raw_output_contents, expected, strict=True):
                assert (output.name, list(output.shape)) == (known["name"], known["shape"])
                assert np.frombuffer(raw).tolist() == np.ravel(known["data"]).tolist()
        assert (answer.id, answer.parameters["ignored"].string_param) == ("a", "priority")


@pytest.mark.targets
def test_the_client_of_triton_works(total: tuple[Server, int]) -> None:
    """tritonclient.grpc finds the model, reads its metadata, configuration and statistics, and infers."""
    library = pytest.importorskip("tritonclient.grpc")
    triton = library.InferenceServerClient(f"127.0.0.1:{total[1]}")
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("total", "1")
    assert triton.get_model_metadata("total").inputs[0].shape == [-1, 3]
    assert triton.get_model_config("total").config.max_batch_size == 64
    assert [model.name for model in triton.get_model_repository_index().models] == ["total"]
    tensor = library.InferInput("x", [2, 3], "FP64")
    tensor.set_data_from_numpy(np.array([[1.0, 2, 3], [4, 5, 6]]))
    before = triton.get_inference_statistics("total").model_stats[0].inference_count
    result = triton.infer("total", [tensor], outputs=[library.InferRequestedOutput("total")])
    assert result.as_numpy("total").tolist() == [6, 15]
    assert triton.get_inference_statistics().model_stats[0].inference_count == before + 2
    triton.close()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model_name": "other"}, grpc.StatusCode.NOT_FOUND),
        ({"model_version": "9"}, grpc.StatusCode.NOT_FOUND),
        ({"raw_input_contents": [b"1234567"]}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"raw_input_contents": [b"", b""]}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"inputs": []}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_wrong_call_has_its_status(
    total: tuple[Server, int], messages: Messages, change: dict[str, Any], code: grpc.StatusCode
) -> None:
    """What a client gets wrong ends with a status of its own, and the server goes on."""
    request = raw_request(messages, [[1, 2, 3]])
    for name, value in change.items():
        request.ClearField(name)
        setattr(request, name, value) if isinstance(value, str) else getattr(request, name).extend(value)
    with grpc.insecure_channel(f"127.0.0.1:{total[1]}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, messages, "ModelInfer", request)
        assert caught.value.code() is code
        assert call(channel, messages, "ModelInfer", raw_request(messages, [[1, 2, 3]])).outputs


@pytest.mark.parametrize(
    ("datatype", "reason"),
    [("fp32", "it must be one of BOOL, .* FP32, FP64, BYTES"), ("FP16", "has no contents; send its raw bytes")],
)
def test_contents_of_another_datatype_are_refused(
    total: tuple[Server, int], messages: Messages, datatype: str, reason: str
) -> None:
    """An unknown datatype is named with those that there are; one without contents is sent as bytes."""
    request = messages.ModelInferRequest(model_name="total")
    request.inputs.add(name="x", datatype=datatype, shape=[1, 3]).contents.fp32_contents.extend([1, 2, 3])
    with grpc.insecure_channel(f"127.0.0.1:{total[1]}") as channel, pytest.raises(grpc.RpcError, match=reason):
        call(channel, messages, "ModelInfer", request)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ([[666.0, 0, 0]], grpc.StatusCode.INTERNAL),
        ([[409.0, 0, 0]], grpc.StatusCode.FAILED_PRECONDITION),
        ([[float("nan"), 0, 0]], grpc.StatusCode.INVALID_ARGUMENT),
        ([[float("inf"), 0, 0]], grpc.StatusCode.INVALID_ARGUMENT),
        (np.zeros((1025, 3)), grpc.StatusCode.INVALID_ARGUMENT),
        (np.zeros((0, 3)), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_values_that_do_not_fit_are_refused(
    total: tuple[Server, int], messages: Messages, values: Any, code: grpc.StatusCode
) -> None:
    """Failures of the model and values that it does not take have the statuses that HTTP gives them."""
    with grpc.insecure_channel(f"127.0.0.1:{total[1]}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, messages, "ModelInfer", raw_request(messages, values))
        assert caught.value.code() is code


def test_a_token_guards_all_but_health(messages: Messages) -> None:
    """Without the token only the calls of probes are answered, and reflection is off."""
    with both("token=sesame") as (_, port), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert call(channel, messages, "ServerLive").live
        assert call(channel, messages, "ServerReady").ready
        for metadata in ((), (("authorization", "Bearer no"),), (("authorization", "Bearer sesame"),) * 2):
            with pytest.raises(grpc.RpcError) as caught:
                call(channel, messages, "ModelInfer", raw_request(messages, [[1, 2, 3]]), metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        bearer = (("authorization", "bearer sesame"),)
        assert call(channel, messages, "ModelInfer", raw_request(messages, [[1, 2, 3]]), metadata=bearer).outputs


def test_grpc_has_the_tls_of_the_service(tmp_path: Path, messages: Messages) -> None:
    """With a certificate, gRPC answers under it and not in plain text."""
    files = certificate(tmp_path, "a")
    words = (f"cert={files.certificate}", f"key={files.key}")
    with both(*words, tls=client(files.certificate)) as (_, port):
        credentials = grpc.ssl_channel_credentials(files.certificate.read_bytes())
        with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
            assert call(channel, messages, "ModelInfer", raw_request(messages, [[1, 2, 3]])).outputs
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError):
            channel.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=2)


@pytest.mark.parametrize("fast_path", ["1", "0"])
def test_clients_need_a_certificate_under_mutual_tls(tmp_path: Path, messages: Messages, fast_path: str) -> None:
    """Only a client with a certificate of the authority gets an answer."""
    files, ca, _ = (certificate(tmp_path, name) for name in ("server", "ca", "other"))
    known, unknown = certificate(tmp_path, "known", "ca"), certificate(tmp_path, "unknown", "other")
    words = (f"cert={files.certificate}", f"key={files.key}", f"ca={ca.certificate}", f"fast_path={fast_path}")
    root = files.certificate.read_bytes()
    with both(*words, tls=client(files.certificate, known)) as (_, port):
        for own, is_known in ((known, True), (unknown, False), (None, False)):
            pair = (own.key.read_bytes(), own.certificate.read_bytes()) if own else (None, None)
            credentials = grpc.ssl_channel_credentials(root, *pair)
            with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
                method = channel.unary_unary(f"/{SERVICE}/ServerLive")
                if is_known:
                    assert method(b"", timeout=10)
                    continue
                with pytest.raises(grpc.RpcError) as caught:
                    method(b"", timeout=5)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_renewed_certificate_is_used_without_a_restart(tmp_path: Path, messages: Messages) -> None:
    """After SIGHUP new connections get the new certificate, and old ones go on."""
    first, second = certificate(tmp_path, "a"), certificate(tmp_path, "b")
    words = (f"cert={first.certificate}", f"key={first.key}")
    old, new = (grpc.ssl_channel_credentials(files.certificate.read_bytes()) for files in (first, second))
    with both(*words, tls=client(first.certificate)) as (server, port):
        with grpc.secure_channel(f"localhost:{port}", old) as channel:
            assert call(channel, messages, "ServerLive").live
            shutil.copy(second.certificate, first.certificate)
            shutil.copy(second.key, first.key)
            server.process.send_signal(signal.SIGHUP)
            wait_for(server, "was reloaded")
            assert call(channel, messages, "ServerLive").live
        with grpc.secure_channel(f"localhost:{port}", new) as channel:
            assert call(channel, messages, "ServerLive").live


def test_grpcio_answers_without_hpack(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where the library for header fields is missing, gRPC is left to grpcio, with one line in the log."""
    for name in [name for name in sys.modules if name.startswith("unfoldkit.serving.grpc.http2")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hpack", None)
    service = build_service("total", build_application([Total()]))

    async def start() -> Any:
        server = await start_grpc_server(service.endpoints, GrpcOptions(address="127.0.0.1:0"))
        await server.stop(0)
        return server

    with caplog.at_level("WARNING", logger="unfoldkit.serving"):
        assert isinstance(asyncio.run(start()), grpc.aio.Server)
    assert [text for text in caplog.messages if "hpack" in text] == caplog.messages
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("fast_path", ["1", "0"])
def test_a_message_that_is_too_large_has_its_status(messages: Messages, fast_path: str) -> None:
    """The client gets the error while it still sends, and the connection goes on."""
    large, small = (raw_request(messages, np.zeros((rows, 3))) for rows in (100_000, 1))
    with both(f"fast_path={fast_path}") as (_, port), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for _ in range(5):
            with pytest.raises(grpc.RpcError) as caught:
                call(channel, messages, "ModelInfer", large)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert call(channel, messages, "ModelInfer", small).outputs


@pytest.mark.parametrize(
    ("problem", "code", "message"),
    [
        (QueueFull(3), "RESOURCE_EXHAUSTED", "too many rows are waiting; retry later"),
        (
            user_error("m5.onnx is gone"),
            "UNAVAILABLE",
            "the model cannot respond now; the log of the server has the reason",
        ),
        (ZeroDivisionError(), "INTERNAL", "the model failed: ZeroDivisionError"),
    ],
)
def test_errors_have_the_words_of_http(problem: Exception, code: str, message: str) -> None:
    """A full queue, and a file that is gone, were a model that failed."""
    endpoint: Any = SimpleNamespace(log_problem=lambda _: None)
    error = build_call_error(endpoint, problem)
    assert (error.code, error.message, error.retry_s) == (code, message, 3 if code == "RESOURCE_EXHAUSTED" else 0)


@pytest.mark.parametrize("fast_path", ["1", "0"])
def test_calls_are_lines_of_the_log(messages: Messages, fast_path: str) -> None:
    """Each call has one line with its id, and with the status that it would have over HTTP."""
    with (
        both("log=1", f"fast_path={fast_path}") as (server, port),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        assert call(channel, messages, "ServerLive", metadata=(("x-request-id", "first"),)).live
        call(
            channel, messages, "ModelInfer", raw_request(messages, [[1, 2, 3]]), metadata=(("x-request-id", "second"),)
        )
        for values in ([[666.0, 0, 0]], [[float("nan"), 0, 0]]):
            with pytest.raises(grpc.RpcError) as caught:
                call(channel, messages, "ModelInfer", raw_request(messages, values))
            assert dict(caught.value.trailing_metadata())["x-request-id"]
        server.end()
        lines = [json.loads(line) for line in server.output().splitlines() if SERVICE in line]
    assert [(line["path"].rpartition("/")[2], line["status"]) for line in lines] == [
        ("ServerLive", 200), ("ModelInfer", 200), ("ModelInfer", 500), ("ModelInfer", 400),
    ]  # fmt: skip
    assert [line["id"] for line in lines[:2]] == ["first", "second"]
    assert all(len(line["id"]) == 32 for line in lines[2:])


@pytest.mark.parametrize("fast_path", ["1", "0"])
def test_a_call_past_its_deadline_is_no_success_in_the_log(messages: Messages, fast_path: str) -> None:
    """Its client got no answer, however well the model worked."""
    with (
        both("log=1", "delay=0.5", f"fast_path={fast_path}") as (server, port),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, messages, "ModelInfer", raw_request(messages, [[1, 2, 3]]), timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # answered behind the batch of the first, which is ready after the deadline
        call(channel, messages, "ModelInfer", raw_request(messages, [[1, 2, 3]]))
        server.end()
        lines = [json.loads(line) for line in server.output().splitlines() if SERVICE in line]
    assert [line["status"] for line in lines] == [499, 200]


def test_health_and_reflection_answer(total: tuple[Server, int]) -> None:
    """The health check of Kubernetes passes, and reflection lists and describes the service."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{total[1]}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest
        asked = [request(list_services=""), request(file_containing_symbol=SERVICE)]
        listed, described = stub.ServerReflectionInfo(iter(asked), timeout=10)
        assert SERVICE in [service.name for service in listed.list_services_response.service]
        assert described.file_descriptor_response.file_descriptor_proto


@pytest.mark.slow
def test_calls_under_way_are_answered_before_the_end(messages: Messages) -> None:
    """SIGTERM ends a service after its calls, as it does over HTTP."""
    with both("delay=0.5") as (server, port), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert call(channel, messages, "ServerReady").ready
        request = raw_request(messages, [[1, 2, 3]])
        method = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=type(request).SerializeToString,
            response_deserializer=messages.ModelInferResponse.FromString,
        )
        future = method.future(request, timeout=20)
        time.sleep(0.25)
        assert server.end() == 0
        assert future.result().outputs


@pytest.mark.parametrize(
    ("peer", "address"),
    [("ipv4:127.0.0.1:5000", "127.0.0.1"), ("ipv6:%5B::1%5D:5000", "::1"), ("ipv6:[::1]:5000", "::1"), ("unix:", "")],
)
def test_a_client_has_one_address_in_both_protocols(peer: str, address: str) -> None:
    """The bytes of a client count together over HTTP and gRPC."""
    assert client_address(peer) == address
