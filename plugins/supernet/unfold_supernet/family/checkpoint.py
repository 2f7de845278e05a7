"""A supernet as files of its run (weights, norm statistics, search space), and subnets extracted from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from unfold_supernet.family.artifacts import SPACE_FILE, read_space
from unfold_supernet.networks import transformer_export
from unfold_supernet.networks.layers import Statistics, Weights, downsample
from unfold_supernet.networks.space import Conv, Space, Subnet
from unfold_supernet.networks.supernet import BoundConvNet, BoundSubnet, Supernet, bind_subnet
from unfold_supernet.networks.transformer import BoundTransformer
from unfold_supernet.networks.transformer_export import StandaloneTransformer
from unfoldkit.api import RunDir
from unfoldkit.safe_io.files import decoding

WEIGHTS_FILE = "family/weights.safetensors"
NORMS_FILE = "family/norms.safetensors"
CHECKPOINT_FILE = "family/checkpoint.safetensors"
TEMPERATURE = "temperature"


def write_supernet(
    directory: RunDir,
    space: Space,
    weights: Weights,
    norms: Mapping[str, Statistics],
    made_from: str,
    temperatures: Mapping[str, float] | None = None,
) -> None:
    """Write a supernet into a run.

    Args:
        directory: The run.
        space: The search space.
        weights: The shared weights.
        norms: Norm statistics by subnet.
        made_from: Fingerprint of everything that the weights depend on.
        temperatures: Temperature by subnet; 1 where absent.
    """
    flat = {
        f"{name}/{layer}/{moment}": tensor.contiguous()
        for name, statistics in norms.items()
        for layer, pair in enumerate(statistics)
        for moment, tensor in zip(("mean", "variance"), pair, strict=True)
    }
    flat |= {f"{name}/{TEMPERATURE}": torch.tensor(value) for name, value in (temperatures or {}).items()}
    directory.write(WEIGHTS_FILE, save(weights), made_from=made_from)
    directory.write(NORMS_FILE, save(flat), made_from=made_from)
    directory.write(SPACE_FILE, (json.dumps(asdict(space)) + "\n").encode(), made_from=made_from)


def read_supernet(directory: RunDir) -> Supernet:
    """Read the supernet of a run, every subnet bound to the shared weights.

    Raises:
        UnfoldError: The run holds none, or a file was modified.
    """
    space = read_space(directory)
    weights, flat = (_read_tensors(directory, name) for name in (WEIGHTS_FILE, NORMS_FILE))
    with decoding(str(directory.path / WEIGHTS_FILE), "the weights of this supernet"):
        bound = {
            subnet.name: bind_subnet(
                space, weights, subnet, _select_norms(flat, subnet), _read_temperature(flat, subnet)
            )
            for subnet in space.subnets
        }
    return Supernet(space, weights, bound)


def _read_tensors(directory: RunDir, name: str) -> dict[str, Tensor]:
    with directory.decoding(name, "tensors") as content:
        try:
            tensors: dict[str, Tensor] = load(content)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        return tensors


def _select_norms(flat: dict[str, Tensor], subnet: Subnet) -> Statistics:
    layers = sum(key.startswith(f"{subnet.name}/") and key.endswith("/mean") for key in flat)
    moments = [flat[f"{subnet.name}/{layer}/{moment}"] for layer in range(layers) for moment in ("mean", "variance")]
    # views of one tensor: of a small subnet, the objects around numbers need more memory than the numbers
    parts = torch.cat(moments).split([len(moment) for moment in moments]) if moments else ()
    return tuple(zip(parts[::2], parts[1::2], strict=True))


def _read_temperature(flat: dict[str, Tensor], subnet: Subnet) -> float:
    """Read a subnet's temperature; runs of versions that did not calibrate have none."""
    temperature = float(flat.get(f"{subnet.name}/{TEMPERATURE}", torch.tensor(1.0)))
    if not math.isfinite(temperature) or temperature <= 0:
        raise ValueError(f"temperature of {subnet.name} is {temperature}")
    return temperature


class StandaloneConvNet(torch.nn.Module):  # type: ignore[misc,unused-ignore]
    """A convolutional subnet built from standard modules. Attribute names are a stored format."""

    def __init__(self, space: Space, layers: tuple[Conv, ...], shrink: int = 1) -> None:
        super().__init__()
        self.shrink = shrink
        conv, norm = (
            (torch.nn.Conv1d, torch.nn.BatchNorm1d) if len(space.size) == 1 else (torch.nn.Conv2d, torch.nn.BatchNorm2d)
        )
        self.layers = layers
        self.convs = torch.nn.ModuleList(
            conv(layer.into, layer.out, layer.kernel, layer.stride, layer.kernel // 2, bias=False) for layer in layers
        )
        self.norms = torch.nn.ModuleList(norm(layer.out) for layer in layers)
        self.head = torch.nn.Linear(layers[-1].out + space.extra, space.classes)

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        """Compute logits (n, classes) for inputs (n, channels, *size) and (n, extra)."""
        x = downsample(x, self.shrink)
        for layer, conv, norm in zip(self.layers, self.convs, self.norms, strict=True):
            out = norm(conv(x))
            x = torch.relu(out + x if layer.identity else out)
        logits: Tensor = self.head(torch.cat([x.flatten(2).mean(2), extra], 1))
        return logits


StandaloneModel = StandaloneConvNet | StandaloneTransformer


def build_empty_model(space: Space, bound: BoundSubnet) -> StandaloneModel:
    """Build the standalone module of a subnet without its tensors."""
    model: StandaloneModel = (
        StandaloneTransformer(space, bound)
        if isinstance(bound, BoundTransformer)
        else StandaloneConvNet(space, bound.convs, bound.shrink)
    ).eval()
    return model


def extract_model(space: Space, bound: BoundSubnet) -> StandaloneModel:
    """Copy a subnet into a standalone module."""
    if isinstance(bound, BoundTransformer):
        return transformer_export.extract_transformer(space, bound)
    return _extract_conv_net(space, bound)


def _extract_conv_net(space: Space, bound: BoundConvNet) -> StandaloneConvNet:
    module: StandaloneConvNet = StandaloneConvNet(space, bound.convs, bound.shrink).eval()
    with torch.no_grad():
        layers = zip(module.convs, module.norms, bound.views, bound.statistics, strict=True)
        for conv, norm, (weight, gamma, beta), (mean, variance) in layers:
            for target, source in zip(
                (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var),
                (weight, gamma, beta, mean, variance),
                strict=True,
            ):
                target.copy_(source)
        # the exported head holds the temperature: every runtime returns calibrated logits
        weight, extra_weight, bias = (tensor / bound.temperature for tensor in bound.head)
        module.head.weight.copy_(torch.cat([weight, extra_weight], 1))
        module.head.bias.copy_(bias)
    return module


def serialise_state(module: StandaloneModel) -> bytes:
    """Serialise a standalone module's state as safetensors."""
    return bytes(save({name: tensor.contiguous() for name, tensor in module.state_dict().items()}))


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
