"""Requests and responses of the protocol over gRPC as those of the models, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from unfoldkit.serving.batching.batcher import RowSpan
from unfoldkit.serving.grpc.messages import Messages
from unfoldkit.serving.model import Call, Field
from unfoldkit.serving.oip.binary import check_datatype, decode_values, encode_tensor
from unfoldkit.serving.oip.codec import MAX_ID_LENGTH, InferenceRequest
from unfoldkit.serving.oip.errors import InvalidRequest, TooLarge
from unfoldkit.serving.oip.inference import Endpoint

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of ``InferTensorContents`` by datatype; FP16 comes as raw bytes only."""


def read_request(endpoint: Endpoint, message: Any) -> InferenceRequest:
    """Read a ``ModelInferRequest``.

    Raises:
        InvalidRequest: It does not fit the inputs of the model.
        TooLarge: It holds more values than the rows that are accepted.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequest(f"{len(raw)} raw contents for {len(message.inputs)} inputs; give one per input, or none")
    max_rows = endpoint.batcher.limits.queue_rows
    if (quick := _read_single_tensor(endpoint, message, max_rows)) is not None:
        return quick
    max_values = max_rows * endpoint.reader.values_per_row
    inputs, count = [], 0
    for index, tensor in enumerate(message.inputs):
        if raw and tensor.contents.ByteSize():
            raise InvalidRequest(
                f"input {tensor.name!r} has contents beside the raw contents; one of both is the tensor"
            )
        values = decode_values(tensor.name, tensor.datatype, raw[index]) if raw else _read_contents(tensor)
        count += len(values)
        if count > max_values:
            raise TooLarge(f"the tensors hold more than {max_values} values; at most {max_rows} rows are accepted")
        inputs.append({"name": tensor.name, "shape": list(tensor.shape), "datatype": tensor.datatype, "data": values})
    outputs = [{"name": item.name, "parameters": read_parameters(item.parameters)} for item in message.outputs]
    parameters = {key: value for key, value in read_parameters(message.parameters).items() if not _is_binary_flag(key)}
    data = {"inputs": inputs, "id": message.id, "parameters": parameters, "outputs": outputs}
    return endpoint.reader.read_data(data)


def read_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as plain data."""
    chosen = ((name, value, value.WhichOneof("parameter_choice")) for name, value in parameters.items())
    return {name: getattr(value, choice) for name, value, choice in chosen if choice}


def fill_response(response: Any, endpoint: Endpoint, request: InferenceRequest, rows: RowSpan) -> None:
    """Fill a ``ModelInferResponse`` with the rows of a request, every tensor as raw bytes.

    A missing integer, boolean or text, for which bytes have no form, becomes 0, false or empty; the parameter ``nulls``
    names its output.
    """
    encoded, start, end = rows
    response.model_name, response.model_version = endpoint.model.name, endpoint.model.version
    response.id = request.id
    nulls = []
    for name in request.outputs or endpoint.writer.fields:
        item, data = endpoint.writer.fields[name], b"[%b]" % b",".join(encoded[name][start:end])
        raw = encode_tensor(item.datatype, data)
        if raw is None:
            nulls.append(name)
            raw = _encode_without_nulls(item, data)
        response.outputs.add(name=name, datatype=item.datatype, shape=[end - start, *item.shape])
        response.raw_output_contents.append(raw)
    if request.call.entity:
        response.parameters["entity"].string_param = request.call.entity
    if request.ignored:
        response.parameters["ignored"].string_param = ",".join(request.ignored)
    if nulls:
        response.parameters["nulls"].string_param = ",".join(nulls)


def encode_response(messages: Messages, endpoint: Endpoint, request: InferenceRequest, rows: RowSpan) -> bytes:
    """Return the bytes of the ``ModelInferResponse`` that ``fill_response`` fills."""
    response = messages.ModelInferResponse()
    fill_response(response, endpoint, request, rows)
    return bytes(response.SerializeToString())


def _read_single_tensor(endpoint: Endpoint, message: Any, max_rows: int) -> InferenceRequest | None:
    """Read the most frequent request quickly: one raw tensor of floats, without parameters."""
    raw, inputs = message.raw_input_contents, message.inputs
    if len(raw) != 1 or message.parameters or message.outputs or len(message.id) > MAX_ID_LENGTH:
        return None
    tensor = inputs[0]
    if tensor.HasField("contents"):
        return None
    array = endpoint.reader.read_raw(tensor.name, tensor.datatype, list(tensor.shape), raw[0])
    if array is None or len(array) > max_rows:
        return None
    return InferenceRequest({tensor.name: array}, Call(len(array)), message.id, ())


def _read_contents(tensor: Any) -> Sequence[Any]:
    check_datatype(tensor.name, tensor.datatype)
    name = CONTENTS.get(tensor.datatype)
    if name is None:
        raise InvalidRequest(f"input {tensor.name!r}: {tensor.datatype!r} has no contents; send its raw bytes")
    if other := {field.name for field, _ in tensor.contents.ListFields()} - {name}:
        raise InvalidRequest(f"input {tensor.name!r} is {tensor.datatype} and has {min(other)}; it needs {name}")
    values = getattr(tensor.contents, name)
    if tensor.datatype == "BYTES":
        try:
            return [value.decode() for value in values]
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"input {tensor.name!r} holds a text that is not UTF-8") from error
    if not tensor.datatype.startswith("FP"):
        return list(values)
    array = np.array(values, dtype=np.float64)
    # JSON represents NaN as null
    return array.tolist() if np.isfinite(array).all() else decode_values(tensor.name, "FP64", array.tobytes())


def _is_binary_flag(name: str) -> bool:
    # raw bytes are a matter of JSON; here all tensors are
    return name in ("binary_data_output", "binary_data")


def _encode_without_nulls(item: Field, data: bytes) -> bytes:
    blank = "" if item.datatype == "BYTES" else 0
    values = [blank if value is None else value for value in np.ravel(np.array(msgspec.json.decode(data), object))]
    return encode_tensor(item.datatype, msgspec.json.encode(values)) or b""
