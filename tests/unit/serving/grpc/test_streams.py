"""Streams of inference requests over gRPC, by bare calls and by the client library of Triton."""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from tests.unit.serving.client import Server
from tests.unit.serving.grpc.test_server import both, call, raw_request
from unfoldkit.serving.grpc import streams
from unfoldkit.serving.grpc.messages import SERVICE, STREAM_METHOD, Messages, build_messages
from unfoldkit.serving.grpc.streams import (
    END_STREAM_KEY,
    FINAL_KEY,
    MAX_OPEN_STREAMS,
    MAX_STREAMS_OF_CLIENT,
    hold_stream,
)

pytestmark = pytest.mark.timed


@pytest.fixture(scope="module")
def messages() -> Messages:
    return build_messages()


@pytest.fixture(scope="module", params=["fast_path=1", "fast_path=0"])
def total(request: pytest.FixtureRequest) -> Iterator[tuple[Server, int]]:
    with both(request.param) as pair:
        yield pair


def open_stream(channel: grpc.Channel, messages: Messages, requests: Iterator[Any], **more: Any) -> Any:
    method = channel.stream_stream(
        f"/{SERVICE}/{STREAM_METHOD}",
        request_serializer=lambda request: request if isinstance(request, bytes) else request.SerializeToString(),
        response_deserializer=messages.ModelStreamInferResponse.FromString,
    )
    return method(requests, wait_for_ready=True, **{"timeout": 20, **more})


def sent_by(requests: queue.Queue[Any]) -> Iterator[Any]:
    """Yield requests as they are put into a queue, until one is ``None``."""
    while (request := requests.get()) is not None:
        yield request


def totals(responses: Any) -> list[tuple[str, Any]]:
    return [
        (response.infer_response.id, response.error_message or float(np.frombuffer(raw)[0]))
        for response in responses
        for raw in (response.infer_response.raw_output_contents or [b""])[:1]
    ]


def test_responses_come_in_the_order_of_the_requests(total: tuple[Server, int], messages: Messages) -> None:
    """300 requests, more than are answered at a time, have their own response each, in order."""
    requests = [raw_request(messages, [[value, 0, 0]], id=str(value)) for value in range(300)]
    with grpc.insecure_channel(f"127.0.0.1:{total[1]}") as channel:
        answered = totals(open_stream(channel, messages, iter(requests)))
    assert answered == [(str(value), float(value)) for value in range(300)]


def test_a_failed_request_leaves_the_stream_open(total: tuple[Server, int], messages: Messages) -> None:
    """A wrong model, invalid bytes and a failure of the model are messages; the others are answered."""
    wrong = raw_request(messages, [[1, 2, 3]], id="wrong")
    wrong.model_name = "other"
    requests = [
        raw_request(messages, [[1, 2, 3]], id="a"),
        wrong,
        b"\xff\xff\xff",
        raw_request(messages, [[666.0, 0, 0]], id="failed"),
        raw_request(messages, [[4, 5, 6]], id="b"),
    ]
    with grpc.insecure_channel(f"127.0.0.1:{total[1]}") as channel:
        answered = totals(open_stream(channel, messages, iter(requests)))
    assert [name for name, _ in answered] == ["a", "wrong", "", "failed", "b"]
    assert [answered[0][1], answered[4][1]] == [6.0, 15.0]
    assert "no such model" in answered[1][1]
    assert "not a ModelInferRequest" in answered[2][1]
    assert answered[3][1] == "the model failed: ZeroDivisionError"


def test_a_response_comes_before_the_next_request(total: tuple[Server, int], messages: Messages) -> None:
    """A client may wait for each response; where it asks, the only response is marked as the final one."""
    requests: queue.Queue[Any] = queue.Queue()
    first = raw_request(messages, [[1, 2, 3]])
    first.parameters[END_STREAM_KEY].bool_param = True
    with grpc.insecure_channel(f"127.0.0.1:{total[1]}") as channel:
        responses = open_stream(channel, messages, sent_by(requests))
        requests.put(first)
        answer = next(responses).infer_response
        assert dict(answer.parameters)[FINAL_KEY].bool_param
        assert "ignored" not in answer.parameters
        requests.put(raw_request(messages, [[4, 5, 6]]))
        assert not next(responses).infer_response.parameters
        requests.put(None)
        assert list(responses) == []


def test_a_stream_needs_the_token(messages: Messages) -> None:
    """Without the token a stream is closed before its first response."""
    with both("token=sesame") as (_, port), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert call(channel, messages, "ServerReady").ready
        with pytest.raises(grpc.RpcError) as caught:
            list(open_stream(channel, messages, iter([raw_request(messages, [[1, 2, 3]])])))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        bearer = (("authorization", "Bearer sesame"),)
        stream = open_stream(channel, messages, iter([raw_request(messages, [[1, 2, 3]])]), metadata=bearer)
        assert totals(stream) == [("", 6.0)]


