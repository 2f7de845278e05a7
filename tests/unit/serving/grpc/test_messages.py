"""The number of fields of a message, counted before it is parsed."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfoldkit.serving.grpc.messages import build_messages, has_more_fields
from unfoldkit.serving.grpc.servicer import MAX_FIELDS, parse_message

MESSAGES = build_messages()
EMPTY_TENSOR, EMPTY_OUTPUT, EMPTY_PARAMETER = b"\x2a\x00", b"\x32\x00", b"\x22\x00"


def build_request(tensors: list[tuple[int, int]], raw: list[bytes], outputs: int) -> Any:
    """Return a request of tensors with so many dimensions and parameters."""
    request = MESSAGES.ModelInferRequest(model_name="m" * 200, raw_input_contents=raw)
    for dimensions, parameters in tensors:
        tensor = request.inputs.add(name="x", shape=[1] * dimensions)
        for index in range(parameters):
            tensor.parameters[str(index)].int64_param = index
    for _ in range(outputs):
        request.outputs.add(name="y")
    return request


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=6),
    st.lists(st.binary(max_size=300), max_size=6),
    st.integers(0, 5),
)
@settings(max_examples=100, deadline=None)
def test_fields_of_a_request_and_its_tensors_are_counted(
    tensors: list[tuple[int, int]], raw: list[bytes], outputs: int
) -> None:
    """A packed shape is one field, each parameter another; raw contents are skipped, whatever they hold."""
    request = build_request(tensors, raw, outputs)
    count = 1 + len(raw) + 2 * outputs
    count += sum(2 + (dimensions > 0) + parameters for dimensions, parameters in tensors)
    data = request.SerializeToString()
    assert has_more_fields(data, count - 1)
    assert not has_more_fields(data, count)


@pytest.mark.parametrize("unit", [EMPTY_TENSOR, EMPTY_OUTPUT, EMPTY_PARAMETER, b"\x38\x00", b"\x3d\x00\x00\x00\x00"])
@pytest.mark.timed
def test_a_message_of_very_many_fields_is_rejected_before_it_is_parsed(unit: bytes) -> None:
    """Two million objects would take half a second and much memory."""
    data = unit * ((4 << 20) // len(unit))
    began_s = time.process_time()
    assert parse_message(MESSAGES.ModelInferRequest, data) is None
    assert time.process_time() - began_s < 0.1


def test_parameters_within_a_tensor_count_too() -> None:
    """They are a message each as well."""
    inner = EMPTY_PARAMETER * (1 << 20)
    assert parse_message(MESSAGES.ModelInferRequest, b"\x2a" + varint(len(inner)) + inner) is None


def test_a_large_request_is_parsed() -> None:
    """Bytes are no fields."""
    request = build_request([(2, 1)] * 40, [bytes(1 << 20)] * 3, 10)
    assert parse_message(MESSAGES.ModelInferRequest, request.SerializeToString()) == request


@given(st.binary(min_size=1, max_size=200))
@settings(max_examples=200, deadline=None)
def test_bytes_that_are_no_message_are_counted_without_an_error(data: bytes) -> None:
    """Whatever follows is the parser's."""
    assert has_more_fields(data, MAX_FIELDS) is False


@pytest.mark.parametrize("data", [b"\xff" * (4 << 20), b"\x2a" + b"\xff" * 9 + b"\x7f", b"\x2a\xff\xff\xff\x7f"])
@pytest.mark.timed
def test_integers_without_an_end_take_no_time(data: bytes) -> None:
    """Neither their value nor the length that they claim matters."""
    began_s = time.process_time()
    assert not has_more_fields(data, MAX_FIELDS)
    assert time.process_time() - began_s < 0.05


def varint(value: int) -> bytes:
    """Encode an integer as protobuf does."""
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
