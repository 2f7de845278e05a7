"""Frames of HTTP/2 (RFC 9113): their numbers, and bytes."""

from __future__ import annotations

import struct
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES = 9
MAX_FRAME_BYTES = 16_384
FIRST_WINDOW = 65_535
MAX_WINDOW = 2**31 - 1
ID_MASK = 2**31 - 1

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
"""The types of frames."""
ACK, END_STREAM, END_HEADERS, PADDED, HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
"""Flags."""
ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, FRAME_SIZE, MAX_HEADER_LIST_SIZE = 2, 3, 4, 5, 6
"""Settings; the table of header fields is left at its size."""

read_head = struct.Struct(">HBBBI").unpack_from
"""Reads the length of a frame (its upper 16 and lower 8 bits), type, flags, and stream."""
read_setting = struct.Struct(">HI").iter_unpack
_pack_head = struct.Struct(">HBBBI").pack


class ErrorCode(IntEnum):
    """Why a stream or a connection ends; RFC 9113, section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class ConnectionFault(Exception):  # noqa: N818 - the client's
    """The connection ends with an error."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class StreamFault(Exception):  # noqa: N818 - the client's
    """One stream ends with an error."""

    def __init__(self, stream_id: int, code: ErrorCode) -> None:
        super().__init__(code.name)
        self.stream_id, self.code = stream_id, code


def pack_head(size: int, kind: int, flags: int, stream_id: int) -> bytes:
    """Return the head of a frame with a payload of ``size`` bytes."""
    return _pack_head(size >> 8, size & 0xFF, kind, flags, stream_id)


def pack_frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """Encode a frame: nine bytes of head with the payload's length, kind, flags and stream, then the payload."""
    return pack_head(len(payload), kind, flags, stream_id) + payload


def pack_settings(settings: dict[int, int]) -> bytes:
    """Return a frame of settings."""
    return pack_frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *item) for item in settings.items()))


def pack_reset(stream_id: int, code: ErrorCode) -> bytes:
    """Return the frame that ends a stream."""
    return pack_frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def pack_window_update(stream_id: int, size: int) -> bytes:
    """Return the frame that grants so many more bytes on a stream, or on the connection (0)."""
    return pack_frame(WINDOW_UPDATE, 0, stream_id, size.to_bytes(4, "big"))


def pack_goaway(last_id: int, code: ErrorCode, reason: str = "") -> bytes:
    """Return the frame that ends a connection: streams after ``last_id`` are not answered."""
    return pack_frame(GOAWAY, 0, 0, struct.pack(">II", last_id, code) + reason.encode())


def strip_padding(flags: int, payload: bytes) -> bytes:
    """Return what DATA or HEADERS hold without padding.

    Raises:
        ConnectionFault: The padding is longer than the frame.
    """
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]
