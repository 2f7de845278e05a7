"""The two families of the papers as layer tables, written from the search spaces of Once-for-All (OFA, ICLR 2020).

ResNet-50D: base depths 2, 2, 4, 2; expansion .2, .25, .35; width .65, .8, 1. MobileNetV3: depth 2, 3, 4; expansion 3,
4, 6; the kernels of the original network. Depth and expansion are coupled by stage as in CompOFA (ICLR 2021). Inputs
are 224 x 224, norms are folded. A subnet's accuracy is a straight line in the logarithm of its operations through
figures of OFA's README: a scale for the scheduler, not a measurement.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from unfold_supernet.accelerator.layers import Family, Layer, SubnetLayers, tabulate_subnet

IMAGE = 224
CLASSES = 1000
SUBNETS = 7
MAX_MAP_BYTES = 2**20
LayerBuilder = Callable[[tuple[int, ...]], dict[str, Layer]]


@dataclass(frozen=True, slots=True)
class AccuracyLine:
    """Accuracy as a line in the logarithm of the operations: ``percent`` at ``gigamacs``, ``slope`` for a factor e."""

    gigamacs: float
    percent: float
    slope: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSpace:
    """A compound search space.

    Attributes:
        name: Key in the spec.
        levels: Number of levels of every choice.
        build: Builds the layers of a choice.
        line: Accuracy of a subnet.
        megabytes: Smallest and largest size of the selected subnets.
        gigamacs: Least and most operations of the selected subnets.
        about: What the layers include.
    """

    name: str
    levels: tuple[int, ...]
    build: LayerBuilder
    line: AccuracyLine
    megabytes: tuple[float, float]
    gigamacs: tuple[float, float]
    about: str


def build_reference_family(name: str) -> Family:
    """Build seven subnets of a published space, spread in size; each contains the smallest.

    Raises:
        KeyError: There is no such space.
    """
    space = get_reference_spaces()[name]
    layer_names = _list_layer_names(space)
    unrated = [tabulate_subnet("", layer_names, space.build(choice), 0.0) for choice in _select_choices(space)]
    subnets = tuple(
        replace(subnet, name=chr(65 + index), accuracy=_estimate_accuracy(subnet, space.line))
        for index, subnet in enumerate(unrated)
    )
    return Family(name, layer_names, subnets, space.about)


def get_reference_spaces() -> dict[str, ReferenceSpace]:
    """Get the published spaces by name."""
    resnet = ReferenceSpace(
        name="ofa-resnet50",
        levels=(3, 3, 3, 3, 3),
        build=build_resnet50,
        line=AccuracyLine(4.1, 79.8, 4.8 / math.log(4.1 / 0.6)),
        megabytes=(7.6, 27.5),
        gigamacs=(1.02, 4.12),
        about="ResNet-50D with its classifier",
    )
    mobilenet = ReferenceSpace(
        name="ofa-mobilenetv3",
        levels=(3, 3, 3, 3, 3),
        build=build_mobilenetv3,
        line=AccuracyLine(0.389, 79.1, 0.9 / math.log(0.595 / 0.389)),
        megabytes=(2.92, 4.75),
        gigamacs=(0.146, 0.4),
        about="MobileNetV3 at width 1 without its classifier",
    )
    return {space.name: space for space in (mobilenet, resnet)}


def build_resnet50(choice: tuple[int, ...]) -> dict[str, Layer]:
    """Build the layers of a ResNet-50D: the level of the width, then of depth and expansion of each stage."""
    width_factor = (0.65, 0.8, 1.0)[choice[0]]
    stem, width = round_channels(32 * width_factor), round_channels(64 * width_factor)
    edge = IMAGE // 2
    layers = {"stem.0": build_square(stem, 3, 3, edge, IMAGE), "stem.1": build_square(width, stem, 3, edge, edge)}
    into, edge = width, edge // 2
    for stage, (out, base, level) in enumerate(zip((256, 512, 1024, 2048), (2, 2, 4, 2), choice[1:], strict=True)):
        planes = round_channels(out * width_factor)
        middle = round_channels(planes * (0.2, 0.25, 0.35)[level])
        for block in range(base + level):
            out_edge = edge // 2 if stage and not block else edge
            prefix = f"stage{stage + 1}.{block}"
            layers[f"{prefix}.reduce"] = build_square(middle, into, 1, edge, edge)
            layers[f"{prefix}.conv"] = build_square(middle, middle, 3, out_edge, edge)
            layers[f"{prefix}.expand"] = build_square(planes, middle, 1, out_edge, out_edge)
            if not block:
                layers[f"{prefix}.shortcut"] = build_square(planes, into, 1, out_edge, out_edge)
            into, edge = planes, out_edge
    return layers | {"classifier": build_square(CLASSES, into, 1, 1, 1)}


def build_mobilenetv3(choice: tuple[int, ...]) -> dict[str, Layer]:
    """Build the layers of a MobileNetV3 without classifier: the level of depth and expansion of each stage."""
    edge = IMAGE // 2
    layers = {"stem": build_square(16, 3, 3, edge, IMAGE), "first.depthwise": build_depthwise(16, 3, edge, edge)}
    layers["first.project"] = build_square(16, 16, 1, edge, edge)
    into = 16
    stages = zip(
        (24, 40, 80, 112, 160),
        (3, 5, 3, 3, 5),
        (2, 2, 2, 1, 2),
        (False, True, False, True, True),
        choice,
        strict=True,
    )
    for stage, (out, kernel, stride, has_squeeze, level) in enumerate(stages):
        for block in range(level + 2):
            out_edge = edge // stride if not block else edge
            middle = round_channels(into * (3, 4, 6)[level])
            prefix = f"stage{stage + 1}.{block}"
            layers[f"{prefix}.expand"] = build_square(middle, into, 1, edge, edge)
            layers[f"{prefix}.depthwise"] = build_depthwise(middle, kernel, out_edge, edge)
            if has_squeeze:
                squeezed = round_channels(middle / 4)
                layers[f"{prefix}.squeeze"] = build_square(squeezed, middle, 1, 1, 1)
                layers[f"{prefix}.excite"] = build_square(middle, squeezed, 1, 1, 1)
            layers[f"{prefix}.project"] = build_square(out, middle, 1, out_edge, out_edge)
            into, edge = out, out_edge
    head = {"head.expand": build_square(960, into, 1, edge, edge), "head.mix": build_square(1280, 960, 1, 1, 1)}
    return layers | head


def round_channels(value: float, divisor: int = 8) -> int:
    """Round to the nearest multiple of ``divisor``, never below 90 % of the value, as OFA rounds channels."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def build_square(kernels: int, depth: int, size: int, out: int, edge: int) -> Layer:
    """Build a dense convolution with square kernel and maps; ``edge`` is that of the input map."""
    return Layer(kernels, depth, (size, size), (out, out), depth * edge * edge)


