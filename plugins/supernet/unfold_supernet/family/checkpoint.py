"""A family as files: one of weights, one of norm statistics, one that says what they are; and a subnet taken out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from unfold_supernet.family.names import SPACE
from unfold_supernet.networks import transformer_export
from unfold_supernet.networks.layers import Statistics, Weights, reduced
from unfold_supernet.networks.space import Conv, Space, Subnet, space_from
from unfold_supernet.networks.supernet import Bound, Ready, Supernet, bind
from unfold_supernet.networks.transformer import Attending
from unfold_supernet.networks.transformer_export import Alone
from unfoldkit.api import RunDir
from unfoldkit.safe_io.files import decoding, parse_object

WEIGHTS = "family/weights.safetensors"
NORMS = "family/norms.safetensors"
CHECKPOINT = "family/checkpoint.safetensors"


def keep_family(
    directory: RunDir, space: Space, weights: Weights, norms: dict[str, Statistics], made_from: str
) -> None:
    """Write a family into a run."""
    flat = {
        f"{name}/{layer}/{part}": tensor.contiguous()
        for name, statistics in norms.items()
        for layer, pair in enumerate(statistics)
        for part, tensor in zip(("mean", "variance"), pair, strict=True)
    }
    directory.write(WEIGHTS, save(weights), made_from=made_from)
    directory.write(NORMS, save(flat), made_from=made_from)
    directory.write(SPACE, (json.dumps(asdict(space)) + "\n").encode(), made_from=made_from)


def read_family(directory: RunDir) -> Supernet:
    """Return the family of a run, every subnet bound to the shared weights.

    Raises:
        UnfoldError: the run holds none, or a file was changed.
    """
    space = read_space(directory)
    weights, flat = (_tensors(directory, name) for name in (WEIGHTS, NORMS))
    with decoding(str(directory.path / WEIGHTS), "the weights of this family"):
        bound = {one.name: bind(space, weights, one, _norms(flat, one)) for one in space.subnets}
    return Supernet(space, weights, bound)


def read_space(directory: RunDir) -> Space:
    """Return the search space of a run's family.

    Raises:
        UnfoldError: the run holds none, or the file was changed.
    """
    with directory.decoding(SPACE, "a search space") as data:
        return space_from(parse_object(data))


def _tensors(directory: RunDir, name: str) -> dict[str, Tensor]:
    with directory.decoding(name, "tensors") as data:
        try:
            found: dict[str, Tensor] = load(data)
        except SafetensorError as error:
            raise ValueError(str(error)) from error
        return found


def _norms(flat: dict[str, Tensor], subnet: Subnet) -> Statistics:
    layers = len({key for key in flat if key.startswith(f"{subnet.name}/")}) // 2
    return tuple((flat[f"{subnet.name}/{at}/mean"], flat[f"{subnet.name}/{at}/variance"]) for at in range(layers))


class Plain(torch.nn.Module):  # type: ignore[misc,unused-ignore]
    """A subnet on its own, by standard modules: what ``extract`` gives."""

    def __init__(self, space: Space, found: tuple[Conv, ...], shrink: int = 1) -> None:
        super().__init__()
        self.shrink = shrink
        conv, norm = (
            (torch.nn.Conv1d, torch.nn.BatchNorm1d) if len(space.size) == 1 else (torch.nn.Conv2d, torch.nn.BatchNorm2d)
        )
        self.layers = found
        self.convs = torch.nn.ModuleList(
            conv(one.into, one.out, one.kernel, one.stride, one.kernel // 2, bias=False) for one in found
        )
        self.norms = torch.nn.ModuleList(norm(one.out) for one in found)
        self.head = torch.nn.Linear(found[-1].out + space.extra, space.classes)

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        """Return logits."""
        x = reduced(x, self.shrink)
        for one, conv, norm in zip(self.layers, self.convs, self.norms, strict=True):
            out = norm(conv(x))
            x = torch.relu(out + x if one.identity else out)
        result: Tensor = self.head(torch.cat([x.flatten(2).mean(2), extra], 1))
        return result


Extracted = Plain | Alone


def blank(space: Space, bound: Ready) -> Extracted:
    """Return a plain module for a subnet, not yet with its tensors."""
    made: Extracted = (
        Alone(space, bound) if isinstance(bound, Attending) else Plain(space, bound.convs, bound.shrink)
    ).eval()
    return made


def extract(space: Space, bound: Ready) -> Extracted:
    """Return a subnet as a plain module with tensors of its own."""
    return transformer_export.extract(space, bound) if isinstance(bound, Attending) else _extract(space, bound)


def _extract(space: Space, bound: Bound) -> Plain:
    module: Plain = Plain(space, bound.convs, bound.shrink).eval()
    with torch.no_grad():
        parts = zip(module.convs, module.norms, bound.views, bound.statistics, strict=True)
        for conv, norm, (weight, gamma, beta), (mean, variance) in parts:
            for target, source in zip(
                (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var),
                (weight, gamma, beta, mean, variance),
                strict=True,
            ):
                target.copy_(source)
        weight, more, bias = bound.head
        module.head.weight.copy_(torch.cat([weight, more], 1))
        module.head.bias.copy_(bias)
    return module


def state_bytes(module: Extracted) -> bytes:
    """Return a plain subnet's state as safetensors."""
    return bytes(save({name: tensor.contiguous() for name, tensor in module.state_dict().items()}))


