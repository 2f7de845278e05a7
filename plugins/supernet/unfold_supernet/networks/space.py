"""The search space: subnets of elastic width, depth, kernel and input resolution, and what each one costs.

As in Once-for-All (OFA, ICLR 2020), a narrower subnet keeps the first channels, a shallower one the first blocks of a
stage, and a smaller kernel the centre of the largest; a lower resolution averages neighbours of the input. In a
transformer the attention is shared in full and the width is that of the feed-forward layers (MatFormer). Its layers are
written as 1 x 1 convolutions over the tokens. This module needs no torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Size = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Subnet:
    """One configuration of the supernet.

    Attributes:
        expand: Fraction of the channels, by stage.
        depth: Blocks, by stage.
        kernel: Kernel edge, by stage.
        resolution: Fraction of the input's edges.
    """

    expand: tuple[float, ...]
    depth: tuple[int, ...]
    kernel: tuple[int, ...]
    resolution: float = 1.0

    @property
    def name(self) -> str:
        """Short name: ``0.5x2k3``; ``0.5x1k3-1x2k3`` if stages differ; ``0.5x2k3r0.5`` at half the input."""
        stages = [f"{e:g}x{d}k{k}" for e, d, k in zip(self.expand, self.depth, self.kernel, strict=True)]
        text = stages[0] if len(set(stages)) == 1 else "-".join(stages)
        return text if self.resolution == 1 else f"{text}r{self.resolution:g}"

    @property
    def shrink(self) -> int:
        """Input neighbours that are averaged into one, along each axis."""
        return round(1 / self.resolution)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv:
    """A convolution of a subnet; ``identity`` adds its input to its output, ``size`` is the input map."""

    name: str
    out: int
    into: int
    kernel: int
    stride: int
    identity: bool
    size: Size

    @property
    def out_size(self) -> Size:
        """Size of the output map."""
        return tuple(-(-edge // self.stride) for edge in self.size)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input."""
        count: int = self.out * self.into
        for edge in self.out_size:
            count *= edge * self.kernel
        return count


@dataclass(frozen=True, slots=True)
class Attention:
    """The part of a transformer that all subnets share in full: patch edge, token width, heads."""

    patch: int
    width: int
    heads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """All subnets of a supernet and the input they read. Stored as JSON beside the weights: field names are a format.

    Attributes:
        widths: Channels of each stage of the largest subnet (feed-forward units in a transformer).
        subnets: The members.
        channels: Input channels.
        size: Input size without channels.
        extra: Numbers that join at the head.
        classes: Number of classes.
        stem: Kernel edge and stride of the first convolution.
        attention: Set for transformers only.
    """

    widths: tuple[int, ...]
    subnets: tuple[Subnet, ...]
    channels: int
    size: Size
    extra: int
    classes: int
    stem: tuple[int, int]
    attention: Attention | None = None

    @property
    def largest(self) -> Subnet:
        """The configuration that contains every subnet; it need not be a member."""
        expand, depth, kernel = (
            tuple(max(values) for values in zip(*lists, strict=True))
            for lists in zip(*((subnet.expand, subnet.depth, subnet.kernel) for subnet in self.subnets), strict=True)
        )
        return Subnet(expand, depth, kernel, max(subnet.resolution for subnet in self.subnets))


def parse_space(document: dict[str, Any]) -> Space:
    """Restore a space from its JSON document."""
    subnets = tuple(
        Subnet(tuple(entry["expand"]), tuple(entry["depth"]), tuple(entry["kernel"]), entry["resolution"])
        for entry in document["subnets"]
    )
    attention = document.get("attention")
    return Space(
        widths=tuple(document["widths"]),
        subnets=subnets,
        channels=document["channels"],
        size=tuple(document["size"]),
        extra=document["extra"],
        classes=document["classes"],
        stem=(document["stem"][0], document["stem"][1]),
        attention=Attention(**attention) if attention else None,
    )


def count_subnets(lengths: Sequence[int], resolutions: int, stages: int, *, independent: bool, stagewise: bool) -> int:
    """Count the subnets of a space without enumerating it; duplicates count too.

    Args:
        lengths: Lengths of the lists of widths, depths and kernels.
        resolutions: Length of the list of resolutions.
        stages: Number of stages.
        independent: Whether all combinations are members; otherwise the lists are coupled entry by entry (CompOFA).
        stagewise: Whether each stage chooses its own entries.
    """
    if not stagewise:
        every_length = (*lengths, resolutions)
        return math.prod(every_length) if independent else max(every_length)
    per_stage = math.prod(lengths) if independent else max(lengths)
    return int(per_stage**stages) * resolutions


