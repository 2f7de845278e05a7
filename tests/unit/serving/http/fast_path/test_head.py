"""The fast lane takes plain requests only, and reads them as the HTTP parser does."""

from __future__ import annotations

import hmac
from typing import Any

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfoldkit.serving.http.fast_path.head import FastPath, format_response, parse_head
from unfoldkit.serving.responses import error_reply, json_reply

PATH = "/v2/models/m/infer"
LINE = f"POST {PATH} HTTP/1.1"


def nothing(_body: bytes, _done: Any, json_bytes: int = 0) -> None:
    """Answer nothing."""


def lane(token: str = "") -> FastPath:
    allowed = (lambda given: hmac.compare_digest(given, f"Bearer {token}".encode())) if token else lambda _given: True
    return FastPath(
        responders={PATH: nothing},
        max_body_bytes=1000,
        is_authorized=allowed,
        is_closing=lambda: False,
        default_headers=bytes,
    )


def request(*lines: str, body: str = "{}") -> bytes:
    return "\r\n".join([*lines, "", body]).encode("latin-1")


@pytest.mark.parametrize(
    "lines",
    [
        [LINE, "host: a", "content-length: 2"],
        [LINE, "Content-Length:2", "HOST:\ta", "Accept: */*", "User-Agent: x: y"],
        [LINE, "host: a", "content-length: 2", "Connection: keep-alive", "content-type: application/json"],
        [LINE, "host: a", "content-length: 2", "authorization: whatever"],
        # as clients begin that would rather speak HTTP/2
        [
            LINE,
            "Connection: Upgrade, HTTP2-Settings",
            "Content-Length: 2",
            "Host: a",
            "Upgrade: h2c",
            "HTTP2-Settings: A",
        ],
    ],
)
def test_a_plain_request_is_taken(lines: list[str]) -> None:
    """A POST for a path of the lane with one length and one host is taken, its body found."""
    data = request(*lines)
    found = parse_head(data, lane())
    assert found is not None
    assert data[found.body_start : found.end] == b"{}"


@pytest.mark.parametrize(
    "lines",
    [
        ["GET " + LINE[5:], "host: a", "content-length: 2"],
        [LINE.replace("1.1", "1.0"), "host: a", "content-length: 2"],
        [LINE.replace("infer", "infer?x=1"), "host: a", "content-length: 2"],
        [LINE, "host: a"],
        [LINE, "content-length: 2"],
        [LINE, "host: a", "host: b", "content-length: 2"],
        [LINE, "host: a", "content-length: 2", "content-length: 2"],
        [LINE, "host: a", "content-length: 2", "Content-Length: 3"],
        [LINE, "host: a", "content-length: 2, 2"],
        [LINE, "host: a", "content-length: +2"],
        [LINE, "host: a", "content-length: -2"],
        [LINE, "host: a", "content-length: 0x2"],
        [LINE, "host: a", "content-length : 2"],
        [LINE, "host: a", "content-length:"],
        [LINE, "host: a", "content-length: 1001"],
        [LINE, "host: a", "content-length: 99999999999999999999"],
        [LINE, "host: a", "content-length: 2", "transfer-encoding: chunked"],
        [LINE, "host: a", "content-length: 2", "Transfer-Encoding : chunked"],
        [LINE, "host: a", "content-length: 2", "expect: 100-continue"],
        [LINE, "host: a", "content-length: 2", "connection: close"],
        [LINE, "host: a", "content-length: 2", "connection: keep-alive, close"],
        [LINE, "host: a", "content-length: 2", "connection: upgrade, "],
        [LINE, "host: a", "content-length: 2", "content-encoding: gzip"],
        *(
            [LINE, "host: a", "content-length: 2", *(f"Inference-Header-Content-Length: {value}" for value in values)]
            for values in (["0"], ["3"], ["+1"], ["1, 1"], [""], ["1", "1"], ["9" * 5000])
        ),
        [LINE, "host: a", " folded: x", "content-length: 2"],
        [LINE, "host: a\n content-length: 5", "content-length: 2"],
        [LINE, "host: a\rx: y", "content-length: 2"],
        [LINE, "host: a\x00", "content-length: 2"],
        [LINE, ": nameless", "host: a", "content-length: 2"],
        [" " + LINE, "host: a", "content-length: 2"],
    ],
)
def test_all_else_goes_the_long_way(lines: list[str]) -> None:
    """Whatever is unusual in a head is left to the HTTP server."""
    assert parse_head(request(*lines), lane()) is None


