"""Bodies of the Open Inference Protocol v2 over REST: typed JSON in, typed JSON out.

Source: https://github.com/kserve/open-inference-protocol, "Predict Protocol, version 2". Optional values may be null,
as many clients send them.
"""

from __future__ import annotations

import functools
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import msgspec
import numpy as np

from unfoldkit.serving.model import DTYPES, Array, Call, EncodedRows, Field, ModelDescription, encode
from unfoldkit.serving.oip.binary import RAW_DTYPES, RequestHead, encode_tensor, inline_tensors, read_head
from unfoldkit.serving.oip.errors import InvalidRequest, TooLarge

Scalar = str | int | float | bool
SINGLE_ROW = Call(1)
MAX_DEADLINE_MS = 86_400_000
MAX_ENTITY_LENGTH = 256
MAX_EXACT_INTEGER = 2**53
MAX_ITEM_BYTES = 8
MAX_SHOWN_DIMENSIONS = 8
MAX_ID_LENGTH = 1024
MAX_IGNORED = 16
MAX_IGNORED_LENGTH = 64
SPARE_VALUES = 4096
"""JSON values that a request may hold besides its rows: names, shapes, parameters, and some rows too many."""
ACCURACY_OUTPUT = "accurate_enough"
"""The output of a model that respects ``least_accuracy``: whether a response reaches it."""
FLOAT_TYPES = frozenset({"FP32", "FP64"})
EXACT_TYPES = {"FP32": frozenset({"FP32"}), "FP64": FLOAT_TYPES}
"""The datatypes of floats that an input holds exactly."""
NUMBER_TYPES = frozenset(
    {"FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"}
)

_FLOATS = {"FP16": 65504.0, "FP32": float(np.finfo(np.float32).max), "FP64": math.inf}
_RANGES = {name: (-high, high) for name, high in _FLOATS.items()} | {
    name: (int(np.iinfo(name.lower()).min), int(np.iinfo(name.lower()).max)) for name in NUMBER_TYPES - set(_FLOATS)
}
"""The smallest and the largest value of each datatype of numbers."""
_PROTOCOL_PARAMETERS = ("binary_data_output",)
# possessive: a string without an end must not be tried again from each of its characters
_JSON_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BYTE_POSITION = re.compile(r"\(byte (\d+)\)")
# some libraries write them, Python's among them; the decoder stops behind a sign
_NO_NUMBER = re.compile(rb"NaN|Infinity")
_SLICE_BYTES = 2**16
_BACKSLASH = ord("\\")


class RequestedOutput(msgspec.Struct):
    """An output that the client requests."""

    name: str
    parameters: dict[str, Any] | None = None


