"""A user's network for the accelerator: the layers of an ONNX file, read without running it.

Convolutions and matrix products with constant weights become layers. A transposed convolution becomes convolutions of
its input, one for each offset within its stride, so that no inserted zero is multiplied. Pooling, normalization,
element-wise and shape operators are taken to cost nothing. Any other operator is named.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unfold_supernet.accelerator.layers import MAX_LAYER_COUNT, Family, Layer, tabulate_subnet
from unfold_supernet.accelerator.tile_traffic import describe_shape
from unfoldkit.api import UnfoldError, format_count, format_names, user_error
from unfoldkit.safe_io.files import read_bytes

MAX_MODEL_BYTES = 2 << 30
REFUSED = 3
MAX_VALUES = 4096
"""Values of a tensor that is computed to follow a shape."""
MAX_LISTED = 5
"""Unknown operators that are named."""
PASSING = frozenset(
    (
        "Abs", "Add", "And", "ArgMax", "ArgMin", "AveragePool",
        "BatchNormalization", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Concat",
        "Constant", "ConstantOfShape", "Cos", "DepthToSpace", "DequantizeLinear", "Div", "Dropout",
        "DynamicQuantizeLinear", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "Gelu",
        "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GroupNormalization", "HardSigmoid",
        "HardSwish", "Identity", "InstanceNormalization", "LRN", "LayerNormalization", "LeakyRelu", "Less",
        "LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "LpPool", "Max", "MaxPool", "Mean", "Min", "Mish",
        "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pad", "Pow", "QuantizeLinear", "RMSNormalization", "Range",
        "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
        "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize", "Round", "Selu", "Shape", "Sigmoid", "Sign",
        "Sin", "Size", "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub",
        "Sum", "Swish", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Upsample",
        "Where", "Xor",
    )
)  # fmt: skip
QUANTISED = ("QLinear", "QGemm")
STANDARD = {
    "QGemm": ("Gemm", slice(0, 4, 3)),
    "QLinearAdd": ("Add", slice(0, 4, 3)),
    "QLinearAveragePool": ("AveragePool", slice(1)),
    "QLinearConcat": ("Concat", slice(2, None, 3)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", slice(1)),
    "QLinearLeakyRelu": ("LeakyRelu", slice(1)),
    "QLinearMul": ("Mul", slice(0, 4, 3)),
    "QLinearSigmoid": ("Sigmoid", slice(1)),
    "QLinearSoftmax": ("Softmax", slice(1)),
}
"""ONNX Runtime's own operators on 8-bit integers, the standard one with equal shapes, and its inputs among theirs."""
RUNTIME_DOMAIN = "com.microsoft"
WEIGHTED = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
INTEGER = {"ConvInteger": "Conv", "MatMulInteger": "MatMul", "QLinearConv": "Conv", "QLinearMatMul": "MatMul"}
"""Operators on 8-bit integers, and what they compute."""
Shapes = Mapping[str, tuple[int, ...]]


