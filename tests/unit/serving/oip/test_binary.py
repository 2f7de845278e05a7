"""Bodies that hold tensors as raw bytes."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest

from unfoldkit.serving.model import Field
from unfoldkit.serving.oip.binary import encode_tensor, inline_tensors, read_head
from unfoldkit.serving.oip.codec import build_reader
from unfoldkit.serving.oip.errors import InvalidRequest

INPUTS = (Field("x", "FP64", (2,), missing=True), Field("n", "INT64"), Field("t", "BYTES"), Field("b", "BOOL"))
MIXED = build_reader(INPUTS, ())
STRICT = build_reader((Field("x", "FP64", (2,)),), ())


def binary(*tensors: tuple[str, str, list[int], bytes], **changes: Any) -> tuple[bytes, int]:
    """Return a body of raw tensors, and how many bytes of it are JSON."""
    inputs = [
        {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(raw)} | changes}
        for name, kind, shape, raw in tensors
    ]
    head = json.dumps({"inputs": inputs, "id": "a"}).encode()
    return head + b"".join(raw for *_, raw in tensors), len(head)


def texts(*given: str) -> bytes:
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in given)


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "int8", "uint16"])
def test_raw_tensors_are_read_as_the_same_numbers_in_json(kind: str) -> None:
    """Raw tensors of all types, a gap among them, give the inputs that their JSON gives."""
    gap = np.nan if kind.startswith("float") else 0
    x = np.array([[1, 2], [gap, 4]], kind)
    name = {"f": "FP", "i": "INT", "u": "UINT"}[x.dtype.kind] + str(x.itemsize * 8)
    body, size = binary(
        ("x", name, [2, 2], x.tobytes()),
        ("n", "INT64", [2], np.array([5, -6]).tobytes()),
        ("t", "BYTES", [2], texts("", "müde")),
        ("b", "BOOL", [2], b"\0\1"),
    )
    found = MIXED.read(body, size)
    np.testing.assert_array_equal(found.inputs["x"], x.astype(float))
    others = {name: array.tolist() for name, array in found.inputs.items() if name != "x"}
    assert others == {"n": [5, -6], "t": ["", "müde"], "b": [False, True]}
    assert (found.id, found.call.rows) == ("a", 2)


@pytest.mark.parametrize(
    ("tensor", "more", "changes", "expected"),
    [
        (("x", "FP64", [1, 2], b"\0" * 16), b"1", {}, "1 bytes follow the last tensor"),
        (("x", "FP64", [1, 2], b"\0" * 16), b"", {"binary_data_size": 17}, "17, and 16 bytes remain"),
        (("x", "FP64", [1, 2], b"\0" * 16), b"", {"binary_data_size": -1}, "-1"),
        (("x", "FP64", [1, 2], b"\0" * 15), b"", {}, "15 bytes are not a tensor of FP64"),
        (("x", "FP64", [1, 2], b"\0" * 8), b"", {}, "has 1 values"),
        (("x", "BF16", [1, 2], b"\0" * 4), b"", {}, "datatype 'BF16'; it must be one of BOOL, "),
        (("x", "fp64", [1, 2], b"\0" * 16), b"", {}, "datatype 'fp64'; it must be one of .* FP64, BYTES"),
        (("x", "FP64", [1, 2], np.array([1, np.inf]).tobytes()), b"", {}, "infinite"),
        (("x", "FP64", [1, 2], np.array([1, np.nan]).tobytes()), b"", {}, "input 'x' holds NaN"),
        (("x", "BOOL", [1, 2], b"\0\1"), b"", {}, "input 'x' has datatype 'BOOL'; it must be FP64"),
        (("x", "BYTES", [1, 2], b"\5\0\0\0abc"), b"", {}, "longer than the bytes"),
        (("x", "BYTES", [1, 2], b"\1\0\0\0\xff"), b"", {}, "not UTF-8"),
    ],
)
def test_mismatched_raw_tensors_get_a_reason(
    tensor: tuple[str, str, list[int], bytes], more: bytes, changes: dict[str, Any], expected: str
) -> None:
    """Sizes, types and values of raw tensors are checked as those of JSON are."""
    body, size = binary(tensor, **changes)
    with pytest.raises(InvalidRequest, match=expected):
        STRICT.read(body + more, size)


@pytest.mark.parametrize("field", ["FP64", "FP32"])
@pytest.mark.parametrize("kind", ["float64", "float32"])
def test_bytes_of_floats_are_read_as_the_general_path_reads_them(field: str, kind: str) -> None:
    """Floats that an input holds exactly skip the list of Python numbers, with the same result."""
    reader = build_reader((Field("x", field, (2,)),), (Field("p"),))
    x = np.array([[0.1, -2.5], [1e-30, 3e38]], kind)
    body, size = binary(("x", f"FP{x.itemsize * 8}", [2, 2], x.tobytes()))
    quick = reader.read_raw("x", f"FP{x.itemsize * 8}", [2, 2], x.tobytes())
    is_exact = field == "FP64" or kind == "float32"
    assert (quick is not None) == is_exact
    found, general = reader.read(body, size), reader.read_data(inline_tensors(read_head(body, size), body, size))
    np.testing.assert_array_equal(found.inputs["x"], general.inputs["x"])
    assert found.inputs["x"].dtype == general.inputs["x"].dtype
    assert (found.id, found.call, found.raw) == (general.id, general.call, general.raw)


@pytest.mark.parametrize("flag", [True, False])
def test_a_quick_request_keeps_how_its_outputs_are_wanted(flag: bool) -> None:
    """The flag for outputs as bytes is respected; any other parameter takes the general path."""
    reader = build_reader((Field("x", "FP64", (2,)),), (Field("p"),))
    raw = np.zeros(2).tobytes()
    inputs = [{"name": "x", "datatype": "FP64", "shape": [1, 2], "parameters": {"binary_data_size": len(raw)}}]
    for more in ({}, {"trace": 1}):
        head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": flag, **more}}).encode()
        found = reader.read(head + raw, len(head))
        assert (found.raw, found.ignored) == (frozenset({"p"} if flag else ()), tuple(more))


@pytest.mark.parametrize(
    ("kind", "values", "raw"),
    [
        ("FP64", [[1.5, None], [0.1, -2e300]], np.array([1.5, np.nan, 0.1, -2e300], "<f8").tobytes()),
        ("FP32", [1, 0.10000000149011612], np.array([1, 0.1], "<f4").tobytes()),
        ("INT64", [2**63 - 1, -(2**63)], np.array([2**63 - 1, -(2**63)], "<i8").tobytes()),
        ("INT32", [[[7]], [[-8]]], np.array([7, -8], "<i4").tobytes()),
        ("BOOL", [True, False], b"\1\0"),
        ("BYTES", [["", "müde"], ["null", "a,b]"]], texts("", "müde", "null", "a,b]")),
    ],
)
def test_values_of_an_answer_become_their_bytes(kind: str, values: Any, raw: bytes) -> None:
    """The bytes of a tensor hold what its JSON holds, in the order of its rows, NaN for null."""
    assert encode_tensor(kind, json.dumps(values).encode()) == raw


@pytest.mark.parametrize(("kind", "values"), [("INT64", [1, None]), ("BOOL", [None]), ("BYTES", ["a", None])])
def test_what_bytes_cannot_say_is_not_said_in_bytes(kind: str, values: Any) -> None:
    """A null other than NaN makes no bytes that mean something else."""
    assert encode_tensor(kind, json.dumps(values).encode()) is None
