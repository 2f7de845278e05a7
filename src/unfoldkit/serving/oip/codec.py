"""Bodies of the Open Inference Protocol v2 over REST: typed JSON in, typed JSON out.

https://github.com/kserve/open-inference-protocol, "Predict Protocol, version 2". What is optional may be null, as many
clients write what they leave out.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import msgspec
import numpy as np

from unfoldkit.serving.model import DTYPES, Array, Call, Coded, Column, Described, Field
from unfoldkit.serving.oip.binary import Unfit, joined, to_bytes

Scalar = str | int | float | bool
SINGLE = Call(1)
LONGEST_MS = 86_400_000
ACCURATE = "accurate_enough"
"""The output by which a model that heeds ``least_accuracy`` says whether an answer is."""
FLOATS = frozenset({"FP32", "FP64"})
NUMBERS = frozenset({"FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"})


class Wanted(msgspec.Struct):
    """An output that the client asks for."""

    name: str
    parameters: dict[str, Any] | None = None


# not frozen: one is made for every request, and freezing makes that three times as dear
@dataclass(slots=True)
class Question:
    """A request that fits its model; ``outputs`` are those that the client wants, all if empty.

    ``raw`` are those that it wants as bytes.
    """

    inputs: Mapping[str, Array]
    call: Call
    id: str
    outputs: tuple[str, ...]
    raw: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the bodies of requests for one model."""

    inputs: tuple[Field, ...]
    outputs: tuple[str, ...]
    nulls: bool
    decode: Callable[[bytes | bytearray], Any]
    convert: Callable[[Any], Any]
    pack: Callable[..., bytes] | None
    shape: list[int]

    def read(self, body: bytes | bytearray, json_bytes: int = 0) -> Question:
        """Return the request in ``body``; tensors may follow its first ``json_bytes`` as they are (0: all is JSON).

        Raises:
            Unfit: it is no JSON, no request, or does not fit the inputs of the model.
        """
        try:
            request = self.convert(joined(body, json_bytes)) if json_bytes else self.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Unfit(str(error)) from error
        if (row := self._single(request)) is not None:
            return Question({self.inputs[0].name: row}, SINGLE, request.id or "", ())
        inputs = self._arrays(self._by_name(request.inputs))
        call = to_call(request.parameters, len(inputs[self.inputs[0].name]))
        wanted = self._wanted(request.outputs) if request.outputs else ()
        return Question(inputs, call, request.id or "", wanted, self._raw(request))

    def _single(self, request: Any) -> Array | None:
        """Return the row of the request that nearly all are: one row of plain numbers for a model of one input."""
        if self.pack is None or len(request.inputs) != 1 or request.parameters or request.outputs:
            return None
        tensor, item = request.inputs[0], self.inputs[0]
        if tensor.name != item.name or tensor.datatype != item.datatype or tensor.shape != self.shape:
            return None
        try:
            return np.frombuffer(self.pack(*tensor.data)).reshape(self.shape)
        except struct.error:
            # nested, or of another length: the long way takes it or says why not
            return None

    def _arrays(self, tensors: Mapping[str, Any]) -> dict[str, Array]:
        inputs = {item.name: to_array(tensors[item.name], item) for item in self.inputs}
        self._check_nulls(inputs)
        if len(inputs) > 1 and len({len(array) for array in inputs.values()}) > 1:
            counts = ", ".join(f"{name} {len(array)}" for name, array in inputs.items())
            raise Unfit(f"inputs have different numbers of rows: {counts}")
        return inputs

    def _by_name(self, tensors: Sequence[Any]) -> dict[str, Any]:
        found = {tensor.name: tensor for tensor in tensors}
        names = [item.name for item in self.inputs]
        if len(tensors) == len(found) and list(found) == names:
            return found
        wanted = ", ".join(map(repr, names))
        if len(found) < len(tensors):
            raise Unfit(f"an input is given twice; this model takes {wanted}")
        for name in found:
            if name not in names:
                raise Unfit(f"no such input: {name!r}; this model takes {wanted}")
        for name in names:
            if name not in found:
                raise Unfit(f"the input {name!r} is missing")
        return found

    def _check_nulls(self, inputs: Mapping[str, Array]) -> None:
        for item in self.inputs if self.nulls else ():
            if not item.missing and item.datatype in FLOATS and np.isnan(inputs[item.name]).any():
                raise Unfit(f"input {item.name!r}: null is not a value here")

    def _wanted(self, outputs: Sequence[Wanted]) -> tuple[str, ...]:
        names = tuple(output.name for output in outputs)
        for name in names:
            if name not in self.outputs:
                raise Unfit(f"no such output: {name!r}; this model gives {', '.join(map(repr, self.outputs))}")
        return names

    def _raw(self, request: Any) -> frozenset[str]:
        every = _flag(request.parameters, "binary_data_output", default=False)
        if not request.outputs:
            return frozenset(self.outputs if every else ())
        wanted: Sequence[Wanted] = request.outputs
        return frozenset(one.name for one in wanted if _flag(one.parameters, "binary_data", default=every))


