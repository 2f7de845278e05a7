"""The forms of one row over HTTP: JSON as each server wants it, raw bytes after JSON, and compressed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.servers import JSON_TYPE

Row = list[float]
LENGTH = "Inference-Header-Content-Length"
TYPES = {"FP32": "<f4", "FP64": "<f8"}

BODY: Mapping[str, Callable[[Row], dict[str, Any]]] = {
    "features": lambda row: {"features": row},
    "rows": lambda row: {"features": [row]},
    "v2": lambda row: {"inputs": [{"name": "x", "shape": [1, len(row)], "datatype": "FP64", "data": row}]},
}


@dataclass(frozen=True, slots=True)
class Form:
    """How a row becomes a body, and the headers that say so; they must not depend on the row."""

    encode: Callable[[Row], bytes]
    headers: Mapping[str, str]


def form(name: str, width: int) -> Form:
    """Return a form by its name: a key of ``BODY``, ``binary`` or ``gzip``."""
    if name == "binary":
        head = _binary_head(width)
        return Form(
            lambda row: head + np.array(row, TYPES["FP32"]).tobytes(),
            {"content-type": "application/octet-stream", LENGTH: str(len(head))},
        )
    if name == "gzip":
        return Form(lambda row: gzip.compress(_json("v2", row)), {**JSON_TYPE, "content-encoding": "gzip"})
    return Form(lambda row: _json(name, row), JSON_TYPE)


def _json(name: str, row: Row) -> bytes:
    return json.dumps(BODY[name](row)).encode()


def _binary_head(width: int) -> bytes:
    size = {"binary_data_size": 4 * width}
    tensor = {"name": "x", "shape": [1, width], "datatype": "FP32", "parameters": size}
    return json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()


def probabilities(body: bytes, headers: Mapping[str, str]) -> list[float]:
    """Return the numbers of one answer, in whatever way a server wraps them.

    Raises:
        RuntimeError: an answer that should hold bytes does not.
    """
    if LENGTH not in headers:
        return _unwrap(json.loads(body))
    at = int(headers[LENGTH])
    (output,) = json.loads(body[:at])["outputs"]
    if output["parameters"]["binary_data_size"] != len(body) - at:
        raise RuntimeError(f"the bytes of an answer are not those that its JSON announces: {output}")
    found: list[float] = np.frombuffer(body[at:], TYPES[output["datatype"]]).tolist()
    return found


def _unwrap(answer: Any) -> list[float]:
    while not (isinstance(answer, list) and isinstance(answer[0], float)):
        if isinstance(answer, dict):
            answer = answer.get("outputs") or answer.get("data") or answer.get("p")
        else:
            answer = answer[0]
    return answer
