"""The members of a family: residual convolutions (or linear layers) of elastic width, depth and kernel.

Width keeps the first channels, depth the first blocks of every stage, a kernel the centre of the largest.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unfold_supernet.chip.layers import Family, Layer, net
from unfold_supernet.spec import SpaceSpec

Size = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Subnet:
    """One configuration: share of the channels, blocks a stage, edge of the kernel."""

    expand: float
    depth: int
    kernel: int

    @property
    def name(self) -> str:
        """Its short name, such as ``0.5x2`` or ``0.5x2k3``."""
        return f"{self.expand:g}x{self.depth}k{self.kernel}"


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
class Space:
    """What all subnets of a family are cut from.

    ``channels`` and ``size`` are those of the input, ``extra`` numbers join at the head, ``stem`` is kernel and stride.
    """

    widths: tuple[int, ...]
    subnets: tuple[Subnet, ...]
    channels: int
    size: Size
    extra: int
    classes: int
    stem: tuple[int, int]

    @property
    def largest(self) -> Subnet:
        """The subnet that every other one is cut from; it need not be one of them."""
        ends = (max(getattr(one, key) for one in self.subnets) for key in ("expand", "depth", "kernel"))
        return Subnet(*ends)


def space_of(given: SpaceSpec, channels: int, size: Size, extra: int, classes: int) -> Space:
    """Return the space of a spec for inputs of (channels, *size)."""
    flat = given.form == "mlp"
    kernels = (1,) if flat else given.kernel
    lists = (given.expand, given.depth, kernels)
    if given.coupling == "independent":
        chosen = list(itertools.product(*lists))
    else:
        most = max(map(len, lists))
        chosen = list(zip(*(each * most if len(each) == 1 else each for each in lists), strict=True))
    subnets = tuple(dict.fromkeys(Subnet(*one) for one in chosen))
    stem = (1, 1) if flat else (given.stem.kernel, given.stem.stride)
    return Space(tuple(stage.width for stage in given.stages), subnets, channels, size, extra, classes, stem)


def space_from(stored: dict[str, Any]) -> Space:
    """Return the space that was written as JSON."""
    subnets = tuple(Subnet(**one) for one in stored["subnets"])
    size, stem = tuple(stored["size"]), (stored["stem"][0], stored["stem"][1])
    return Space(tuple(stored["widths"]), subnets, stored["channels"], size, stored["extra"], stored["classes"], stem)


def convs(space: Space, subnet: Subnet) -> tuple[Conv, ...]:
    """Return the convolutions of a subnet, in order; the head comes after them."""
    into, size = _channels(space.widths[0], subnet), space.size
    found = [Conv("stem", into, space.channels, space.stem[0], space.stem[1], identity=False, size=size)]
    size = found[0].out_size
    for stage, width in enumerate(space.widths):
        for block in range(subnet.depth):
            stride = 2 if stage and not block and min(size) > 1 else 1
            out = _channels(width, subnet)
            found.append(Conv(f"stage{stage}.{block}", out, into, subnet.kernel, stride, identity=block > 0, size=size))
            into, size = out, found[-1].out_size
    return tuple(found)


def macs(space: Space, subnet: Subnet) -> int:
    """Return the multiply-accumulates of one input, head included."""
    found = convs(space, subnet)
    return sum(conv.macs for conv in found) + (found[-1].out + space.extra) * space.classes


def parameters(space: Space, subnet: Subnet) -> int:
    """Return the trained numbers of a subnet: weights, norms' scale and shift, head."""
    found, dims = convs(space, subnet), len(space.size)
    body = sum(conv.out * conv.into * int(conv.kernel**dims) + 2 * conv.out for conv in found)
    return body + (found[-1].out + space.extra + 1) * space.classes


def chip_family(name: str, space: Space, accuracies: Sequence[float]) -> Family:
    """Return the subnets as layer tables for the accelerator, smallest first; accuracies in percent."""
    places = (*(conv.name for conv in convs(space, space.largest)), "head")
    nets = []
    for subnet, accuracy in zip(space.subnets, accuracies, strict=True):
        found = convs(space, subnet)
        layers = {conv.name: _layer(conv) for conv in found}
        width = found[-1].out + space.extra
        layers["head"] = Layer(space.classes, width, (1, 1), (1, 1), width)
        nets.append(net(subnet.name, places, layers, accuracy))
    nets.sort(key=lambda item: int(item.weights.sum()))
    return Family(name, places, tuple(nets), "one byte a weight")


def _channels(width: int, subnet: Subnet) -> int:
    return max(1, round(width * subnet.expand))


def _layer(conv: Conv) -> Layer:
    high, wide = (*conv.size, 1)[:2]
    out_high, out_wide = (*conv.out_size, 1)[:2]
    window = (conv.kernel, conv.kernel if len(conv.size) == 2 else 1)
    return Layer(conv.out, conv.into, window, (out_high, out_wide), conv.into * high * wide)