# not frozen: one is made per request, and freezing would triple its cost
@dataclass(slots=True)
class InferenceRequest:
    """A valid request for a model.

    Args:
        inputs: Arrays of shape (rows, ``*shape``), by name of the input.
        call: Its parameters.
        id: The id to repeat; empty for none.
        outputs: The requested outputs; all if empty.
        raw: The outputs that are requested as bytes.
        ignored: The parameters which have no effect; ``OUTPUT.NAME`` for those of an output.
    """

    inputs: Mapping[str, Array]
    call: Call
    id: str
    outputs: tuple[str, ...]
    raw: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestReader:
    """Reads the bodies of requests for one model.

    Args:
        inputs: The inputs of the model.
        outputs: The names of its outputs.
        nulls: Whether an input may hold null.
        decode: Decodes a JSON body.
        convert: Converts plain data to a request.
        used: The parameters which have an effect on the response.
        values_per_row: JSON values per row of all inputs, counting each list of a row.
        pack: Packs one row of a model with a single FP64 input; ``None`` for other models.
        shape: The shape of such a row, with its batch dimension.
    """

    inputs: tuple[Field, ...]
    outputs: tuple[str, ...]
    nulls: bool
    decode: Callable[[bytes | bytearray], Any]
    convert: Callable[[Any], Any]
    used: frozenset[str]
    values_per_row: int
    pack: Callable[..., bytes] | None
    shape: list[int]

    def check_size(self, body: bytes, max_rows: int, json_bytes: int = 0) -> None:
        """Count the JSON values of a body before it is decoded, which takes about fifty times as long.

        Raises:
            TooLarge: The body holds more values than ``max_rows`` rows have.
        """
        max_values = max_rows * self.values_per_row + SPARE_VALUES
        # no body holds more values than bytes
        if len(body) <= max_values:
            return
        text = body[:json_bytes] if json_bytes else body
        has_texts = any(field.datatype == "BYTES" for field in self.inputs)
        if json_bytes and not has_texts and len(body) - json_bytes > MAX_ITEM_BYTES * max_values:
            raise TooLarge(f"the tensors have {len(body) - json_bytes} bytes; at most {max_rows} rows are accepted")
        if len(text) > max_values and count_values(text, max_values) > max_values:
            raise TooLarge(f"the body holds more than {max_values} values; at most {max_rows} rows are accepted")

    def read(self, body: bytes | bytearray, json_bytes: int = 0) -> InferenceRequest:
        """Read a request; tensors may follow the first ``json_bytes`` as bytes (0: all is JSON).

        Raises:
            InvalidRequest: The body is not JSON, not a request, or does not fit the inputs of the model.
        """
        try:
            if json_bytes:
                head = read_head(body, json_bytes)
                quick = self._read_head(head, bytes(body[json_bytes:]))
                return quick or self.read_data(inline_tensors(head, body, json_bytes))
            request = self.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(_explain_json(str(error), body)) from error
        return self._check(request)

    def read_data(self, data: Mapping[str, Any]) -> InferenceRequest:
        """Read a request that came as plain data instead of JSON.

        Raises:
            InvalidRequest: See ``read``.
        """
        try:
            request = self.convert(data)
        except msgspec.MsgspecError as error:
            raise InvalidRequest(self._explain_tensors(data) or str(error)) from error
        return self._check(request)

    def _explain_tensors(self, data: Mapping[str, Any]) -> str:
        """Return which tensor does not fit in words for tensors that came as bytes; empty if the fault is elsewhere.

        Raises:
            InvalidRequest: A tensor has another datatype than its input.
        """
        fields = {field.name: field for field in self.inputs}
        for tensor in data["inputs"]:
            field = fields.get(tensor["name"])
            if field is not None:
                _check_datatype(tensor["datatype"], field)
                if not field.missing and None in tensor.get("data", ()):
                    return _describe_nan(field)
        return ""

    def _check(self, request: Any) -> InferenceRequest:
        if request.id and len(request.id) > MAX_ID_LENGTH:
            raise InvalidRequest(f"the id must be text of at most {MAX_ID_LENGTH} characters")
        if (row := self._read_single_row(request)) is not None:
            return InferenceRequest({self.inputs[0].name: row}, SINGLE_ROW, request.id or "", ())
        inputs = self._read_arrays(self._select_tensors(request.inputs))
        call = read_call(request.parameters, len(inputs[self.inputs[0].name]))
        outputs = self._read_outputs(request.outputs) if request.outputs else ()
        ignored = self._list_ignored(request) if request.parameters or request.outputs else ()
        return InferenceRequest(inputs, call, request.id or "", outputs, self._raw_outputs(request), ignored)

    def _read_single_row(self, request: Any) -> Array | None:
        """Read the most frequent request quickly: one row of plain numbers for a model with one input."""
        if self.pack is None or len(request.inputs) != 1 or request.parameters or request.outputs:
            return None
        tensor, field = request.inputs[0], self.inputs[0]
        if tensor.name != field.name or tensor.datatype != field.datatype or tensor.shape != self.shape:
            return None
        try:
            return np.frombuffer(self.pack(*tensor.data)).reshape(self.shape)
        except struct.error:
            # nested, or of another length: the general path accepts it or explains why not
            return None

    def read_raw(self, name: str, datatype: str, shape: Sequence[int], raw: bytes) -> Array | None:
        """Read the only tensor of a request from its bytes without a Python object per value.

        ``None`` if the general path must accept it, or explain why not: it takes every datatype, and NaN.
        """
        field = self.inputs[0]
        is_exact = len(self.inputs) == 1 and not field.missing and datatype in EXACT_TYPES.get(field.datatype, ())
        if not is_exact or name != field.name or len(shape) != len(self.shape):
            return None
        dtype = np.dtype(RAW_DTYPES[datatype])
        if shape[0] < 1 or shape[1:] != self.shape[1:] or len(raw) != math.prod(shape) * dtype.itemsize:
            return None
        array = np.frombuffer(raw, dtype)
        if not np.isfinite(array).all():
            return None
        return array.astype(DTYPES[field.datatype], copy=False).reshape(shape)

    def _read_head(self, head: RequestHead, raw: bytes) -> InferenceRequest | None:
        """Read a request with a single tensor, the bytes of which follow its JSON, and no parameters but for bytes."""
        flags = head.parameters or {}
        is_plain = len(head.inputs) == 1 and not head.outputs and len(head.id or "") <= MAX_ID_LENGTH
        if not is_plain or not all(name == "binary_data_output" and type(flags[name]) is bool for name in flags):
            return None
        tensor = head.inputs[0]
        if tensor.data is not msgspec.UNSET or tensor.parameters != {"binary_data_size": len(raw)}:
            return None
        array = self.read_raw(tensor.name, tensor.datatype, tensor.shape, raw)
        if array is None:
            return None
        outputs = frozenset(self.outputs if any(flags.values()) else ())
        return InferenceRequest({tensor.name: array}, Call(len(array)), head.id or "", (), outputs)

    def _read_arrays(self, tensors: Mapping[str, Any]) -> dict[str, Array]:
        inputs = {field.name: read_array(tensors[field.name], field) for field in self.inputs}
        self._check_nulls(inputs)
        if len(inputs) > 1 and len({len(array) for array in inputs.values()}) > 1:
            counts = ", ".join(f"{name} {len(array)}" for name, array in inputs.items())
            raise InvalidRequest(f"inputs have different numbers of rows: {counts}")
        return inputs

    def _select_tensors(self, tensors: Sequence[Any]) -> dict[str, Any]:
        by_name = {tensor.name: tensor for tensor in tensors}
        names = [field.name for field in self.inputs]
        if len(tensors) == len(by_name) and list(by_name) == names:
            return by_name
        expected = ", ".join(map(repr, names))
        if len(by_name) < len(tensors):
            raise InvalidRequest(f"an input is given twice; this model takes {expected}")
        for name in by_name:
            if name not in names:
                raise InvalidRequest(f"no such input: {name!r}; this model takes {expected}")
        for name in names:
            if name not in by_name:
                raise InvalidRequest(f"the input {name!r} is missing")
        return by_name

    def _check_nulls(self, inputs: Mapping[str, Array]) -> None:
        for field in self.inputs if self.nulls else ():
            if not field.missing and field.datatype in FLOAT_TYPES and np.isnan(inputs[field.name]).any():
                raise InvalidRequest(_describe_nan(field))

    def _read_outputs(self, outputs: Sequence[RequestedOutput]) -> tuple[str, ...]:
        names = tuple(output.name for output in outputs)
        if len(set(names)) < len(names):
            # a small request could ask for any number of copies
            raise InvalidRequest("an output is requested twice")
        for name in names:
            if name not in self.outputs:
                available = ", ".join(map(repr, self.outputs))
                raise InvalidRequest(f"no such output: {name!r}; this model gives {available}")
        return names

    def _list_ignored(self, request: Any) -> tuple[str, ...]:
        """List the parameters without effect, at most a few and shortened: the client chose the names."""
        names = [name for name, value in (request.parameters or {}).items() if value is not None]
        ignored = [name for name in names if name not in self.used]
        for output in request.outputs or ():
            ignored += [f"{output.name}.{name}" for name in output.parameters or () if name != "binary_data"]
        return tuple(name[:MAX_IGNORED_LENGTH] for name in ignored[:MAX_IGNORED])

    def _raw_outputs(self, request: Any) -> frozenset[str]:
        default = _read_flag(request.parameters, "binary_data_output", default=False)
        if not request.outputs:
            return frozenset(self.outputs if default else ())
        outputs: Sequence[RequestedOutput] = request.outputs
        return frozenset(
            output.name for output in outputs if _read_flag(output.parameters, "binary_data", default=default)
        )


