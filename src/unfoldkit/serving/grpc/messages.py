"""The messages of the Open Inference Protocol over gRPC, built from a table of their fields.

Names, numbers and types are those of the published protocol (kserve/open-inference-protocol,
``open_inference_grpc.proto``) with the calls of Triton that its clients need: model configuration, statistics, the
repository index and streams of requests. The messages are in a pool of their own, so that a client library with
generated ones can share the process. A test compares both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = "inference.GRPCInferenceService"
FILE = "unfoldkit/inference.proto"

METHODS = (
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"),
    *("ModelConfig", "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
)
"""The calls. Each takes the message ``NAMERequest`` and returns ``NAMEResponse``."""

STREAM_METHOD = "ModelStreamInfer"
"""The call that takes a stream of ``ModelInferRequest`` and returns one of ``ModelStreamInferResponse``."""

FIELDS: Mapping[str, str] = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live=1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready=1",
    "ModelReadyRequest": "string name=1, string version=2",
    "ModelReadyResponse": "bool ready=1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name=1, string version=2, repeated string extensions=3",
    "ModelMetadataRequest": "string name=1, string version=2",
    "TensorMetadata": "string name=1, string datatype=2, repeated int64 shape=3",
    "ModelMetadataResponse": (
        "string name=1, repeated string versions=2, string platform=3, "
        "repeated TensorMetadata inputs=4, repeated TensorMetadata outputs=5"
    ),
    "InferParameter": (
        "oneof bool bool_param=1, oneof int64 int64_param=2, oneof string string_param=3, oneof double double_param=4, "
        "oneof uint64 uint64_param=5"
    ),
    "InferTensorContents": (
        "repeated bool bool_contents=1, repeated int32 int_contents=2, repeated int64 int64_contents=3, "
        "repeated uint32 uint_contents=4, repeated uint64 uint64_contents=5, repeated float fp32_contents=6, "
        "repeated double fp64_contents=7, repeated bytes bytes_contents=8"
    ),
    "InferTensor": (
        "string name=1, string datatype=2, repeated int64 shape=3, map InferParameter parameters=4, "
        "InferTensorContents contents=5"
    ),
    "InferRequestedOutputTensor": "string name=1, map InferParameter parameters=2",
    "ModelInferRequest": (
        "string model_name=1, string model_version=2, string id=3, map InferParameter parameters=4, "
        "repeated InferTensor inputs=5, "
        "repeated InferRequestedOutputTensor outputs=6, repeated bytes raw_input_contents=7"
    ),
    "ModelInferResponse": (
        "string model_name=1, string model_version=2, string id=3, map InferParameter parameters=4, "
        "repeated InferTensor outputs=5, "
        "repeated bytes raw_output_contents=6"
    ),
    "ModelStreamInferResponse": "string error_message=1, ModelInferResponse infer_response=2",
    "ModelInput": "string name=1, DataType data_type=2, repeated int64 dims=4",
    "ModelOutput": "string name=1, DataType data_type=2, repeated int64 dims=3",
    "ModelConfig": (
        "string name=1, string platform=2, int32 max_batch_size=4, repeated ModelInput input=5, "
        "repeated ModelOutput output=6, string backend=17"
    ),
    "ModelConfigRequest": "string name=1, string version=2",
    "ModelConfigResponse": "ModelConfig config=1",
    "StatisticDuration": "uint64 count=1, uint64 ns=2",
    "InferStatistics": (
        "StatisticDuration success=1, StatisticDuration fail=2, StatisticDuration queue=3, "
        "StatisticDuration compute_input=4, StatisticDuration compute_infer=5, StatisticDuration compute_output=6"
    ),
    "ModelStatistics": (
        "string name=1, string version=2, uint64 last_inference=3, uint64 inference_count=4, uint64 execution_count=5, "
        "InferStatistics inference_stats=6"
    ),
    "ModelStatisticsRequest": "string name=1, string version=2",
    "ModelStatisticsResponse": "repeated ModelStatistics model_stats=1",
    "RepositoryIndexRequest": "string repository_name=1, bool ready=2",
    "ModelIndex": "string name=1, string version=2, string state=3, string reason=4",
    "RepositoryIndexResponse": "repeated ModelIndex models=1",
    "ModelRepositoryParameter": (
        "oneof bool bool_param=1, oneof int64 int64_param=2, oneof string string_param=3, oneof bytes bytes_param=4"
    ),
    "RepositoryModelLoadRequest": (
        "string repository_name=1, string model_name=2, map ModelRepositoryParameter parameters=3"
    ),
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": (
        "string repository_name=1, string model_name=2, map ModelRepositoryParameter parameters=3"
    ),
    "RepositoryModelUnloadResponse": "",
}

DATA_TYPES = (
    *("INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32"),
    *("FP64", "STRING", "BF16"),
)
"""The names of the enumeration ``DataType`` without ``TYPE_``, by number."""

_Field = descriptor_pb2.FieldDescriptorProto
_NESTED = (5, 6)
"""Numbers of the tensors of an inference request, given and asked for."""
_VARINT, _DELIMITED = 0, 2
_MAX_VARINT_BYTES = 10
_FIXED_SIZES = {1: 8, 5: 4}
"""Bytes of a field by its wire type; the bounds of groups have none."""


@dataclass(frozen=True, slots=True)
class Messages:
    """The message classes by name, and the pool that holds them."""

    pool: descriptor_pool.DescriptorPool
    classes: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        """Return a message class."""
        return self.classes[name]


def has_more_fields(data: bytes, limit: int) -> bool:
    """Return whether a message has more than ``limit`` fields, those of its tensors included.

    Repeated values count one by one, packed ones together. Bytes that are no message are left to the parser.
    """
    try:
        return _count_down(data, 0, len(data), limit, _NESTED) < 0
    except IndexError:
        return False


def _count_down(data: bytes, start: int, end: int, left: int, nested: Collection[int]) -> int:
    """Return how many fields are left after those between two positions; negative if they are too many."""
    while start < end and left >= 0:
        left -= 1
        tag, start = _read_varint(data, start)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            _, start = _read_varint(data, start)
        elif wire_type == _DELIMITED:
            size, start = _read_varint(data, start)
            if number in nested:
                left = _count_down(data, start, min(start + size, end), left, ())
            start += size
        else:
            start += _FIXED_SIZES.get(wire_type, 0)
    return left


def _read_varint(data: bytes, start: int) -> tuple[int, int]:
    """Return an integer and the position behind it.

    Raises:
        IndexError: It has no end, or is longer than an integer may be.
    """
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        byte = data[start + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, start + index + 1
    raise IndexError(start)


def build_messages() -> Messages:
    """Build the message classes in a new pool."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(build_file())
    classes = {name: _find_class(pool, f"{PACKAGE}.{name}") for name in FIELDS}
    return Messages(pool, classes)