def test_tensors_may_follow_the_json_as_bytes() -> None:
    """The responder learns where the tensors begin; it is that of the head, so heads with other lengths stay apart."""
    lengths = []
    quick = lane()
    quick.responders[PATH] = lambda _body, _done, json_bytes=0: lengths.append(json_bytes)  # type: ignore[index]
    for value in ("1", "2", "02"):
        lines = [LINE, "host: a", "content-length: 2", f"Inference-Header-Content-Length: {value}"]
        for _ in range(2):
            found = parse_head(request(*lines), quick)
            assert found is not None
            found.responder(b"{}", print)
    found = parse_head(request(LINE, "host: a", "content-length: 2"), quick)
    assert found is not None
    found.responder(b"{}", print)
    assert lengths == [1, 1, 2, 2, 2, 2, 0]


def test_the_token_is_asked_for_in_the_lane_too() -> None:
    """With a token only requests that bear it are taken, and no head is remembered that holds one."""
    found = lane("secret")
    head = [LINE, "host: a", "content-length: 2"]
    assert parse_head(request(*head), found) is None
    assert parse_head(request(*head, "authorization: Bearer wrong"), found) is None
    twice = ["authorization: Bearer secret", "authorization: Bearer secret"]
    assert parse_head(request(*head, *twice), found) is None
    assert parse_head(request(*head, "Authorization: Bearer secret"), found) is not None
    assert not found.cached_heads


def test_known_heads_are_bounded() -> None:
    """The memory of heads does not grow with the number of different ones."""
    found = lane()
    for n in range(5000):
        assert parse_head(request(LINE, "host: a", f"x: {n}", "content-length: 2"), found)
    assert len(found.cached_heads) <= 1024


class Parsed:
    """What httptools makes of bytes."""

    def __init__(self) -> None:
        self.body, self.url = b"", b""
        self.ends = 0

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.ends += 1


NAMES = st.sampled_from(["content-length", "Content-Length", "host", "x", "connection", "transfer-encoding", "a b", ""])
VALUES = st.sampled_from(["2", " 2", "2 ", "3", "02", "a", "chunked", "keep-alive", "close", "", "2\x0b", "é", "2\t"])
SEPARATORS = st.sampled_from(["\r\n", "\r\n", "\r\n", "\n", "\r", "\r\n "])


@given(fields=st.lists(st.tuples(NAMES, VALUES, SEPARATORS), min_size=1, max_size=5), gap=st.sampled_from([":", " :"]))
def test_what_the_lane_takes_the_parser_reads_alike(fields: list[tuple[str, str, str]], gap: str) -> None:
    """Where the lane finds a whole request in some bytes, the HTTP parser finds the same one in them."""
    head = "".join(f"{name}{gap}{value}{end}" for name, value, end in fields)
    data = f"{LINE}\r\nhost: a\r\ncontent-length: 2\r\n{head}\r\n{{}}".encode("latin-1")
    tries = [data, data.replace(b"content-length: 2\r\n", b"", 1), data.replace(b"host: a\r\n", b"", 1)]
    for one in tries:
        found = parse_head(one, lane())
        if found is None or found.end != len(one):
            continue
        parsed = Parsed()
        httptools.HttpRequestParser(parsed).feed_data(one)
        assert (parsed.url, parsed.body, parsed.ends) == (PATH.encode(), one[found.body_start :], 1)


@pytest.mark.parametrize("last", [True, False])
def test_a_reply_is_whole(*, last: bool) -> None:
    """A written reply has its length, its headers once, and says when the connection ends."""
    text = format_response(error_reply(429, "later", ((b"retry-after", b"3"),)), b"date: now\r\n", is_last=last)
    head, _, body = text.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 429 Too Many Requests"
    assert b"content-length: %d" % len(body) in lines
    assert {b"retry-after: 3", b"date: now", b"content-type: application/json"} <= set(lines)
    assert (b"connection: close" in lines) is last
    closing = format_response(error_reply(413, "large", ((b"connection", b"close"),)), b"", is_last=True)
    assert closing.count(b"connection: close") == 1
    assert format_response(json_reply({}), b"", is_last=False).startswith(b"HTTP/1.1 200 OK\r\n")