@dataclass(frozen=True, slots=True)
class ResponseWriter:
    """Writes the bodies of responses of one model: their common beginning, outputs, and heads of single rows."""

    head: bytes
    fields: Mapping[str, Field]
    single: Mapping[str, bytes]

    def write(self, request: InferenceRequest, rows: EncodedRows, start: int, end: int) -> bytes:
        """Return the body of the response to ``request`` with the rows from ``start`` to before ``end``."""
        names = request.outputs or self.fields
        if end - start == 1:
            parts = [self.single[name] + rows[name][start] for name in names]
        else:
            parts = [_tensor_head(self.fields[name], end - start) + b",".join(rows[name][start:end]) for name in names]
        return b"".join((self.head, b"]},".join(parts), b"]}]", self._encode_parameters(request), b"}"))

    def write_raw(self, request: InferenceRequest, rows: EncodedRows, start: int, end: int) -> tuple[bytes, bytes]:
        """Return the JSON of such a body, and the tensors of ``request.raw`` as bytes that follow it."""
        tensors, raw_data = [], []
        for name in request.outputs or self.fields:
            field, data = self.fields[name], b"[%b]" % b",".join(rows[name][start:end])
            head = {"name": name, "datatype": field.datatype, "shape": [end - start, *field.shape]}
            raw = encode_tensor(field.datatype, data) if name in request.raw else None
            raw_data.append(raw or b"")
            body = {"data": msgspec.Raw(data)} if raw is None else {"parameters": {"binary_data_size": len(raw)}}
            tensors.append(encode(head | body))
        json = b"".join((self.head, b",".join(tensors), b"]", self._encode_parameters(request), b"}"))
        return json, b"".join(raw_data)

    def _encode_parameters(self, request: InferenceRequest) -> bytes:
        """Encode the id and entity of a request, and its parameters without effect."""
        text, call = b',"id":' + encode(request.id) if request.id else b"", request.call
        parameters: dict[str, Any] = {"entity": call.entity} if call.entity else {}
        if request.ignored:
            parameters["ignored"] = request.ignored
        return text + b',"parameters":' + encode(parameters) if parameters else text


