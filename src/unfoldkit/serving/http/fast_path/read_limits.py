"""Limit what a client may send ahead of its responses on a connection of uvicorn, which keeps everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAX_BYTES = 4 * 2**20
MAX_HEADERS = 1000
_CYCLE_BYTES = 4096
# each byte of a chunked body may come in a chunk of its own
_CHUNK_BYTES = 16


@dataclass(slots=True)
class ReadAheadLimit:
    """Counts the bytes since the last complete head that are not part of a body: heads and trailers.

    A body with a Content-Length has no trailers; what remains of it after the response is dropped and costs nothing.

    Args:
        cycle: The request that uvicorn is reading or answering.
        count: The bytes counted so far.
        has_length: Whether the body of the request has a Content-Length.
    """

    cycle: Any = None
    count: int = 0
    has_length: bool = False

    def feed(self, inner: Any, data: bytes) -> bool:
        """Pass bytes to uvicorn's protocol, and return whether the client exceeds the limits."""
        before = _body_size(inner)
        inner.data_received(data)
        if inner.cycle is not self.cycle:
            self.cycle, self.count, self.has_length = inner.cycle, 0, not _is_chunked(inner.cycle)
        elif not (self.has_length and inner.cycle.more_body):
            self.count += max(len(data) - _CHUNK_BYTES * (_body_size(inner) - before), 0)
        exceeds_bytes = self.count > MAX_BYTES or _pipelined_bytes(inner) > MAX_BYTES
        return exceeds_bytes or len(inner.headers or ()) > MAX_HEADERS


def _is_chunked(cycle: Any) -> bool:
    return any(name == b"transfer-encoding" for name, _ in cycle.scope["headers"])


def _body_size(inner: Any) -> int:
    return 0 if inner.cycle is None else len(inner.cycle.body)


def _pipelined_bytes(inner: Any) -> int:
    return sum(len(cycle.body) + _CYCLE_BYTES for cycle, _ in inner.pipeline)
