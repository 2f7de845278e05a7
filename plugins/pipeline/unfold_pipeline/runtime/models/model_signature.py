"""What the model of a stage reads and returns, as far as its file or its spec states it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.runtime.models.model_loader import (
    LABEL,
    Predict,
    load_model,
    name_sklearn_output,
    read_width,
)
from unfold_pipeline.runtime.models.onnx_inputs import DTYPES, ModelInput, load_onnx
from unfoldkit.safe_io.files import read_bytes
from unfoldkit.safe_io.skops import load_skops

DEFAULT_OUTPUT = "output"
TEXT_KINDS = "USTO"


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor of one query.

    Attributes:
        name: Its name.
        kind: NumPy's character of its type; empty if unknown.
        shape: Its shape; ``None`` if unknown.
    """

    name: str
    kind: str = ""
    shape: tuple[int, ...] | None = None

    @property
    def is_text(self) -> bool:
        """Whether the tensor holds text; false if its type is not known."""
        return bool(self.kind) and self.kind in TEXT_KINDS

    @property
    def size(self) -> int | None:
        """The number of its values."""
        return None if self.shape is None else math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSignature:
    """What a model reads and returns for one query.

    Attributes:
        outputs: Its tensors; the first is also called ``output``; empty if unknown.
        inputs: Its inputs, if it has names for them.
        width: Numbers of the row that it reads otherwise; ``None`` if unknown.
        is_code: Whether it is a function, which takes what it is given.
        columns: Which numbers of a row it reads; empty for all.
        extras: Outputs that are no part of the whole one: the label beside the probabilities of scikit-learn.
    """

    outputs: tuple[TensorType, ...] = ()
    inputs: tuple[ModelInput, ...] = ()
    width: int | None = None
    is_code: bool = False
    columns: tuple[int, ...] = ()
    extras: frozenset[str] = frozenset()

    @property
    def types(self) -> Mapping[str, TensorType]:
        """The outputs by name."""
        return {tensor.name: tensor for tensor in self.outputs}


def read_signature(stage: str, source: ModelSource) -> ModelSignature:
    """Return the signature of a stage's model; a scikit-learn or XGBoost model answers a row of zeros for it.

    Raises:
        UnfoldError: The file is damaged.
    """
    if source.code:
        stated = tuple(TensorType(name, "", (size,)) for name, size in source.outputs)
        return ModelSignature(outputs=stated, width=source.features, is_code=True, columns=source.columns)
    width = read_width(stage, source)
    if Path(source.path).suffix == ".onnx":
        model = load_onnx(source.path)
        outputs = tuple(_read_onnx_output(node) for node in model.session.get_outputs())
        return ModelSignature(outputs=outputs, inputs=model.inputs, width=width, columns=source.columns)
    name = DEFAULT_OUTPUT
    if Path(source.path).suffix == ".skops":
        name = name_sklearn_output(load_skops(read_bytes(source.path), source.path))
    outputs = _probe_outputs(source, name, width)
    extras = frozenset(tensor.name for tensor in outputs[1:])
    return ModelSignature(outputs=outputs, width=width, columns=source.columns, extras=extras)


def _read_onnx_output(node: Any) -> TensorType:
    if not node.type.startswith("tensor("):
        # a sequence of maps becomes a matrix with a column per key
        return TensorType(node.name, "f" if node.type.endswith("tensor(float)))") else "")
    kind = "O" if node.type == "tensor(string)" else np.dtype(DTYPES.get(node.type, "float32")).kind
    sizes = list(node.shape or [])[1:]
    is_fixed = all(isinstance(size, int) and size > 0 for size in sizes) and bool(node.shape)
    return TensorType(node.name, kind, tuple(sizes) if is_fixed else None)


def _probe_outputs(source: ModelSource, name: str, width: int | None) -> tuple[TensorType, ...]:
    if width is None:
        return (TensorType(name), *((TensorType(LABEL),) if name != LABEL and LABEL in source.wanted else ()))
    rows = np.zeros((1, max(width, 1 + max(source.columns, default=0))), dtype=np.float32)
    answer = _answer_probe(load_model(source), rows)
    tensors = answer if isinstance(answer, dict) else {name: answer}
    return tuple(
        TensorType(key)
        if tensor is None
        else TensorType(key, np.asarray(tensor).dtype.kind, tuple(np.asarray(tensor).shape[1:]))
        for key, tensor in tensors.items()
    )


def _answer_probe(predict: Predict, rows: Any) -> Any:
    try:
        return predict(rows)
    except Exception:  # noqa: BLE001  # a model may reject zeros, which says nothing about real rows
        return None