def _flag(parameters: Mapping[str, Any] | None, name: str, *, default: bool) -> bool:
    given = (parameters or {}).get(name)
    if given is not None and type(given) is not bool:
        raise Unfit(f"the parameter {name!r} must be true or false")
    return default if given is None else given


def reader(inputs: tuple[Field, ...], outputs: tuple[Field, ...]) -> Reader:
    """Return the reader for a model with these inputs and outputs."""
    cell: Any = float if {item.datatype for item in inputs} <= FLOATS else Scalar
    nulls = any(item.missing for item in inputs)
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
            ("outputs", list[Wanted] | None, None),
        ],
    )
    one = inputs[0]
    plain = len(inputs) == 1 and one.datatype == "FP64" and not one.missing
    pack = struct.Struct(f"{math.prod(one.shape)}d").pack if plain else None
    names = tuple(item.name for item in outputs)
    decode, convert = msgspec.json.Decoder(request).decode, functools.partial(msgspec.convert, type=request)
    return Reader(inputs, names, nulls, decode, convert, pack, [1, *one.shape])


def to_array(tensor: Any, item: Field) -> Array:
    """Return (rows, *shape) for a tensor of a request.

    Raises:
        Unfit: datatype, shape or data do not fit ``item``.
    """
    if tensor.datatype != item.datatype:
        _check_datatype(tensor.datatype, item)
    shape = tensor.shape
    if len(shape) != len(item.shape) + 1 or tuple(shape[1:]) != item.shape or shape[0] < 1:
        given = ", ".join(map(str, shape))
        raise Unfit(f"input {item.name!r} has shape [{given}]; it must be {shape_text(item)} with at least one row")
    data = tensor.data
    if data and isinstance(data[0], list):
        data = [value for row in data for value in _row(row, item)]
    if len(data) != math.prod(shape):
        raise Unfit(f"input {item.name!r} has {len(data)} values; its shape {shape} needs {math.prod(shape)}")
    return _converted(data, item).reshape(shape)


def shape_text(item: Field) -> str:
    """Return the shape of a whole tensor as the protocol writes it: -1 for the rows."""
    return str([-1, *item.shape])


def _check_datatype(given: str, item: Field) -> None:
    number = item.datatype not in ("BYTES", "BOOL")
    if given != item.datatype and not (number and given in NUMBERS):
        raise Unfit(f"input {item.name!r} has datatype {given!r}; it must be {item.datatype}")


def _row(row: Any, item: Field) -> Sequence[Any]:
    if not isinstance(row, list):
        raise Unfit(f"input {item.name!r} mixes numbers and lists; give all values flat, or one list a row")
    if item.shape and len(row) != item.shape[0]:
        raise Unfit(f"input {item.name!r} has a row of {len(row)} values; it must be {shape_text(item)}")
    return row


def _converted(data: Sequence[Any], item: Field) -> Array:
    kind = DTYPES[item.datatype]
    try:
        if item.datatype == "FP64" and not item.missing:
            # a third of the time of np.array
            return np.frombuffer(struct.pack(f"{len(data)}d", *data))
        return _exact(data, item, kind)
    except (TypeError, ValueError, OverflowError, FloatingPointError, struct.error) as error:
        raise Unfit(f"input {item.name!r} must hold {item.datatype}") from error


def _exact(data: Sequence[Any], item: Field, kind: type[Any]) -> Array:
    wanted = {"BYTES": (str,), "BOOL": (bool,), "FP32": (float, int, NoneType), "FP64": (float, int, NoneType)}
    allowed = wanted.get(item.datatype, (int,))
    for value in data:
        if type(value) not in allowed:
            raise TypeError(value)
    result = np.empty(len(data), dtype=kind)
    with np.errstate(over="raise"):
        result[:] = [math.nan if value is None else value for value in data]
    return result


