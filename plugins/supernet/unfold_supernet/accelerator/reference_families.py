"""The two families of the papers as layer tables, written from the search spaces of Once-for-All (OFA).

ResNet-50D: base depths 2, 2, 4, 2; expansion .2, .25, .35; width .65, .8, 1. MobileNetV3: depth 2, 3, 4; expansion
3, 4, 6; the kernels of the original net. Depth and expansion are coupled by stage as in CompOFA (ICLR 2021). Inputs
are 224 x 224, norms are folded. The accuracy of a net is a straight line in the logarithm of
its operations through figures of OFA's README; it is a scale for the scheduler, not a measurement of these nets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from unfold_supernet.accelerator.layers import Family, Layer, Net, net

IMAGE = 224
CLASSES = 1000
NETS = 7
ON_CHIP = 2**20
Build = Callable[[tuple[int, ...]], dict[str, Layer]]


@dataclass(frozen=True, slots=True)
class Space:
    """A compound space: ``levels`` of every choice, a builder of layers, the line of accuracy (GMAC, %, % per e).

    ``megabytes`` and ``gigamacs`` are the ends of the nets that are picked.
    """

    name: str
    levels: tuple[int, ...]
    build: Build
    line: tuple[float, float, float]
    megabytes: tuple[float, float]
    gigamacs: tuple[float, float]
    about: str


def family(name: str) -> Family:
    """Return seven nets of a built-in space, spread in size, each of which contains the smallest.

    Raises:
        KeyError: there is no such space.
    """
    space = spaces()[name]
    levels = _picked(space)
    tables = [space.build(choice) for choice in levels]
    places = _places(space)
    nets = [net("", places, layers, 0.0) for layers in tables]
    rated = [replace(item, name=chr(65 + at), accuracy=_accuracy(item, space.line)) for at, item in enumerate(nets)]
    return Family(name, places, tuple(rated), space.about)


def every(name: str) -> Iterator[Net]:
    """Yield every net of a space, each named by its levels."""
    space = spaces()[name]
    places = _places(space)
    for choice in _choices(space):
        found = net("".join(map(str, choice)), places, space.build(choice), 0.0)
        yield replace(found, accuracy=_accuracy(found, space.line))


def spaces() -> dict[str, Space]:
    """Return the built-in spaces by name."""
    resnet = Space(
        "ofa-resnet50",
        (3, 3, 3, 3, 3),
        resnet50,
        (4.1, 79.8, 4.8 / math.log(4.1 / 0.6)),
        (7.6, 27.5),
        (1.02, 4.12),
        "ResNet-50D with its classifier",
    )
    mobile = Space(
        "ofa-mobilenetv3",
        (3, 3, 3, 3, 3),
        mobilenet,
        (0.389, 79.1, 0.9 / math.log(0.595 / 0.389)),
        (2.92, 4.75),
        (0.146, 0.4),
        "MobileNetV3 at width 1 without its classifier",
    )
    return {space.name: space for space in (mobile, resnet)}


def resnet50(choice: tuple[int, ...]) -> dict[str, Layer]:
    """Return the layers of a ResNet-50D: the level of the width, then of depth and expansion of each stage."""
    wide = (0.65, 0.8, 1.0)[choice[0]]
    stem, width = divisible(32 * wide), divisible(64 * wide)
    edge = IMAGE // 2
    layers = {"stem.0": square(stem, 3, 3, edge, IMAGE), "stem.1": square(width, stem, 3, edge, edge)}
    before, edge = width, edge // 2
    for stage, (out, base, level) in enumerate(zip((256, 512, 1024, 2048), (2, 2, 4, 2), choice[1:], strict=True)):
        planes, middle = divisible(out * wide), divisible(divisible(out * wide) * (0.2, 0.25, 0.35)[level])
        for block in range(base + level):
            small = edge // 2 if stage and not block else edge
            place = f"stage{stage + 1}.{block}"
            layers[f"{place}.reduce"] = square(middle, before, 1, edge, edge)
            layers[f"{place}.conv"] = square(middle, middle, 3, small, edge)
            layers[f"{place}.expand"] = square(planes, middle, 1, small, small)
            if not block:
                layers[f"{place}.shortcut"] = square(planes, before, 1, small, small)
            before, edge = planes, small
    return layers | {"classifier": square(CLASSES, before, 1, 1, 1)}


def mobilenet(choice: tuple[int, ...]) -> dict[str, Layer]:
    """Return the layers of a MobileNetV3 without classifier: the level of depth and expansion of each stage."""
    edge = IMAGE // 2
    layers = {"stem": square(16, 3, 3, edge, IMAGE), "first.depthwise": depthwise(16, 3, edge, edge)}
    layers["first.project"] = square(16, 16, 1, edge, edge)
    before = 16
    shape = zip(
        (24, 40, 80, 112, 160),
        (3, 5, 3, 3, 5),
        (2, 2, 2, 1, 2),
        (False, True, False, True, True),
        choice,
        strict=True,
    )
    for stage, (out, kernel, stride, squeeze, level) in enumerate(shape):
        for block in range(level + 2):
            small = edge // stride if not block else edge
            middle = divisible(before * (3, 4, 6)[level])
            place = f"stage{stage + 1}.{block}"
            layers[f"{place}.expand"] = square(middle, before, 1, edge, edge)
            layers[f"{place}.depthwise"] = depthwise(middle, kernel, small, edge)
            if squeeze:
                layers[f"{place}.squeeze"] = square(divisible(middle / 4), middle, 1, 1, 1)
                layers[f"{place}.excite"] = square(middle, divisible(middle / 4), 1, 1, 1)
            layers[f"{place}.project"] = square(out, middle, 1, small, small)
            before, edge = out, small
    return layers | {"head.expand": square(960, before, 1, edge, edge), "head.mix": square(1280, 960, 1, 1, 1)}


def divisible(value: float, divisor: int = 8) -> int:
    """Return the multiple of ``divisor`` next to ``value``, never below 90 % of it, as OFA rounds channels."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def square(kernels: int, depth: int, size: int, out: int, edge: int) -> Layer:
    """Return a dense convolution with square kernel and maps; ``edge`` is that of the input map."""
    return Layer(kernels, depth, (size, size), (out, out), depth * edge * edge)


