"""Bodies that are not plain JSON: compressed by gzip or deflate, or with tensors as raw bytes after their JSON.

The second form is the binary tensor data extension of the Open Inference Protocol v2. By default, tritonclient sends it
and requests such responses.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from unfoldkit.serving.responses import Header

BINARY_TYPE = b"application/octet-stream"
JSON_LENGTH = b"inference-header-content-length"
MAX_LENGTH_DIGITS = 10
MAX_EXPANSION = 100
FREE_EXPANSION_BYTES = 2**18
"""A compressed body may grow to this size, or by ``MAX_EXPANSION``, whichever is more."""
ZLIB_WINDOW_BITS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
RAW_DTYPES = {
    "BOOL": "?",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}


class InvalidRequest(ValueError):  # noqa: N818 - the client's mistake
    """A body that is not a request for this model; the message is for the client."""


class TooLarge(Exception):  # noqa: N818 - the client's, not ours
    """The body exceeds its limit."""


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


class Tensor(msgspec.Struct):
    """A tensor with its data in the JSON, or after it in ``parameters["binary_data_size"]`` bytes."""

    name: str
    shape: list[int]
    datatype: str
    data: Any = msgspec.UNSET
    parameters: dict[str, Any] | None = None


class RequestHead(msgspec.Struct):
    """The JSON before the tensors."""

    inputs: list[Tensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: Any = None


_decode_head = msgspec.json.Decoder(RequestHead).decode


def read_head(body: bytes | bytearray, json_bytes: int) -> RequestHead:
    """Read the JSON of a request, which its tensors follow.

    Raises:
        InvalidRequest: The body is shorter.
        msgspec.MsgspecError: The JSON is invalid, or not a request.
    """
    if json_bytes > len(body):
        raise InvalidRequest(f"the body has {len(body)} bytes, and its header announces {json_bytes} of JSON")
    return _decode_head(body[:json_bytes])


def inline_tensors(head: RequestHead, body: bytes | bytearray, json_bytes: int) -> dict[str, Any]:
    """Return a request with the bytes after its JSON as the data of its tensors, as if all were JSON.

    Raises:
        InvalidRequest: The bytes do not match the JSON.
    """
    start = json_bytes
    for tensor in head.inputs:
        size = (tensor.parameters or {}).get("binary_data_size")
        if size is None:
            continue
        if type(size) is not int or not 0 <= size <= len(body) - start:
            message = f"input {tensor.name!r}: binary_data_size {size!r}, and {len(body) - start} bytes remain"
            raise InvalidRequest(message)
        if tensor.data is not msgspec.UNSET:
            raise InvalidRequest(f"input {tensor.name!r} has data and binary_data_size; one of both is the tensor")
        tensor.data = decode_values(tensor.name, tensor.datatype, bytes(body[start : start + size]))
        start += size
    if start < len(body):
        raise InvalidRequest(f"{len(body) - start} bytes follow the last tensor")
    request: dict[str, Any] = msgspec.to_builtins(head)
    return request


def encode_tensor(datatype: str, data: bytes) -> bytes | None:
    """Encode the values of a JSON array, nested or not, as the bytes of a tensor, with NaN for null.

    ``None`` if bytes cannot represent them: a null among integers, texts or booleans.
    """
    decoded, dtype = msgspec.json.decode(data), RAW_DTYPES.get(datatype, "O")
    if np.dtype(dtype).kind == "f":
        # null becomes NaN
        return np.array(decoded, dtype=np.float64).astype(dtype).tobytes()
    values = np.array(decoded, dtype=object).ravel()
    if datatype == "BYTES":
        return _encode_texts(values.tolist())
    if any(value is None for value in values):
        return None
    return values.astype(dtype).tobytes()


def decode_values(name: str, datatype: str, raw: bytes) -> Sequence[Any]:
    """Decode the bytes of a tensor to its values, with ``None`` for NaN.

    Raises:
        InvalidRequest: They are not a tensor of this datatype, or hold an infinite number.
    """
    if datatype == "BYTES":
        return _decode_texts(name, raw)
    dtype = RAW_DTYPES.get(datatype)
    if dtype is None or len(raw) % np.dtype(dtype).itemsize:
        raise InvalidRequest(f"input {name!r}: {len(raw)} bytes are not a tensor of {datatype}")
    data = np.frombuffer(raw, dtype)
    values: list[Any] = data.tolist()
    if data.dtype.kind != "f" or np.isfinite(data).all():
        return values
    if np.isinf(data).any():
        raise InvalidRequest(f"input {name!r} holds an infinite number")
    # JSON represents NaN as null
    return [None if math.isnan(value) else value for value in values]


def _decode_texts(name: str, raw: bytes) -> list[str]:
    """Decode texts, each preceded by its length in four bytes."""
    texts, end = [], 0
    while end < len(raw):
        start = end + 4
        end = start + int.from_bytes(raw[end:start], "little")
        if end > len(raw):
            raise InvalidRequest(f"input {name!r}: a text is longer than the bytes that remain")
        try:
            texts.append(raw[start:end].decode())
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"input {name!r} holds a text that is not UTF-8") from error
    return texts


def _encode_texts(texts: Sequence[Any]) -> bytes | None:
    if not all(isinstance(text, str) for text in texts):
        return None
    encoded = [text.encode() for text in texts]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)