def build_reader(inputs: tuple[Field, ...], outputs: tuple[Field, ...], used: Iterable[str] = ()) -> RequestReader:
    """Build the reader for a model.

    Args:
        inputs: The inputs of the model.
        outputs: Its outputs.
        used: The parameters of a request that have an effect; others are listed in the response.
    """
    cell: Any = float if {field.datatype for field in inputs} <= FLOAT_TYPES else Scalar
    nulls = any(field.missing for field in inputs)
    cell = cell | None if nulls else cell
    # depth two covers (rows, columns); deeper tensors come flat, in row-major order
    tensor = msgspec.defstruct(
        "Tensor",
        [("name", str), ("shape", list[int]), ("datatype", str), ("data", list[cell | list[cell]])],
    )
    request = msgspec.defstruct(
        "Request",
        [
            ("inputs", list[tensor]),  # type: ignore[valid-type]
            ("id", str | None, None),
            ("parameters", dict[str, Any] | None, None),
            ("outputs", list[RequestedOutput] | None, None),
        ],
    )
    first = inputs[0]
    is_plain = len(inputs) == 1 and first.datatype == "FP64" and not first.missing
    return RequestReader(
        inputs=inputs,
        outputs=tuple(field.name for field in outputs),
        nulls=nulls,
        decode=msgspec.json.Decoder(request).decode,
        convert=functools.partial(msgspec.convert, type=request),
        used=frozenset((*used, *_PROTOCOL_PARAMETERS, *_accuracy_parameters(outputs))),
        values_per_row=sum(math.prod(field.shape) + 1 for field in inputs),
        pack=struct.Struct(f"{math.prod(first.shape)}d").pack if is_plain else None,
        shape=[1, *first.shape],
    )


