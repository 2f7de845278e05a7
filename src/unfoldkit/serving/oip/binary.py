"""Bodies that are not plain JSON: packed by gzip or deflate, or with tensors as raw bytes behind their JSON.

The second is the binary tensor data extension of the Open Inference Protocol v2: tritonclient sends it, and asks for
answers of that form, unless it is told not to.
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

BINARY = b"application/octet-stream"
JSON_BYTES = b"inference-header-content-length"
# how zlib is told of them
PACKED = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
RAW = {
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


class Unfit(ValueError):  # noqa: N818 - the client's mistake
    """A body that is not a request for this model; the message is for the client."""


class TooLarge(Exception):  # noqa: N818 - the client's, not ours
    """The body is larger than is allowed."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a body comes: ``packed`` as zlib is told of it (0: plain), and how many of its bytes are JSON (0: all)."""

    packed: int = 0
    json_bytes: int = 0

    def opened(self, body: bytes, limit: int) -> bytes:
        """Return the body unpacked.

        Raises:
            TooLarge: it is larger than ``limit`` bytes.
            Unfit: it is damaged.
        """
        if not self.packed:
            return body
        unpacker = zlib.decompressobj(self.packed)
        try:
            found = unpacker.decompress(body, limit + 1)
        except zlib.error as error:
            raise Unfit("the body is not compressed as its content-encoding says") from error
        if len(found) > limit:
            raise TooLarge(f"the body has more than {limit} bytes when it is unpacked")
        if not unpacker.eof or unpacker.unused_data:
            raise Unfit("the compressed body does not end where it should")
        return found


def form(headers: Iterable[Header]) -> Form:
    """Return how a body with these headers comes.

    Raises:
        Unfit: in a way that is not taken.
    """
    packed = size = 0
    for name, value in headers:
        if name == b"content-encoding" and value.lower() != b"identity":
            packed = PACKED.get(value.lower(), 0)
            if not packed:
                raise Unfit("a body may be compressed by gzip or deflate alone")
        if name == JSON_BYTES:
            size = int(value) if value.isdigit() and len(value) < 11 else 0
            if not size:
                raise Unfit("inference-header-content-length must tell the bytes of the JSON before the tensors")
    return Form(packed, size)


class Tensor(msgspec.Struct):
    """A tensor whose data stands in the JSON, or behind it in ``parameters["binary_data_size"]`` bytes."""

    name: str
    shape: list[int]
    datatype: str
    data: Any = msgspec.UNSET
    parameters: dict[str, Any] | None = None


class Head(msgspec.Struct):
    """The JSON before the tensors."""

    inputs: list[Tensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: Any = None


def joined(body: bytes | bytearray, json_bytes: int) -> dict[str, Any]:
    """Return the request with the bytes behind its JSON as the data of its tensors, as if all had been JSON.

    Raises:
        Unfit: the bytes are not those that the JSON tells of.
        msgspec.MsgspecError: the JSON is none, or no request.
    """
    if json_bytes > len(body):
        raise Unfit(f"the body has {len(body)} bytes, and {json_bytes} of JSON were told")
    head = msgspec.json.decode(body[:json_bytes], type=Head)
    at = json_bytes
    for tensor in head.inputs:
        size = (tensor.parameters or {}).get("binary_data_size")
        if size is None:
            continue
        if type(size) is not int or not 0 <= size <= len(body) - at:
            raise Unfit(f"input {tensor.name!r}: binary_data_size {size!r}, and {len(body) - at} bytes are left")
        tensor.data = _values(tensor, bytes(body[at : at + size]))
        at += size
    if at < len(body):
        raise Unfit(f"{len(body) - at} bytes follow the last tensor")
    found: dict[str, Any] = msgspec.to_builtins(head)
    return found


def _values(tensor: Tensor, raw: bytes) -> Sequence[Any]:
    if tensor.datatype == "BYTES":
        return _texts(tensor, raw)
    kind = RAW.get(tensor.datatype)
    if kind is None or len(raw) % np.dtype(kind).itemsize:
        raise Unfit(f"input {tensor.name!r}: {len(raw)} bytes are no tensor of {tensor.datatype}")
    data = np.frombuffer(raw, kind)
    values: list[Any] = data.tolist()
    if data.dtype.kind != "f" or np.isfinite(data).all():
        return values
    if np.isinf(data).any():
        raise Unfit(f"input {tensor.name!r} holds a number that is infinite")
    # JSON has no NaN: there it is null
    return [None if math.isnan(value) else value for value in values]


def _texts(tensor: Tensor, raw: bytes) -> list[str]:
    """Return texts, each with its length before it in four bytes."""
    found, at = [], 0
    while at < len(raw):
        begin = at + 4
        at = begin + int.from_bytes(raw[at:begin], "little")
        if at > len(raw):
            raise Unfit(f"input {tensor.name!r}: a text is longer than the bytes that are left")
        try:
            found.append(raw[begin:at].decode())
        except UnicodeDecodeError as error:
            raise Unfit(f"input {tensor.name!r} holds a text that is not UTF-8") from error
    return found


def to_bytes(datatype: str, data: bytes) -> bytes | None:
    """Return the values of a JSON array, nested or not, as the bytes of a tensor; NaN for null.

    ``None`` where bytes cannot say it: a null that is to be a whole number, a text or a truth.
    """
    values = np.array(msgspec.json.decode(data), dtype=object).ravel()
    if datatype == "BYTES":
        return _told(values.tolist())
    kind = np.dtype(RAW[datatype])
    if kind.kind != "f" and any(value is None for value in values):
        return None
    return values.astype(kind).tobytes()


def _told(texts: Sequence[Any]) -> bytes | None:
    if not all(isinstance(text, str) for text in texts):
        return None
    coded = [text.encode() for text in texts]
    return b"".join(len(text).to_bytes(4, "little") + text for text in coded)
