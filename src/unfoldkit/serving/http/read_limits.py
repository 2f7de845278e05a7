"""What a client may send ahead of its answers on a connection that is uvicorn's, which itself would keep all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BYTES = 4 * 2**20
HEADERS = 1000
_CYCLE_BYTES = 4096
# of a chunked body, each byte may come in a chunk of its own
_CHUNK_BYTES = 16


@dataclass(slots=True)
class Ahead:
    """How many bytes came since the last whole head that are no body: heads and trailers.

    A body that is ``sized`` has no trailers; what comes of it behind its answer is dropped, and costs nothing.
    """

    cycle: Any = None
    count: int = 0
    sized: bool = False

    def feed(self, inner: Any, data: bytes) -> bool:
        """Hand bytes to uvicorn's protocol; return whether the client went too far."""
        before = _body(inner)
        inner.data_received(data)
        if inner.cycle is not self.cycle:
            self.cycle, self.count, self.sized = inner.cycle, 0, not _chunked(inner.cycle)
        elif not (self.sized and inner.cycle.more_body):
            self.count += max(len(data) - _CHUNK_BYTES * (_body(inner) - before), 0)
        return self.count > BYTES or _waiting(inner) > BYTES or len(inner.headers or ()) > HEADERS


def _chunked(cycle: Any) -> bool:
    return any(name == b"transfer-encoding" for name, _ in cycle.scope["headers"])


def _body(inner: Any) -> int:
    return 0 if inner.cycle is None else len(inner.cycle.body)


def _waiting(inner: Any) -> int:
    return sum(len(cycle.body) + _CYCLE_BYTES for cycle, _ in inner.pipeline)
