"""Parts that subnets of every form share: weight types, input downsampling and the classification head."""

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
"""Weight of the pooled features, weight of the extra numbers, bias."""

EPSILON = 1e-5


def slice_head(weights: Mapping[str, Tensor], width: int) -> Head:
    """Slice the head for ``width`` feature channels; the result shares memory with ``weights``."""
    return weights["head.weight"][:, :width], weights["head.extra"], weights["head.bias"]


def downsample(x: Tensor, shrink: int) -> Tensor:
    """Average every ``shrink`` neighbours along each spatial axis.

    Args:
        x: Inputs (n, channels, *size).
        shrink: Neighbours to average; values that do not fill a window at the edge are dropped.

    Returns:
        Inputs (n, channels, *size // shrink).
    """
    if shrink == 1:
        return x
    for axis in range(2, x.ndim):
        x = x.narrow(axis, 0, x.shape[axis] // shrink * shrink)
    # sums of strided views: torch's own pooling takes as long as a small subnet
    offsets = list(itertools.product(range(shrink), repeat=x.ndim - 2))
    total = x[(..., *(slice(start, None, shrink) for start in offsets[0]))]
    for offset in offsets[1:]:
        total = total + x[(..., *(slice(start, None, shrink) for start in offset))]
    return total / len(offsets)


def compute_logits(x: Tensor, extra: Tensor, head: Head, temperature: float = 1.0) -> Tensor:
    """Pool the last feature map and apply the head.

    Args:
        x: Features (n, channels, *size).
        extra: Numbers that join at the head (n, extra).
        head: Weights for exactly these channels.
        temperature: Divides the logits, so that their softmax is calibrated (Guo et al., ICML 2017).

    Returns:
        Logits (n, classes).
    """
    weight, extra_weight, bias = head
    pooled = x.flatten(2).mean(2)
    logits = functional.linear(torch.cat([pooled, extra], 1), torch.cat([weight, extra_weight], 1), bias)
    return logits if temperature == 1 else logits / temperature