def depthwise(channels: int, size: int, out: int, edge: int) -> Layer:
    """Return a depthwise convolution: one kernel a channel."""
    return Layer(channels, 1, (size, size), (out, out), channels * edge * edge, groups=channels)


def _choices(space: Space) -> Iterator[tuple[int, ...]]:
    yield from itertools.product(*(range(count) for count in space.levels))


def _places(space: Space) -> tuple[str, ...]:
    # every level raises depth, so that the largest net has every layer
    return tuple(space.build(tuple(count - 1 for count in space.levels)))


def _picked(space: Space) -> list[tuple[int, ...]]:
    choices = list(_choices(space))
    tables = [space.build(choice) for choice in choices]
    sizes = np.log([_bytes(layers) / 1e6 for layers in tables])
    macs = np.log([_macs(layers) / 1e9 for layers in tables])
    # spread evenly in the logarithm of both, size first: it is what the buffer is compared with
    wanted = zip(np.log(np.geomspace(*space.megabytes, NETS)), np.log(np.geomspace(*space.gigamacs, NETS)), strict=True)
    apart = [2 * np.abs(sizes - size) + np.abs(macs - work) for size, work in wanted]
    first = choices[int(apart[0].argmin())]
    contains = np.array([all(np.greater_equal(choice, first)) for choice in choices])
    # the papers' savings are possible only if activations stay on chip
    contains &= np.array([_largest_map(layers) <= ON_CHIP for layers in tables])
    return [choices[int(np.where(contains, distance, np.inf).argmin())] for distance in apart]


def _bytes(layers: dict[str, Layer]) -> int:
    return sum(layer.kernels * layer.depth * layer.size[0] * layer.size[1] for layer in layers.values())


def _macs(layers: dict[str, Layer]) -> int:
    return sum(_bytes({"": layer}) * layer.out[0] * layer.out[1] for layer in layers.values())


def _largest_map(layers: dict[str, Layer]) -> int:
    return max(layer.kernels * layer.out[0] * layer.out[1] for layer in layers.values())


def _accuracy(item: Net, line: tuple[float, float, float]) -> float:
    at, accuracy, slope = line
    return accuracy + slope * math.log(float(item.macs.sum()) / 1e9 / at)
