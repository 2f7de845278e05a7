"""What the nets of every form are made of: shared weights, their parts, the input's resolution and the head."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]
Statistics = tuple[tuple[Tensor, Tensor], ...]
"""Mean and variance of each batch norm of one subnet."""
Head = tuple[Tensor, Tensor, Tensor]
"""Weight, weight of the extra numbers, bias."""

EPSILON = 1e-5


def head(weights: Mapping[str, Tensor], width: int) -> Head:
    """Return the head for ``width`` channels: weight, weight of the extra numbers, bias."""
    return weights["head.weight"][:, :width], weights["head.extra"], weights["head.bias"]


def reduced(x: Tensor, shrink: int) -> Tensor:
    """Return the input (n, channels, *size) with each ``shrink`` neighbours along every axis averaged."""
    if shrink == 1:
        return x
    for axis in range(2, x.ndim):
        x = x.narrow(axis, 0, x.shape[axis] // shrink * shrink)
    # sums of strided views: the library's pooling takes as long as a small net itself
    places = list(itertools.product(range(shrink), repeat=x.ndim - 2))
    total = x[(..., *(slice(at, None, shrink) for at in places[0]))]
    for place in places[1:]:
        total = total + x[(..., *(slice(at, None, shrink) for at in place))]
    return total / len(places)


def answer(x: Tensor, extra: Tensor, parts: Head) -> Tensor:
    """Return logits (n, classes) of a last map (n, channels, *size) and of the extra numbers (n, extra)."""
    weight, more, bias = parts
    pooled = x.flatten(2).mean(2)
    return functional.linear(torch.cat([pooled, extra], 1), torch.cat([weight, more], 1), bias)
