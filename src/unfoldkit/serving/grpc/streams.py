"""Streams of inference requests over gRPC: each request has one response, in the order of the requests.

It is the call ``ModelStreamInfer`` of Triton, for its clients and load generators. A request that fails is
answered with a message and its id, and the stream goes on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

MAX_AHEAD = 32
"""Requests of one stream that are answered at a time; the client waits with the next."""
MAX_STREAMS_OF_CLIENT = 64
MAX_OPEN_STREAMS = 256
IDLE_S = 300.0
"""Time without a request after which a stream ends."""
WRITE_S = 30.0
"""Time after which a stream ends if its client does not read a response."""
CHECK_EVERY_S = 0.25
END_STREAM_KEY = "triton_enable_empty_final_response"
"""The parameter by which a client asks which response to a request is the last."""
FINAL_KEY = "triton_final_response"

Respond = Callable[[Any], Coroutine[Any, Any, Any]]
Started = asyncio.Queue[asyncio.Task[Any] | None]


async def answer_stream(context: Any, respond: Respond, is_draining: Callable[[], bool]) -> str:
    """Answer the requests of a stream until its client has sent the last one.

    Args:
        context: The context of the call.
        respond: Returns the response to a request; it never fails.
        is_draining: Whether the server is about to stop.

    Returns:
        Why the stream ends before that, after its last response; empty if it does not.
    """
    started: Started = asyncio.Queue(MAX_AHEAD)
    unread = asyncio.Event()

    def find_reason() -> str:
        if unread.is_set():
            return f"a response was not read within {WRITE_S:g} s"
        return "the server stops; open the stream again" if is_draining() else ""

    async with asyncio.TaskGroup() as group:
        group.create_task(_write_responses(context, started, unread))
        reason = ""
        while not reason:
            request, reason = await _read_request(context, started, find_reason)
            if _is_end(request):
                break
            if not reason:
                await started.put(group.create_task(respond(request)))
        await started.put(None)
    return reason


async def _write_responses(context: Any, started: Started, unread: asyncio.Event) -> None:
    """Write responses in order, until one is not read; the rest is dropped."""
    while (task := await started.get()) is not None:
        response = await task
        if unread.is_set():
            continue
        try:
            await asyncio.wait_for(context.write(response), WRITE_S)
        except TimeoutError:
            unread.set()


def _is_end(request: Any) -> bool:
    import grpc

    return request is grpc.aio.EOF


async def _read_request(context: Any, started: Started, find_reason: Callable[[], str]) -> tuple[Any, str]:
    """Read the next request; if there is a reason to end first, or none comes for long, return the reason beside it."""
    reading, idle_s = asyncio.ensure_future(context.read()), 0.0
    try:
        while not (reason := find_reason()):
            if (await asyncio.wait((reading,), timeout=CHECK_EVERY_S))[0]:
                return reading.result(), ""
            idle_s = 0.0 if started.qsize() else idle_s + CHECK_EVERY_S
            if idle_s >= IDLE_S:
                return None, f"no request for {IDLE_S:g} s; open the stream again"
        return None, reason
    finally:
        reading.cancel()


@contextmanager
def hold_stream(open_streams: Counter[str], client: str) -> Iterator[str]:
    """Count a stream of a client while it is open, and give why it is one too many; empty if it is not."""
    is_too_many = open_streams.total() >= MAX_OPEN_STREAMS or open_streams[client] >= MAX_STREAMS_OF_CLIENT
    if is_too_many:
        yield "streams"
        return
    open_streams[client] += 1
    try:
        yield ""
    finally:
        open_streams[client] -= 1
        if not open_streams[client]:
            del open_streams[client]