def read_onnx_layers(path: Path, family_name: str, accuracy: float, key: str = "layers.onnx") -> Family:
    """Read a network as a family of one subnet.

    Args:
        path: The ONNX file; a dynamic first axis of its inputs is taken as one.
        family_name: Name of the family.
        accuracy: In percent.
        key: Its place in the spec, for errors.

    Raises:
        UnfoldError: It is no ONNX model, an operator is unknown, a shape is dynamic, or it has no layer with weights.
    """
    import onnx
    from google.protobuf.message import DecodeError

    content = read_bytes(path, max_bytes=MAX_MODEL_BYTES)
    try:
        model = onnx.load_from_string(content)
    except DecodeError as error:
        raise _reject(path, key, "not an ONNX model", "export it with torch.onnx.export") from error
    if not model.ir_version or not model.graph.node:
        raise _reject(path, key, "not an ONNX model: it has no graph", "export it with torch.onnx.export")
    _drop_unused(model.graph)
    _replace_runtime_operators(model.graph.node)
    _check_operators(model.graph.node, path, key)
    shapes = _infer_shapes(model, path, key)
    constants = _find_constants(model.graph)
    layers, repeats = dict[str, Layer](), Counter[str]()
    for node in model.graph.node:
        for layer in _read_layers(node, shapes, constants, path, key):
            name = _name_layer(node, layers, repeats)
            if not layer.is_countable:
                message = f"{name} has more than {MAX_LAYER_COUNT:.0e} operations or values"
                raise _reject(path, key, message, "run onnx.checker on it")
            layers[name] = layer
    if not layers:
        hint = "convolutions and matrix products with constant weights are layers"
        raise _reject(path, key, "the network has no layer with weights", hint)
    passing = sorted({node.op_type for node in model.graph.node} & PASSING - {"Constant", "Identity"})
    about = f"{format_count(len(layers), 'layer')} of {path.name}"
    if passing:
        about += f"; counted as free: {', '.join(passing)}"
    if repeated := _count_repeated(model.graph, constants):
        about += f"; {format_count(repeated, 'time')}, a layer reads weights of another, which are counted again"
    if accuracy == 100:
        about += "; its accuracy is taken as 100 % (layers.accuracy)"
    subnet = tabulate_subnet(path.stem, tuple(layers), layers, accuracy)
    return Family(family_name, tuple(layers), (subnet,), about)


def _reject(path: Path, key: str, message: str, hint: str) -> UnfoldError:
    return user_error(message, file=str(path), key=key, hint=hint)


def _drop_unused(graph: Any) -> None:
    """Drop the nodes on which no output depends, in place: no runtime computes them."""
    needed, kept = {output.name for output in graph.output}, list[Any]()
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))


def _replace_runtime_operators(nodes: Sequence[Any]) -> None:
    """Replace ONNX Runtime's own operators on integers by standard ones with equal shapes, in place."""
    for node in nodes:
        standard = STANDARD.get(node.op_type) if node.domain == RUNTIME_DOMAIN else None
        if standard is None or any(attribute.name == "channels_last" and attribute.i for attribute in node.attribute):
            continue
        node.op_type, operands = standard[0], node.input[standard[1]]
        node.domain = ""
        del node.input[:]
        node.input.extend(operands)


def _check_operators(nodes: Sequence[Any], path: Path, key: str) -> None:
    known = PASSING | WEIGHTED | INTEGER.keys()
    unknown = [node for node in nodes if node.op_type not in known or node.domain not in ("", "ai.onnx")]
    if unknown:
        labels = [f"{node.op_type} ({_find_name(node)})" for node in unknown]
        hint = f"{', '.join(sorted(WEIGHTED))} are layers; pooling, element-wise and shape operators are known"
        if any(node.op_type.startswith(QUANTISED) for node in unknown):
            hint = "quantize it in the QDQ format, which keeps the operators of the network"
        raise _reject(path, key, f"unknown operators: {format_names(labels, MAX_LISTED)}", hint)


