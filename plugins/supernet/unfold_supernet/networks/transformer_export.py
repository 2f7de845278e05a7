"""A transformer subnet as a standalone torch module, and as an ONNX graph."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unfold_supernet.networks.layers import downsample
from unfold_supernet.networks.space import Space
from unfold_supernet.networks.transformer import BoundTransformer


class Block(torch.nn.Module):  # type: ignore[misc,unused-ignore]
    """Pre-norm attention and feed-forward layer with residual connections. Attribute names are a stored format."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_mixing = torch.nn.LayerNorm(width)
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.before_units = torch.nn.LayerNorm(width)
        self.up, self.down = torch.nn.Linear(width, hidden), torch.nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens (n, tokens, width)."""
        query, key, value = self.qkv(self.before_mixing(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        result: Tensor = x + self.down(torch.relu(self.up(self.before_units(x))))
        return result


class StandaloneTransformer(torch.nn.Module):  # type: ignore[misc,unused-ignore]
    """A transformer subnet built from standard modules, with tensors of its own."""

    def __init__(self, space: Space, bound: BoundTransformer) -> None:
        super().__init__()
        attention, self.shrink = bound.attention, bound.shrink
        conv = torch.nn.Conv1d if len(space.size) == 1 else torch.nn.Conv2d
        self.positions = torch.nn.Parameter(torch.zeros(bound.views[0][0].shape))
        self.embed = conv(space.channels, attention.width, attention.patch, attention.patch)
        hidden = [layer.out for layer in bound.convs if layer.name.endswith(".up")]
        self.blocks = torch.nn.ModuleList(Block(attention.width, units, attention.heads) for units in hidden)
        self.norm = torch.nn.LayerNorm(attention.width)
        self.head = torch.nn.Linear(attention.width + space.extra, space.classes)

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        """Compute logits (n, classes) for inputs (n, channels, *size) and (n, extra)."""
        x = (self.embed(downsample(x, self.shrink)) + self.positions).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        pooled = self.norm(x).transpose(1, 2).flatten(2).mean(2)
        result: Tensor = self.head(torch.cat([pooled, extra], 1))
        return result


def extract_transformer(space: Space, bound: BoundTransformer) -> StandaloneTransformer:
    """Copy a transformer subnet into a standalone module."""
    module: StandaloneTransformer = StandaloneTransformer(space, bound).eval()
    weight, extra_weight, bias = (tensor / bound.temperature for tensor in bound.head)
    sources = [*(tensor for view in bound.views for tensor in view), torch.cat([weight, extra_weight], 1), bias]
    with torch.no_grad():
        for target, source in zip(module.parameters(), sources, strict=True):
            target.copy_(source)
    return module


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """An ONNX graph under construction; every node's first output gets a unique name."""

    nodes: list[Any] = field(default_factory=list)
    tensors: list[Any] = field(default_factory=list)

    def add_node(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        from onnx import helper

        name = name or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def add_constant(self, tensor: Tensor) -> str:
        """Add a tensor to the graph as an initializer; return the name by which nodes read it."""
        from onnx import numpy_helper

        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(tensor.detach().contiguous().numpy(), name))
        return name

    def add_integers(self, *values: int) -> str:
        """Add a constant of integers and return its name."""
        return self.add_constant(torch.tensor(values))

    def add_linear(self, value: str, weight: Tensor, bias: Tensor) -> str:
        """Add a linear layer over the last axis and return the name of its output."""
        product = self.add_node("MatMul", value, self.add_constant(weight.T))
        return self.add_node("Add", product, self.add_constant(bias))

    def add_norm(self, value: str, module: torch.nn.LayerNorm) -> str:
        """Add a layer norm over the last axis and return the name of its output."""
        constants = (self.add_constant(tensor) for tensor in (module.weight, module.bias))
        return self.add_node("LayerNormalization", value, *constants, axis=-1, epsilon=module.eps)


def build_onnx_nodes(space: Space, module: StandaloneTransformer) -> tuple[list[Any], list[Any]]:
    """Build the ONNX nodes and constants from ``x`` and (if present) ``extra`` to ``logits``."""
    graph, value, dims = OnnxGraph(), "x", len(space.size)
    if module.shrink > 1:
        edge = [module.shrink] * dims
        value = graph.add_node("AveragePool", value, kernel_shape=edge, strides=edge)
    constants = (graph.add_constant(tensor) for tensor in (module.embed.weight, module.embed.bias))
    value = graph.add_node("Conv", value, *constants, strides=list(module.embed.stride))
    value = graph.add_node("Add", value, graph.add_constant(module.positions))
    value = graph.add_node("Reshape", value, graph.add_integers(0, module.embed.out_channels, -1))
    value = graph.add_node("Transpose", value, perm=[0, 2, 1])
    for block in module.blocks:
        value = _add_block(graph, value, block)
    value = graph.add_node("ReduceMean", graph.add_norm(value, module.norm), axes=[1], keepdims=0)
    if space.extra:
        value = graph.add_node("Concat", value, "extra", axis=1)
    graph.add_node("Identity", graph.add_linear(value, module.head.weight, module.head.bias), name="logits")
    return graph.nodes, graph.tensors


def _add_block(graph: OnnxGraph, tokens: str, block: Block) -> str:
    normed, width = graph.add_norm(tokens, block.before_mixing), block.out.out_features
    axis_orders = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    query, key, value = (
        _split_heads(graph, graph.add_linear(normed, *tensors), block.heads, axes)
        for *tensors, axes in zip(block.qkv.weight.split(width), block.qkv.bias.split(width), axis_orders, strict=True)
    )
    scale = graph.add_constant(torch.tensor(1 / math.sqrt(width // block.heads)))
    scores = graph.add_node("Softmax", graph.add_node("Mul", graph.add_node("MatMul", query, key), scale), axis=-1)
    attended = graph.add_node("Transpose", graph.add_node("MatMul", scores, value), perm=[0, 2, 1, 3])
    attended = graph.add_node("Reshape", attended, graph.add_integers(0, 0, width))
    tokens = graph.add_node("Add", tokens, graph.add_linear(attended, block.out.weight, block.out.bias))
    hidden = graph.add_linear(graph.add_norm(tokens, block.before_units), block.up.weight, block.up.bias)
    units = graph.add_node("Relu", hidden)
    return graph.add_node("Add", tokens, graph.add_linear(units, block.down.weight, block.down.bias))


def _split_heads(graph: OnnxGraph, value: str, heads: int, axes: list[int]) -> str:
    reshaped = graph.add_node("Reshape", value, graph.add_integers(0, 0, heads, -1))
    return graph.add_node("Transpose", reshaped, perm=axes)