def count_values(text: bytes, enough: int) -> int:
    """Count the JSON values in ``text``: its commas and opened lists and objects outside of strings.

    The count ends soon after ``enough``. It takes slices, so that other threads get their turn in between.
    """
    count, start, is_in_string = 1, 0, False
    while start < len(text) and count <= enough:
        end = min(start + _SLICE_BYTES, len(text))
        while end < len(text) and text[end - 1] == _BACKSLASH:
            end += 1
        part = _JSON_STRING.sub(b"", (b'"' if is_in_string else b"") + text[start:end])
        # what is left of a quote on is a string that continues in the next slice
        head, quote, _ = part.partition(b'"')
        is_in_string, start = bool(quote), end
        count += head.count(b",") + head.count(b"[") + head.count(b"{")
    return count


def build_writer(model: ModelDescription) -> ResponseWriter:
    """Encode the constant parts of a model's responses once: name, version, and the head of each output."""
    head = b'{"model_name":%b,"model_version":%b,"outputs":[' % (encode(model.name), encode(model.version))
    fields = {field.name: field for field in model.outputs}
    return ResponseWriter(head, fields, {name: _tensor_head(field, 1) for name, field in fields.items()})


def read_array(tensor: Any, field: Field) -> Array:
    """Convert a tensor of a request to an array of shape (rows, ``*shape``).

    Raises:
        InvalidRequest: Datatype, shape or data do not fit ``field``.
    """
    if is_other_type := tensor.datatype != field.datatype:
        _check_datatype(tensor.datatype, field)
    shape = tensor.shape
    if len(shape) != len(field.shape) + 1 or tuple(shape[1:]) != field.shape or shape[0] < 1:
        actual = ", ".join(map(str, shape[:MAX_SHOWN_DIMENSIONS])) + ", ..." * (len(shape) > MAX_SHOWN_DIMENSIONS)
        message = f"input {field.name!r} has shape [{actual}]; it must be {format_shape(field)} with at least one row"
        raise InvalidRequest(message)
    data = tensor.data
    if data and isinstance(data[0], list):
        data = [value for row in data for value in _check_row(row, field)]
    if len(data) != math.prod(shape):
        message = f"input {field.name!r} has {len(data)} values; its shape {shape} needs {math.prod(shape)}"
        raise InvalidRequest(message)
    if is_other_type:
        _check_values(data, tensor.datatype, field)
    return _convert(data, field).reshape(shape)


def format_shape(field: Field) -> str:
    """Format the shape of a tensor as the protocol writes it: -1 for the rows."""
    return str([-1, *field.shape])


def read_call(parameters: Mapping[str, Any] | None, rows: int) -> Call:
    """Read the parameters of a request.

    They are ``entity`` (text), ``time`` (integer), ``deadline_ms`` (positive) and ``least_accuracy`` (a fraction).
    Others belong to the client and are not read.

    Raises:
        InvalidRequest: One of them has another type, or a time has no entity.
    """
    if not parameters:
        return Call(rows)
    value, time = parameters.get("entity"), parameters.get("time")
    entity = "" if value is None else value
    if not isinstance(entity, str) or len(entity) > MAX_ENTITY_LENGTH:
        raise InvalidRequest(f"the parameter 'entity' must be text of at most {MAX_ENTITY_LENGTH} characters")
    if time is not None and (type(time) is not int or abs(time) > MAX_EXACT_INTEGER):
        raise InvalidRequest("the parameter 'time' must be a whole number")
    if time is not None and not entity:
        raise InvalidRequest("the parameter 'time' needs the parameter 'entity'")
    deadline_s, accuracy = _read_deadline(parameters.get("deadline_ms")), _read_accuracy(parameters)
    return Call(rows, entity, time, deadline_s, accuracy)


def _describe_nan(field: Field) -> str:
    return f"input {field.name!r} holds NaN (null in JSON), which is not a value here"


def _explain_json(message: str, body: bytes | bytearray) -> str:
    """Add to the message of the decoder what it does not say: that JSON has no NaN, or that there is no body."""
    if not body:
        return "the body is empty"
    at = _BYTE_POSITION.search(message)
    name = _NO_NUMBER.match(body, int(at[1])) if at else None
    return f"JSON has no {name[0].decode()}: {message}" if name else message


