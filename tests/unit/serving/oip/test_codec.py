"""Bodies of the Open Inference Protocol: what is read, what is refused, what is written."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.serving.models import Total
from unfoldkit.serving.model import Call, CategoricalColumn, Field, encode_rows
from unfoldkit.serving.oip.codec import ACCURACY_OUTPUT, InferenceRequest, build_reader, build_writer, count_values
from unfoldkit.serving.oip.errors import InvalidRequest, TooLarge

TOTAL = build_reader(Total().inputs, Total().outputs)
GAPS = build_reader((Field("x", "FP64", (2,), missing=True), Field("n", "INT64"), Field("t", "BYTES")), ())


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 3], "datatype": "FP64", "data": [1, 2.5, -3]} | changes


def body(*tensors: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors), **more}).encode()


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]])
def test_flat_and_nested_data_are_the_same(data: list[Any]) -> None:
    """A tensor may come flat or as one list a row; both are row-major."""
    found = TOTAL.read(body(tensor(shape=[2, 3], data=data)))
    np.testing.assert_array_equal(found.inputs["x"], [[1, 2, 3], [4, 5, 6]])
    assert found.call == Call(2)


def test_parameters_name_an_entity_and_a_time() -> None:
    """Entity and time of a request reach the model; its other parameters are ignored."""
    found = TOTAL.read(body(tensor(), id="a", parameters={"entity": "p1", "time": 7, "other": 1.5}))
    assert (found.call, found.id) == (Call(1, "p1", 7), "a")


def test_what_is_optional_may_be_null_or_anything_that_is_not_ours() -> None:
    """Null is what is left out, and parameters that this server does not know may hold anything."""
    plain = TOTAL.read(body(tensor()))
    for more in (
        {"id": None, "outputs": None, "parameters": None},
        {"parameters": {"entity": None, "headers": {"a": []}}},
    ):
        found = TOTAL.read(body(tensor(parameters=None), **more))
        assert (found.id, found.outputs, found.call) == (plain.id, plain.outputs, plain.call)


@pytest.mark.parametrize("key", ["name", "datatype"])
def test_a_message_does_not_repeat_a_megabyte_of_the_request(key: str) -> None:
    """It goes to the client, to the log, and over gRPC into a header of bounded size."""
    with pytest.raises(InvalidRequest) as caught:
        TOTAL.read(body(tensor(**{key: "x" * 1_000_000})))
    assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "the body is empty"),
        (b"\xff\xfe", "malformed"),
        (b"[1]", "Expected `object`"),
        (b"{}", "missing required field `inputs`"),
        (body(), "the input 'x' is missing"),
        (body(tensor(name="y")), "no such input: 'y'; this model takes 'x'"),
        (body(tensor(), tensor()), "given twice"),
        (body(tensor(datatype="BYTES")), "has datatype 'BYTES'; it must be FP64"),
        (body(tensor(shape=[1, 2])), "has shape [1, 2]; it must be [-1, 3]"),
        (body(tensor(shape=[3])), "it must be [-1, 3]"),
        (body(tensor(shape=[0, 3], data=[])), "at least one row"),
        (body(tensor(shape=[-1, 3])), "at least one row"),
        (body(tensor(shape=[2, 3])), "has 3 values; its shape [2, 3] needs 6"),
        (body(tensor(shape=[2, 3], data=[[1, 2, 3], [1, 2]])), "has a row of 2 values"),
        (body(tensor(shape=[2, 3], data=[[1, 2, 3], 4, 5, 6])), "mixes numbers and lists"),
        (body(tensor(shape=[2, 3], data=[1, 2, 3, [4, 5, 6]])), "has 4 values"),
        (body(tensor(data=[1, 2, None])), "got `null`"),
        (body(tensor(data=[1, 2, "3"])), "got `str`"),
        (body(tensor(data=[1, 2, True])), "got `bool`"),
        (body(tensor()).replace(b"2.5", b"NaN"), "JSON has no NaN"),
        (body(tensor()).replace(b"2.5", b"-Infinity"), "JSON has no Infinity"),
        (body(tensor()).replace(b"2.5", b"1e999"), "out of range"),
        (body(tensor(), outputs=[{"name": "label"}]), "no such output: 'label'; this model gives 'total', 'twice'"),
        (body(tensor(), parameters={"entity": 7}), "'entity' must be text"),
        (body(tensor(), parameters={"entity": "p" * 257}), "at most 256"),
        (body(tensor(), parameters={"entity": "p", "time": 1.5}), "'time' must be a whole number"),
        (body(tensor(), parameters={"time": 1}), "'time' needs the parameter 'entity'"),
        (b"[" * 100_000, "recursion|Expected `object`"),
    ],
)
def test_a_mismatched_body_gets_a_reason(data: bytes, expected: str) -> None:
    """Every mistake in a body is reported in words that name the input."""
    with pytest.raises(InvalidRequest) as caught:
        TOTAL.read(data)
    assert any(part in str(caught.value) for part in expected.split("|")), str(caught.value)


def test_null_is_a_gap_where_the_model_takes_gaps() -> None:
    """A null becomes NaN in an input that may have gaps, and only there."""
    n = {"name": "n", "shape": [1], "datatype": "INT64", "data": [3]}
    t = {"name": "t", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    found = GAPS.read(body(tensor(shape=[1, 2], data=[None, 1]), n, t))
    assert np.isnan(found.inputs["x"][0, 0])
    assert found.inputs["t"].tolist() == ["a"]
    for wrong in (n | {"data": [None]}, n | {"data": [1.5]}, n | {"data": ["1"]}, n | {"data": [2**70]}):
        with pytest.raises(InvalidRequest, match="'n' must hold INT64"):
            GAPS.read(body(tensor(shape=[1, 2], data=[0, 1]), wrong, t))
    for wrong_data in (["1", 2], [True, 2]):
        with pytest.raises(InvalidRequest, match="'x' must hold FP64"):
            GAPS.read(body(tensor(shape=[1, 2], data=wrong_data), n, t))


@pytest.mark.parametrize(
    ("datatype", "value", "shown"),
    [
        ("INT8", 127, ""),
        ("INT8", -128.0, ""),
        ("INT8", 300, "300"),
        ("INT8", 17.5, "17.5"),
        ("UINT8", -1, "-1"),
        ("UINT16", 65536, "65536"),
        ("UINT64", 2**64 - 2**12, ""),
        ("INT64", 2**63, "9.22337e+18"),
        ("INT64", -(2**63), ""),
        ("FP16", 65504, ""),
        ("FP16", 1e6, "1e+06"),
        ("FP32", 3.4e38, ""),
        ("FP32", -1e300, "-1e+300"),
    ],
)
def test_values_belong_to_the_datatype_that_a_tensor_declares(datatype: str, value: float, shown: str) -> None:
    """A model of doubles takes all numbers; one that its datatype cannot hold is the mistake of the client."""
    request = body(tensor(datatype=datatype, data=[[1, value, 2]]))
    if shown:
        with pytest.raises(InvalidRequest, match=re.escape(f"input 'x' is {datatype} and holds {shown}")):
            TOTAL.read(request)
    else:
        assert TOTAL.read(request).inputs["x"][0, 1] == value


def test_rows_of_all_inputs_must_agree() -> None:
    """Inputs with different numbers of rows are refused with their numbers."""
    n = {"name": "n", "shape": [2], "datatype": "INT64", "data": [3, 4]}
    t = {"name": "t", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    with pytest.raises(InvalidRequest, match="x 1, n 2, t 1"):
        GAPS.read(body(tensor(shape=[1, 2], data=[0, 1]), n, t))


def outcome(data: bytes) -> InferenceRequest | str:
    """Return the request in a body, or why it is refused."""
    try:
        return TOTAL.read(data)
    except InvalidRequest as unfit:
        return str(unfit)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PART = st.sampled_from(["name", "shape", "datatype", "data"])


@given(part=PART, value=JSON | st.lists(st.floats(-9, 9) | st.integers(-2, 4), max_size=6))
def test_no_value_of_any_key_breaks_the_reader(part: str, value: Any) -> None:
    """Any JSON in place of any part of a tensor is either a request with finite numbers or refused in words."""
    found = outcome(body(tensor(**{part: value})))
    if isinstance(found, str):
        assert found
    else:
        assert np.isfinite(found.inputs["x"]).all()
        assert found.inputs["x"].shape == (found.call.rows, 3)


@given(at=st.integers(0, 80), byte=st.integers(0, 255))
def test_no_byte_breaks_the_reader(at: int, byte: int) -> None:
    """A body with any byte changed is a request or refused, never another error."""
    data = bytearray(body(tensor()))
    data[at % len(data)] = byte
    assert outcome(bytes(data))


@pytest.mark.parametrize(("first", "last"), [(0, 1), (1, 3), (0, 3)])
def test_an_answer_is_what_its_columns_say(first: int, last: int) -> None:
    """The written body, parsed again, holds the rows of the request, the id and the entity."""
    columns = {
        "total": CategoricalColumn(np.array([1, 0, 1]), ['ä"', 0.5]),
        "twice": np.array([[1.0, 2.0], [3.0, 4.5], [5.0, np.nan]]),
    }
    question = InferenceRequest({}, Call(last - first, "p\n1"), "id", ())
    found = json.loads(build_writer(Total()).write(question, encode_rows(columns), first, last))
    twice = [[1.0, 2.0], [3.0, 4.5], [5.0, None]][first:last]
    outputs = [
        {"name": "total", "datatype": "FP64", "shape": [last - first], "data": [0.5, 'ä"', 0.5][first:last]},
        {"name": "twice", "datatype": "FP64", "shape": [last - first, 2], "data": twice},
    ]
    known = {"model_name": "total", "model_version": "1", "id": "id", "parameters": {"entity": "p\n1"}}
    assert found == known | {"outputs": outputs}


def test_a_client_gets_the_outputs_that_it_wants() -> None:
    """Only the named outputs are written, in the order in which they were named."""
    found = TOTAL.read(body(tensor(), outputs=[{"name": "twice"}]))
    columns = {"total": np.array([0.0]), "twice": np.array([[1.0, 1.0]])}
    answer = json.loads(build_writer(Total()).write(found, encode_rows(columns), 0, 1))
    assert [output["name"] for output in answer["outputs"]] == ["twice"]


def test_a_response_lists_parameters_without_effect() -> None:
    """What a client sends and no model uses is listed, shortened; null, and what has an effect, is not."""
    outputs = (*Total().outputs, Field(ACCURACY_OUTPUT, "BOOL"))
    columns = encode_rows({"total": np.array([1.0])})
    everything = {"entity": "p", "time": 1, "deadline_ms": 5, "least_accuracy": 0.9, "priority": None, "x" * 99: 1}
    long = "x" * 64
    for reader, ignored in (
        (TOTAL, ["entity", "time", "deadline_ms", "least_accuracy", long]),
        (build_reader(Total().inputs, outputs, ("entity", "time")), ["deadline_ms", long]),
    ):
        wanted = [{"name": "total", "parameters": {"classification": 1, "binary_data": False}}]
        found = reader.read(body(tensor(), parameters=everything, outputs=wanted))
        answer = json.loads(build_writer(Total()).write(found, columns, 0, 1))
        assert answer["parameters"] == {"entity": "p", "ignored": [*ignored, "total.classification"]}
    plain = TOTAL.read(body(tensor(), parameters={"binary_data_output": False, "entity": None}))
    both = encode_rows({"total": np.array([1.0]), "twice": np.array([[1.0, 1.0]])})
    assert "parameters" not in json.loads(build_writer(Total()).write(plain, both, 0, 1))


@pytest.mark.parametrize("name", ["deadline_ms", "least_accuracy"])
@pytest.mark.parametrize("digits", [40, 400, 4000])
def test_integers_beyond_all_numbers_are_refused(name: str, digits: int) -> None:
    """A parameter that no floating-point number holds is the client's mistake, as a negative one is."""
    reader = build_reader(Total().inputs, (*Total().outputs, Field(ACCURACY_OUTPUT, "BOOL")), ("entity", "time"))
    for sign in ("", "-"):
        content = body(tensor(), parameters={name: "N"}).replace(b'"N"', sign.encode() + b"1" + b"0" * digits)
        with pytest.raises(InvalidRequest, match=name):
            reader.read(content)


