"""Parse request heads, and format responses, for the fast path."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

import httptools

from unfoldkit.serving.http.access_control import is_valid_host
from unfoldkit.serving.http.fast_path.overload import BulkRejection
from unfoldkit.serving.observability.access_log import ID, PARENT, Observer, sanitize_id
from unfoldkit.serving.responses import Header, Reply, too_many_requests
from unfoldkit.serving.service import AdmissionCheck, Responder

MAX_HEAD_BYTES = 16_384
MAX_CACHED_HEADS = 1024
MAX_LENGTH_DIGITS = 10
# httptools accepts these, and other parsers in front of it may read them differently
_NOT_CANONICAL = re.compile(rb"\r(?!\n)|(?<!\r)\n|\r\n[ \t]|[\x00\x7f]")
_CANONICAL_START = re.compile(rb"POST [!-~]+ HTTP/1\.1\r\n")
_UNSUPPORTED = frozenset(
    (
        *(b"transfer-encoding", b"expect", b"trailer", b"content-encoding"),
        *(b"sec-fetch-site", b"origin"),
    )
)
# a client may offer an upgrade with its first request, which a server may ignore
_CONNECTION_OPTIONS = frozenset((b"keep-alive", b"upgrade", b"http2-settings"))
_JSON_LENGTH = b"inference-header-content-length"
_UNIQUE = (b"host", b"content-length")
# a head with one of these occurs once, or must not be kept in memory
_NOT_CACHED = frozenset((b"authorization", ID, PARENT))
_STATUS_LINES = {code.value: b"HTTP/1.1 %d %b\r\n" % (code.value, code.phrase.encode()) for code in HTTPStatus}


def admit_all() -> AdmissionCheck:
    """Return an admission check that rejects no request."""
    return AdmissionCheck(lambda: 0, lambda _count: None)


@dataclass(frozen=True, slots=True)
class Head:
    """A request of the fast path: its responder, the span of its body in bytes, path, id and trace parent."""

    responder: Responder
    body_start: int
    end: int
    path: str = ""
    id: str = ""
    parent: str = ""
    admission: AdmissionCheck = field(default_factory=admit_all)


@dataclass(frozen=True, slots=True, kw_only=True)
class FastPath:
    """What the fast path answers.

    Args:
        responders: By path, the function that takes a body.
        max_body_bytes: Larger bodies go to uvicorn.
        is_authorized: Checks an Authorization header (empty if there is none).
        is_closing: Whether connections end with their next response.
        default_headers: Lines that every response has.
        observer: Receives a note of every request.
        admission_checks: By path, what rejects a request before its body is read.
        is_allowed_host: Checks a Host header.
    """

    responders: Mapping[str, Responder]
    max_body_bytes: int
    is_authorized: Callable[[bytes], bool]
    is_closing: Callable[[], bool]
    default_headers: Callable[[], bytes]
    observer: Observer | None = None
    admission_checks: Mapping[str, AdmissionCheck] = field(default_factory=dict)
    is_allowed_host: Callable[[bytes], bool] = bool
    cached_heads: dict[bytes, Head] = field(default_factory=dict)
    cached_rejections: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)

    def rejection_for(self, head: bytes) -> BulkRejection:
        """Return how requests with this head are rejected during one pass of the rejecter; size -1 if they are not."""
        cached = self.cached_heads.get(head)
        if cached is None or self.is_closing() or not (retry_s := cached.admission.full()):
            return BulkRejection(-1)
        return BulkRejection(cached.end, self.format_rejection(retry_s), cached.admission.refuse)

    def format_rejection(self, retry_s: int) -> bytes:
        """Return the complete response to a rejected request, formatted once per second."""
        headers = self.default_headers()
        cached = self.cached_rejections.get(retry_s)
        if cached is None or cached[0] is not headers:
            response = format_response(too_many_requests(retry_s), headers, is_last=False)
            cached = self.cached_rejections[retry_s] = (headers, response)
        return cached[1]


def parse_head(data: bytes, fast_path: FastPath) -> Head | None:
    """Parse the head that ``data`` begins with; ``None`` if it is not a plain request of the fast path."""
    if not fast_path.responders:
        return None
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES) + 4
    raw = data[: max(end, 4)]
    cached = fast_path.cached_heads.get(raw)
    if cached is not None or end < 4:
        return cached
    request = _parse(raw)
    head = None if request is None else _accept(request, raw, fast_path)
    if request is not None and head is not None and _NOT_CACHED.isdisjoint(request.headers):
        # clients send the same few heads again and again
        if len(fast_path.cached_heads) >= MAX_CACHED_HEADS:
            fast_path.cached_heads.clear()
        fast_path.cached_heads[raw] = head
    return head


def format_headers(headers: Iterable[Header]) -> bytes:
    """Return headers as lines of a response."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def format_response(reply: Reply, headers: bytes, *, is_last: bool, request_id: str = "") -> bytes:
    """Return a complete response.

    Args:
        reply: Status, body and further headers.
        headers: Lines that every response has.
        is_last: Announce that the connection ends with this response.
        request_id: The id to repeat; empty for none.
    """
    more = format_headers(reply.headers) if reply.headers else b""
    if request_id:
        more += b"%b: %b\r\n" % (ID, request_id.encode())
    if is_last and (b"connection", b"close") not in reply.headers:
        more += b"connection: close\r\n"
    return b"%b%b%bcontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (
        _STATUS_LINES[reply.status],
        headers,
        more,
        reply.content_type,
        len(reply.body),
        reply.body,
    )