def _read_flag(parameters: Mapping[str, Any] | None, name: str, *, default: bool) -> bool:
    value = (parameters or {}).get(name)
    if value is not None and type(value) is not bool:
        raise InvalidRequest(f"the parameter {name!r} must be true or false")
    return default if value is None else value


def _check_datatype(datatype: str, field: Field) -> None:
    is_number = field.datatype not in ("BYTES", "BOOL")
    if datatype != field.datatype and not (is_number and datatype in NUMBER_TYPES):
        raise InvalidRequest(f"input {field.name!r} has datatype {datatype!r}; it must be {field.datatype}")


def _check_values(data: Sequence[Any], datatype: str, field: Field) -> None:
    """Check that values belong to the datatype that a tensor declares, where that is not the one of its input.

    Raises:
        InvalidRequest: A value is outside its range, or a fraction in a tensor of integers.
    """
    is_plain = {int, float}.issuperset(map(type, data))
    numbers = data if is_plain else [value for value in data if type(value) in (int, float)]
    if not numbers:
        return
    low, high = _RANGES[datatype]
    extreme = next((value for value in (min(numbers), max(numbers)) if not low <= value <= high), None)
    if extreme is None and datatype not in _FLOATS:
        extreme = next((value for value in numbers if isinstance(value, float) and not value.is_integer()), None)
    if extreme is not None:
        raise InvalidRequest(f"input {field.name!r} is {datatype} and holds {extreme:g}")


def _check_row(row: Any, field: Field) -> Sequence[Any]:
    if not isinstance(row, list):
        raise InvalidRequest(f"input {field.name!r} mixes numbers and lists; give all values flat, or one list per row")
    if field.shape and len(row) != field.shape[0]:
        raise InvalidRequest(f"input {field.name!r} has a row of {len(row)} values; it must be {format_shape(field)}")
    return row


def _convert(data: Sequence[Any], field: Field) -> Array:
    try:
        if field.datatype == "FP64" and not field.missing:
            # three times as fast as np.array
            return np.frombuffer(struct.pack(f"{len(data)}d", *data))
        return _convert_exactly(data, field, DTYPES[field.datatype])
    except (TypeError, ValueError, OverflowError, FloatingPointError, struct.error) as error:
        raise InvalidRequest(f"input {field.name!r} must hold {field.datatype}") from error


def _convert_exactly(data: Sequence[Any], field: Field, dtype: type[Any]) -> Array:
    types = {"BYTES": (str,), "BOOL": (bool,), "FP32": (float, int, NoneType), "FP64": (float, int, NoneType)}
    allowed = types.get(field.datatype, (int,))
    for value in data:
        if type(value) not in allowed:
            raise TypeError(value)
    result = np.empty(len(data), dtype=dtype)
    with np.errstate(over="raise"):
        result[:] = [math.nan if value is None else value for value in data]
    return result


def _accuracy_parameters(outputs: Sequence[Field]) -> tuple[str, ...]:
    return ("least_accuracy",) if any(field.name == ACCURACY_OUTPUT for field in outputs) else ()


def _read_deadline(deadline_ms: Any) -> float | None:
    if deadline_ms is None:
        return None
    if type(deadline_ms) not in (int, float) or not 0 < deadline_ms <= MAX_DEADLINE_MS:
        raise InvalidRequest("the parameter 'deadline_ms' must be a number above 0, of at most a day")
    return float(deadline_ms) / 1e3


def _read_accuracy(parameters: Mapping[str, Any]) -> float:
    accuracy = parameters.get("least_accuracy")
    if accuracy is None:
        return 0.0
    if type(accuracy) not in (int, float) or not 0 <= accuracy <= 1:
        raise InvalidRequest("the parameter 'least_accuracy' must be a fraction, from 0 to 1")
    return float(accuracy)


def _tensor_head(field: Field, rows: int) -> bytes:
    head = {"name": field.name, "datatype": field.datatype, "shape": [rows, *field.shape]}
    return encode(head)[:-1] + b',"data":['
