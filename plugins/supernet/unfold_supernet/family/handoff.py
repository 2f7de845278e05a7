"""Hand-over to other kinds, by files: each subnet as an ONNX model over plain rows, and two specs that use them.

A pipeline stage runs an ONNX file with one input; a cascade reads recorded predictions.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np

from unfold_supernet.family.datasets import Dataset
from unfold_supernet.networks.onnx_export import export_onnx
from unfold_supernet.networks.space import Space
from unfold_supernet.networks.standalone import StandaloneModel
from unfold_supernet.scheduling.escalation import SubnetPredictions
from unfold_supernet.scheduling.policies import SubnetProfile
from unfoldkit.api import RunDir
from unfoldkit.io.tables import escape_formula

FOLDER = "stages"
QUERIES = 512
BATCH = 32
UNSURE_BELOW = 0.8
MICRO = 1e6
MAX_NAME_LETTERS = 70
"""Letters of the supernet's name in its specs; with a suffix they must stay within the 80 of a spec's name."""


def export_rows_onnx(space: Space, module: StandaloneModel, class_names: Sequence[str] = ()) -> bytes:
    """Export a subnet as ONNX with one input ``rows`` (n, channels x size + extra) and outputs ``shares``, ``label``.

    A label is an index into the metadata key ``classes``, which holds ``class_names``.
    """
    from onnx import TensorProto, checker, compose, helper, load_from_string, numpy_helper

    inner = load_from_string(export_onnx(space, module, class_names))
    count = space.channels * int(np.prod(space.size))
    bounds = {"start": [0], "middle": [count], "axis": [1]} | ({"end": [count + space.extra]} if space.extra else {})
    shape = [-1, space.channels, *space.size]
    tensors = [
        numpy_helper.from_array(np.array(value, np.int64), name) for name, value in {**bounds, "shape": shape}.items()
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
    adapter = helper.make_model(graph, opset_imports=inner.opset_import, ir_version=inner.ir_version)
    links = [("in_x", "net_x"), *([("in_extra", "net_extra")] if space.extra else [])]
    model = compose.merge_models(adapter, compose.add_prefix(inner, "net_"), links)
    model.graph.node.append(helper.make_node("Softmax", ["net_logits"], ["shares"], axis=1))
    model.graph.node.append(helper.make_node("ArgMax", ["net_logits"], ["label"], axis=1, keepdims=0))
    del model.graph.output[:]
    shares = helper.make_tensor_value_info("shares", TensorProto.FLOAT, ["n", space.classes])
    model.graph.output.extend([shares, helper.make_tensor_value_info("label", TensorProto.INT64, ["n"])])
    checker.check_model(model)
    return bytes(model.SerializeToString())


def flatten_rows(data: Dataset, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """Flatten examples into rows (n, channels x size + extra)."""
    return np.concatenate([data.x[indices].reshape(len(indices), -1), data.extra[indices]], axis=1)


def write_handoff(
    directory: RunDir,
    name: str,
    data: Dataset,
    profiles: Sequence[SubnetProfile],
    tested: SubnetPredictions,
) -> None:
    """Write queries, test predictions and both specs beside the ONNX models.

    Args:
        directory: The run.
        name: Name of the supernet.
        data: The examples.
        profiles: The subnets, cheapest first.
        tested: Their predictions on the test rows.
    """
    stream = io.BytesIO()
    np.savez_compressed(stream, x=flatten_rows(data, data.test[:QUERIES]).astype(np.float32))
    directory.write(f"{FOLDER}/queries.npz", stream.getvalue())
    directory.write(f"{FOLDER}/answers.csv", _format_predictions(tested, data.names).encode())
    directory.write(f"{FOLDER}/cascade.yaml", write_cascade_spec(name, profiles).encode())
    unsure = float((tested.confidence[0] < UNSURE_BELOW).mean())
    pipeline = write_pipeline_spec(name, profiles[0], profiles[-1], unsure)
    directory.write(f"{FOLDER}/pipeline.yaml", pipeline.encode())


def write_cascade_spec(name: str, profiles: Sequence[SubnetProfile]) -> str:
    """Write a spec of kind ``cascade`` over recorded predictions; a call costs its microseconds in a batch."""
    models = "\n".join(
        f"      - {{name: {profile.name}, price: {profile.estimate_latency(BATCH) / BATCH * MICRO:.3f}, "
        f"recorded: {{prediction: {profile.name}_answer, confidence: {profile.name}_confidence}}}}"
        for profile in profiles
    )
    return (
        f"# Which subnets of {name} must run? Their predictions on the test rows.\n"
        f"version: 1\nkind: cascade\nname: {name[:MAX_NAME_LETTERS]}-cascade\n"
        "data: {source: recorded, path: answers.csv}\n"
        f"stages:\n  - name: answer\n    target: {{column: label}}\n    models:\n{models}\n"
        "cost: {by: price, unit: µs}\ngoal: {max_loss: 1%, confidence: 95%}\n"
    )


def write_pipeline_spec(name: str, small: SubnetProfile, large: SubnetProfile, unsure: float) -> str:
    """Write a spec of kind ``pipeline``: the large subnet recomputes the rows that the small one is unsure of."""
    small_stage, large_stage = _describe_stage(small), _describe_stage(large)
    return (
        f"# The smallest subnet of {name} runs first, and below {UNSURE_BELOW * 100:.0f} % confidence the largest.\n"
        "# Profile this pipeline first: that measures the ONNX files as the stages run them.\n"
        f"version: 1\nkind: pipeline\nname: {name[:MAX_NAME_LETTERS]}-pipeline\nslo: {{p99: 50 ms}}\n"
        "arrivals: {process: poisson, rate: 200/s, duration: 1 min}\nhardware: {core: {price: $0.05/h, quota: 8}}\n"
        f"stages:\n  first: {{{small_stage}}}\n"
        f"  again: {{after: {{first: {max(unsure, 0.001) * 100:.1f}%}}, {large_stage}}}\n"
    )


def _describe_stage(profile: SubnetProfile) -> str:
    return f"model: {{file: {profile.name}.onnx, rows: queries.npz}}, max_batch: {BATCH}"


def _format_predictions(tested: SubnetPredictions, class_names: Sequence[str]) -> str:
    """Format predictions as a CSV with class names and confidences by subnet."""
    stream, words = io.StringIO(), np.array(list(map(escape_formula, class_names)), object)
    writer = csv.writer(stream, lineterminator="\n")
    columns: Mapping[str, np.ndarray] = {
        "label": words[tested.labels],
        **{f"{name}_answer": words[row] for name, row in zip(tested.names, tested.predictions, strict=True)},
        **{
            f"{name}_confidence": np.round(confidence.astype(np.float64), 6)
            for name, confidence in zip(tested.names, tested.confidence, strict=True)
        },
    }
    writer.writerow(columns)
    writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
    return stream.getvalue()
