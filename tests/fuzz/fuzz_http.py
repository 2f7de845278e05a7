"""``python -m tests.fuzz.fuzz_http [--count N] [--seed N]``: do the fast path, llhttp and h11 read the same requests?

Mutated streams of requests are parsed by the fast path, by httptools (llhttp, the parser of uvicorn) and by h11. Three
laws hold for every stream:

* A head that the fast path accepts is read by both parsers with the same method, target, headers, body and end.
* Requests that both parsers accept, up to the first that one of them rejects, are the same with the same ends.
* Requests that offer an upgrade are read by the server, however they are cut, as h11 reads them without the offer.

Streams that broke a law are kept in ``http_corpus/`` and tried first. Exit code 1 if one breaks a law now.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h11
import httptools

from unfoldkit.serving.http.fast_path.head import FastPath, parse_head
from unfoldkit.serving.http.fast_path.uvicorn_internals import ignore_upgrades

CORPUS = Path(__file__).with_name("http_corpus")
PATH = "/v2/models/m/infer"
BODY = b'{"inputs":[]}'
Message = tuple[bytes, bytes, tuple[tuple[bytes, bytes], ...], bytes, int]
"""Method, target, headers by lower-case name, body, and the end in the stream."""

LINES = (
    b"Host: a",
    b"host: b",
    b"Host:",
    b"Host: a:80",
    b"Content-Length: 13",
    b"content-length: 0",
    b"Content-Length: 5",
    b"Content-Length: 013",
    b"Content-Length: +13",
    b"Content-Length: 13, 13",
    b"Content-Length: 0x0d",
    b"Content-Length: 1 3",
    b"Content-Length: -1",
    b"Content-Length:13 ",
    b"Content-Length\t: 13",
    b"Content-Length : 3",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: Chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding:\x0bchunked",
    b"transfer-encoding: chunked, chunked",
    b"Transfer_Encoding: chunked",
    b"Connection: close",
    b"Connection: upgrade",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"Trailer: a",
    b" folded: x",
    b"\tx",
    b"a",
    b": x",
    b"a b: c",
    b"x: \x00",
    b"x: \xff",
    b"x:",
    b"x: a\rb",
    b"x: a\nContent-Length: 1",
    b"Content-Encoding: gzip",
    b"Sec-Fetch-Site: none",
    b"Origin: null",
    b"Authorization: Bearer x",
)
STARTS = (
    b"POST /v2/models/m/infer HTTP/1.1",
    b"POST /v2/models/m/infer HTTP/1.0",
    b"GET /v2 HTTP/1.1",
    b"POST  /v2 HTTP/1.1",
    b"POST /v2/models/m/infer HTTP/1.1 ",
    b"post /v2 HTTP/1.1",
    b"POST http://a/v2/models/m/infer HTTP/1.1",
    b"POST /v2/models/m/infer HTTP/2.0",
    b"POST /v2/models/m/infer",
    b"PRI * HTTP/2.0",
    b"OPTIONS * HTTP/1.1",
    b"CONNECT a:1 HTTP/1.1",
    b"GET /v2?a=%00 HTTP/1.1",
    b"GET /\xff HTTP/1.1",
    b"GET /a b HTTP/1.1",
)
BODIES = (
    BODY,
    b"",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"d\r\n" + BODY + b"\r\n0\r\n\r\n",
    b"0\r\n\r\n",
    b"0\r\na: b\r\n\r\n",
    b"5;x=y\r\nhello\r\n0\r\n\r\n",
    b"05\r\nhello\r\n00\r\n\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"5\r\nhello0\r\n\r\n",
    b"-5\r\nhello\r\n0\r\n\r\n",
    b"fffffffffffffffff\r\nx",
    b"0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
)
OFFER = (b"connection", b"upgrade", b"http2-settings")
"""Headers of which an offer to upgrade consists."""
BYTES = b"\x00\t\n\x0b\r \x7f\x80\xff:;,0195aA/-_+\"'"


@dataclass(slots=True)
class Collector:
    """Collects the messages that httptools reads."""

    messages: list[Any] = field(default_factory=list)
    url: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    is_head: bool = True

    def on_message_begin(self) -> None:
        self.url, self.headers, self.body, self.is_head = b"", [], b"", True

    def on_headers_complete(self) -> None:
        self.is_head = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # trailers are no headers, see ``build_protocol_class``
        if self.is_head:
            self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.messages.append((self.url, tuple(self.headers), self.body))


@dataclass(slots=True)
class Reader(Collector):
    """What the server's parser needs of uvicorn's protocol; it collects method, target, headers and body."""

    logger: Any = field(default_factory=lambda: SimpleNamespace(warning=lambda _text: None))
    is_refused: bool = False
    parser: Any = None

    def on_message_complete(self) -> None:
        self.messages.append((self.parser.get_method(), self.url, tuple(self.headers), self.body))

    def send_400_response(self, _message: str) -> None:
        self.is_refused = True

    def _unset_keepalive_if_required(self) -> None:
        pass


SERVER_READER = ignore_upgrades(Reader)


def read_server(stream: bytes, size: int) -> list[Message]:
    """Return the requests that the server reads from pieces of a size until its first error; their ends are 0."""
    reader = SERVER_READER()
    reader.parser = httptools.HttpRequestParser(reader)
    for position in range(0, len(stream), size):
        if not reader.is_refused:
            reader.data_received(stream[position : position + size])
    return [(*message, 0) for message in reader.messages]


def read_llhttp(stream: bytes) -> list[Message]:
    """Return the complete requests that llhttp reads until its first error.

    Bytes are fed one by one, which is the only way to learn where a request ends.
    """
    collector = Collector()
    parser, messages = httptools.HttpRequestParser(collector), list[Message]()
    for position in range(len(stream)):
        try:
            parser.feed_data(stream[position : position + 1])
        except httptools.HttpParserUpgrade:
            return messages
        except httptools.HttpParserError:
            return messages
        if len(collector.messages) > len(messages):
            url, headers, body = collector.messages[-1]
            messages.append((parser.get_method(), url, headers, body, position + 1))
            if not parser.should_keep_alive():
                return messages
    return messages


def read_h11(stream: bytes) -> list[Message]:
    """Return the complete requests that h11 reads until its first error."""
    connection, messages = h11.Connection(h11.SERVER, max_incomplete_event_size=100_000), list[Message]()
    connection.receive_data(stream)
    head: Any = None
    body = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                head, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                rest = connection.trailing_data[0]
                headers = tuple((bytes(name), bytes(value)) for name, value in head.headers)
                messages.append((bytes(head.method), bytes(head.target), headers, body, len(stream) - len(rest)))
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    return messages
                connection.start_next_cycle()
            else:
                return messages
    except (h11.RemoteProtocolError, h11.LocalProtocolError):
        return messages


def build_fast_path() -> FastPath:
    """Build a fast path for one path, which accepts every token."""
    return FastPath(
        responders={PATH: lambda _body, _done: None},
        max_body_bytes=10_000,
        is_authorized=lambda _header: True,
        is_closing=lambda: False,
        default_headers=lambda: b"",
    )


def find_disagreement(stream: bytes, fast_path: FastPath) -> str:
    """Return which law a stream breaks; empty if none."""
    first, second = read_llhttp(stream), read_h11(stream)
    for mine, theirs in zip(first, second, strict=False):
        if describe(mine) != describe(theirs):
            return f"llhttp reads {mine}, h11 reads {theirs}"
    if b"upgrade" in stream.lower() and (problem := find_lost_offer(stream, second)):
        return problem
    head = parse_head(stream, fast_path)
    if head is None or head.end > len(stream):
        return ""
    offers_upgrade = b"\nupgrade:" in stream[: head.body_start].lower()
    for name, messages in (("llhttp", first), ("h11", second)):
        if offers_upgrade and name == "llhttp":
            # it stops at an offer to change the protocol, which a server may ignore (RFC 9110, section 7.8)
            continue
        if not messages:
            return f"the fast path accepts what {name} rejects"
        method, target, _headers, body, end = messages[0]
        if (method, target, body, end) != (b"POST", PATH.encode(), stream[head.body_start : head.end], head.end):
            return f"the fast path ends at {head.end}, {name} reads {messages[0]}"
    return ""


def find_lost_offer(stream: bytes, theirs: Sequence[Message]) -> str:
    """Return which request the server reads otherwise than h11 although only an offer to upgrade may differ."""
    for size in (len(stream), 7, 1):
        for mine, other in zip(read_server(stream, size), theirs, strict=False):
            if mine[0] == b"CONNECT":
                # the server refuses it, and reads no body
                break
            if _describe_without_offer(mine) != _describe_without_offer(other):
                return f"from pieces of {size} the server reads {mine}, h11 reads {other}"
    return ""


def _describe_without_offer(message: Message) -> tuple[Any, ...]:
    method, target, lines, body, _end = describe(message)
    return method, target, [line for line in lines if line[0] not in OFFER], body


def describe(message: Message) -> tuple[Any, ...]:
    """Return what two parsers must agree on: h11 strips white space of values, and the case of codings."""
    method, target, headers, body, end = message
    values = ((name, value.strip(b" \t")) for name, value in headers)
    lines = sorted((name, value.lower() if name == b"transfer-encoding" else value) for name, value in values)
    return method, target, lines, body, end


def mutate(draw: random.Random, corpus: Sequence[bytes]) -> bytes:
    """Make a stream: requests from parts that parsers are known to read differently, then some bytes changed."""
    if corpus and draw.random() < 0.2:
        stream = bytearray(draw.choice(corpus))
    else:
        stream = bytearray(b"".join(build_request(draw) for _ in range(draw.choice((1, 1, 2, 3)))))
    for _ in range(draw.choice((0, 0, 1, 1, 2, 4))):
        at = draw.randrange(len(stream) + 1)
        match draw.randrange(5):
            case 0:
                stream.insert(at, draw.choice(BYTES))
            case 1:
                del stream[at : at + draw.choice((1, 1, 2, 5))]
            case 2:
                stream[at : at + 1] = bytes([draw.choice(BYTES)])
            case 3:
                line_end = draw.choice((b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r\n ", b"\r\n\r\n"))
                found = stream.find(b"\r\n", at)
                stream[found : found + 2] = line_end if found >= 0 else b""
            case _:
                stream[at:at] = draw.choice((*LINES, *BODIES))
    return bytes(stream)


def build_request(draw: random.Random) -> bytes:
    """Make one request: mostly plain, with some of the lines, starts and bodies above."""
    start = STARTS[0] if draw.random() < 0.7 else draw.choice(STARTS)
    lines = [b"Host: a"] if draw.random() < 0.9 else []
    body = BODY if draw.random() < 0.5 else draw.choice(BODIES)
    if draw.random() < 0.6:
        lines.append(b"Content-Length: %d" % len(body))
    elif draw.random() < 0.5:
        lines.append(b"Transfer-Encoding: chunked")
    lines += [draw.choice(LINES) for _ in range(draw.choice((0, 0, 1, 2)))]
    draw.shuffle(lines)
    return b"\r\n".join((start, *lines, b"", body))


def run(count: int, seed: int, report: Any = sys.stderr) -> Iterator[tuple[bytes, str]]:
    """Yield each stream that breaks a law, and what is broken: the kept corpus first, then ``count`` mutations."""
    corpus = [path.read_bytes() for path in sorted(CORPUS.glob("*.bin"))]
    draw, fast_path, outcomes = random.Random(seed), build_fast_path(), Counter[str]()  # noqa: S311 - not for secrets
    for number in range(len(corpus) + count):
        stream = corpus[number] if number < len(corpus) else mutate(draw, corpus)
        head = parse_head(stream, fast_path)
        outcomes["accepted by the fast path" if head and head.end <= len(stream) else "left to uvicorn"] += 1
        if problem := find_disagreement(stream, fast_path):
            yield stream, problem
    print(f"{count} mutations and {len(corpus)} kept streams: {dict(outcomes)}", file=report)


def main() -> int:
    """Fuzz, keep what breaks a law, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="store streams that break a law in the corpus")
    options = parser.parse_args()
    broken = 0
    for stream, problem in run(options.count, options.seed):
        broken += 1
        if broken <= 20:
            print(f"{stream!r}\n  {problem}")
        if options.keep and broken <= 20:
            (CORPUS / f"seed{options.seed}-{broken}.bin").write_bytes(stream)
    print(f"{broken} streams break a law")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
