"""Models for ``pipeline-fidelity``: convolutional networks, and stages that wait."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 32
FEATURES = 64


def convolution(path: Path, channels: int, layers: int, seed: int) -> None:
    """Write a network for digits of 8 by 8: scaled up to 32 by 32, ``layers`` convolutions, ten outputs.

    Its weights are drawn, not learned: how long it takes does not depend on them.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    parts: list[tuple[str, NDArray[Any]]] = [
        ("shape", np.array([-1, 1, 8, 8], dtype=np.int64)),
        ("scales", np.array([1, 1, SIDE // 8, SIDE // 8], dtype=np.float32)),
        ("out_w", rng.normal(0, 0.1, (channels, 10)).astype(np.float32)),
    ]
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["image"]),
        helper.make_node("Resize", ["image", "", "scales"], ["h0"], mode="nearest"),
    ]
    for layer in range(layers):
        shape = (channels, channels if layer else 1, 3, 3)
        parts.append((f"w{layer}", rng.normal(0, 0.1, shape).astype(np.float32)))
        nodes += [
            helper.make_node("Conv", [f"h{layer}", f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{layer}"], [f"h{layer + 1}"]),
        ]
    nodes += [
        helper.make_node("GlobalAveragePool", [f"h{layers}"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "out_w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(array, name) for name, array in parts],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def tiny(rows: NDArray[np.float32]) -> NDArray[Any]:
    """Wait as for a tiny model on an accelerator of its own: 8 ms and 2 ms a row."""
    return _waited(rows, 0.008, 0.002)


def small(rows: NDArray[np.float32]) -> NDArray[Any]:
    """Wait as for a small model on an accelerator of its own: 14 ms and 5 ms a row."""
    return _waited(rows, 0.014, 0.005)


def large(rows: NDArray[np.float32]) -> NDArray[Any]:
    """Wait as for a large model on an accelerator of its own: 20 ms and 8 ms a row."""
    return _waited(rows, 0.020, 0.008)


def _waited(rows: NDArray[np.float32], fixed_s: float, row_s: float) -> NDArray[Any]:
    time.sleep(fixed_s + row_s * len(rows))
    return np.asarray(rows.sum(axis=1, keepdims=True))