def test_streams_that_are_left_open_leave_room_for_others(total: tuple[Server, int], messages: Messages) -> None:
    """A client holds a bounded number of streams; one more is refused, calls are answered, and a hang-up frees them."""
    idle: queue.Queue[Any] = queue.Queue()
    with grpc.insecure_channel(f"127.0.0.1:{total[1]}") as channel:
        ask = raw_request(messages, [[1, 2, 3]])
        held = [open_stream(channel, messages, chain_first(ask, sent_by(idle))) for _ in range(MAX_STREAMS_OF_CLIENT)]
        for stream in held:
            next(stream)
        with pytest.raises(grpc.RpcError) as caught:
            list(open_stream(channel, messages, iter([ask])))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert call(channel, messages, "ModelInfer", ask).outputs
        for stream in held:
            stream.cancel()
        for _ in held:
            idle.put(None)
    with grpc.insecure_channel(f"127.0.0.1:{total[1]}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        wait_for(lambda: totals_or_none(channel, messages, ask) == [("", 6.0)])


def test_reflection_leaves_room_for_others(total: tuple[Server, int], messages: Messages) -> None:
    """Streams of reflection count among those of a client."""
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    idle: queue.Queue[Any] = queue.Queue()
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(f"127.0.0.1:{total[1]}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        held = [reflect(chain_first(ask, sent_by(idle)), wait_for_ready=True) for _ in range(MAX_STREAMS_OF_CLIENT)]
        for stream in held:
            next(stream)
        with pytest.raises(grpc.RpcError) as caught:
            next(reflect(iter([ask])))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for stream in held:
            stream.cancel()
            idle.put(None)
    with grpc.insecure_channel(f"127.0.0.1:{total[1]}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        ask_again = raw_request(messages, [[1, 2, 3]])
        wait_for(lambda: totals_or_none(channel, messages, ask_again) == [("", 6.0)])


def chain_first(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def totals_or_none(channel: grpc.Channel, messages: Messages, request: Any) -> list[tuple[str, Any]] | None:
    try:
        return totals(open_stream(channel, messages, iter([request])))
    except grpc.RpcError:
        return None


def wait_for(is_true: Callable[[], bool]) -> None:
    for _ in range(100):
        if is_true():
            return
        time.sleep(0.1)
    raise TimeoutError("it never became true")


def test_streams_are_bounded_over_all_clients() -> None:
    """The bound holds over clients as well; a closed stream makes room."""
    streams: Counter[str] = Counter()
    held = [hold_stream(streams, f"client {number}") for number in range(MAX_OPEN_STREAMS)]
    assert [each.__enter__() for each in held] == [""] * MAX_OPEN_STREAMS
    with hold_stream(streams, "another") as exceeded:
        assert exceeded == "streams"
    held[0].__exit__(None, None, None)
    with hold_stream(streams, "another") as exceeded:
        assert exceeded == ""


class Caller:
    """A context of a call with an endless stream of requests and a client that reads no response."""

    written = 0

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        return b"request"

    async def write(self, _response: Any) -> None:
        self.written += 1
        await asyncio.Event().wait()


def test_a_client_that_reads_no_response_loses_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream ends after a bounded time, and holds a bounded number of responses until then."""
    monkeypatch.setattr(streams, "WRITE_S", 0.3)
    asked: list[bytes] = []

    async def respond(request: bytes) -> bytes:
        asked.append(request)
        return request

    caller = Caller()
    reason = asyncio.run(asyncio.wait_for(streams.answer_stream(caller, respond, bool), 10))
    assert "not read" in reason
    assert caller.written == 1


def test_a_silent_stream_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream without requests ends after its idle time."""

    class Silent(Caller):
        async def read(self) -> bytes:
            await asyncio.Event().wait()
            raise AssertionError("the event is never set")

    async def respond(request: bytes) -> bytes:
        return request

    monkeypatch.setattr(streams, "IDLE_S", 0.5)
    reason = asyncio.run(asyncio.wait_for(streams.answer_stream(Silent(), respond, bool), 10))
    assert "no request for 0.5 s" in reason


@pytest.mark.slow
def test_an_open_stream_does_not_delay_the_end(messages: Messages) -> None:
    """SIGTERM answers the requests of a stream that were sent, and closes it with a status to retry on."""
    requests: queue.Queue[Any] = queue.Queue()
    with both("delay=0.5") as (server, port), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        responses = open_stream(channel, messages, sent_by(requests))
        requests.put(raw_request(messages, [[1, 2, 3]]))
        time.sleep(0.25)
        start_s = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - start_s < 5
        assert next(responses).infer_response.outputs
        with pytest.raises(grpc.RpcError) as caught:
            next(responses)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        requests.put(None)


@pytest.mark.slow
def test_a_busy_stream_does_not_delay_the_end(messages: Messages) -> None:
    """SIGTERM closes a stream on which requests never cease; it ends with a status to retry on."""
    ask = raw_request(messages, [[1, 2, 3]])
    with both() as (server, port), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        responses = open_stream(channel, messages, itertools.repeat(ask))
        for _ in range(10):
            next(responses)
        ended = threading.Thread(target=server.end)
        ended.start()
        with pytest.raises(grpc.RpcError) as caught:
            totals(responses)
        ended.join(10)
        assert not ended.is_alive()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.targets
def test_the_streaming_client_of_triton_works(total: tuple[Server, int]) -> None:
    """The client of Triton opens a stream, receives results and errors by callback, and closes it."""
    library = pytest.importorskip("tritonclient.grpc")
    triton = library.InferenceServerClient(f"127.0.0.1:{total[1]}")
    received: queue.Queue[Any] = queue.Queue()
    triton.start_stream(callback=lambda result, error: received.put((result, error)))
    tensor = library.InferInput("x", [1, 3], "FP64")
    for value in range(5):
        tensor.set_data_from_numpy(np.array([[float(value), 0, 0]]))
        triton.async_stream_infer("total", [tensor], request_id=str(value), enable_empty_final_response=True)
    triton.async_stream_infer("other", [tensor])
    results = [received.get(timeout=10) for _ in range(6)]
    triton.stop_stream()
    assert [result.as_numpy("total").tolist() for result, _ in results[:5]] == [[value] for value in range(5)]
    assert [result.get_response().id for result, _ in results[:5]] == list("01234")
    assert "no such model" in str(results[5][1])
    triton.close()
