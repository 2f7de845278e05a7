"""One set of weights, many nets: the subnet is an argument of the call, never a state, so that threads may share it.

Batch norms take batch statistics while training and keep none; afterwards each subnet has statistics of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from unfold_supernet.networks import transformer
from unfold_supernet.networks.layers import EPSILON, Head, Statistics, Weights, answer, head, reduced
from unfold_supernet.networks.space import Conv, Space, Subnet, convs
from unfold_supernet.networks.transformer import Attending


@dataclass(frozen=True, slots=True)
class Bound:
    """A subnet ready to answer: views of the shared weights, nothing copied, and its own statistics."""

    convs: tuple[Conv, ...]
    views: tuple[tuple[Tensor, Tensor, Tensor], ...]
    statistics: Statistics
    head: Head
    shrink: int = 1

    def __call__(self, x: Tensor, extra: Tensor) -> Tensor:
        """Return logits (n, classes) for inputs (n, channels, *size) and (n, extra)."""
        x = reduced(x, self.shrink)
        for conv, view, (mean, variance) in zip(self.convs, self.views, self.statistics, strict=True):
            weight, gamma, beta = view
            out = _convolve(conv, x, weight)
            out = functional.batch_norm(out, mean, variance, gamma, beta, False, 0.0, EPSILON)
            x = functional.relu(out + x if conv.identity else out)
        return answer(x, extra, self.head)


Ready = Bound | Attending
"""A subnet of either form, bound to the shared weights."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two subnets: rows that the first answers with less than ``below`` confidence are asked again of the second."""

    first: Ready
    then: Ready
    below: float

    def __call__(self, x: Tensor, extra: Tensor) -> Tensor:
        """Return logits (n, classes), each row those of the net that answered it."""
        logits = self.first(x, extra)
        unsure = (functional.softmax(logits, 1).max(1).values < self.below).nonzero().flatten()
        if len(unsure):
            # a clone, as what inference gave must not be written to
            logits = logits.clone()
            logits[unsure] = self.then(x[unsure], extra[unsure])
        return logits


@dataclass(frozen=True, slots=True)
class Supernet:
    """A trained family: shared weights, and every subnet bound to them once."""

    space: Space
    weights: Mapping[str, Tensor]
    bound: Mapping[str, Ready]

    def __call__(self, name: str, x: Tensor, extra: Tensor) -> Tensor:
        """Return the logits of the subnet ``name``. Safe to call from many threads at once."""
        return self.bound[name](x, extra)

    def ready(self, name: str, then: str | None, below: float | None) -> Ready | Pair:
        """Return a net, or with ``then`` the pair of it and the one that its unsure answers go to."""
        return self.bound[name] if then is None else Pair(self.bound[name], self.bound[then], below or 0.0)


def initial(space: Space, seed: int, subnet: Subnet | None = None) -> Weights:
    """Return fresh weights of a net of ``subnet``'s size, by default the largest: He, fan out (tokens: fan in)."""
    found = convs(space, subnet or space.largest)
    generator = torch.Generator().manual_seed(seed)
    if space.attention:
        weights = transformer.initial(space, generator, subnet or space.largest)
    else:
        weights = _convolutions(found, len(space.size), generator)
    limit = 1 / math.sqrt(found[-1].out + space.extra)
    for name, width in (("weight", found[-1].out), ("extra", space.extra)):
        weights[f"head.{name}"] = (torch.rand(space.classes, width, generator=generator) * 2 - 1) * limit
    weights["head.bias"] = torch.zeros(space.classes)
    return weights


def _convolutions(found: tuple[Conv, ...], dims: int, generator: torch.Generator) -> Weights:
    weights: Weights = {}
    for conv in found:
        deviation = math.sqrt(2.0 / (conv.out * conv.kernel**dims))
        shape = (conv.out, conv.into, *([conv.kernel] * dims))
        weights[f"{conv.name}.weight"] = torch.randn(shape, generator=generator) * deviation
        weights[f"{conv.name}.gamma"] = torch.ones(conv.out)
        weights[f"{conv.name}.beta"] = torch.zeros(conv.out)
    return weights


Seen = dict[tuple[int, tuple[Conv, ...]], Tensor]
"""What a batch became after some first layers, by the resolution and these layers."""


