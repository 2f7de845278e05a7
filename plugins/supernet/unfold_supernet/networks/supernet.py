"""One set of weights for many subnets (OFA). The subnet is an argument of the call, never a state: threads can share.

In training, batch norms use the statistics of the batch and store none; afterwards each subnet has its own statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from unfold_supernet.networks import transformer
from unfold_supernet.networks.batch_norm import apply_with_batch_statistics, convolve, slice_convolution
from unfold_supernet.networks.layers import (
    EPSILON,
    Head,
    Statistics,
    Weights,
    compute_logits,
    downsample,
    slice_head,
)
from unfold_supernet.networks.space import Conv, Space, Subnet, list_convolutions
from unfold_supernet.networks.transformer import BoundTransformer


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundConvNet:
    """A convolutional subnet ready for inference: views of the shared weights, and its own norm statistics."""

    convs: tuple[Conv, ...]
    views: tuple[tuple[Tensor, Tensor, Tensor], ...]
    statistics: Statistics
    head: Head
    shrink: int = 1
    temperature: float = 1.0

    def __call__(self, x: Tensor, extra: Tensor) -> Tensor:
        """Compute logits (n, classes) for inputs (n, channels, *size) and (n, extra)."""
        x = downsample(x, self.shrink)
        for conv, view, (mean, variance) in zip(self.convs, self.views, self.statistics, strict=True):
            weight, gamma, beta = view
            out = convolve(conv, x, weight)
            out = functional.batch_norm(out, mean, variance, gamma, beta, False, 0.0, EPSILON)
            x = functional.relu(out + x if conv.identity else out)
        return compute_logits(x, extra, self.head, self.temperature)


BoundSubnet = BoundConvNet | BoundTransformer
"""A subnet of either form, bound to the shared weights."""


@dataclass(frozen=True, slots=True)
class EscalationPair:
    """Two subnets: rows below ``threshold`` confidence in the small one are recomputed by the large one."""

    small: Callable[[Tensor, Tensor], Tensor]
    large: Callable[[Tensor, Tensor], Tensor]
    threshold: float

    def __call__(self, x: Tensor, extra: Tensor) -> Tensor:
        """Compute logits (n, classes); each row holds those of the subnet responsible for it."""
        logits = self.small(x, extra)
        unsure = (functional.softmax(logits, 1).max(1).values < self.threshold).nonzero().flatten()
        if len(unsure):
            # inference-mode tensors must not be written to
            logits = logits.clone()
            logits[unsure] = self.large(x[unsure], extra[unsure])
        return logits


@dataclass(frozen=True, slots=True)
class Supernet:
    """A trained supernet: shared weights, and every subnet bound to them once."""

    space: Space
    weights: Mapping[str, Tensor]
    bound: Mapping[str, BoundSubnet]

    def __call__(self, name: str, x: Tensor, extra: Tensor) -> Tensor:
        """Compute the logits of the subnet ``name``; safe to call from many threads at once."""
        return self.bound[name](x, extra)

    def select(self, name: str, fallback: str | None, threshold: float | None) -> BoundSubnet | EscalationPair:
        """Select a subnet, or with ``fallback`` the escalation pair of both."""
        small = self.bound[name]
        return small if fallback is None else EscalationPair(small, self.bound[fallback], threshold or 0.0)


def init_weights(space: Space, seed: int, subnet: Subnet | None = None) -> Weights:
    """Draw fresh weights for a subnet's size, by default the largest: He init by fan-out (transformers: fan-in)."""
    size = subnet or space.largest
    convs = list_convolutions(space, size)
    generator = torch.Generator().manual_seed(seed)
    if space.attention:
        weights = transformer.init_transformer_weights(space, generator, size)
    else:
        weights = _init_convolutions(convs, len(space.size), generator)
    limit = 1 / math.sqrt(convs[-1].out + space.extra)
    for name, width in (("weight", convs[-1].out), ("extra", space.extra)):
        weights[f"head.{name}"] = (torch.rand(space.classes, width, generator=generator) * 2 - 1) * limit
    weights["head.bias"] = torch.zeros(space.classes)
    return weights


def _init_convolutions(convs: tuple[Conv, ...], dims: int, generator: torch.Generator) -> Weights:
    weights: Weights = {}
    for conv in convs:
        deviation = math.sqrt(2.0 / (conv.out * conv.kernel**dims))
        shape = (conv.out, conv.into, *([conv.kernel] * dims))
        weights[f"{conv.name}.weight"] = torch.randn(shape, generator=generator) * deviation
        weights[f"{conv.name}.gamma"] = torch.ones(conv.out)
        weights[f"{conv.name}.beta"] = torch.zeros(conv.out)
    return weights


PrefixCache = dict[tuple[int, tuple[Conv, ...]], Tensor]
"""Feature maps of one batch, by input resolution and the layers applied to it."""


def train_forward(
    space: Space, weights: Weights, subnet: Subnet, x: Tensor, extra: Tensor, cache: PrefixCache | None = None
) -> Tensor:
    """Compute the logits of a subnet under the statistics of the batch.

    Args:
        space: The search space.
        weights: The shared weights.
        subnet: Which subnet to run.
        x: Inputs (n, channels, *size).
        extra: Numbers that join at the head (n, extra).
        cache: Layers that other subnets computed on the same batch; new ones are added.

    Returns:
        Logits (n, classes).
    """
    if space.attention:
        return transformer.bind_transformer(space, weights, subnet)(x, extra)
    layers, maps, x = list_convolutions(space, subnet), {} if cache is None else cache, downsample(x, subnet.shrink)
    for index, conv in enumerate(layers):
        key = subnet.shrink, layers[: index + 1]
        if key not in maps:
            maps[key] = apply_with_batch_statistics(conv, weights, x)
        x = maps[key]
    return compute_logits(x, extra, slice_head(weights, x.shape[1]))


def group_by_first_layer(space: Space, subnets: Sequence[Subnet]) -> list[list[Subnet]]:
    """Group the subnets that start with the same layer on the same input; order is preserved.

    Members of a group can share a :data:`PrefixCache`; transformers share no prefix.
    """
    if space.attention:
        return [[subnet] for subnet in subnets]
    groups: dict[tuple[int, Conv], list[Subnet]] = {}
    for subnet in subnets:
        groups.setdefault((subnet.shrink, list_convolutions(space, subnet)[0]), []).append(subnet)
    return list(groups.values())


def bind_subnet(
    space: Space, weights: Weights, subnet: Subnet, statistics: Statistics, temperature: float = 1.0
) -> BoundSubnet:
    """Bind a subnet to views of the shared weights; nothing is copied.

    Args:
        space: The search space.
        weights: The shared weights.
        subnet: Which subnet to bind.
        statistics: Mean and variance of its batch norms; empty for a transformer.
        temperature: Divides its logits.
    """
    if space.attention:
        return transformer.bind_transformer(space, weights, subnet, temperature)
    convs = list_convolutions(space, subnet)
    views = tuple(slice_convolution(weights, conv) for conv in convs)
    head = slice_head(weights, convs[-1].out)
    return BoundConvNet(
        convs=convs,
        views=views,
        statistics=statistics,
        head=head,
        shrink=subnet.shrink,
        temperature=temperature,
    )
