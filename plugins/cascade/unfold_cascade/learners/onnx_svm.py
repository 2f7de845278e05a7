"""Support vector machines as ONNX graphs of matrix products.

The operator of ONNX Runtime works row by row; matrix products compute the same scores in a fraction of the time, for
one row and for many. Only common cases are supported; all others use the general converter.
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
    """Nodes and constants of a graph under construction, in one number type."""

    dtype: type[Any]
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def add_node(self, operator: str, *inputs: str | FloatArray | float, name: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        from onnx import helper

        output = name or f"v{len(self.nodes)}"
        names = [value if isinstance(value, str) else self._add_constant(value) for value in inputs]
        self.nodes.append(helper.make_node(operator, names, [output], **attributes))
        return output

    def _add_constant(self, value: FloatArray | float) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=self.dtype), name))
        return name


def is_supported(steps: Sequence[Any]) -> bool:
    """Whether a model is an SVC without probabilities, RBF or linear, alone or behind a standard scaler."""
    *scalers, svc = steps
    if type(svc).__name__ != "SVC" or hasattr(svc, "predict_proba") or svc.kernel not in ("rbf", "linear"):
        return False
    if [type(step).__name__ for step in scalers] not in ([], ["StandardScaler"]):
        return False
    # support vectors of sparse data are sparse, without a dtype of their own
    return svc.decision_function_shape == "ovr" and hasattr(svc.support_vectors_, "dtype")


def build_graph(steps: Sequence[Any], columns: int, dtype: type[Any]) -> Any:
    """Build the ONNX model of ``decision_function``: (n, C) scores, (n, 1) for two classes."""
    from onnx import helper

    *scalers, svc = steps
    graph = GraphBuilder(dtype)
    x = "x"
    for scaler in scalers:
        shift = scaler.mean_ if scaler.with_mean else np.zeros(columns)
        scale = scaler.scale_ if scaler.with_std else np.ones(columns)
        x = graph.add_node("Div", graph.add_node("Sub", x, shift), scale)
    kernel = (
        _add_rbf_kernel(graph, x, svc) if svc.kernel == "rbf" else graph.add_node("MatMul", x, svc.support_vectors_.T)
    )
    if len(svc.classes_) == 2:
        graph.add_node("Add", graph.add_node("MatMul", kernel, svc.dual_coef_.T), svc.intercept_, name="scores")
    else:
        _add_votes(
            graph,
            graph.add_node("Add", graph.add_node("MatMul", kernel, pair_coefficients(svc)), svc.intercept_),
            len(svc.classes_),
        )
    tensor_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    outputs = [helper.make_tensor_value_info("scores", tensor_type, [None, None])]
    inputs = [helper.make_tensor_value_info("x", tensor_type, [None, columns])]
    body = helper.make_graph(graph.nodes, "svc", inputs, outputs, graph.constants)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def pair_coefficients(svc: Any) -> FloatArray:
    """Compute the (vectors, pairs) coefficients of support vectors in the decisions between classes i < j.

    libsvm stores the coefficient of a vector of class i against class j in row j - 1 if i < j, otherwise in row j.
    """
    ends = np.cumsum(svc.n_support_)
    vectors_of = [slice(end - size, end) for end, size in zip(ends, svc.n_support_, strict=True)]
    columns = []
    for i, j in itertools.combinations(range(len(vectors_of)), 2):
        column = np.zeros(int(ends[-1]))
        column[vectors_of[i]] = svc.dual_coef_[j - 1, vectors_of[i]]
        column[vectors_of[j]] = svc.dual_coef_[i, vectors_of[j]]
        columns.append(column)
    return np.array(columns).T


def _add_rbf_kernel(graph: GraphBuilder, x: str, svc: Any) -> str:
    """Add exp(-gamma |x - s|²), with the square expanded to |x|² - 2 x·s + |s|²."""
    vectors = svc.support_vectors_
    norm = graph.add_node("ReduceSumSquare", x, axes=[1], keepdims=1)
    partial = graph.add_node("Add", graph.add_node("MatMul", x, -2.0 * vectors.T), (vectors**2).sum(axis=1))
    square = graph.add_node("Add", partial, norm)
    return graph.add_node("Exp", graph.add_node("Mul", square, -float(svc._gamma)))  # noqa: SLF001


def _add_votes(graph: GraphBuilder, decisions: str, classes: int) -> None:
    """Add the votes of all pairs; decisions scaled below half a vote break ties (scikit-learn's "ovr")."""
    from onnx import TensorProto

    class_pairs = list(itertools.combinations(range(classes), 2))
    is_first, is_second = np.zeros((len(class_pairs), classes)), np.zeros((len(class_pairs), classes))
    for k, (i, j) in enumerate(class_pairs):
        is_first[k, i] = is_second[k, j] = 1.0
    tensor_type = TensorProto.FLOAT if graph.dtype is np.float32 else TensorProto.DOUBLE
    won = graph.add_node("Cast", graph.add_node("GreaterOrEqual", decisions, 0.0), to=tensor_type)
    votes = graph.add_node("Add", graph.add_node("MatMul", won, is_first - is_second), is_second.sum(axis=0))
    total = graph.add_node("MatMul", decisions, is_first - is_second)
    size = graph.add_node("Mul", graph.add_node("Add", graph.add_node("Abs", total), 1.0), 3.0)
    graph.add_node("Add", votes, graph.add_node("Div", total, size), name="scores")