def _infer_shapes(model: Any, path: Path, key: str) -> dict[str, tuple[int, ...]]:
    """Infer the shape of every tensor for one row; tensors with an unknown axis are left out."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        if value.name in constants or not len(axes):
            continue
        if axes[0].dim_value <= 0:
            axes[0].dim_value = 1
        free = [index for index, axis in enumerate(axes) if axis.dim_value <= 0]
        if free:
            label = axes[free[0]].dim_param or "no size"
            hint = "export it with a dynamic first axis only"
            raise _reject(path, key, f"axis {free[0]} of input {value.name} is dynamic ({label})", hint)
    # inferred shapes of an export with a dynamic first axis would contradict the fixed one, and types those of replaced
    # operators
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.ClearField("type")
    # in a process of its own: up to version 1.21, ONNX reads beyond its arrays where ranks contradict each other
    command = [sys.executable, "-P", "-m", __name__]
    done = subprocess.run(command, input=model.SerializeToString(), capture_output=True, check=False)  # noqa: S603
    if done.returncode:
        reason = done.stderr.decode(errors="replace") if done.returncode == REFUSED else "the inference crashed"
        reason = " ".join(reason.split())
        raise _reject(path, key, f"its shapes cannot be inferred: {reason}", "run onnx.checker on it")
    return {name: tuple(axes) for name, axes in json.loads(done.stdout).items()}


def infer_shapes(content: bytes) -> dict[str, tuple[int, ...]]:
    """Infer the shapes of the tensors of a model with fixed inputs, but for those with an unknown or empty axis."""
    import onnx

    model = onnx.load_model_from_string(content)
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    types = {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}
    make_type = onnx.helper.make_tensor_type_proto
    types |= {tensor.name: make_type(tensor.data_type, tensor.dims) for tensor in graph.initializer}
    if any(name and _read_shape(types.get(name)) is None for node in graph.node for name in node.output):
        _follow_values(model, types)
    shapes = {name: _read_shape(kind) for name, kind in types.items()}
    return {name: shape for name, shape in shapes.items() if shape is not None and all(shape)}


def _follow_values(model: Any, types: dict[str, Any]) -> None:
    """Infer again node by node, with the values of small tensors: exporters compute shapes in the graph.

    What cannot be followed stays unknown.

    Args:
        model: Its inputs have fixed shapes.
        types: By tensor; completed.
    """
    from onnx import numpy_helper

    values = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if math.prod(tensor.dims) <= MAX_VALUES and not tensor.external_data
    }
    for node in model.graph.node:
        with contextlib.suppress(Exception):
            types |= _infer_outputs(node, types, values, model)
            values |= _compute_outputs(node, types, values, model)


def _infer_outputs(node: Any, types: dict[str, Any], values: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Infer the types of the outputs of a node that have a shape."""
    import onnx

    version = next(opset.version for opset in model.opset_import if opset.domain == node.domain)
    inferred = onnx.shape_inference.infer_node_outputs(
        onnx.defs.get_schema(node.op_type, version, node.domain),
        node,
        # only these: all that are passed are serialized
        {name: types[name] for name in node.input if name},
        {name: onnx.numpy_helper.from_array(values[name]) for name in node.input if name in values},
        opset_imports=list(model.opset_import),
        ir_version=model.ir_version,
    )
    return {name: found for name, found in inferred.items() if _read_shape(found) is not None}