def to_call(parameters: Mapping[str, Any] | None, rows: int) -> Call:
    """Return what the parameters of a request say.

    They are ``entity`` (text), ``time`` (whole), ``deadline_ms`` (above 0), ``least_accuracy`` (a share).

    Others are those of the client; what they hold is not looked at.

    Raises:
        Unfit: one of them has another type, or a time comes without an entity.
    """
    if not parameters:
        return Call(rows)
    given, time = parameters.get("entity"), parameters.get("time")
    entity = "" if given is None else given
    if not isinstance(entity, str) or len(entity) > 256:
        raise Unfit("the parameter 'entity' must be text of at most 256 characters")
    if time is not None and (type(time) is not int or abs(time) > 2**53):
        raise Unfit("the parameter 'time' must be a whole number")
    if time is not None and not entity:
        raise Unfit("the parameter 'time' needs the parameter 'entity'")
    deadline, least = _seconds(parameters.get("deadline_ms")), _share(parameters.get("least_accuracy"))
    return Call(rows, entity, time, deadline, least)


def _seconds(deadline_ms: Any) -> float | None:
    if deadline_ms is None:
        return None
    if type(deadline_ms) not in (int, float) or not 0 < float(deadline_ms) <= LONGEST_MS:
        raise Unfit("the parameter 'deadline_ms' must be a number above 0, of at most a day")
    return float(deadline_ms) / 1e3


def _share(least_accuracy: Any) -> float:
    if least_accuracy is None:
        return 0.0
    if type(least_accuracy) not in (int, float) or not 0 <= float(least_accuracy) <= 1:
        raise Unfit("the parameter 'least_accuracy' must be a share, from 0 to 1")
    return float(least_accuracy)


Cells = Mapping[str, Sequence[bytes]]
"""The JSON of each row of each output of a batch."""

encode = msgspec.json.Encoder().encode


def cells(columns: Mapping[str, Column]) -> Cells:
    """Return the JSON of every row of every column; what is coded is written once a code that occurs."""
    return {name: _cells(column) for name, column in columns.items()}


def _cells(column: Column) -> list[bytes]:
    if not isinstance(column, Coded):
        return [encode(value) for value in _listed(column)]
    codes = _listed(column.codes)
    written = {code: encode(column.values[code]) for code in set(codes)}
    return [written[code] for code in codes]


def _listed(values: Any) -> list[Any]:
    found: list[Any] = values.tolist() if isinstance(values, np.ndarray) else values
    return found


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes the bodies of answers of one model."""

    head: bytes
    fields: Mapping[str, Field]
    single: Mapping[str, bytes]

    def write(self, question: Question, found: Cells, first: int, last: int) -> bytes:
        """Return the body that answers ``question`` with the rows from ``first`` to before ``last``."""
        names = question.outputs or self.fields
        if last - first == 1:
            parts = [self.single[name] + found[name][first] for name in names]
        else:
            parts = [_opened(self.fields[name], last - first) + b",".join(found[name][first:last]) for name in names]
        return b"".join((self.head, b"]},".join(parts), b"]}]", self._about(question), b"}"))

    def _about(self, question: Question) -> bytes:
        """Return what an answer tells of its request: its id, its entity, and what this model does not heed of it."""
        text, call = b',"id":' + encode(question.id) if question.id else b"", question.call
        told: dict[str, Any] = {"entity": call.entity} if call.entity else {}
        if call.least_accuracy and ACCURATE not in self.fields:
            told["ignored"] = ["least_accuracy"]
        return text + b',"parameters":' + encode(told) if told else text

    def write_raw(self, question: Question, found: Cells, first: int, last: int) -> tuple[bytes, bytes]:
        """Return the JSON of such a body and what follows it: the tensors of ``question.raw`` as bytes."""
        told, behind = [], []
        for name in question.outputs or self.fields:
            item, data = self.fields[name], b"[%b]" % b",".join(found[name][first:last])
            about = {"name": name, "datatype": item.datatype, "shape": [last - first, *item.shape]}
            raw = to_bytes(item.datatype, data) if name in question.raw else None
            behind.append(raw or b"")
            more = {"data": msgspec.Raw(data)} if raw is None else {"parameters": {"binary_data_size": len(raw)}}
            told.append(encode(about | more))
        return b"".join((self.head, b",".join(told), b"]", self._about(question), b"}")), b"".join(behind)


def writer(model: Described) -> Writer:
    """Return the writer for a model."""
    head = b'{"model_name":%b,"model_version":%b,"outputs":[' % (encode(model.name), encode(model.version))
    fields = {item.name: item for item in model.outputs}
    return Writer(head, fields, {name: _opened(item, 1) for name, item in fields.items()})


def _opened(item: Field, rows: int) -> bytes:
    about = {"name": item.name, "datatype": item.datatype, "shape": [rows, *item.shape]}
    return encode(about)[:-1] + b',"data":['
