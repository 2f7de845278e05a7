"""The members of a family: residual convolutions (or linear layers) of elastic width, depth, kernel and resolution.

Width keeps the first channels, depth the first blocks of a stage, a kernel the centre of the largest; a lower
resolution averages neighbours of the input. Of a transformer attention is whole and width is that of the feed-forward
layers (MatFormer); its layers are convolutions too, of one place each, over the tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from unfold_supernet.accelerator.layers import Family, Layer, net
from unfold_supernet.schema.models import SpaceSpec
from unfoldkit.api import fail

Size = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Subnet:
    """One configuration, by stage: share of the channels, blocks, edge of the kernel; and the input's resolution."""

    expand: tuple[float, ...]
    depth: tuple[int, ...]
    kernel: tuple[int, ...]
    resolution: float = 1.0

    @property
    def name(self) -> str:
        """Its short name: ``0.5x2k3``; ``0.5x1k3-1x2k3`` where stages differ; ``0.5x2k3r0.5`` at half the input."""
        stages = [f"{e:g}x{d}k{k}" for e, d, k in zip(self.expand, self.depth, self.kernel, strict=True)]
        told = stages[0] if len(set(stages)) == 1 else "-".join(stages)
        return told if self.resolution == 1 else f"{told}r{self.resolution:g}"

    @property
    def shrink(self) -> int:
        """How many neighbours of the input become one, along each axis."""
        return round(1 / self.resolution)


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution of a subnet; ``identity`` adds its input to its output, ``size`` is its input map."""

    name: str
    out: int
    into: int
    kernel: int
    stride: int
    identity: bool
    size: Size

    @property
    def out_size(self) -> Size:
        """Its output map."""
        return tuple(-(-edge // self.stride) for edge in self.size)

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        result: int = self.out * self.into
        for edge in self.out_size:
            result *= edge * self.kernel
        return result


@dataclass(frozen=True, slots=True)
class Attention:
    """What every member of a transformer has whole: edge of a patch, numbers of a token, heads."""

    patch: int
    width: int
    heads: int


@dataclass(frozen=True, slots=True)
class Space:
    """What all subnets of a family are cut from.

    ``channels`` and ``size`` are those of the input, ``extra`` numbers join at the head, ``stem`` is kernel and stride;
    ``attention`` is there if the form is a transformer, whose ``widths`` are those of its feed-forward layers.
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
        """The subnet that every other one is cut from; it need not be one of them."""
        expand, depth, kernel = (
            tuple(max(stage) for stage in zip(*found, strict=True))
            for found in zip(*((one.expand, one.depth, one.kernel) for one in self.subnets), strict=True)
        )
        return Subnet(expand, depth, kernel, max(one.resolution for one in self.subnets))


def count(given: SpaceSpec) -> int:
    """Return how many subnets a spec describes, before doubles are taken out; nothing is enumerated."""
    lists = (given.expand, given.depth, (1,) if _pointwise(given) else given.kernel, given.resolution)
    if given.scope == "net":
        return math.prod(map(len, lists)) if given.coupling == "independent" else max(map(len, lists))
    each = math.prod(map(len, lists[:3])) if given.coupling == "independent" else max(map(len, lists[:3]))
    return int(each ** len(given.stages)) * len(given.resolution)


def space_of(given: SpaceSpec, channels: int, size: Size, extra: int, classes: int) -> Space:
    """Return the space of a spec for inputs of (channels, *size).

    Raises:
        UnfoldError: the smallest input does not fill a patch.
    """
    flat, told = _pointwise(given), given.attention
    subnets = tuple(dict.fromkeys(_chosen(given, (1,) if flat else given.kernel)))
    stem = (1, 1) if flat else (given.stem.kernel, given.stem.stride)
    attention = Attention(told.patch, told.width, told.heads) if given.form == "transformer" else None
    least = int(min(size) * min(given.resolution))
    if attention and attention.patch > least:
        raise fail(f"a patch of an input of {least}", key="space.attention.patch", hint=f"at most {max(1, least)}")
    widths = tuple(stage.width for stage in given.stages)
    return Space(widths, subnets, channels, size, extra, classes, stem, attention)


def _pointwise(given: SpaceSpec) -> bool:
    return given.form in ("mlp", "transformer")


def space_from(stored: dict[str, Any]) -> Space:
    """Return the space that was written as JSON."""
    subnets = tuple(
        Subnet(tuple(one["expand"]), tuple(one["depth"]), tuple(one["kernel"]), one["resolution"])
        for one in stored["subnets"]
    )
    size, stem = tuple(stored["size"]), (stored["stem"][0], stored["stem"][1])
    widths, attention = tuple(stored["widths"]), stored.get("attention")
    mixed = Attention(**attention) if attention else None
    return Space(widths, subnets, stored["channels"], size, stored["extra"], stored["classes"], stem, mixed)


def _chosen(given: SpaceSpec, kernels: tuple[int, ...]) -> Iterator[Subnet]:
    """Yield the subnets: one entry for the whole net, or (CompOFA) one for each stage and a resolution beside."""
    stages = len(given.stages)
    if given.scope == "net":
        for expand, depth, kernel, resolution in _coupled(given, given.expand, given.depth, kernels, given.resolution):
            yield Subnet((expand,) * stages, (depth,) * stages, (kernel,) * stages, resolution)
        return
    entries = _coupled(given, given.expand, given.depth, kernels)
    for chosen, resolution in itertools.product(itertools.product(entries, repeat=stages), given.resolution):
        expand, depth, kernel = zip(*chosen, strict=True)
        yield Subnet(expand, depth, kernel, resolution)


