"""A family as models for other kinds, by files: each net reads plain rows, and two specs that use them.

The kinds meet in files only: a pipeline's stage runs an ONNX file of one input, a cascade reads recorded answers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np

from unfold_supernet.family.checkpoint import Extracted, onnx_bytes
from unfold_supernet.family.datasets import Data
from unfold_supernet.networks.space import Space
from unfold_supernet.scheduling.escalation import Answered
from unfold_supernet.scheduling.policies import Served
from unfoldkit.api import RunDir

FOLDER = "stages"
QUERIES = 512
BATCH = 32
BELOW = 0.8
MICRO = 1e6
LONGEST = 70
"""Letters of a family's name in those of its specs, which have 80 at most with what is appended."""


def rows_onnx(space: Space, module: Extracted, names: Sequence[str] = ()) -> bytes:
    """Return a net as an ONNX model of one input ``rows`` (n, channels x size + extra), outputs shares and labels.

    A label is the place of a class among ``classes`` in the metadata, which holds ``names``.
    """
    from onnx import TensorProto, checker, compose, helper, load_from_string, numpy_helper

    inner = load_from_string(onnx_bytes(space, module, names))
    count = space.channels * int(np.prod(space.size))
    ends = {"start": [0], "middle": [count], "axis": [1]} | ({"end": [count + space.extra]} if space.extra else {})
    shape = [-1, space.channels, *space.size]
    tensors = [
        numpy_helper.from_array(np.array(value, np.int64), name) for name, value in {**ends, "shape": shape}.items()
    ]
    nodes = [
        helper.make_node("Slice", ["rows", "start", "middle", "axis"], ["flat_x"]),
        helper.make_node("Reshape", ["flat_x", "shape"], ["in_x"]),
    ]
    outputs = [helper.make_tensor_value_info("in_x", TensorProto.FLOAT, ["n", space.channels, *space.size])]
    if space.extra:
        nodes.append(helper.make_node("Slice", ["rows", "middle", "end", "axis"], ["in_extra"]))
        outputs.append(helper.make_tensor_value_info("in_extra", TensorProto.FLOAT, ["n", space.extra]))
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", count + space.extra])
    graph = helper.make_graph(nodes, "rows", [rows], outputs, tensors)
    before = helper.make_model(graph, opset_imports=inner.opset_import, ir_version=inner.ir_version)
    joined = [("in_x", "x"), *([("in_extra", "extra")] if space.extra else [])]
    model = compose.merge_models(before, compose.add_prefix(inner, "net_"), [(a, f"net_{b}") for a, b in joined])
    model.graph.node.append(helper.make_node("Softmax", ["net_logits"], ["shares"], axis=1))
    model.graph.node.append(helper.make_node("ArgMax", ["net_logits"], ["label"], axis=1, keepdims=0))
    del model.graph.output[:]
    shares = helper.make_tensor_value_info("shares", TensorProto.FLOAT, ["n", space.classes])
    model.graph.output.extend([shares, helper.make_tensor_value_info("label", TensorProto.INT64, ["n"])])
    checker.check_model(model)
    return bytes(model.SerializeToString())


def rows_of(data: Data, places: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return examples as rows (n, channels x size + extra)."""
    return np.concatenate([data.x[places].reshape(len(places), -1), data.extra[places]], axis=1)


def keep(directory: RunDir, name: str, data: Data, nets: Sequence[Served], answered: Answered) -> None:
    """Write queries, answers and the two specs beside the nets, cheapest first."""
    stream = io.BytesIO()
    np.savez_compressed(stream, x=rows_of(data, data.test[:QUERIES]).astype(np.float32))
    directory.write(f"{FOLDER}/queries.npz", stream.getvalue())
    directory.write(f"{FOLDER}/answers.csv", _answers(answered, data.names).encode())
    directory.write(f"{FOLDER}/cascade.yaml", cascade(name, nets).encode())
    unsure = float((answered.confidence[0] < BELOW).mean())
    directory.write(f"{FOLDER}/pipeline.yaml", pipeline(name, nets[0], nets[-1], unsure).encode())


def cascade(name: str, nets: Sequence[Served]) -> str:
    """Return a spec of kind ``cascade`` over recorded answers; a call's price is its microseconds in a batch."""
    models = "\n".join(
        f"      - {{name: {net.name}, price: {net.takes(BATCH) / BATCH * MICRO:.3f}, "
        f"recorded: {{prediction: {net.name}_answer, confidence: {net.name}_confidence}}}}"
        for net in nets
    )
    return (
        f"# Which nets of the family {name} must be asked? Their answers to the rows that they were tested on.\n"
        f"version: 1\nkind: cascade\nname: {name[:LONGEST]}-cascade\ndata: {{source: recorded, path: answers.csv}}\n"
        f"stages:\n  - name: answer\n    target: {{column: label}}\n    models:\n{models}\n"
        "cost: {by: price, unit: µs}\ngoal: {max_loss: 1%, confidence: 95%}\n"
    )


def pipeline(name: str, small: Served, large: Served, unsure: float) -> str:
    """Return a spec of kind ``pipeline``: a small net answers, the large one is asked for what it is unsure of."""
    first, again = _stage(small), _stage(large)
    return (
        f"# The smallest net of {name} answers; where it is less than {BELOW:.0%} sure, the largest is asked.\n"
        "# Profile it first: that measures the ONNX files as the stages run them.\n"
        f"version: 1\nkind: pipeline\nname: {name[:LONGEST]}-pipeline\nslo: {{p99: 50 ms}}\n"
        "arrivals: {process: poisson, rate: 200/s, duration: 1 min}\nhardware: {core: {price: $0.05/h, quota: 8}}\n"
        f"stages:\n  first: {{{first}}}\n  again: {{after: {{first: {max(unsure, 0.001) * 100:.1f}%}}, {again}}}\n"
    )


def _stage(net: Served) -> str:
    return f"model: {{file: {net.name}.onnx, rows: queries.npz}}, max_batch: {BATCH}"


def _answers(answered: Answered, names: Sequence[str]) -> str:
    stream, words = io.StringIO(), np.array(names, object)
    writer = csv.writer(stream, lineterminator="\n")
    columns: Mapping[str, np.ndarray] = {
        "label": words[answered.y],
        **{f"{name}_answer": words[said] for name, said in zip(answered.names, answered.said, strict=True)},
        **{
            f"{name}_confidence": np.round(sure.astype(np.float64), 6)
            for name, sure in zip(answered.names, answered.confidence, strict=True)
        },
    }
    writer.writerow(columns)
    writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    return stream.getvalue()