def onnx_bytes(space: Space, module: Extracted, names: Sequence[str] = ()) -> bytes:
    """Return a plain subnet as an ONNX model with inputs ``x`` and (if there is any) ``extra``, output ``logits``.

    Its metadata holds the ``names`` of the classes under ``classes``, as a JSON list.
    """
    from onnx import TensorProto, checker, helper

    nodes, tensors = (
        _onnx_parts(space, module) if isinstance(module, Plain) else transformer_export.onnx_parts(space, module)
    )
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", space.channels, *space.size])]
    given += [helper.make_tensor_value_info("extra", TensorProto.FLOAT, ["n", space.extra])] if space.extra else []
    told = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", space.classes])]
    graph = helper.make_graph(nodes, "subnet", given, told, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {"classes": json.dumps(names)} if names else {})
    checker.check_model(model)
    return bytes(model.SerializeToString())


def _onnx_parts(space: Space, module: Plain) -> tuple[list[Any], list[Any]]:
    """Return nodes and constants from the inputs to ``logits``."""
    from onnx import helper, numpy_helper

    nodes: list[Any] = []
    tensors: list[Any] = []
    value = "x"

    def constant(name: str, tensor: Tensor) -> str:
        tensors.append(numpy_helper.from_array(tensor.detach().numpy(), name))
        return name

    if module.shrink > 1:
        edge = [module.shrink] * len(space.size)
        nodes.append(helper.make_node("AveragePool", ["x"], ["small"], kernel_shape=edge, strides=edge))
        value = "small"
    for at, (one, conv, norm) in enumerate(zip(module.layers, module.convs, module.norms, strict=True)):
        dims = len(space.size)
        edges: dict[str, Any] = {"strides": [one.stride] * dims, "pads": [one.kernel // 2] * 2 * dims}
        nodes.append(helper.make_node("Conv", [value, constant(f"w{at}", conv.weight)], [f"c{at}"], **edges))
        names = ("weight", "bias", "running_mean", "running_var")
        inputs = [constant(f"{name}{at}", getattr(norm, name)) for name in names]
        nodes.append(helper.make_node("BatchNormalization", [f"c{at}", *inputs], [f"n{at}"], epsilon=norm.eps))
        out = f"n{at}"
        if one.identity:
            nodes.append(helper.make_node("Add", [out, value], [f"a{at}"]))
            out = f"a{at}"
        nodes.append(helper.make_node("Relu", [out], [f"r{at}"]))
        value = f"r{at}"
    nodes += [helper.make_node("GlobalAveragePool", [value], ["pool"]), helper.make_node("Flatten", ["pool"], ["flat"])]
    joined = "flat"
    if space.extra:
        nodes.append(helper.make_node("Concat", ["flat", "extra"], ["joined"], axis=1))
        joined = "joined"
    parts = [joined, constant("head", module.head.weight), constant("bias", module.head.bias)]
    nodes.append(helper.make_node("Gemm", parts, ["logits"], transB=1))
    return nodes, tensors