def build_depthwise(channels: int, size: int, out: int, edge: int) -> Layer:
    """Build a depthwise convolution: one kernel for each channel."""
    return Layer(channels, 1, (size, size), (out, out), channels * edge * edge, groups=channels)


def _list_layer_names(space: ReferenceSpace) -> tuple[str, ...]:
    # every level raises depth, so the largest subnet has every layer
    return tuple(space.build(tuple(count - 1 for count in space.levels)))


def _select_choices(space: ReferenceSpace) -> list[tuple[int, ...]]:
    choices = list(itertools.product(*(range(count) for count in space.levels)))
    tables = [space.build(choice) for choice in choices]
    sizes = np.log([_count_bytes(layers) / 1e6 for layers in tables])
    macs = np.log([_count_macs(layers) / 1e9 for layers in tables])
    # spread evenly in the logarithm of both; size weighs double because the buffer is compared with it
    goals = zip(
        np.log(np.geomspace(*space.megabytes, SUBNETS)), np.log(np.geomspace(*space.gigamacs, SUBNETS)), strict=True
    )
    distances = [2 * np.abs(sizes - size) + np.abs(macs - work) for size, work in goals]
    smallest = choices[int(distances[0].argmin())]
    eligible = np.array([all(np.greater_equal(choice, smallest)) for choice in choices])
    # the papers' savings are possible only if activations stay on chip
    eligible &= np.array([_count_largest_map(layers) <= MAX_MAP_BYTES for layers in tables])
    return [choices[int(np.where(eligible, distance, np.inf).argmin())] for distance in distances]


def _count_bytes(layers: dict[str, Layer]) -> int:
    return sum(layer.kernels * layer.depth * layer.size[0] * layer.size[1] for layer in layers.values())


def _count_macs(layers: dict[str, Layer]) -> int:
    return sum(_count_bytes({"": layer}) * layer.out[0] * layer.out[1] for layer in layers.values())


def _count_largest_map(layers: dict[str, Layer]) -> int:
    return max(layer.kernels * layer.out[0] * layer.out[1] for layer in layers.values())


def _estimate_accuracy(subnet: SubnetLayers, line: AccuracyLine) -> float:
    return line.percent + line.slope * math.log(float(subnet.macs.sum()) / 1e9 / line.gigamacs)
