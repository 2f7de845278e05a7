"""Server-sent events: the same data however the body is cut, and bounds on everything that a server can send."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfoldkit.io.event_stream import StreamBounds, StreamStalledError, StreamTooLongError, read_event_data

BOUNDS = StreamBounds(first_s=5.0, between_s=5.0, max_bytes=10_000, max_line_bytes=1_000)


async def stream(parts: Sequence[bytes], pause_s: float = 0.0) -> AsyncGenerator[bytes, None]:
    """Yield a body part by part."""
    for part in parts:
        await asyncio.sleep(pause_s)
        yield part


def read_all(parts: Sequence[bytes], bounds: StreamBounds = BOUNDS, pause_s: float = 0.0) -> list[bytes]:
    """Return the data of all events."""

    async def collect() -> list[bytes]:
        async with aclosing(read_event_data(stream(parts, pause_s), bounds)) as events:
            return [data async for _, data in events]

    return asyncio.run(collect())


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n"), min_size=1, max_size=12), max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 200), max_size=12),
)
def test_cuts_change_nothing(texts: list[str], end: str, cuts: list[int]) -> None:
    """Events between comments and other fields are the same for every line end and every cut of the body."""
    expected = [text.encode().strip() for text in texts]
    lines = [f": ping{end}event: x{end}data: {text}{end}{end}" for text in texts]
    body = "".join([*lines, f"data: [DONE]{end}"]).encode()
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    parts = [body[start:stop] for start, stop in itertools.pairwise(places)]
    assert read_all(parts) == [*(data for data in expected if data), b"[DONE]"]


def test_what_broke_off_is_no_event() -> None:
    """A last line without an end counts only if it ends the stream."""
    assert read_all([b'data: {"a": 1}\n\ndata: {"b"']) == [b'{"a": 1}']
    assert read_all([b'data: {"a": 1}\n\ndata: {"b"\n']) == [b'{"a": 1}']
    assert read_all([b"data: 1\n\n", b"data: [DO", b"NE]"]) == [b"1", b"[DONE]"]
    assert read_all([b"data: 1\n", b"data: [DO", b"NE]"]) == [b"1", b"[DONE]"]


def test_an_event_of_many_lines_is_not_parsed_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred lines took two hundred readings of all lines before: minutes for an event of a megabyte."""
    calls, loads = [], json.loads
    monkeypatch.setattr("unfoldkit.io.event_stream.json.loads", lambda text: (calls.append(text), loads(text))[1])
    lines = [b"data: [", *(b"data: 1," for _ in range(100)), b"data: 1]", b"", b""]
    (event,) = read_all([b"\n".join(lines)])
    assert sum(loads(event)) == 101
    assert len(calls) < 3


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_several_lines_are_one_event(end: bytes) -> None:
    """Indented JSON arrives as one event, however the body is cut; other fields may stand between its lines."""
    lines = [b"data: {", b": ping", b'data:   "a": {}', b"event: chunk", b"data: }", b"", b"data: [DONE]", b""]
    body = end.join(lines)
    expected = [b'{\n"a": {}\n}', b"[DONE]"]
    assert all(read_all([body[:cut], body[cut:]]) == expected for cut in range(len(body)))


def test_byte_order_mark_is_no_part_of_the_first_field() -> None:
    """A stream may begin with a byte order mark, however the body is cut."""
    body = b'\xef\xbb\xbfdata: {"a": 1}\n\ndata: [DONE]\n'
    assert all(read_all([body[:cut], body[cut:]]) == [b'{"a": 1}', b"[DONE]"] for cut in range(len(body)))
    assert read_all([b"\xef\xbb\xbfdata: [DONE]"]) == [b"[DONE]"]


def test_events_without_empty_lines_are_apart() -> None:
    """Some servers end each event with one line end only."""
    assert read_all([b'data: {"a": 1}\ndata: {"b": 2}\n', b"data: [DONE]\n"]) == [b'{"a": 1}', b'{"b": 2}', b"[DONE]"]


def test_the_end_of_a_stream_is_reported_at_once() -> None:
    """``[DONE]`` needs no empty line: a server may keep the connection open after it."""
    assert read_all([b"data: [DONE]\n"] + [b": ping\n"] * 3)[0] == b"[DONE]"


@pytest.mark.parametrize(
    "parts",
    [
        [b"data: " + b"x" * 1_001],
        [b"x" * 600, b"x" * 600 + b"\n"],
        [b"data: 1\n\n"] * 1_300,
        [b"data: [\n"] * 1_001,
    ],
)
def test_too_much_is_an_error(parts: list[bytes]) -> None:
    """A line, a line of several parts, and the whole stream are bounded."""
    with pytest.raises(StreamTooLongError):
        read_all(parts)


@pytest.mark.parametrize(("first_s", "between_s"), [(0.01, 5.0), (5.0, 0.01)])
def test_a_silent_stream_is_an_error(first_s: float, between_s: float) -> None:
    """The first part and each later one have a time of their own."""
    bounds = StreamBounds(first_s=first_s, between_s=between_s, max_bytes=100, max_line_bytes=100)
    with pytest.raises(StreamStalledError):
        read_all([b"data: 1\n", b"data: 2\n"], bounds, pause_s=0.1)
