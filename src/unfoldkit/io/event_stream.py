"""Server-sent events of a language model, read with bounds of time and size.

The line readers of HTTP libraries buffer a line without bound, and some split at characters that JSON strings may hold.
Source: HTML Living Standard, section 9.2. Most OpenAI-compatible servers write one line of data an event.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field

DONE = b"[DONE]"
"""The data of the last event of a complete stream."""
_LINE_END = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


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
        first_s: Time until the first bytes.
        between_s: Time between two parts of the stream after that.
        max_bytes: Size of the whole stream.
        max_line_bytes: Size of a line, and of the data of an event.
    """

    first_s: float
    between_s: float
    max_bytes: int
    max_line_bytes: int


async def read_event_data(
    parts: AsyncIterator[bytes], bounds: StreamBounds
) -> AsyncGenerator[tuple[float, bytes], None]:
    """Yield the data of each event with the time (``time.perf_counter``) at which the end of its last line arrived.

    Several lines of data are one event, joined by line feeds, up to the empty line. Servers that leave the empty line
    out are understood too: a new line of data then follows a single one that is whole JSON. Comments and other fields
    are left out. A stream may end without an empty line after an event of which the line has ended, and without an end
    of line after ``[DONE]``; any other last line broke off.

    Args:
        parts: The body as it arrives; the caller closes it, and may read what follows ``[DONE]``.
        bounds: Limits of time and size.

    Raises:
        StreamStalledError: The next part takes too long.
        StreamTooLongError: The stream, a line or an event is too long.
    """
    pending, event, size, wait_s = bytearray(), _Event(), 0, bounds.first_s
    ends_with_return = False
    while True:
        try:
            async with asyncio.timeout(wait_s):
                part = await anext(parts)
        except StopAsyncIteration:
            if event.is_whole():
                yield event.take()
            if _read_data(pending) == DONE:
                yield time.perf_counter(), DONE
            return
        except TimeoutError:
            raise StreamStalledError(wait_s) from None
        now_s, wait_s, size = time.perf_counter(), bounds.between_s, size + len(part)
        if size > bounds.max_bytes:
            raise StreamTooLongError(f"more than {bounds.max_bytes} bytes")
        if ends_with_return:
            # CR LF is one end of a line, also where it is cut in two
            part = part.removeprefix(b"\n")
        ends_with_return = part.endswith(b"\r") if part else ends_with_return
        *ends, rest = _LINE_END.split(part)
        for end in ends:
            pending += end
            _check_size(pending, event, bounds)
            for ended in event.end_line(pending, now_s):
                yield ended
            pending.clear()
        pending += rest
        _check_size(pending, event, bounds)


@dataclass(slots=True)
class _Event:
    """An event that has not ended: its lines of data, their size, and the time at which the last one ended."""

    lines: list[bytes] = field(default_factory=list)
    size: int = 0
    ended_s: float = 0.0

    def end_line(self, line: bytearray, ended_s: float) -> Iterator[tuple[float, bytes]]:
        """Add a line; yield the events that end before it or with it."""
        data = _read_data(line)
        # only one line may be whole: to parse a growing event at each of its lines takes quadratic time
        if self.lines and (not line or (data and len(self.lines) == 1 and self.is_whole())):
            yield self.take()
        if data:
            self.lines.append(data)
            self.size += len(data)
            self.ended_s = ended_s
        if self.lines == [DONE]:
            yield self.take()

    def is_whole(self) -> bool:
        """Return whether the lines are the text of a JSON value."""
        try:
            json.loads(b"\n".join(self.lines))
        except (ValueError, RecursionError):
            return False
        return True

    def take(self) -> tuple[float, bytes]:
        """Return the time and the data, and start over."""
        taken = self.ended_s, b"\n".join(self.lines)
        self.lines, self.size = [], 0
        return taken


def _check_size(pending: bytearray, event: _Event, bounds: StreamBounds) -> None:
    if len(pending) + event.size > bounds.max_line_bytes:
        raise StreamTooLongError(f"a line or an event of more than {bounds.max_line_bytes} bytes")


def _read_data(line: bytearray) -> bytes:
    """Return the data of a line; empty for a comment or another field. The first line may begin with an order mark."""
    if line.startswith(_BYTE_ORDER_MARK):
        line = line.removeprefix(_BYTE_ORDER_MARK)
    return bytes(line[5:].strip()) if line.startswith(b"data:") else b""
