"""Standalone subnets of the built-in networks as ONNX models; the transformer's nodes are built beside its module."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from unfold_supernet.networks import transformer_export
from unfold_supernet.networks.space import Space
from unfold_supernet.networks.standalone import StandaloneConvNet, StandaloneModel


def export_onnx(space: Space, module: StandaloneModel, class_names: Sequence[str] = ()) -> bytes:
    """Export a standalone module as ONNX with inputs ``x`` and (if present) ``extra``, and output ``logits``.

    The metadata key ``classes`` holds the class names as a JSON list.
    """
    from onnx import TensorProto, checker, helper

    nodes, tensors = (
        _build_conv_nodes(space, module)
        if isinstance(module, StandaloneConvNet)
        else transformer_export.build_onnx_nodes(space, module)
    )
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", space.channels, *space.size])]
    inputs += [helper.make_tensor_value_info("extra", TensorProto.FLOAT, ["n", space.extra])] if space.extra else []
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", space.classes])]
    graph = helper.make_graph(nodes, "subnet", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {"classes": json.dumps(class_names)} if class_names else {})
    checker.check_model(model)
    return bytes(model.SerializeToString())


def _build_conv_nodes(space: Space, module: StandaloneConvNet) -> tuple[list[Any], list[Any]]:
    """Build the ONNX nodes and constants from the inputs to ``logits``."""
    from onnx import helper, numpy_helper

    nodes: list[Any] = []
    tensors: list[Any] = []
    value, dims = "x", len(space.size)

    def add_constant(name: str, tensor: Tensor) -> str:
        tensors.append(numpy_helper.from_array(tensor.detach().numpy(), name))
        return name

    if module.shrink > 1:
        edge = [module.shrink] * dims
        nodes.append(helper.make_node("AveragePool", ["x"], ["small"], kernel_shape=edge, strides=edge))
        value = "small"
    for index, (layer, conv, norm) in enumerate(zip(module.layers, module.convs, module.norms, strict=True)):
        geometry: dict[str, Any] = {"strides": [layer.stride] * dims, "pads": [layer.kernel // 2] * 2 * dims}
        weight = add_constant(f"w{index}", conv.weight)
        nodes.append(helper.make_node("Conv", [value, weight], [f"c{index}"], **geometry))
        parameters = ("weight", "bias", "running_mean", "running_var")
        inputs = [add_constant(f"{name}{index}", getattr(norm, name)) for name in parameters]
        nodes.append(helper.make_node("BatchNormalization", [f"c{index}", *inputs], [f"n{index}"], epsilon=norm.eps))
        out = f"n{index}"
        if layer.identity:
            nodes.append(helper.make_node("Add", [out, value], [f"a{index}"]))
            out = f"a{index}"
        nodes.append(helper.make_node("Relu", [out], [f"r{index}"]))
        value = f"r{index}"
    nodes += [helper.make_node("GlobalAveragePool", [value], ["pool"]), helper.make_node("Flatten", ["pool"], ["flat"])]
    features = "flat"
    if space.extra:
        nodes.append(helper.make_node("Concat", ["flat", "extra"], ["joined"], axis=1))
        features = "joined"
    inputs = [features, add_constant("head", module.head.weight), add_constant("bias", module.head.bias)]
    nodes.append(helper.make_node("Gemm", inputs, ["logits"], transB=1))
    return nodes, tensors
