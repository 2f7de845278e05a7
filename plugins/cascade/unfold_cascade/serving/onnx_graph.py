"""A whole cascade as one ONNX graph: models, gates and routing, for any runtime of ONNX.

A gate selects the rows of a batch that go on, and an ``If`` evaluates the next model only if there are some. Scores and
cuts are compared in double precision, as in the service, so answers and paths are the same case by case.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.models.onnx_runtime import ML_OPSET, OPSET, ConvertedModel
from unfold_cascade.serving.model import Cascade, Link, ServedBaseline
from unfoldkit.api import user_error
from unfoldkit.safe_io.onnx_files import require_data_within

IR_VERSION = 8
"""The version of the file format; ONNX Runtime 1.14 and Triton 23.01 read it."""
INPUT = "x"
OUTPUTS = ("label", "confidence", "answer", "path", "cost")
Confidence = str
"""The confidence that gates read: ``max-probability``, ``margin`` or ``entropy``."""


@dataclass(slots=True)
class GraphPart:
    """Nodes of the graph or of a branch; parts share the counter that makes names unique."""

    numbers: Iterator[int]
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output, and return its name."""
        from onnx import helper

        name = f"v{next(self.numbers)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], domain=domain or None, **attributes))
        return name

    def constant(self, value: Any, dtype: Any) -> str:
        """Add a constant, and return its name."""
        from onnx import helper, numpy_helper

        name = f"c{next(self.numbers)}"
        if dtype is str:
            array: Any = [str(item).encode() for item in value]
            self.constants.append(helper.make_tensor(name, 8, [len(array)], array))
        else:
            self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def branch(self) -> GraphPart:
        """Begin a branch of an ``If``; it may read every value of this part."""
        return GraphPart(self.numbers)

    def add_if(self, condition: str, then: GraphPart, results: Sequence[str], otherwise: Sequence[str]) -> list[str]:
        """Add an ``If`` that returns the results of a branch, or the values ``otherwise`` of this part."""
        from onnx import TensorProto, helper

        other = self.branch()
        copies = [other.add("Identity", name) for name in otherwise]
        types = (TensorProto.INT64, TensorProto.DOUBLE, TensorProto.INT64)
        bodies = [
            helper.make_graph(
                part.nodes,
                f"b{next(self.numbers)}",
                [],
                [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(names, types, strict=True)],
                part.constants,
            )
            for part, names in ((then, results), (other, copies))
        ]
        outputs = [f"v{next(self.numbers)}" for _ in results]
        self.nodes.append(helper.make_node("If", [condition], outputs, then_branch=bodies[0], else_branch=bodies[1]))
        return outputs


Rows = Mapping[type[Any], str]
"""The rows of a batch (or of a part of it) by number type."""
Find = Callable[[Link], ConvertedModel]


def build_graph(cascade: Cascade, find: Find, confidence: Confidence) -> bytes:
    """Build the graph of a cascade.

    Args:
        cascade: The served cascade.
        find: Returns the converted model of a link.
        confidence: What its gates read.

    Raises:
        UnfoldError: A gate or a decision has no form in ONNX.
    """
    from onnx import TensorProto, checker, helper

    part = GraphPart(itertools.count())
    rows = {dtype: part.add("Cast", INPUT, to=_kind(dtype)) for dtype in cascade.dtypes}
    answer, score, path = _add_cascade(part, cascade, rows, find, confidence)
    named = {
        "label": part.add("Gather", part.constant(cascade.paths.labels, str), answer),
        "confidence": score,
        "answer": answer,
        "path": path,
        "cost": part.add("Gather", part.constant(cascade.paths.cost, np.float64), path),
    }
    for name, value in named.items():
        part.nodes.append(helper.make_node("Identity", [value], [name]))
    kinds = {"label": TensorProto.STRING, "answer": TensorProto.INT64, "path": TensorProto.INT64}
    outputs = [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.DOUBLE), ["rows"]) for name in OUTPUTS]
    width = len(cascade.inputs[0].columns)
    inputs = [helper.make_tensor_value_info(INPUT, TensorProto.DOUBLE, ["rows", width])]
    graph = helper.make_graph(part.nodes, "cascade", inputs, outputs, part.constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="unfoldkit")
    columns = "\n".join(cascade.inputs[0].columns)
    helper.set_model_props(model, {"version": cascade.version, "columns": columns, "name": cascade.name})
    checker.check_model(model)
    return bytes(model.SerializeToString())


