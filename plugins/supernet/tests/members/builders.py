"""Small ONNX models, written without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save_model


def write_model(
    path: Path,
    *,
    width: int = 8,
    depth: int = 1,
    classes: int = 3,
    size: tuple[Any, ...] = (4,),
    rows: Any = "n",
    kind: int = TensorProto.FLOAT,
    scale: float = 1.0,
    softmax: bool = False,
    factor: float = 1.0,
    external: str | None = None,
    extra_input: bool = False,
    centred: bool = False,
) -> Path:
    """Write a perceptron over flattened rows: ``depth`` hidden layers of ``width``, with scores times ``factor``."""
    rng = np.random.default_rng(width * 100 + depth)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    fan_in = int(np.prod([edge if isinstance(edge, int) else 4 for edge in size]))
    nodes, tensors, name = [helper.make_node("Flatten", ["x"], ["h0"])], [], "h0"
    for index, fan_out in enumerate([*[width] * depth, classes]):
        weight = (rng.normal(size=(fan_in, fan_out)) / np.sqrt(fan_in) * scale).astype(dtype)
        tensors.append(numpy_helper.from_array(weight, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [name, f"w{index}"], [f"h{index + 1}"]))
        name, fan_in = f"h{index + 1}", fan_out
    if centred:
        nodes.append(helper.make_node("ReduceMean", [name], ["mean"], axes=[0]))
        nodes.append(helper.make_node("Sub", [name, "mean"], ["centred"]))
        name = "centred"
    nodes.append(helper.make_node("Softmax" if softmax else "Identity", [name], ["scores"]))
    tensors.append(numpy_helper.from_array(np.array(factor, dtype), "factor"))
    nodes.append(helper.make_node("Mul", ["scores", "factor"], ["y"]) if factor != 1 else _keep("scores", "y"))
    inputs = [helper.make_tensor_value_info("x", kind, [rows, *size])]
    if extra_input:
        inputs.append(helper.make_tensor_value_info("z", kind, [rows, 1]))
    outputs = [helper.make_tensor_value_info("y", kind, [rows, classes])]
    graph = helper.make_graph(nodes, "net", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if external is None:
        path.write_bytes(model.SerializeToString())
    else:
        save_model(model, str(path), save_as_external_data=True, location=external, size_threshold=0)
    return path


def _keep(source: str, name: str) -> Any:
    return helper.make_node("Identity", [source], [name])