def train_forward(
    space: Space, weights: Weights, subnet: Subnet, x: Tensor, extra: Tensor, seen: Seen | None = None
) -> Tensor:
    """Return the logits of a subnet under the statistics of the batch.

    Layers that ``seen`` holds from other subnets on the same batch are not computed again; its own are added to it.
    """
    if space.attention:
        return transformer.bind(space, weights, subnet)(x, extra)
    layers, known, x = convs(space, subnet), {} if seen is None else seen, reduced(x, subnet.shrink)
    for at, conv in enumerate(layers):
        key = subnet.shrink, layers[: at + 1]
        if key not in known:
            known[key] = _trained(conv, weights, x)
        x = known[key]
    return answer(x, extra, head(weights, x.shape[1]))


def _trained(conv: Conv, weights: Weights, x: Tensor) -> Tensor:
    """Return what a layer makes of a batch under its own statistics."""
    weight, gamma, beta = view(weights, conv)
    out = functional.batch_norm(_convolve(conv, x, weight), None, None, gamma, beta, True, 0.0, EPSILON)
    return functional.relu(out + x if conv.identity else out)


def alike(space: Space, subnets: Sequence[Subnet]) -> list[list[Subnet]]:
    """Return the subnets in groups that begin with the same layer on the same input, in the order of the first ones."""
    if space.attention:
        return [[one] for one in subnets]
    found: dict[tuple[int, Conv], list[Subnet]] = {}
    for one in subnets:
        found.setdefault((one.shrink, convs(space, one)[0]), []).append(one)
    return list(found.values())


def calibrate(space: Space, weights: Weights, subnet: Subnet, x: Tensor, batch: int = 512) -> Statistics:
    """Return a subnet's own statistics: means over batches of clean examples, weighted by their sizes (OFA).

    A transformer has none.
    """
    if space.attention:
        return ()
    found = convs(space, subnet)
    sums = [[torch.zeros(conv.out), torch.zeros(conv.out)] for conv in found]
    with torch.no_grad():
        for part in _parts(x, batch):
            value = reduced(part, subnet.shrink)
            for conv, total in zip(found, sums, strict=True):
                weight, gamma, beta = view(weights, conv)
                out = _convolve(conv, value, weight)
                over = [0, *range(2, out.ndim)]
                total[0] += out.mean(over) * len(part) / len(x)
                total[1] += out.var(over, unbiased=False) * len(part) / len(x)
                out = functional.batch_norm(out, None, None, gamma, beta, True, 0.0, EPSILON)
                value = functional.relu(out + value if conv.identity else out)
    return tuple((mean, variance) for mean, variance in sums)


def _parts(x: Tensor, batch: int) -> list[Tensor]:
    """Return batches of rows; a last row alone has no spread, so it goes with those before it."""
    found = list(x.split(batch))
    return found if len(found[-1]) > 1 else [*found[:-2], x[-batch - 1 :]]


def bind(space: Space, weights: Weights, subnet: Subnet, statistics: Statistics) -> Ready:
    """Return a subnet whose tensors are views of the shared ones."""
    if space.attention:
        return transformer.bind(space, weights, subnet)
    found = convs(space, subnet)
    return Bound(
        found, tuple(view(weights, conv) for conv in found), statistics, head(weights, found[-1].out), subnet.shrink
    )


def view(weights: Mapping[str, Tensor], conv: Conv) -> tuple[Tensor, Tensor, Tensor]:
    """Return weight, scale and shift of a convolution: first channels, centre of the kernel."""
    weight = weights[f"{conv.name}.weight"][: conv.out, : conv.into]
    for axis in range(2, weight.ndim):
        weight = weight.narrow(axis, (weight.shape[axis] - conv.kernel) // 2, conv.kernel)
    return weight, weights[f"{conv.name}.gamma"][: conv.out], weights[f"{conv.name}.beta"][: conv.out]


def _convolve(conv: Conv, x: Tensor, weight: Tensor) -> Tensor:
    function = functional.conv1d if len(conv.size) == 1 else functional.conv2d
    return function(x, weight, stride=conv.stride, padding=conv.kernel // 2)