def _add_cascade(
    part: GraphPart, cascade: Cascade, rows: Rows, find: Find, confidence: Confidence
) -> tuple[str, str, str]:
    """Add both stages; return the answers, the scores of their models, and the paths."""
    paths = cascade.paths
    first, score, exits = _add_chain(part, cascade.first_stage, rows, find, confidence)
    per_exit = part.constant(paths.groups * paths.second_exits, np.int64)
    answer, path = first, part.add("Mul", exits, per_exit)
    for group, links in cascade.second_stage.items():
        chosen = part.add("Equal", first, part.constant(group, np.int64))
        index, has_rows = _select(part, chosen)
        then = part.branch()
        inner_rows = {dtype: then.add("Gather", name, index, axis=0) for dtype, name in rows.items()}
        inner, inner_score, inner_exits = _add_chain(then, links, inner_rows, find, confidence)
        step = then.add("Add", inner_exits, then.constant(group * paths.second_exits, np.int64))
        step = then.add("Add", step, then.add("Gather", path, index))
        updates = ((answer, inner), (score, inner_score), (path, step))
        results = [then.add("ScatterElements", name, index, new, axis=0) for name, new in updates]
        answer, score, path = part.add_if(has_rows, then, results, (answer, score, path))
    for group, label in cascade.single_labels.items():
        chosen = part.add("Equal", first, part.constant(group, np.int64))
        answer = part.add("Where", chosen, part.constant(label, np.int64), answer)
        step = part.add("Add", path, part.constant(group * paths.second_exits, np.int64))
        path = part.add("Where", chosen, step, path)
    return answer, score, path


def _add_chain(
    part: GraphPart, links: Sequence[Link], rows: Rows, find: Find, confidence: Confidence, position: int = 0
) -> tuple[str, str, str]:
    """Add a chain from one link on; return the answers, scores and exits of its rows."""
    link = links[0]
    probability = _add_model(part, link, rows, find)
    decision = part.add("ArgMax", probability, axis=1, keepdims=0, select_last_index=0)
    answer = part.add("Gather", part.constant(link.model.answers, np.int64), decision)
    score = _add_confidence(part, probability, confidence)
    exits = part.add("Add", part.add("Sub", answer, answer), part.constant(position, np.int64))
    if len(links) == 1:
        return answer, score, exits
    is_done = part.add("GreaterOrEqual", score, part.constant(link.cut, np.float64))
    index, has_rows = _select(part, part.add("Not", is_done))
    then = part.branch()
    remaining = {dtype: then.add("Gather", name, index, axis=0) for dtype, name in rows.items()}
    later = _add_chain(then, links[1:], remaining, find, confidence, position + 1)
    values = (answer, score, exits)
    results = [then.add("ScatterElements", name, index, new, axis=0) for name, new in zip(values, later, strict=True)]
    answer, score, exits = part.add_if(has_rows, then, results, values)
    return answer, score, exits


def _select(part: GraphPart, chosen: str) -> tuple[str, str]:
    """Add the indices of the chosen rows, and whether there are any."""
    flat = part.constant([-1], np.int64)
    index = part.add("Reshape", part.add("NonZero", chosen), flat)
    return index, part.add("Greater", part.add("Size", index), part.constant(0, np.int64))


