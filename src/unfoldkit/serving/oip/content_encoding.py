"""How a body is encoded, by its headers: compressed by gzip or deflate, and with how many bytes of JSON in front."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from unfoldkit.serving.oip.errors import InvalidRequest, TooLarge
from unfoldkit.serving.responses import Header

JSON_LENGTH = b"inference-header-content-length"
MAX_LENGTH_DIGITS = 10
MAX_EXPANSION = 100
FREE_EXPANSION_BYTES = 2**18
"""A compressed body may grow to this size, or by ``MAX_EXPANSION``, whichever is more."""
ZLIB_WINDOW_BITS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}


@dataclass(frozen=True, slots=True)
class BodyEncoding:
    """How a body is encoded: zlib's window bits (0: not compressed), and the bytes of its JSON (0: all)."""

    window_bits: int = 0
    json_bytes: int = 0

    def decompress(self, body: bytes, limit: int) -> bytes:
        """Return the decompressed body.

        Raises:
            TooLarge: It has more than ``limit`` bytes, or costs far more processor time than its size suggests.
            InvalidRequest: It is damaged.
        """
        if not self.window_bits:
            return body
        max_bytes, limit = limit, min(limit, max(FREE_EXPANSION_BYTES, MAX_EXPANSION * len(body)))
        decompressor = zlib.decompressobj(self.window_bits)
        try:
            data = decompressor.decompress(body, limit + 1)
        except zlib.error as error:
            raise InvalidRequest("the body is not compressed as its content-encoding says") from error
        if len(data) > limit:
            reason = "" if limit == max_bytes else f", {MAX_EXPANSION} times its compressed size"
            raise TooLarge(f"the decompressed body has more than {limit} bytes{reason}")
        if not decompressor.eof or decompressor.unused_data:
            raise InvalidRequest("the compressed body does not end where it should")
        return data


def read_encoding(headers: Iterable[Header]) -> BodyEncoding:
    """Read from the headers how a body is encoded.

    Raises:
        InvalidRequest: The encoding is not supported.
    """
    window_bits = json_bytes = 0
    for name, value in headers:
        if name == b"content-encoding" and value.lower() != b"identity":
            window_bits = ZLIB_WINDOW_BITS.get(value.lower(), 0)
            if not window_bits:
                raise InvalidRequest("a body may be compressed by gzip or deflate only")
        if name == JSON_LENGTH:
            json_bytes = int(value) if value.isdigit() and len(value) <= MAX_LENGTH_DIGITS else 0
            if not json_bytes:
                raise InvalidRequest("inference-header-content-length must be the bytes of the JSON before the tensors")
    return BodyEncoding(window_bits, json_bytes)
