"""A transformer taken out of its family: a plain module of its own, and its ONNX graph."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unfold_supernet.networks.layers import reduced
from unfold_supernet.networks.space import Space
from unfold_supernet.networks.transformer import Attending


class Block(torch.nn.Module):  # type: ignore[misc,unused-ignore]
    """Attention, then a feed-forward layer, each behind a norm and added to its input."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_mixing = torch.nn.LayerNorm(width)
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.before_units = torch.nn.LayerNorm(width)
        self.up, self.down = torch.nn.Linear(width, hidden), torch.nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (n, tokens, width)."""
        query, key, value = self.qkv(self.before_mixing(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        result: Tensor = x + self.down(torch.relu(self.up(self.before_units(x))))
        return result


class Alone(torch.nn.Module):  # type: ignore[misc,unused-ignore]
    """A transformer on its own, by standard modules: what ``extract`` gives."""

    def __init__(self, space: Space, bound: Attending) -> None:
        super().__init__()
        given, self.shrink = bound.attention, bound.shrink
        conv = torch.nn.Conv1d if len(space.size) == 1 else torch.nn.Conv2d
        self.positions = torch.nn.Parameter(torch.zeros(bound.views[0][0].shape))
        self.embed = conv(space.channels, given.width, given.patch, given.patch)
        hidden = [one.out for one in bound.convs if one.name.endswith(".up")]
        self.blocks = torch.nn.ModuleList(Block(given.width, units, given.heads) for units in hidden)
        self.norm = torch.nn.LayerNorm(given.width)
        self.head = torch.nn.Linear(given.width + space.extra, space.classes)

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        """Return logits."""
        x = (self.embed(reduced(x, self.shrink)) + self.positions).flatten(2).transpose(1, 2)
        for one in self.blocks:
            x = one(x)
        pooled = self.norm(x).transpose(1, 2).flatten(2).mean(2)
        result: Tensor = self.head(torch.cat([pooled, extra], 1))
        return result


def extract(space: Space, bound: Attending) -> Alone:
    """Return a transformer as a plain module with tensors of its own."""
    module: Alone = Alone(space, bound).eval()
    weight, more, bias = bound.head
    sources = [*(tensor for part in bound.views for tensor in part), torch.cat([weight, more], 1), bias]
    with torch.no_grad():
        for target, source in zip(module.parameters(), sources, strict=True):
            target.copy_(source)
    return module


@dataclass(frozen=True, slots=True)
class Graph:
    """An ONNX graph while it is written: each node's first output has a name of its own."""

    nodes: list[Any] = field(default_factory=list)
    tensors: list[Any] = field(default_factory=list)

    def node(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        from onnx import helper

        name = name or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, tensor: Tensor) -> str:
        """Add a constant and return its name."""
        from onnx import numpy_helper

        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(tensor.detach().contiguous().numpy(), name))
        return name

    def numbers(self, *values: int) -> str:
        """Add whole numbers and return their name."""
        return self.constant(torch.tensor(values))

    def linear(self, value: str, weight: Tensor, bias: Tensor) -> str:
        """Add a linear layer over the last axis."""
        return self.node("Add", self.node("MatMul", value, self.constant(weight.T)), self.constant(bias))

    def norm(self, value: str, module: torch.nn.LayerNorm) -> str:
        """Add a layer norm over the last axis."""
        parts = (self.constant(part) for part in (module.weight, module.bias))
        return self.node("LayerNormalization", value, *parts, axis=-1, epsilon=module.eps)


def onnx_parts(space: Space, module: Alone) -> tuple[list[Any], list[Any]]:
    """Return nodes and constants from ``x`` and (if there is any) ``extra`` to ``logits``."""
    graph, value, dims = Graph(), "x", len(space.size)
    if module.shrink > 1:
        edge = [module.shrink] * dims
        value = graph.node("AveragePool", value, kernel_shape=edge, strides=edge)
    parts = (graph.constant(part) for part in (module.embed.weight, module.embed.bias))
    value = graph.node("Conv", value, *parts, strides=list(module.embed.stride))
    value = graph.node("Add", value, graph.constant(module.positions))
    value = graph.node("Reshape", value, graph.numbers(0, module.embed.out_channels, -1))
    value = graph.node("Transpose", value, perm=[0, 2, 1])
    for one in module.blocks:
        value = _block(graph, value, one)
    value = graph.node("ReduceMean", graph.norm(value, module.norm), axes=[1], keepdims=0)
    if space.extra:
        value = graph.node("Concat", value, "extra", axis=1)
    graph.node("Identity", graph.linear(value, module.head.weight, module.head.bias), name="logits")
    return graph.nodes, graph.tensors


def _block(graph: Graph, value: str, one: Block) -> str:
    normed, width = graph.norm(value, one.before_mixing), one.out.out_features
    orders = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    query, key, held = (
        _heads(graph, graph.linear(normed, *parts), one.heads, order)
        for *parts, order in zip(one.qkv.weight.split(width), one.qkv.bias.split(width), orders, strict=True)
    )
    scale = graph.constant(torch.tensor(1 / math.sqrt(width // one.heads)))
    scores = graph.node("Softmax", graph.node("Mul", graph.node("MatMul", query, key), scale), axis=-1)
    mixed = graph.node("Transpose", graph.node("MatMul", scores, held), perm=[0, 2, 1, 3])
    mixed = graph.node("Reshape", mixed, graph.numbers(0, 0, width))
    value = graph.node("Add", value, graph.linear(mixed, one.out.weight, one.out.bias))
    units = graph.node("Relu", graph.linear(graph.norm(value, one.before_units), one.up.weight, one.up.bias))
    return graph.node("Add", value, graph.linear(units, one.down.weight, one.down.bias))


def _heads(graph: Graph, value: str, heads: int, order: list[int]) -> str:
    return graph.node("Transpose", graph.node("Reshape", value, graph.numbers(0, 0, heads, -1)), perm=order)
