"""The inputs of an ONNX model: their types and shapes, and how rows of queries fill them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline._types import RowArray
from unfoldkit.api import UnfoldError, user_error

DTYPES = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
OPEN = -1
"""Stands for a dimension of any size."""


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One input of a model.

    Attributes:
        name: its name in the model.
        dtype: its NumPy type.
        shape: shape of one query, with at most one ``OPEN`` dimension.
        is_single: whether the model accepts only one query at a time.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_single: bool

    @property
    def width(self) -> int | None:
        """The numbers of a row; ``None`` if the shape is open."""
        return None if OPEN in self.shape else math.prod(self.shape)

    def accepts_width(self, width: int) -> bool:
        """Return whether rows of ``width`` numbers fill the shape."""
        fixed = math.prod(size for size in self.shape if size != OPEN)
        return width % fixed == 0 and width > 0 if OPEN in self.shape else width == fixed

    def reshape_rows(self, rows: RowArray) -> NDArray[Any]:
        """Return rows, shape (batch, width), in the type and shape of this input."""
        return rows.astype(self.dtype, copy=False).reshape(len(rows), *self.shape)


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """A loaded model; each of its inputs gets the same row."""

    session: Any
    inputs: tuple[ModelInput, ...]

    @property
    def width(self) -> int | None:
        """The numbers of a row, where the model determines them."""
        return next((model_input.width for model_input in self.inputs if model_input.width is not None), None)

    def __call__(self, rows: RowArray) -> NDArray[Any]:
        """Return the first output for a batch of rows; a model that accepts single queries runs row by row."""
        if any(model_input.is_single for model_input in self.inputs) and len(rows) > 1:
            return np.concatenate([self(rows[index : index + 1]) for index in range(len(rows))])
        feed = {model_input.name: model_input.reshape_rows(rows) for model_input in self.inputs}
        return np.asarray(self.session.run(None, feed)[0])

    def check_width(self, path: str, width: int) -> None:
        """Reject rows that do not fill an input.

        Raises:
            UnfoldError: names the model, the input, its type and its shape.
        """
        for model_input, node in zip(self.inputs, self.session.get_inputs(), strict=True):
            if not model_input.accepts_width(width):
                hint = f"features: {model_input.width or 'how many numbers a query has'}"
                raise _reject_input(path, node, f"cannot be filled with rows of {width} numbers", hint)


def load_onnx(path: str) -> OnnxModel:
    """Return an ONNX model, loaded for one core.

    Raises:
        UnfoldError: no row of numbers can fill one of its inputs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return OnnxModel(session, parse_inputs(path, session.get_inputs()))


def parse_inputs(path: str, nodes: Sequence[Any]) -> tuple[ModelInput, ...]:
    """Return the inputs of a session; each has the batch as its first dimension.

    Raises:
        UnfoldError: see :func:`load_onnx`.
    """
    inputs = tuple(_parse_input(path, node) for node in nodes)
    widths = sorted({model_input.width for model_input in inputs if model_input.width is not None})
    if len(widths) > 1:
        hint = "every input gets the same row: join them in the model, or wrap it as code: module:function"
        names = " and ".join(f"{node.name} {_format_shape(node)}" for node in nodes)
        raise user_error(f"{Path(path).name}: the inputs {names} need rows of different lengths", hint=hint)
    return inputs


def _parse_input(path: str, node: Any) -> ModelInput:
    dtype, shape = DTYPES.get(node.type), list(node.shape or [])
    if dtype is None:
        raise _reject_input(path, node, "does not hold numbers", "wrap the model as code: module:function")
    if not shape:
        raise _reject_input(path, node, "has no batch dimension", "export it with the batch as its first axis")
    if isinstance(shape[0], int) and shape[0] != 1:
        hint = "export it with a dynamic first axis, which is the batch"
        raise _reject_input(path, node, f"takes batches of exactly {shape[0]}", hint)
    query_shape = tuple(size if isinstance(size, int) and size > 0 else OPEN for size in shape[1:])
    if query_shape.count(OPEN) > 1:
        raise _reject_input(path, node, "has more than one open size besides the batch", "export it with fixed sizes")
    return ModelInput(node.name, dtype, query_shape, shape[0] == 1)


def _format_shape(node: Any) -> str:
    return f"[{', '.join(str(size) for size in node.shape or [])}]"


def _reject_input(path: str, node: Any, reason: str, hint: str) -> UnfoldError:
    message = f"{Path(path).name}: the input {node.name} of {node.type} {_format_shape(node)} {reason}"
    return user_error(message, hint=hint)
