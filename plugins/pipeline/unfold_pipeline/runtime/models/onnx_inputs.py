"""The inputs of an ONNX model: their types and shapes, and how rows of queries fill them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline._types import Tensors
from unfoldkit.api import UnfoldError, user_error
from unfoldkit.safe_io.files import read_bytes
from unfoldkit.safe_io.onnx_files import require_data_within
from unfoldkit.serving.oip.errors import InvalidRequest

DTYPES = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "tensor(string)": "object",
}
CPU_PROVIDER, GPU_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"
WARNINGS, FATAL_ERRORS = 2, 4
TEXT_HINT = "inputs: {NAME: STAGE.TENSOR} fills it with the text that a stage of code returns"
OPEN = -1
"""Stands for a dimension of any size."""


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One input of a model.

    Attributes:
        name: Its name in the model.
        dtype: Its NumPy type.
        shape: Shape of one query, with at most one ``OPEN`` dimension.
        is_single: Whether the model accepts only one query at a time.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_single: bool

    @property
    def width(self) -> int | None:
        """The numbers of a row; ``None`` if the shape is open."""
        return None if OPEN in self.shape else math.prod(self.shape)

    @property
    def is_whole(self) -> bool:
        """Whether it takes integers."""
        return np.dtype(self.dtype).kind in "biu"

    @property
    def is_text(self) -> bool:
        """Whether it takes text, which no row of numbers can fill."""
        return self.dtype == "object"

    def accepts_width(self, width: int) -> bool:
        """Return whether rows of ``width`` numbers fill the shape."""
        fixed = math.prod(size for size in self.shape if size != OPEN)
        return width % fixed == 0 and width > 0 if OPEN in self.shape else width == fixed

    def reshape_rows(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return rows, shape (batch, ...), in the type and shape of this input.

        Raises:
            InvalidRequest: It takes integers, and a value is none of its type.
        """
        with np.errstate(invalid="ignore"):
            values = rows.astype(self.dtype, copy=False)
        if self.is_whole and not np.array_equal(values, rows):
            value = rows[values != rows].flat[0]
            raise InvalidRequest(f"the input {self.name} takes {self.dtype}, and {value} is none")
        return values.reshape(len(rows), *self.shape)


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """A loaded model.

    Rows of numbers fill all inputs: each gets the same row if they have the same length, and otherwise its part of it,
    in order. Tensors by name fill any inputs.
    """

    session: Any
    inputs: tuple[ModelInput, ...]

    @property
    def width(self) -> int | None:
        """The numbers of a row, where the model determines them."""
        widths = self.known_widths
        if not widths or self.is_ambiguous or any(model_input.is_text for model_input in self.inputs):
            return None
        return sum(widths) if self.splits_rows else widths[0]

    @property
    def is_ambiguous(self) -> bool:
        """Whether a row cannot be split, as the sizes of its parts are not known."""
        return self.splits_rows and len(self.known_widths) < len(self.inputs)

    @property
    def known_widths(self) -> list[int]:
        """The numbers of each input that determines them."""
        return [model_input.width for model_input in self.inputs if model_input.width is not None]

    @property
    def splits_rows(self) -> bool:
        """Whether a row is the inputs one after the other."""
        return len(set(self.known_widths)) > 1

    def __call__(self, batch: Tensors) -> Tensors:
        """Return the output for a batch, by name if there are several.

        A model that accepts single queries runs row by row.
        """
        feed = batch if isinstance(batch, dict) else self._split_rows(batch)
        size = len(next(iter(feed.values())))
        if any(model_input.is_single for model_input in self.inputs) and size > 1:
            parts = [self._run({name: part[index : index + 1] for name, part in feed.items()}) for index in range(size)]
            outputs = [np.concatenate(tensors) for tensors in zip(*parts, strict=True)]
        else:
            outputs = self._run(feed)
        names = [node.name for node in self.session.get_outputs()]
        return outputs[0] if len(outputs) == 1 else dict(zip(names, outputs, strict=True))

    def check_width(self, path: str, width: int) -> None:
        """Reject rows of numbers that do not fill an input.

        Raises:
            UnfoldError: Names the model, the input, its type and its shape.
        """
        nodes = self.session.get_inputs()
        for model_input, node in zip(self.inputs, nodes, strict=True):
            if model_input.is_text:
                raise _reject_input(path, node, "takes text, and a query is a row of numbers", TEXT_HINT)
        if self.is_ambiguous:
            names = " and ".join(f"{node.name} {_format_shape(node)}" for node in nodes)
            message = f"{Path(path).name}: the inputs {names} need rows of different lengths"
            raise user_error(message, hint="export them with fixed sizes, or wrap the model as code: module:function")
        if self.splits_rows and width == self.width:
            return
        for model_input, node in zip(self.inputs, nodes, strict=True):
            if not model_input.accepts_width(width):
                hint = f"features: {self.width or 'how many numbers a query has'}"
                raise _reject_input(path, node, f"cannot be filled with rows of {width} numbers", hint)

    def _split_rows(self, rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        if not self.splits_rows:
            return {model_input.name: rows for model_input in self.inputs}
        ends = np.cumsum(self.known_widths)[:-1]
        return dict(zip([item.name for item in self.inputs], np.split(rows, ends, axis=1), strict=True))

    def _run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        arrays = {model_input.name: model_input.reshape_rows(feed[model_input.name]) for model_input in self.inputs}
        return [_convert_output(output) for output in self.session.run(None, arrays)]


def load_onnx(path: str, *, on_gpu: bool = False) -> OnnxModel:
    """Return an ONNX model, loaded for one core or for the GPU of this process.

    Raises:
        UnfoldError: No row of numbers can fill one of its inputs, its tensors lie outside its folder, or ONNX Runtime
            finds no GPU.
    """
    import onnxruntime

    require_data_within(read_bytes(path), path, Path(path).parent)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # each batch that fails is raised, and clients can send bad rows at any rate
    options.log_severity_level = WARNINGS if on_gpu else FATAL_ERRORS
    # operators that the GPU lacks run on the core
    providers = [GPU_PROVIDER, CPU_PROVIDER] if on_gpu else [CPU_PROVIDER]
    if on_gpu and GPU_PROVIDER not in onnxruntime.get_available_providers():
        message = "the plan places the model on a GPU, and this ONNX Runtime uses none"
        raise user_error(message, file=path, hint="pip install onnxruntime-gpu, instead of onnxruntime")
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    if on_gpu and GPU_PROVIDER not in session.get_providers():
        # ONNX Runtime only logs why CUDA does not start
        raise user_error("the plan places the model on a GPU, and CUDA does not start", file=path, hint="nvidia-smi")
    return OnnxModel(session, parse_inputs(path, session.get_inputs()))


def parse_inputs(path: str, nodes: Sequence[Any]) -> tuple[ModelInput, ...]:
    """Return the inputs of a session; each has the batch as its first dimension.

    Raises:
        UnfoldError: See :func:`load_onnx`.
    """
    return tuple(_parse_input(path, node) for node in nodes)


def _convert_output(output: Any) -> NDArray[Any]:
    """Return an output as an array; a map for each row (``ZipMap``) becomes a matrix with a column per key."""
    if isinstance(output, list) and output and isinstance(output[0], dict):
        return np.array([[row[key] for key in output[0]] for row in output])
    return np.asarray(output)


def _parse_input(path: str, node: Any) -> ModelInput:
    dtype, shape = DTYPES.get(node.type), list(node.shape or [])
    if dtype is None:
        raise _reject_input(path, node, "holds neither numbers nor text", "wrap the model as code: module:function")
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
