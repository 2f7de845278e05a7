"""Convolutions with batch norm: the statistics of a batch in training, and those of each subnet afterwards."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from unfold_supernet.networks.layers import EPSILON, Statistics, Weights, downsample
from unfold_supernet.networks.space import Conv, Space, Subnet, list_convolutions


def apply_with_batch_statistics(conv: Conv, weights: Weights, x: Tensor) -> Tensor:
    """Apply a convolution, the batch norm of this batch, and ReLU; nothing is stored."""
    weight, gamma, beta = slice_convolution(weights, conv)
    out = functional.batch_norm(convolve(conv, x, weight), None, None, gamma, beta, True, 0.0, EPSILON)
    return functional.relu(out + x if conv.identity else out)


def calibrate_norms(space: Space, weights: Weights, subnet: Subnet, x: Tensor, batch: int = 512) -> Statistics:
    """Compute a subnet's own norm statistics from clean inputs, as OFA does after training.

    Args:
        space: The search space.
        weights: The trained shared weights.
        subnet: Which subnet to calibrate.
        x: Inputs (n, channels, *size).
        batch: Rows in a forward pass; batch means are weighted by their sizes.

    Returns:
        Mean and variance of each layer; empty for a transformer, which has no batch norm.
    """
    if space.attention:
        return ()
    convs = list_convolutions(space, subnet)
    sums = [[torch.zeros(conv.out), torch.zeros(conv.out)] for conv in convs]
    with torch.no_grad():
        for rows in _split_batches(x, batch):
            value = downsample(rows, subnet.shrink)
            for conv, total in zip(convs, sums, strict=True):
                weight, gamma, beta = slice_convolution(weights, conv)
                out = convolve(conv, value, weight)
                axes = [0, *range(2, out.ndim)]
                total[0] += out.mean(axes) * len(rows) / len(x)
                total[1] += out.var(axes, unbiased=False) * len(rows) / len(x)
                out = functional.batch_norm(out, None, None, gamma, beta, True, 0.0, EPSILON)
                value = functional.relu(out + value if conv.identity else out)
    return tuple((mean, variance) for mean, variance in sums)


def _split_batches(x: Tensor, batch: int) -> list[Tensor]:
    """Split rows into batches; a single leftover row has no spread and joins the previous batch."""
    batches = list(x.split(batch))
    return batches if len(batches[-1]) > 1 else [*batches[:-2], x[-batch - 1 :]]


def slice_convolution(weights: Mapping[str, Tensor], conv: Conv) -> tuple[Tensor, Tensor, Tensor]:
    """Slice weight, scale and shift of a convolution: its first channels, and the centre of the kernel."""
    weight = weights[f"{conv.name}.weight"][: conv.out, : conv.into]
    for axis in range(2, weight.ndim):
        weight = weight.narrow(axis, (weight.shape[axis] - conv.kernel) // 2, conv.kernel)
    return weight, weights[f"{conv.name}.gamma"][: conv.out], weights[f"{conv.name}.beta"][: conv.out]


def convolve(conv: Conv, x: Tensor, weight: Tensor) -> Tensor:
    """Convolve a feature map (n, channels, *size) along one axis or two."""
    function = functional.conv1d if len(conv.size) == 1 else functional.conv2d
    return function(x, weight, stride=conv.stride, padding=conv.kernel // 2)
