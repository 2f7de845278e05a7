"""Transformer subnets of one set of weights: full attention, first units of each feed-forward layer (MatFormer).

Blocks are pre-norm; layer norms share scale and shift among all subnets and need no statistics. A block adds attention,
then a feed-forward layer with ReLU. Tokens are input patches with learned positions; a lower resolution has fewer
tokens and uses every n-th position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from unfold_supernet.networks.layers import (
    EPSILON,
    Head,
    Statistics,
    Weights,
    compute_logits,
    downsample,
    slice_head,
)
from unfold_supernet.networks.space import Attention, Conv, Space, Subnet, compute_token_grid, list_convolutions

Views = tuple[tuple[Tensor, ...], ...]
"""Positions, weight and bias of the embedding; twelve tensors of each block; scale and shift of the final norm."""
POSITION_DEVIATION = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundTransformer:
    """A transformer subnet ready for inference: views of the shared weights; it has no norm statistics."""

    convs: tuple[Conv, ...]
    views: Views
    head: Head
    attention: Attention
    shrink: int = 1
    statistics: Statistics = ()
    temperature: float = 1.0

    def __call__(self, x: Tensor, extra: Tensor) -> Tensor:
        """Compute logits (n, classes) for inputs (n, channels, *size) and (n, extra)."""
        embedding, *blocks, (gamma, beta) = self.views
        x = embed_patches(downsample(x, self.shrink), embedding, self.attention.patch)
        for tensors in blocks:
            x = apply_block(x, tensors, self.attention.heads)
        x = functional.layer_norm(x, x.shape[2:], gamma, beta, EPSILON)
        return compute_logits(x.transpose(1, 2), extra, self.head, self.temperature)


def bind_transformer(
    space: Space, weights: Mapping[str, Tensor], subnet: Subnet, temperature: float = 1.0
) -> BoundTransformer:
    """Bind a transformer subnet to views of the shared weights."""
    assert space.attention is not None  # noqa: S101 - the caller checks the form
    convs = list_convolutions(space, subnet)
    views = slice_transformer(weights, convs, compute_token_grid(space, subnet))
    head = slice_head(weights, space.attention.width)
    return BoundTransformer(
        convs=convs,
        views=views,
        head=head,
        attention=space.attention,
        shrink=subnet.shrink,
        temperature=temperature,
    )


def slice_transformer(weights: Mapping[str, Tensor], convs: tuple[Conv, ...], tokens: tuple[int, ...]) -> Views:
    """Slice the tensors of a transformer subnet: first units, first blocks, every n-th position."""
    positions = weights["positions"]
    for axis, count in enumerate(tokens, 1):
        step = positions.shape[axis] // count
        positions = positions[(slice(None),) * axis + (slice(0, count * step, step),)]
    embedding = (positions, weights["embed.weight"], weights["embed.bias"])
    blocks = tuple(_slice_block(weights, convs[start : start + 4]) for start in range(1, len(convs), 4))
    return (embedding, *blocks, (weights["head.gamma"], weights["head.beta"]))


def _slice_block(weights: Mapping[str, Tensor], convs: tuple[Conv, ...]) -> tuple[Tensor, ...]:
    """Slice norm, weights and biases of the attention, then those of the feed-forward layer."""
    tensors: list[Tensor] = []
    for conv in convs:
        norm_names = (f"{conv.name}.{suffix}" for suffix in ("gamma", "beta"))
        norm = [weights[name] for name in norm_names if name in weights]
        weight = weights[f"{conv.name}.weight"][: conv.out, : conv.into]
        tensors += [*norm, weight, weights[f"{conv.name}.bias"][: conv.out]]
    return tuple(tensors)


def embed_patches(x: Tensor, embedding: tuple[Tensor, ...], patch: int) -> Tensor:
    """Turn inputs (n, channels, *size) into tokens (n, tokens, width) with their positions added."""
    positions, weight, bias = embedding
    function = functional.conv1d if x.ndim == 3 else functional.conv2d
    return (function(x, weight, bias, stride=patch) + positions).flatten(2).transpose(1, 2)


def apply_block(x: Tensor, tensors: tuple[Tensor, ...], heads: int) -> Tensor:
    """Apply one block to tokens (n, tokens, width)."""
    gamma, beta, qkv, qkv_bias, out, out_bias, scale, shift, up, up_bias, down, down_bias = tensors
    normed = functional.layer_norm(x, x.shape[2:], gamma, beta, EPSILON)
    x = x + functional.linear(attend(functional.linear(normed, qkv, qkv_bias), heads), out, out_bias)
    normed = functional.layer_norm(x, x.shape[2:], scale, shift, EPSILON)
    units = functional.relu(functional.linear(normed, up, up_bias))
    # contiguous, so that the product equals that of the extracted model bit for bit
    return x + functional.linear(units, down.contiguous(), down_bias)


def attend(x: Tensor, heads: int) -> Tensor:
    """Apply multi-head attention: queries, keys and values (n, tokens, 3 width) become (n, tokens, width)."""
    query, key, value = x.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def init_transformer_weights(space: Space, generator: torch.Generator, subnet: Subnet) -> Weights:
    """Draw fresh weights except the head: normal by fan-in; layers that add to the tokens start small."""
    convs, dims = list_convolutions(space, subnet), len(space.size)
    width = convs[0].out
    position_shape = (width, *compute_token_grid(space, subnet))
    weights: Weights = {"positions": torch.randn(position_shape, generator=generator) * POSITION_DEVIATION}
    for conv in convs:
        shape = (conv.out, conv.into, *([conv.kernel] * dims if conv.name == "embed" else []))
        gain = {"up": 2.0, "out": 1 / len(convs), "down": 1 / len(convs)}.get(conv.name.rpartition(".")[2], 1.0)
        deviation = math.sqrt(gain / math.prod(shape[1:]))
        weights[f"{conv.name}.weight"] = torch.randn(shape, generator=generator) * deviation
        weights[f"{conv.name}.bias"] = torch.zeros(conv.out)
    for name in (*(conv.name for conv in convs if conv.name.endswith((".qkv", ".up"))), "head"):
        weights |= {f"{name}.gamma": torch.ones(width), f"{name}.beta": torch.zeros(width)}
    return weights
