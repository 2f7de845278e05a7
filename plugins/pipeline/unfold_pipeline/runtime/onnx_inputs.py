"""The inputs of an ONNX model: of what type and shape they are, and how rows of queries are made into them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfoldkit.api import UnfoldError, fail

Rows = NDArray[np.float32]
KINDS = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
OPEN = -1


@dataclass(frozen=True, slots=True)
class Input:
    """One input: its name, the NumPy type, the shape of one query (at most one ``OPEN``), and whether it takes one."""

    name: str
    kind: str
    shape: tuple[int, ...]
    single: bool

    @property
    def width(self) -> int | None:
        """The numbers of a row, ``None`` if any number will do that fills the shape."""
        return None if OPEN in self.shape else math.prod(self.shape)

    def takes(self, width: int) -> bool:
        """Whether rows of ``width`` numbers fill the shape."""
        known = math.prod(size for size in self.shape if size != OPEN)
        return width % known == 0 and width > 0 if OPEN in self.shape else width == known

    def filled(self, rows: Rows) -> NDArray[Any]:
        """Return rows, shape (batch, width), as this input takes them."""
        return rows.astype(self.kind, copy=False).reshape(len(rows), *self.shape)


@dataclass(frozen=True, slots=True)
class Session:
    """A model that is loaded, and its inputs, each of which is given the same row."""

    session: Any
    inputs: tuple[Input, ...]

    @property
    def width(self) -> int | None:
        """The numbers that a row must have, where the model says so."""
        return next((item.width for item in self.inputs if item.width is not None), None)

    def __call__(self, rows: Rows) -> NDArray[Any]:
        """Return the first output for a batch of rows; a model of one query is asked row by row."""
        if any(item.single for item in self.inputs) and len(rows) > 1:
            return np.concatenate([self(rows[index : index + 1]) for index in range(len(rows))])
        return np.asarray(self.session.run(None, {item.name: item.filled(rows) for item in self.inputs})[0])

    def refuse(self, path: str, width: int) -> None:
        """Refuse rows that do not fill an input.

        Raises:
            UnfoldError: names the model, the input, its type and its shape.
        """
        for item, given in zip(self.inputs, self.session.get_inputs(), strict=True):
            if not item.takes(width):
                hint = f"features: {item.width}" if item.width else "features: how many numbers a query has"
                raise _refused(path, given, f"cannot be filled with rows of {width} numbers", hint)


def opened(path: str) -> Session:
    """Return an ONNX model, loaded for one core.

    Raises:
        UnfoldError: it has an input that no row of numbers can fill.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Session(session, inputs_of(path, session.get_inputs()))


def inputs_of(path: str, given: Sequence[Any]) -> tuple[Input, ...]:
    """Return the inputs of a session; each has the batch first.

    Raises:
        UnfoldError: see :func:`opened`.
    """
    found = tuple(_input(path, item) for item in given)
    widths = sorted({item.width for item in found if item.width is not None})
    if len(widths) > 1:
        hint = "every input is given the same row: join them in the model, or wrap it as code: module:function"
        told = " and ".join(f"{item.name} {_shape(item)}" for item in given)
        raise fail(f"{Path(path).name}: the inputs {told} need rows of different lengths", hint=hint)
    return found


def _input(path: str, given: Any) -> Input:
    kind, shape = KINDS.get(given.type), list(given.shape or [])
    if kind is None:
        raise _refused(path, given, "is not made of numbers", "wrap the model as code: module:function")
    if not shape:
        raise _refused(path, given, "has no batch", "export it with the batch as its first axis")
    if isinstance(shape[0], int) and shape[0] != 1:
        hint = "export it with a dynamic first axis, which is the batch"
        raise _refused(path, given, f"takes batches of exactly {shape[0]}", hint)
    rest = tuple(size if isinstance(size, int) and size > 0 else OPEN for size in shape[1:])
    if rest.count(OPEN) > 1:
        raise _refused(
            path, given, "has more than one open size besides the batch", "export it with sizes that are fixed"
        )
    return Input(given.name, kind, rest, shape[0] == 1)


def _shape(given: Any) -> str:
    return f"[{', '.join(str(size) for size in given.shape or [])}]"


def _refused(path: str, given: Any, why: str, hint: str) -> UnfoldError:
    return fail(f"{Path(path).name}: the input {given.name} of {given.type} {_shape(given)} {why}", hint=hint)