def _add_model(part: GraphPart, link: Link, rows: Rows, find: Find) -> str:
    """Add the model of a link; return its (n, answers) probabilities in double precision."""
    from onnx import TensorProto, compose, helper

    served = link.model.model if isinstance(link.model, ServedBaseline) else link.model
    converted = find(link)
    x = rows[converted.dtype]
    if served.columns is not None:
        x = part.add("Gather", x, part.constant(served.columns, np.int64), axis=1)
    prefix = f"m{next(part.numbers)}/"
    renamed = compose.add_prefix(converted.graph, prefix).graph
    part.nodes.append(helper.make_node("Identity", [x], [renamed.input[0].name]))
    part.nodes.extend(renamed.node)
    part.constants.extend(renamed.initializer)
    raw = part.add("Cast", renamed.output[-1].name, to=TensorProto.DOUBLE)
    probability = _add_normalization(part, raw, converted.classes) if converted.has_raw_scores else raw
    if converted.decimals is not None:
        scale = part.constant(10.0**converted.decimals, np.float64)
        probability = part.add("Div", part.add("Round", part.add("Mul", probability, scale)), scale)
    if not isinstance(link.model, ServedBaseline):
        return probability
    sums = part.add("MatMul", probability, part.constant(link.model.projection, np.float64))
    if not link.model.is_normalized:
        return sums
    axes = part.constant([1], np.int64)
    total = part.add("Max", part.add("ReduceSum", sums, axes, keepdims=1), part.constant(1e-300, np.float64))
    return part.add("Div", sums, total)


def _add_normalization(part: GraphPart, raw: str, classes: int) -> str:
    """Add the softmax of raw scores; of two classes the logistic function of the last score."""
    if classes > 2:
        peak = part.add("ReduceMax", raw, axes=[1], keepdims=1)
        power = part.add("Exp", part.add("Sub", raw, peak))
        return part.add("Div", power, part.add("ReduceSum", power, part.constant([1], np.int64), keepdims=1))
    last = part.add("Gather", raw, part.constant([-1], np.int64), axis=1)
    # a stable logistic function: ONNX Runtime has neither Sigmoid nor Tanh in double precision
    one = part.constant(1.0, np.float64)
    power = part.add("Exp", part.add("Neg", part.add("Abs", last)))
    tail = part.add("Div", power, part.add("Add", one, power))
    positive = part.add(
        "Where", part.add("Less", last, part.constant(0.0, np.float64)), tail, part.add("Sub", one, tail)
    )
    return part.add("Concat", part.add("Sub", one, positive), positive, axis=1)


def _add_confidence(part: GraphPart, probability: str, confidence: Confidence) -> str:
    if confidence == "max-probability":
        return part.add("ReduceMax", probability, axes=[1], keepdims=0)
    zero, one = part.constant(0.0, np.float64), part.constant(1.0, np.float64)
    if confidence == "margin":
        from onnx import helper

        names = [f"v{next(part.numbers)}" for _ in range(2)]
        part.nodes.append(helper.make_node("TopK", [probability, part.constant([2], np.int64)], names, axis=1))
        first, second = (part.add("Gather", names[0], part.constant(i, np.int64), axis=1) for i in (0, 1))
        return part.add("Clip", part.add("Sub", first, second), zero, one)
    raise user_error(f"gates that read {confidence} cannot be written as one ONNX graph", key="gates.confidence")


def _kind(dtype: type[Any]) -> int:
    from onnx import TensorProto

    return int(TensorProto.FLOAT if dtype is np.float32 else TensorProto.DOUBLE)


@dataclass(frozen=True, slots=True)
class GraphResult:
    """What a graph answers: labels, path numbers and costs of n rows."""

    label: Sequence[str]
    path: Sequence[int]
    cost: FloatArray


def run_graph(data: bytes, x: FloatArray) -> GraphResult:
    """Answer (n, d) rows by ONNX Runtime alone."""
    import onnxruntime

    require_data_within(data, "the graph", None)
    options = onnxruntime.SessionOptions()
    # hints on the names of subgraphs are no errors
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    label, path, cost = session.run(["label", "path", "cost"], {INPUT: np.asarray(x, dtype=np.float64)})
    return GraphResult(label.tolist(), path.tolist(), cost)