CHARACTERS = 'a,[{"\\'
VALUES = st.recursive(
    st.none() | st.floats(allow_nan=False) | st.text(CHARACTERS, max_size=9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(CHARACTERS, max_size=4), inner, max_size=4),
    max_leaves=30,
)


@given(VALUES, st.integers(65_500, 65_560))
def test_values_are_counted_outside_of_strings(value: Any, padding: int) -> None:
    """Strings add nothing to the count, wherever a slice ends in them."""
    text = json.dumps([" " * padding + CHARACTERS * 3, value]).encode()
    outside = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", text)
    assert count_values(text, 10**9) == 1 + sum(outside.count(sign) for sign in (b",", b"[", b"{"))


def test_counting_ends_early() -> None:
    """A long text of values is not read to its end."""
    assert 100 < count_values(b"[" + b"0," * 10**6, 100) < 40_000


def test_a_body_of_too_many_values_is_not_decoded() -> None:
    """A body with more values than any accepted request has is rejected for its commas and brackets alone."""
    for data in ([0] * 20_000, [[]] * 20_000, [[0, 0, 0]] * 6_000):
        with pytest.raises(TooLarge, match="at most 1024 rows"):
            TOTAL.check_size(body(tensor(data=data)), 1024)
    TOTAL.check_size(body(tensor(shape=[1024, 3], data=[[0, 0, 0]] * 1024), id="," * 50_000), 1024)


def test_an_id_is_short() -> None:
    """An id comes back with the response, so a long one is refused."""
    assert TOTAL.read(body(tensor(), id="x" * 1024)).id == "x" * 1024
    with pytest.raises(InvalidRequest, match="at most 1024 characters"):
        TOTAL.read(body(tensor(), id="x" * 1025))
