"""Header fields of HTTP/2: heads of calls are decoded and checked, those of responses written without any state."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from unfoldkit.serving.grpc.http2.frames import ConnectionFault, ErrorCode

MAX_LIST_BYTES = 16_384
"""Names and values of a call, with 32 bytes for each field; more is rejected."""
MAX_DECODED_BYTES = 4 * MAX_LIST_BYTES
"""Fields that go on beyond it end the connection: those of a call that is only rejected must be decoded too."""
MAX_MESSAGE_LENGTH = 1024
MAX_LENGTH_DIGITS = 10
MAX_CACHED_HEADS = 16
MAX_CACHED_BYTES = 1024
RESOURCE_EXHAUSTED, INTERNAL = 8, 13
"""Status codes of gRPC."""
MAX_TIMEOUT_S = 365 * 86_400.0
UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
"""The units of ``grpc-timeout`` in s."""
CONNECTION_FIELDS = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
PSEUDO_FIELDS = frozenset((b":method", b":scheme", b":path", b":authority"))
REQUIRED_FIELDS = (b":method", b":scheme", b":path")
_HIDDEN = frozenset(("te", "content-type", "content-length", "grpc-timeout", "grpc-encoding", "grpc-accept-encoding"))
"""Fields that are no metadata of a call."""
# a block of nothing else does not change the table of the decoder
_INDEXED_ONLY = re.compile(rb"(?:[\x80-\xfe]|\xff[\x80-\xff]{0,4}[\x00-\x7f])+")
_NAME = re.compile(rb"[!-9;-@\[-~]+")
_BAD_VALUE = re.compile(rb"[\x00\r\n]|\A[ \t]|[ \t]\Z")
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_CONTENT_TYPE = re.compile(r"application/grpc(?:[+;].*)?")
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The head of a call.

    Args:
        path: The path of the method; empty if the head is malformed.
        is_call: It is a POST with the content type of gRPC.
        metadata: The metadata of the client.
        timeout_s: How long the client waits; ``None`` for ever.
        encoding: How compressed messages are encoded.
        content_length: The length of the body if the client states it, else -1.
        problem: Why the call is rejected; empty if it is not.
        problem_code: The status of gRPC that says so.
    """

    path: str = ""
    is_call: bool = False
    metadata: Metadata = ()
    timeout_s: float | None = None
    encoding: str = "identity"
    content_length: int = -1
    problem: str = ""
    problem_code: int = INTERNAL


MALFORMED = Head()


@dataclass(slots=True)
class HeadReader:
    """Decodes the header blocks of one connection, in their order.

    Args:
        decoder: Holds the table that the blocks refer to.
        cached: Heads by their block, as long as the table does not change: a steady client repeats a few blocks.
    """

    decoder: Any = field(default_factory=lambda: Decoder(MAX_DECODED_BYTES))
    cached: dict[bytes, Head] = field(default_factory=dict)

    def read(self, block: bytes) -> Head:
        """Read the head of a call; ``MALFORMED`` if it is not one.

        Raises:
            ConnectionFault: The block cannot be decoded, so that no later one can be.
        """
        if (head := self.cached.get(block)) is not None:
            return head
        fields = self.decode(block)
        size = sum(len(name) + len(value) + 32 for name, value in fields)
        head = _build_head(fields) if size <= MAX_LIST_BYTES else _reject_size(fields)
        if size <= MAX_CACHED_BYTES and len(self.cached) < MAX_CACHED_HEADS and _INDEXED_ONLY.fullmatch(block):
            self.cached[block] = head
        return head

    def decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """Decode a block.

        Raises:
            ConnectionFault: See ``read``.
        """
        if not _INDEXED_ONLY.fullmatch(block):
            self.cached.clear()
        try:
            return list(self.decoder.decode(block, raw=True))
        except OversizedHeaderListError as error:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "the header list is too large") from error
        except (HPACKError, IndexError, ValueError) as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "a header block cannot be decoded") from error