def _coupled(given: SpaceSpec, *lists: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return the entries: every combination, or entry by entry with lists of one repeated."""
    if given.coupling == "independent":
        return list(itertools.product(*lists))
    most = max(map(len, lists))
    return list(zip(*(tuple(each) * most if len(each) == 1 else each for each in lists), strict=True))


def convs(space: Space, subnet: Subnet) -> tuple[Conv, ...]:
    """Return the convolutions of a subnet, in order; the head comes after them."""
    if space.attention:
        return tuple(_attended(space, subnet, space.attention))
    into = _channels(space.widths[0], subnet.expand[0])
    size = tuple(edge // subnet.shrink for edge in space.size)
    found = [Conv("stem", into, space.channels, space.stem[0], space.stem[1], identity=False, size=size)]
    size = found[0].out_size
    for stage, (width, expand, depth) in enumerate(zip(space.widths, subnet.expand, subnet.depth, strict=True)):
        out, kernel = _channels(width, expand), subnet.kernel[stage]
        for block in range(depth):
            stride = 2 if stage and not block and min(size) > 1 else 1
            found.append(Conv(f"stage{stage}.{block}", out, into, kernel, stride, identity=block > 0, size=size))
            into, size = out, found[-1].out_size
    return tuple(found)


def _attended(space: Space, subnet: Subnet, given: Attention) -> Iterator[Conv]:
    """Yield a transformer's layers as convolutions: the one that makes tokens, then four of each block."""
    tokens, width = grid(space, subnet), given.width
    size = tuple(edge * given.patch for edge in tokens)
    yield Conv("embed", width, space.channels, given.patch, given.patch, identity=False, size=size)
    for stage, (most, expand, depth) in enumerate(zip(space.widths, subnet.expand, subnet.depth, strict=True)):
        hidden = _channels(most, expand)
        shapes = {"qkv": (3 * width, width), "out": (width, width), "up": (hidden, width), "down": (width, hidden)}
        for block, (name, (out, into)) in itertools.product(range(depth), shapes.items()):
            yield Conv(f"stage{stage}.{block}.{name}", out, into, 1, 1, identity=False, size=tokens)


def grid(space: Space, subnet: Subnet) -> Size:
    """Return the tokens of a transformer along each axis; what does not fill a patch is left out."""
    assert space.attention is not None  # noqa: S101 - only transformers have tokens
    return tuple(edge // subnet.shrink // space.attention.patch for edge in space.size)


def mixing(space: Space, subnet: Subnet) -> int:
    """Return the multiply-accumulates of attention's two products of activations: no weights, 2 T^2 width a block."""
    if space.attention is None:
        return 0
    return 2 * math.prod(grid(space, subnet)) ** 2 * space.attention.width * sum(subnet.depth)


def macs(space: Space, subnet: Subnet) -> int:
    """Return the multiply-accumulates of one input, head included."""
    found = convs(space, subnet)
    layers = sum(conv.macs for conv in found) + (found[-1].out + space.extra) * space.classes
    return layers + mixing(space, subnet)


def parameters(space: Space, subnet: Subnet) -> int:
    """Return the trained numbers of a subnet: weights, biases or norms' scale and shift, positions, head."""
    found, dims = convs(space, subnet), len(space.size)
    body = sum(conv.out * conv.into * int(conv.kernel**dims) for conv in found)
    if space.attention:
        norms, positions = 2 * (2 * sum(subnet.depth) + 1), math.prod(grid(space, subnet))
        body += sum(conv.out for conv in found) + (norms + positions) * space.attention.width
    else:
        body += sum(2 * conv.out for conv in found)
    return body + (found[-1].out + space.extra + 1) * space.classes


def chip_family(name: str, space: Space, accuracies: Sequence[float]) -> Family:
    """Return the subnets as layer tables for the accelerator, smallest first; accuracies in percent.

    A layer of a table brings weights, so that attention's products of activations are left out; ``about`` says so.
    """
    places = (*(conv.name for conv in convs(space, space.largest)), "head")
    nets = []
    for subnet, accuracy in zip(space.subnets, accuracies, strict=True):
        found = convs(space, subnet)
        layers = {conv.name: _layer(conv) for conv in found}
        width = found[-1].out + space.extra
        layers["head"] = Layer(space.classes, width, (1, 1), (1, 1), width)
        nets.append(net(subnet.name, places, layers, accuracy))
    nets.sort(key=lambda item: int(item.weights.sum()))
    share = max(mixing(space, one) / macs(space, one) for one in space.subnets)
    left = f"; attention's products of activations, up to {share:.0%} of a net's operations, are left out"
    return Family(name, places, tuple(nets), "the members that were trained" + (left if space.attention else ""))


def _channels(width: int, expand: float) -> int:
    return max(1, round(width * expand))


def _layer(conv: Conv) -> Layer:
    high, wide = (*conv.size, 1)[:2]
    out_high, out_wide = (*conv.out_size, 1)[:2]
    window = (conv.kernel, conv.kernel if len(conv.size) == 2 else 1)
    return Layer(conv.out, conv.into, window, (out_high, out_wide), conv.into * high * wide)
