"""Server-sent events of a language model, read with bounds of time and size.

The line readers of HTTP libraries buffer a line without bound, and some split at characters that JSON strings may hold.
Source: HTML Living Standard, section 9.2. OpenAI-compatible servers write one line of data an event.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

DONE = b"[DONE]"
"""The data of the last event of a complete stream."""
_LINE_END = re.compile(rb"[\r\n]")


class StreamStalledError(Exception):
    """Nothing arrived for ``wait_s`` seconds."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"nothing for {wait_s:g} s")
        self.wait_s = wait_s


class StreamTooLongError(Exception):
    """The stream, or a line of it, has more bytes than its bounds admit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamBounds:
    """What a reader accepts.

    Attributes:
        first_s: time until the first bytes.
        between_s: time between two parts of the stream after that.
        max_bytes: size of the whole stream.
        max_line_bytes: size of a line.
    """

    first_s: float
    between_s: float
    max_bytes: int
    max_line_bytes: int


async def read_event_data(
    parts: AsyncIterator[bytes], bounds: StreamBounds
) -> AsyncGenerator[tuple[float, bytes], None]:
    """Yield the data of each event with the time (``time.perf_counter``) at which the end of its line arrived.

    Comments and other fields are left out. A last line without an end counts if it is ``[DONE]``; any other broke off.

    Args:
        parts: the body as it arrives; the caller closes it, and may read what follows ``[DONE]``.
        bounds: limits of time and size.

    Raises:
        StreamStalledError: the next part takes too long.
        StreamTooLongError: the stream or a line is too long.
    """
    pending, size, wait_s = bytearray(), 0, bounds.first_s
    while True:
        try:
            async with asyncio.timeout(wait_s):
                part = await anext(parts)
        except StopAsyncIteration:
            if _read_data(pending) == DONE:
                yield time.perf_counter(), DONE
            return
        except TimeoutError:
            raise StreamStalledError(wait_s) from None
        now_s, wait_s, size = time.perf_counter(), bounds.between_s, size + len(part)
        if size > bounds.max_bytes:
            raise StreamTooLongError(f"more than {bounds.max_bytes} bytes")
        # CR LF counts as two ends, with an empty line between them, which holds no data
        *ends, rest = _LINE_END.split(part)
        for end in ends:
            pending += end
            if len(pending) > bounds.max_line_bytes:
                break
            data = _read_data(pending)
            pending.clear()
            if data:
                yield now_s, data
        else:
            pending += rest
        if len(pending) > bounds.max_line_bytes:
            raise StreamTooLongError(f"a line of more than {bounds.max_line_bytes} bytes")


def _read_data(line: bytearray) -> bytes:
    """Return the data of a line; empty for a comment or another field."""
    return bytes(line[5:].strip()) if line.startswith(b"data:") else b""