def scale_width(width: int, expand: float) -> int:
    """Round the channels of a stage at a fraction of its width; at least one channel remains."""
    return max(1, round(width * expand))


def list_convolutions(space: Space, subnet: Subnet) -> tuple[Conv, ...]:
    """List the convolutions of a subnet in execution order; the head follows them."""
    if space.attention:
        return tuple(_iterate_transformer_layers(space, subnet, space.attention))
    into = scale_width(space.widths[0], subnet.expand[0])
    size = tuple(edge // subnet.shrink for edge in space.size)
    kernel, stride = space.stem
    layers = [Conv(name="stem", out=into, into=space.channels, kernel=kernel, stride=stride, identity=False, size=size)]
    size = layers[0].out_size
    for stage, (width, expand, depth) in enumerate(zip(space.widths, subnet.expand, subnet.depth, strict=True)):
        out, kernel = scale_width(width, expand), subnet.kernel[stage]
        for block in range(depth):
            stride = 2 if stage and not block and min(size) > 1 else 1
            layer = Conv(
                name=f"stage{stage}.{block}",
                out=out,
                into=into,
                kernel=kernel,
                stride=stride,
                identity=block > 0,
                size=size,
            )
            layers.append(layer)
            into, size = out, layer.out_size
    return tuple(layers)


def _iterate_transformer_layers(space: Space, subnet: Subnet, attention: Attention) -> Iterator[Conv]:
    """Yield the embedding and the four layers of each block as convolutions."""
    tokens, width, patch = compute_token_grid(space, subnet), attention.width, attention.patch
    size = tuple(edge * patch for edge in tokens)
    yield Conv(name="embed", out=width, into=space.channels, kernel=patch, stride=patch, identity=False, size=size)
    for stage, (units, expand, depth) in enumerate(zip(space.widths, subnet.expand, subnet.depth, strict=True)):
        hidden = scale_width(units, expand)
        shapes = {"qkv": (3 * width, width), "out": (width, width), "up": (hidden, width), "down": (width, hidden)}
        for block, (layer, (out, into)) in itertools.product(range(depth), shapes.items()):
            yield Conv(
                name=f"stage{stage}.{block}.{layer}",
                out=out,
                into=into,
                kernel=1,
                stride=1,
                identity=False,
                size=tokens,
            )


def compute_token_grid(space: Space, subnet: Subnet) -> Size:
    """Compute the tokens of a transformer along each axis; input that does not fill a patch is dropped."""
    assert space.attention is not None  # noqa: S101 - only transformers have tokens
    return tuple(edge // subnet.shrink // space.attention.patch for edge in space.size)


def count_attention_macs(space: Space, subnet: Subnet) -> int:
    """Count the MACs of attention's two products of activations: 2 T² width in each block, without weights."""
    if space.attention is None:
        return 0
    return 2 * math.prod(compute_token_grid(space, subnet)) ** 2 * space.attention.width * sum(subnet.depth)


def count_macs(space: Space, subnet: Subnet) -> int:
    """Count the multiply-accumulates for one input, head included."""
    layers = list_convolutions(space, subnet)
    head = (layers[-1].out + space.extra) * space.classes
    return sum(layer.macs for layer in layers) + head + count_attention_macs(space, subnet)


def count_parameters(space: Space, subnet: Subnet) -> int:
    """Count the trained numbers of a subnet: weights, biases or norm scale and shift, positions, head."""
    layers, dims = list_convolutions(space, subnet), len(space.size)
    body = sum(layer.out * layer.into * int(layer.kernel**dims) for layer in layers)
    if space.attention:
        norms, positions = 2 * (2 * sum(subnet.depth) + 1), math.prod(compute_token_grid(space, subnet))
        body += sum(layer.out for layer in layers) + (norms + positions) * space.attention.width
    else:
        body += sum(2 * layer.out for layer in layers)
    return body + (layers[-1].out + space.extra + 1) * space.classes
