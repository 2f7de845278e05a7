"""The contract between server and model: named inputs and outputs, and predictions for many rows at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES: Mapping[str, type[Any]] = {
    "BOOL": np.bool_,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}
MAX_SINGLE = float(np.finfo(np.float32).max)
EncodedRows = Mapping[str, Sequence[bytes]]
"""The JSON of each row of each output of a batch."""
encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Field:
    """One input or output tensor.

    Args:
        name: The name of the tensor.
        datatype: A key of ``DTYPES``.
        shape: The shape of one row.
        missing: Whether an input may hold null, which becomes NaN.
        columns: Names of the entries of a row.
    """

    name: str
    datatype: str = "FP64"
    shape: tuple[int, ...] = ()
    missing: bool = False
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CategoricalColumn:
    """An output column with few different values: row i holds ``values[codes[i]]``."""

    codes: Sequence[int] | Array
    values: Sequence[Any]


Column = Array | CategoricalColumn | list[Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One request as a model sees it.

    Args:
        rows: The number of rows.
        entity: The entity that the rows belong to; empty if the request names none.
        time: The logical time of the first row; ``None`` if the request names none.
        deadline: Seconds from its arrival until the response is late; ``None`` for no deadline.
        least_accuracy: The minimum expected accuracy of the response, a fraction.
    """

    rows: int
    entity: str = ""
    time: int | None = None
    deadline: float | None = None
    least_accuracy: float = 0.0


@dataclass(frozen=True, slots=True)
class PathChoice:
    """The execution path that the queue chose for a batch.

    Args:
        way: The index of the execution path.
        due: When each call is late, on the clock of the queue.
        picked: When the path was chosen, on the same clock.
    """

    way: int
    due: tuple[float, ...]
    picked: float


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one or more calls, concatenated.

    Args:
        inputs: Arrays of shape (rows, ``*shape``), by name of the input.
        calls: The calls, in the order of their rows.
        trial: The batch warms the model up: it is not counted and changes no state.
        turn: The execution path that the queue chose, if it chooses one.
    """

    inputs: Mapping[str, Array]
    calls: tuple[Call, ...]
    trial: bool = False
    turn: PathChoice | None = None

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(call.rows for call in self.calls)


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a call is not answered.

    Args:
        status: An HTTP status of at least 400.
        message: A sentence.
        retry_s: The time in s after which to retry; 0 for none.
    """

    status: int
    message: str
    retry_s: int = 0


@dataclass(frozen=True, slots=True)
class Predictions:
    """One column per output with the rows of the batch, and the rejected calls by index.

    Values in rows of rejected calls are ignored.
    """

    columns: Mapping[str, Column]
    refused: Mapping[int, Rejection] = field(default_factory=dict)


class ModelDescription(Protocol):
    """The metadata of a model in the Open Inference Protocol."""

    @property
    def name(self) -> str:
        """The name in the path of requests."""

    @property
    def version(self) -> str:
        """Identifies the contents of the model among others of its name."""

    @property
    def inputs(self) -> tuple[Field, ...]:
        """The tensors that every request must have."""

    @property
    def outputs(self) -> tuple[Field, ...]:
        """The tensors of every response."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Further metadata, as plain data."""


class Model(ModelDescription, Protocol):
    """Predicts batches. One thread at a time calls it."""

    def predict(self, batch: Batch) -> Predictions:
        """Predict a batch of at least one row."""


def make_blank_batch(model: Model, rows: int) -> Batch:
    """Make a batch of zeros, with empty text for BYTES, to warm a model up."""
    inputs = {
        item.name: np.full((rows, *item.shape), "" if item.datatype == "BYTES" else 0, dtype=DTYPES[item.datatype])
        for item in model.inputs
    }
    return Batch(inputs, (Call(rows),), trial=True)


def reject_large_values(
    x: Array, calls: Sequence[Call], item: Field, limit: float = MAX_SINGLE
) -> tuple[Array, dict[int, Rejection]]:
    """Replace values beyond ``limit`` in (n, d) rows, and reject the calls that contain some.

    Trees, and most converted models, compute in single precision, where such a value is infinite.
    """
    # min and max make no second array of the size of x, and ignore NaN
    if np.fmin.reduce(x, axis=None) >= -limit and np.fmax.reduce(x, axis=None) <= limit:
        return x, {}
    is_large = np.abs(x) > limit
    refusals, start = dict[int, Rejection](), 0
    for index, call in enumerate(calls):
        for row, column in np.argwhere(is_large[start : start + call.rows])[:1]:
            name = f'column "{item.columns[column]}"' if item.columns else f"column {column + 1}"
            value = f"{x[start + row, column]:g} in row {row + 1}, {name}"
            refusals[index] = Rejection(
                400, f"input {item.name!r} holds {value}: too large for models in single precision"
            )
        start += call.rows
    return np.where(is_large, 0.0, x), refusals


def encode_rows(columns: Mapping[str, Column]) -> EncodedRows:
    """Encode every row of every column as JSON; a categorical value is encoded once per batch."""
    return {name: _encode_column(column) for name, column in columns.items()}


def _encode_column(column: Column) -> list[bytes]:
    if not isinstance(column, CategoricalColumn):
        return [encode(value) for value in _to_list(column)]
    codes = _to_list(column.codes)
    encoded = {code: encode(column.values[code]) for code in set(codes)}
    return [encoded[code] for code in codes]


def _to_list(values: Any) -> list[Any]:
    result: list[Any] = values.tolist() if isinstance(values, np.ndarray) else values
    return result