def _compute_outputs(node: Any, types: Mapping[str, Any], values: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Compute the outputs of a node if they are small and its inputs are known; a shape needs no values."""
    from onnx import ValueInfoProto, helper
    from onnx.reference import ReferenceEvaluator

    inputs, outputs = ([name for name in names if name] for names in (node.input, node.output))
    sizes = {name: _read_shape(types.get(name)) for name in (*inputs, *outputs)}
    if node.op_type in ("Shape", "Size"):
        values = {name: np.broadcast_to(0, size) for name, size in sizes.items() if size is not None}
    is_small = all((size := sizes[name]) is not None and math.prod(size) <= MAX_VALUES for name in outputs)
    if not is_small or not all(name in values for name in inputs):
        return {}
    sources, results = ([ValueInfoProto(name=name) for name in names] for names in (inputs, outputs))
    single = helper.make_model(helper.make_graph([node], "node", sources, results), opset_imports=model.opset_import)
    computed = ReferenceEvaluator(single).run(None, {name: values[name] for name in inputs})
    return dict(zip(outputs, computed, strict=True))


def _read_shape(found: Any) -> tuple[int, ...] | None:
    """Read the shape of a tensor's type; ``None`` if it or an axis is unknown."""
    if found is None or not found.tensor_type.HasField("shape"):
        return None
    axes = found.tensor_type.shape.dim
    return tuple(axis.dim_value for axis in axes) if all(axis.HasField("dim_value") for axis in axes) else None


def _find_constants(graph: Any) -> frozenset[str]:
    """Find the tensors that depend on no input: initializers, constants, and what is computed from them."""
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        if all(name in constants for name in node.input if name):
            constants |= set(node.output)
    return frozenset(constants)


def _read_product(node: Any) -> tuple[str, tuple[str, ...]]:
    """Read what a node with weights computes, and its factors; empty for other nodes."""
    kind = INTEGER.get(node.op_type, node.op_type if node.op_type in WEIGHTED else "")
    # scale and zero point follow each factor
    return kind, tuple(node.input[:4:3] if node.op_type.startswith("QLinear") else node.input[:2]) if kind else ()


def _read_layers(node: Any, shapes: Shapes, constants: frozenset[str], path: Path, key: str) -> tuple[Layer, ...]:
    """Read the layers of a node that has weights; none for the others."""
    kind, operands = _read_product(node)
    if not kind or node.output[0] in constants:
        return ()
    label = f"{node.op_type} ({_find_name(node)})"
    weights = [name for name in operands if name in constants]
    if not weights:
        hint = "layers have constant weights; attention multiplies activations, which is not modelled"
        raise _reject(path, key, f"{label} multiplies two activations", hint)
    source = next(name for name in operands if name not in constants)
    missing = [name for name in (weights[0], source, node.output[0]) if name not in shapes]
    if missing:
        raise _reject(path, key, f"{label}: the shape of {missing[0]} is dynamic", "export it with fixed shapes")
    weight, into, out = (shapes[name] for name in (weights[0], source, node.output[0]))
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if kind in ("Conv", "ConvTranspose"):
        if len(weight) not in (3, 4):
            raise _reject(path, key, f"{label} has {len(weight) - 2} spatial axes", "one and two are modelled")
        groups = attributes["group"].i if "group" in attributes else 1
        if kind == "ConvTranspose":
            _check_channels(into[1], weight[0], label, path, key)
            return _split_transposed(weight, into, groups, attributes)
        _check_channels(into[1], weight[1] * groups, label, path, key)
        if weight[0] % groups:
            message = f"{label} has {weight[0]} kernels in {groups} groups"
            raise _reject(path, key, message, "run onnx.checker on it")
        # the windows of all rows are one after the other: frames of a clip, and inputs of a fixed number, are rows
        rows, columns = _pair(out[2:])
        maps = (out[0] * rows, columns), math.prod(into)
        steps = [_read_steps(attributes, name) for name in ("strides", "dilations")]
        layer = Layer(weight[0], weight[1], _pair(weight[2:]), *maps, groups, *steps)
        if out[0] > 1:
            # edges of maps that are one after the other are unknown to the model
            return (layer,)
        return (replace(layer, padding=_read_padding(attributes, layer, into), map_size=_pair(into[2:])),)
    if len(weight) != 2:
        raise _reject(path, key, f"{label} has weights of rank {len(weight)}", "rank 2 is modelled")
    is_left = weights[0] == operands[0]
    is_turned, is_source_turned = (
        name in attributes and bool(attributes[name].i) for name in (("transA", "transB")[:: 1 if is_left else -1])
    )
    # the activations multiply the weights from the left, but for a product of weights and activations
    kernels, channels = weight if is_left != is_turned else weight[::-1]
    axis = -2 if is_left != is_source_turned and len(into) > 1 else -1
    _check_channels(into[axis], channels, label, path, key)
    positions = math.prod(into) // channels
    return (Layer(kernels, channels, (1, 1), (positions, 1), math.prod(into)),)


def _split_transposed(
    weight: tuple[int, ...], into: tuple[int, ...], groups: int, attributes: Mapping[str, Any]
) -> tuple[Layer, ...]:
    """Split a transposed convolution into convolutions of its input, one for each offset within the stride.

    An output at offset p of stride s reads every s-th row of the kernel, from row p on: windows of equal size are one
    layer with more kernels.

    Args:
        weight: Shape of the weights (input channels, output channels of a group, *window).
        into: Shape of the input (rows, channels, *map).
        groups: Groups of channels.
        attributes: Of the node; a dilated kernel has the same taps.
    """
    window = _pair(weight[2:])
    stride = _read_steps(attributes, "strides")
    rows, columns = (_count_taps(edge, step) for edge, step in zip(window, stride, strict=True))
    kernels, depth = weight[1] * groups, weight[0] // groups
    height, width = _pair(into[2:])
    return tuple(
        Layer(
            kernels * rows[row] * columns[column],
            depth,
            (row, column),
            (into[0] * height, width),
            math.prod(into),
            groups,
        )
        for row in rows
        for column in columns
    )


def _count_taps(edge: int, stride: int) -> dict[int, int]:
    """Count the offsets within a stride by the rows of a kernel that they read.

    Of a kernel smaller than the stride, some read none: they are left out.
    """
    taps, longer = divmod(edge, stride)
    counts = {taps + 1: longer, taps: stride - longer}
    return {taps: count for taps, count in counts.items() if taps and count}


def _read_padding(attributes: Mapping[str, Any], layer: Layer, into: tuple[int, ...]) -> tuple[int, int]:
    """Read the rows and columns before the input map."""
    kind = attributes["auto_pad"].s if "auto_pad" in attributes else b"NOTSET"
    if not kind.startswith(b"SAME"):
        # a signal has one axis, and no padding along the other one
        before = (*(attributes["pads"].ints if "pads" in attributes else ()), 0, 0)[: len(into) - 2]
        return before[0], before[1] if len(before) > 1 else 0
    shape = describe_shape(np.array(layer.row))
    axes = zip(shape.out, shape.stride, shape.reach, _pair(into[2:]), strict=True)
    padded = [max(0, (out - 1) * step + reach - size) for out, step, reach, size in axes]
    # of an odd number, one more is at the end, or at the start
    rows, columns = ((count + (kind == b"SAME_LOWER")) // 2 for count in padded)
    return rows, columns


def _read_steps(attributes: Mapping[str, Any], name: str) -> tuple[int, int]:
    return _pair(tuple(attributes[name].ints)) if name in attributes else (1, 1)


def _pair(edges: tuple[int, ...]) -> tuple[int, int]:
    """Return both edges of a map or window; that of a signal has a second edge of 1."""
    return edges[0], edges[1] if len(edges) > 1 else 1


def _check_channels(present: int, expected: int, label: str, path: Path, key: str) -> None:
    if present != expected:
        message = f"{label} has weights for {expected} channels, its input has {present}"
        raise _reject(path, key, message, "run onnx.checker on it")


def _count_repeated(graph: Any, constants: frozenset[str]) -> int:
    """Count how often a layer reads weights that an earlier one read, as where a block is called in a loop."""
    read = [name for node in graph.node for name in _read_product(node)[1] if name in constants]
    return len(read) - len(set(read))


def _find_name(node: Any) -> str:
    """Find the name of a node, or else of its first output that is used."""
    return str(node.name or next((name for name in node.output if name), ""))


def _name_layer(node: Any, layers: Mapping[str, Layer], repeats: Counter[str]) -> str:
    """Name a layer; ``repeats`` counts the further layers of a name."""
    name = base = _find_name(node)
    while name in layers:
        repeats[base] += 1
        name = f"{base}#{repeats[base] + 1}"
    return name


def run_inference() -> None:
    """Print the shapes of the model on standard input."""
    try:
        shapes = infer_shapes(sys.stdin.buffer.read())
    # inference errors share no base
    except Exception as error:  # noqa: BLE001
        sys.stderr.write(str(error))
        sys.exit(REFUSED)
    sys.stdout.write(json.dumps(shapes))


if __name__ == "__main__":
    run_inference()