def build_file() -> Any:
    """Build the descriptor of the file: messages, enumeration and service."""
    file = descriptor_pb2.FileDescriptorProto(name=FILE, package=PACKAGE, syntax="proto3")
    enumeration = file.enum_type.add(name="DataType")
    for number, name in enumerate(DATA_TYPES):
        enumeration.value.add(name=f"TYPE_{name}", number=number)
    for name, text in FIELDS.items():
        message = file.message_type.add(name=name)
        for field in filter(None, text.split(", ")):
            _add_field(message, field)
        if any(field.HasField("oneof_index") for field in message.field):
            message.oneof_decl.add(name="parameter_choice")
    service = file.service.add(name=SERVICE.rpartition(".")[2])
    for name in METHODS:
        service.method.add(name=name, input_type=f".{PACKAGE}.{name}Request", output_type=f".{PACKAGE}.{name}Response")
    stream = service.method.add(name=STREAM_METHOD, client_streaming=True, server_streaming=True)
    stream.input_type = f".{PACKAGE}.ModelInferRequest"
    stream.output_type = f".{PACKAGE}.{STREAM_METHOD}Response"
    return file


def _add_field(message: Any, text: str) -> None:
    declaration, _, number = text.partition("=")
    *words, name = declaration.split()
    kind = words[-1]
    is_repeated = words[0] in ("repeated", "map")
    label = _Field.LABEL_REPEATED if is_repeated else _Field.LABEL_OPTIONAL
    field = message.field.add(name=name, number=int(number), label=label)
    if words[0] == "oneof":
        field.oneof_index = 0
    if words[0] == "map":
        # a map is a repeated message of keys and values
        entry = message.nested_type.add(name="ParametersEntry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
        value = entry.field.add(name="value", number=2, type=_Field.TYPE_MESSAGE, label=_Field.LABEL_OPTIONAL)
        value.type_name = f".{PACKAGE}.{kind}"
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{message.name}.ParametersEntry"
    elif kind[0].isupper():
        field.type = _Field.TYPE_ENUM if kind == "DataType" else _Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{kind}"
    else:
        field.type = getattr(_Field, f"TYPE_{kind.upper()}")


def _find_class(pool: descriptor_pool.DescriptorPool, name: str) -> Any:
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
