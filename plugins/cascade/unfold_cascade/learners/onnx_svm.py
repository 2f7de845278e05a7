"""Support vector machines as ONNX graphs of matrix products.

ONNX Runtime computes its own operator for them row by row; as matrix products the same scores take a fraction of the
time, for one row and for many. Only what is common is written this way; all else goes through the usual converter.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray


@dataclass(frozen=True, slots=True)
class GraphBuilder:
    """Nodes and constants of a graph that is being written, in one number type."""

    form: type[Any]
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def node(self, kind: str, *inputs: str | FloatArray | float, name: str = "", **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        from onnx import helper

        output = name or f"v{len(self.nodes)}"
        names = [item if isinstance(item, str) else self._constant(item) for item in inputs]
        self.nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def _constant(self, value: FloatArray | float) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=self.form), name))
        return name


def is_supported(steps: Sequence[Any]) -> bool:
    """Whether a model is an SVC without probabilities, RBF or linear, alone or behind a standard scaler."""
    *before, last = steps
    plain = type(last).__name__ == "SVC" and not hasattr(last, "predict_proba") and last.kernel in ("rbf", "linear")
    scaled = [type(step).__name__ for step in before] in ([], ["StandardScaler"])
    # a dense array only: support vectors of sparse data are sparse too
    return plain and scaled and last.decision_function_shape == "ovr" and hasattr(last.support_vectors_, "dtype")


def build_graph(steps: Sequence[Any], columns: int, form: type[Any]) -> Any:
    """Return the ONNX model that gives what ``decision_function`` gives: (n, C) scores, (n, 1) for two classes."""
    from onnx import helper

    *before, svc = steps
    found = GraphBuilder(form)
    x = "x"
    for scaler in before:
        shift = scaler.mean_ if scaler.with_mean else np.zeros(columns)
        scale = scaler.scale_ if scaler.with_std else np.ones(columns)
        x = found.node("Div", found.node("Sub", x, shift), scale)
    kernel = _rbf(found, x, svc) if svc.kernel == "rbf" else found.node("MatMul", x, svc.support_vectors_.T)
    if len(svc.classes_) == 2:
        found.node("Add", found.node("MatMul", kernel, svc.dual_coef_.T), svc.intercept_, name="scores")
    else:
        _votes(
            found,
            found.node("Add", found.node("MatMul", kernel, pair_coefficients(svc)), svc.intercept_),
            len(svc.classes_),
        )
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(form))
    outputs = [helper.make_tensor_value_info("scores", kind, [None, None])]
    inputs = [helper.make_tensor_value_info("x", kind, [None, columns])]
    body = helper.make_graph(found.nodes, "svc", inputs, outputs, found.constants)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def pair_coefficients(svc: Any) -> FloatArray:
    """Return (vectors, pairs) what each support vector adds to the decision between each two classes, i before j.

    libsvm keeps, for a vector of class i, its coefficient against class j in row j - 1 if i < j, else in row j.
    """
    ends = np.cumsum(svc.n_support_)
    own = [slice(end - size, end) for end, size in zip(ends, svc.n_support_, strict=True)]
    columns = []
    for i, j in itertools.combinations(range(len(own)), 2):
        column = np.zeros(int(ends[-1]))
        column[own[i]] = svc.dual_coef_[j - 1, own[i]]
        column[own[j]] = svc.dual_coef_[i, own[j]]
        columns.append(column)
    return np.array(columns).T


def _rbf(found: GraphBuilder, x: str, svc: Any) -> str:
    """exp(-gamma |x - s|²), with the square written out as |x|² - 2 x·s + |s|²."""
    vectors = svc.support_vectors_
    own = found.node("ReduceSumSquare", x, axes=[1], keepdims=1)
    far = found.node("Add", found.node("MatMul", x, -2.0 * vectors.T), (vectors**2).sum(axis=1))
    return found.node("Exp", found.node("Mul", found.node("Add", far, own), -float(svc._gamma)))  # noqa: SLF001


def _votes(found: GraphBuilder, decisions: str, classes: int) -> None:
    """Votes of all pairs and, to break ties, their confidences squashed below half a vote (scikit-learn's "ovr")."""
    from onnx import TensorProto

    two = list(itertools.combinations(range(classes), 2))
    first, second = np.zeros((len(two), classes)), np.zeros((len(two), classes))
    for k, (i, j) in enumerate(two):
        first[k, i] = second[k, j] = 1.0
    kind = TensorProto.FLOAT if found.form is np.float32 else TensorProto.DOUBLE
    won = found.node("Cast", found.node("GreaterOrEqual", decisions, 0.0), to=kind)
    votes = found.node("Add", found.node("MatMul", won, first - second), second.sum(axis=0))
    total = found.node("MatMul", decisions, first - second)
    size = found.node("Mul", found.node("Add", found.node("Abs", total), 1.0), 3.0)
    found.node("Add", votes, found.node("Div", total, size), name="scores")