def are_valid_trailers(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether fields may follow the messages of a call."""
    return all(_is_valid(name, value) for name, value in fields)


def _is_valid(name: bytes, value: bytes) -> bool:
    is_known = name not in CONNECTION_FIELDS and (name != b"te" or value == b"trailers")
    return is_known and _NAME.fullmatch(name) is not None and _BAD_VALUE.search(value) is None


def _split(fields: Iterable[tuple[bytes, bytes]]) -> tuple[dict[bytes, bytes], list[tuple[str, bytes]]] | None:
    """Return pseudo fields, and the others; ``None`` if they break the rules of RFC 9113, sections 8.2 and 8.3."""
    pseudo: dict[bytes, bytes] = {}
    others: list[tuple[str, bytes]] = []
    for name, value in fields:
        if name.startswith(b":"):
            if others or name not in PSEUDO_FIELDS or name in pseudo or _BAD_VALUE.search(value):
                return None
            pseudo[name] = value
        elif _is_valid(name, value):
            others.append((name.decode("ascii"), value))
        else:
            return None
    return (pseudo, others) if all(pseudo.get(name) for name in REQUIRED_FIELDS) else None


def _reject_size(fields: Iterable[tuple[bytes, bytes]]) -> Head:
    split = _split(fields)
    if split is None:
        return MALFORMED
    message = f"the metadata have more than {MAX_LIST_BYTES} bytes"
    path = split[0][b":path"].decode("latin-1")
    return Head(path=path, is_call=True, problem=message, problem_code=RESOURCE_EXHAUSTED)


def _build_head(fields: Iterable[tuple[bytes, bytes]]) -> Head:
    split = _split(fields)
    if split is None:
        return MALFORMED
    pseudo, others = split
    known = {name: value.decode("latin-1") for name, value in reversed(others) if name in _HIDDEN}
    length, timeout = known.get("content-length", ""), _TIMEOUT.fullmatch(known.get("grpc-timeout", ""))
    lengths = [value for name, value in others if name == "content-length"]
    if lengths and (len(lengths) > 1 or not length.isdecimal() or len(length) > MAX_LENGTH_DIGITS):
        return MALFORMED
    is_call = pseudo[b":method"] == b"POST" and _CONTENT_TYPE.fullmatch(known.get("content-type", "")) is not None
    problem = "" if timeout or "grpc-timeout" not in known else "grpc-timeout is not a time"
    try:
        metadata = tuple(_read_metadata(others))
    except (binascii.Error, UnicodeDecodeError, ValueError):
        metadata, problem = (), "the metadata hold a value that is neither ASCII nor Base64"
    return Head(
        path=pseudo[b":path"].decode("latin-1"),
        is_call=is_call,
        metadata=metadata,
        timeout_s=min(int(timeout[1]) * UNITS_S[timeout[2]], MAX_TIMEOUT_S) if timeout else None,
        encoding=known.get("grpc-encoding", "identity"),
        content_length=int(length or -1),
        problem=problem,
    )


def _read_metadata(fields: Iterable[tuple[str, bytes]]) -> Iterable[tuple[str, str | bytes]]:
    """Yield the metadata of a call; values of names that end with ``-bin`` are bytes, in Base64 on the wire."""
    for name, value in fields:
        if name in _HIDDEN:
            continue
        if not name.endswith("-bin"):
            yield name, value.decode("ascii")
            continue
        for part in value.split(b","):
            text = part.strip().rstrip(b"=")
            yield name, base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)


def write_fields(fields: Iterable[tuple[str, str | bytes]]) -> bytes:
    """Return fields as literals that change no table, so that any block can be written at any time."""
    return b"".join(map(_write_field, fields))


def _write_field(item: tuple[str, str | bytes]) -> bytes:
    name, value = item
    if name.endswith("-bin"):
        value = base64.b64encode(value.encode() if isinstance(value, str) else value).rstrip(b"=")
    raw = value.encode("latin-1", "replace") if isinstance(value, str) else value
    return b"\x00" + _write_text(name.encode()) + _write_text(raw)


def _write_text(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return b"%c%b" % (size, text)
    parts, size = bytearray(b"\x7f"), size - 127
    while size >= 128:
        parts.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(parts) + b"%c%b" % (size, text)


def write_trailers(code: int, message: str, metadata: Metadata = ()) -> bytes:
    """Return the block that ends a call with a status of gRPC."""
    fields: list[tuple[str, str | bytes]] = [("grpc-status", str(code))]
    if message:
        fields.append(("grpc-message", quote(message[:MAX_MESSAGE_LENGTH], safe=_PRINTABLE, errors="replace")))
    return write_fields([*fields, *metadata])


STATUS_200 = b"\x88"
RESPONSE_HEAD = STATUS_200 + write_fields(
    (("content-type", "application/grpc"), ("grpc-accept-encoding", "identity,deflate,gzip"))
)
"""The head of every response."""
OK_TRAILERS = write_trailers(0, "")
UNSUPPORTED_MEDIA = write_fields(((":status", "415"), ("content-type", "text/plain")))
