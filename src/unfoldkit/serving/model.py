"""What the server asks of a model: named inputs and outputs, and an answer for many rows at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

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


@dataclass(frozen=True, slots=True)
class Field:
    """One input or output tensor: ``shape`` is that of one row, ``datatype`` a key of ``DTYPES``.

    ``missing`` says whether an input may hold null, which becomes NaN; ``columns`` name the entries of a row.
    """

    name: str
    datatype: str = "FP64"
    shape: tuple[int, ...] = ()
    missing: bool = False
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Coded:
    """An output column with few different values: row i holds ``values[codes[i]]``."""

    codes: Sequence[int] | Array
    values: Sequence[Any]


Column = Array | Coded | list[Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One request as a model sees it: how many rows, whose they are, and at which logical time the first stands.

    ``deadline`` is how many seconds after it came its answer is late, ``None`` if it does not say; ``least_accuracy``
    is the share that the answer is to be expected right with, 0 if it does not say.
    """

    rows: int
    entity: str = ""
    time: int | None = None
    deadline: float | None = None
    least_accuracy: float = 0.0


@dataclass(frozen=True, slots=True)
class Turn:
    """How a batch is answered: by which of the model's ways.

    ``due`` is when each call is late, ``picked`` when the way was picked, both on the line's clock.
    """

    way: int
    due: tuple[float, ...]
    picked: float


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one or more calls, one after the other: (rows, *shape) for each input.

    A ``trial`` warms the model up: it is neither counted nor remembered. ``turn`` is what the line picked, if it picks.
    """

    inputs: Mapping[str, Array]
    calls: tuple[Call, ...]
    trial: bool = False
    turn: Turn | None = None

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(call.rows for call in self.calls)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one call is not answered: an HTTP status from 400 and a sentence."""

    status: int
    message: str


@dataclass(frozen=True, slots=True)
class Answers:
    """One column for each output, its rows as those of the batch; what stands in rows of refused calls is not read."""

    columns: Mapping[str, Column]
    refused: Mapping[int, Refusal] = field(default_factory=dict)


class Described(Protocol):
    """What answers under a name, as the protocol tells it."""

    @property
    def name(self) -> str:
        """The name in the path of its requests."""

    @property
    def version(self) -> str:
        """What tells one content of this name from another."""

    @property
    def inputs(self) -> tuple[Field, ...]:
        """What every request must give."""

    @property
    def outputs(self) -> tuple[Field, ...]:
        """What every answer holds."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the metadata tells beside inputs and outputs, as plain data."""


class Model(Described, Protocol):
    """Answers batches. It is called by one thread at a time."""

    def predict(self, batch: Batch) -> Answers:
        """Return the answers for a batch of at least one row."""


def blank(model: Model, rows: int) -> Batch:
    """Return a batch of zeros (empty text for BYTES), to warm a model up."""
    inputs = {
        item.name: np.full((rows, *item.shape), "" if item.datatype == "BYTES" else 0, dtype=DTYPES[item.datatype])
        for item in model.inputs
    }
    return Batch(inputs, (Call(rows),), trial=True)