@dataclass(slots=True)
class _Request:
    """Receives what the parser of uvicorn reads in a head; ``headers`` are by lower-case name."""

    url: bytes = b""
    headers: dict[bytes, list[bytes]] = field(default_factory=dict)
    is_plain_post: bool = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.setdefault(name.lower(), []).append(value)


def _parse(raw: bytes) -> _Request | None:
    if _CANONICAL_START.match(raw) is None or _NOT_CANONICAL.search(raw):
        return None
    request = _Request()
    parser = httptools.HttpRequestParser(request)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        # an offer to upgrade, which is ignored; the head is complete
        pass
    except httptools.HttpParserError:
        return None
    request.is_plain_post = parser.get_method() == b"POST" and parser.get_http_version() == "1.1"
    return request


def _accept(request: _Request, raw: bytes, fast_path: FastPath) -> Head | None:
    path = request.url.decode("latin-1")
    responder = fast_path.responders.get(path)
    headers = request.headers
    if responder is None or not request.is_plain_post or not _UNSUPPORTED.isdisjoint(headers):
        return None
    if any(len(headers.get(name, ())) != 1 for name in _UNIQUE):
        return None
    size, host = headers[b"content-length"][0], headers[b"host"][0]
    if not size.isdigit() or len(size) > MAX_LENGTH_DIGITS or int(size) > fast_path.max_body_bytes:
        return None
    json_bytes = _read_json_length(headers.get(_JSON_LENGTH, ()), int(size))
    options = [option.strip() for value in headers.get(b"connection", ()) for option in value.lower().split(b",")]
    is_allowed = is_valid_host(host) and fast_path.is_allowed_host(host)
    if json_bytes is None or not is_allowed or not _CONNECTION_OPTIONS.issuperset(options):
        return None
    tokens = headers.get(b"authorization", [])
    if len(tokens) > 1 or not fast_path.is_authorized(tokens[0] if tokens else b""):
        return None
    request_id, parent = (sanitize_id(headers[name][0]) if name in headers else "" for name in (ID, PARENT))
    if json_bytes:
        responder = functools.partial(responder, json_bytes=json_bytes)
    admission = fast_path.admission_checks.get(path) or admit_all()
    return Head(responder, len(raw), len(raw) + int(size), path, request_id, parent, admission)


def _read_json_length(values: Sequence[bytes], size: int) -> int | None:
    """Return the bytes of JSON before the tensors of a body; 0 if all is JSON, ``None`` if the header is no length."""
    if not values:
        return 0
    is_length = len(values) == 1 and values[0].isdigit() and len(values[0]) <= MAX_LENGTH_DIGITS
    return int(values[0]) if is_length and 0 < int(values[0]) <= size else None
