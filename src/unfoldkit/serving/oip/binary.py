"""Tensors as raw bytes after the JSON of a body: the binary tensor data extension of the Open Inference Protocol v2.

By default, tritonclient sends such requests and asks for such responses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from unfoldkit.serving.oip.errors import InvalidRequest

BINARY_TYPE = b"application/octet-stream"
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
    check_datatype(name, datatype)
    dtype = RAW_DTYPES[datatype]
    if len(raw) % np.dtype(dtype).itemsize:
        raise InvalidRequest(f"input {name!r}: {len(raw)} bytes are not a tensor of {datatype}")
    data = np.frombuffer(raw, dtype)
    values: list[Any] = data.tolist()
    if data.dtype.kind != "f" or np.isfinite(data).all():
        return values
    if np.isinf(data).any():
        raise InvalidRequest(f"input {name!r} holds an infinite number")
    # JSON represents NaN as null
    return [None if math.isnan(value) else value for value in values]


def check_datatype(name: str, datatype: str) -> None:
    """Check that there is such a datatype.

    Raises:
        InvalidRequest: There is none, as its name is written otherwise.
    """
    if datatype != "BYTES" and datatype not in RAW_DTYPES:
        known = ", ".join((*RAW_DTYPES, "BYTES"))
        raise InvalidRequest(f"input {name!r} has datatype {datatype!r}; it must be one of {known}")


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
