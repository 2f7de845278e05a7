"""Build the search space of a spec for the shape of its data: all subnets that the lists describe."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from unfold_supernet.networks.space import Attention, Size, Space, Subnet
from unfoldkit.api import user_error


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceOptions:
    """The dimensions of a search space, without the shape of the data.

    Attributes:
        form: ``conv1d``, ``conv2d``, ``mlp`` or ``transformer``.
        widths: Width of each stage.
        stem: Kernel edge and stride of the first convolution.
        attention: Attention of a transformer.
        expand: Fractions of the widths.
        depth: Blocks in a stage.
        kernel: Kernel edges.
        resolution: Fractions of the input's edges.
        stagewise: Whether each stage chooses its own entries.
        independent: Whether all combinations are members; otherwise lists are coupled entry by entry (CompOFA).
    """

    form: str
    widths: tuple[int, ...]
    stem: tuple[int, int]
    attention: Attention
    expand: tuple[float, ...]
    depth: tuple[int, ...]
    kernel: tuple[int, ...]
    resolution: tuple[float, ...]
    stagewise: bool
    independent: bool


@dataclass(frozen=True, slots=True)
class InputShape:
    """Shape of the examples: channels, size, extra numbers that join at the head, classes."""

    channels: int
    size: Size
    extra: int
    classes: int


def build_space(options: SpaceOptions, shape: InputShape) -> Space:
    """Build the search space for examples of a shape.

    Raises:
        UnfoldError: The smallest input does not fill a patch of the transformer.
    """
    is_pointwise = options.form in ("mlp", "transformer")
    kernels = (1,) if is_pointwise else options.kernel
    attention = options.attention if options.form == "transformer" else None
    smallest_edge = int(min(shape.size) * min(options.resolution))
    if attention and attention.patch > smallest_edge:
        hint = f"at most {max(1, smallest_edge)}"
        message = f"a patch exceeds the smallest input, which has an edge of {smallest_edge}"
        raise user_error(message, key="space.attention.patch", hint=hint)
    return Space(
        widths=options.widths,
        subnets=tuple(dict.fromkeys(_iterate_subnets(options, kernels))),
        channels=shape.channels,
        size=shape.size,
        extra=shape.extra,
        classes=shape.classes,
        stem=(1, 1) if is_pointwise else options.stem,
        attention=attention,
    )


def _iterate_subnets(options: SpaceOptions, kernels: tuple[int, ...]) -> Iterator[Subnet]:
    """Yield the subnets: an entry for the entire subnet, or one for each stage (CompOFA) with a common resolution."""
    stages = len(options.widths)
    lists = (options.expand, options.depth, kernels)
    if not options.stagewise:
        for expand, depth, kernel, resolution in _combine(options, *lists, options.resolution):
            yield Subnet((expand,) * stages, (depth,) * stages, (kernel,) * stages, resolution)
        return
    entries = _combine(options, *lists)
    for choice, resolution in itertools.product(itertools.product(entries, repeat=stages), options.resolution):
        expand, depth, kernel = zip(*choice, strict=True)
        yield Subnet(expand, depth, kernel, resolution)


def _combine(options: SpaceOptions, *lists: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Combine lists in every way, or entry by entry with lists of length one repeated."""
    if options.independent:
        return list(itertools.product(*lists))
    length = max(map(len, lists))
    return list(zip(*(tuple(values) * length if len(values) == 1 else values for values in lists), strict=True))
