"""Transformers cut from one set of weights: attention is whole, feed-forward layers keep their first units (MatFormer).

Blocks norm first (layer norms, whose scale and shift all members share: they keep no statistics); a block adds
attention, then a feed-forward layer with ReLU. Tokens are patches of the input with learned positions; a lower
resolution has fewer, and takes every n-th position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from unfold_supernet.networks.layers import EPSILON, Head, Statistics, Weights, answer, head, reduced
from unfold_supernet.networks.space import Attention, Conv, Space, Subnet, convs, grid

Views = tuple[tuple[Tensor, ...], ...]
"""Positions, weight and bias of the embedding; twelve tensors of each block; scale and shift of the last norm."""
SMALL = 0.02


@dataclass(frozen=True, slots=True)
class Attending:
    """A transformer ready to answer: views of the shared weights, nothing copied; it has no statistics."""

    convs: tuple[Conv, ...]
    views: Views
    head: Head
    attention: Attention
    shrink: int = 1
    statistics: Statistics = ()

    def __call__(self, x: Tensor, extra: Tensor) -> Tensor:
        """Return logits (n, classes) for inputs (n, channels, *size) and (n, extra)."""
        first, *blocks, (gamma, beta) = self.views
        x = embedded(reduced(x, self.shrink), first, self.attention.patch)
        for parts in blocks:
            x = block(x, parts, self.attention.heads)
        x = functional.layer_norm(x, x.shape[2:], gamma, beta, EPSILON)
        return answer(x.transpose(1, 2), extra, self.head)


def bind(space: Space, weights: Mapping[str, Tensor], subnet: Subnet) -> Attending:
    """Return a transformer whose tensors are views of the shared ones."""
    assert space.attention is not None  # noqa: S101 - the caller looked
    found = convs(space, subnet)
    parts = views(weights, found, grid(space, subnet))
    return Attending(found, parts, head(weights, space.attention.width), space.attention, subnet.shrink)


def views(weights: Mapping[str, Tensor], found: tuple[Conv, ...], tokens: tuple[int, ...]) -> Views:
    """Return the tensors of a transformer: first units, first blocks, every n-th position."""
    positions = weights["positions"]
    for axis, count in enumerate(tokens, 1):
        step = positions.shape[axis] // count
        positions = positions[(slice(None),) * axis + (slice(0, count * step, step),)]
    first = (positions, weights["embed.weight"], weights["embed.bias"])
    blocks = tuple(_block(weights, found[at : at + 4]) for at in range(1, len(found), 4))
    return (first, *blocks, (weights["head.gamma"], weights["head.beta"]))


def _block(weights: Mapping[str, Tensor], found: tuple[Conv, ...]) -> tuple[Tensor, ...]:
    """Return scale and shift, weights and biases of attention, then those of the feed-forward layer."""
    parts: list[Tensor] = []
    for conv in found:
        norm = [weights[f"{conv.name}.{part}"] for part in ("gamma", "beta") if f"{conv.name}.{part}" in weights]
        weight = weights[f"{conv.name}.weight"][: conv.out, : conv.into]
        parts += [*norm, weight, weights[f"{conv.name}.bias"][: conv.out]]
    return tuple(parts)


def embedded(x: Tensor, parts: tuple[Tensor, ...], patch: int) -> Tensor:
    """Return tokens (n, tokens, width) of inputs (n, channels, *size), with their positions."""
    positions, weight, bias = parts
    function = functional.conv1d if x.ndim == 3 else functional.conv2d
    return (function(x, weight, bias, stride=patch) + positions).flatten(2).transpose(1, 2)


def block(x: Tensor, parts: tuple[Tensor, ...], heads: int) -> Tensor:
    """Return tokens (n, tokens, width) after a block."""
    gamma, beta, qkv, qkv_bias, out, out_bias, scale, shift, up, up_bias, down, down_bias = parts
    normed = functional.layer_norm(x, x.shape[2:], gamma, beta, EPSILON)
    x = x + functional.linear(mixed(functional.linear(normed, qkv, qkv_bias), heads), out, out_bias)
    normed = functional.layer_norm(x, x.shape[2:], scale, shift, EPSILON)
    units = functional.relu(functional.linear(normed, up, up_bias))
    # contiguous, so that the product is the one of a net alone, bit for bit
    return x + functional.linear(units, down.contiguous(), down_bias)


def mixed(x: Tensor, heads: int) -> Tensor:
    """Return what attention makes of queries, keys and values (n, tokens, 3 width): (n, tokens, width)."""
    query, key, value = x.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def initial(space: Space, generator: torch.Generator, subnet: Subnet) -> Weights:
    """Return fresh weights but the head's: normal, fan in; what is added to the tokens starts small."""
    found, dims = convs(space, subnet), len(space.size)
    width = found[0].out
    weights: Weights = {"positions": torch.randn((width, *grid(space, subnet)), generator=generator) * SMALL}
    for conv in found:
        shape = (conv.out, conv.into, *([conv.kernel] * dims if conv.name == "embed" else []))
        gain = {"up": 2.0, "out": 1 / len(found), "down": 1 / len(found)}.get(conv.name.rpartition(".")[2], 1.0)
        deviation = math.sqrt(gain / math.prod(shape[1:]))
        weights[f"{conv.name}.weight"] = torch.randn(shape, generator=generator) * deviation
        weights[f"{conv.name}.bias"] = torch.zeros(conv.out)
    for name in (*(conv.name for conv in found if conv.name.endswith((".qkv", ".up"))), "head"):
        weights |= {f"{name}.gamma": torch.ones(width), f"{name}.beta": torch.zeros(width)}
    return weights
