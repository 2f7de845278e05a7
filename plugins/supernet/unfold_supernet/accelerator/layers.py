"""Layers, subnets and the subgraphs that they share, as small integer tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_supernet._types import IntArray

KERNELS, DEPTH, ROWS, COLUMNS, OUT_ROWS, OUT_COLUMNS, GROUPS, INPUT = range(8)
STRIDE_ROWS, STRIDE_COLUMNS, DILATION_ROWS, DILATION_COLUMNS = range(8, 12)
PADDING_ROWS, PADDING_COLUMNS, MAP_ROWS, MAP_COLUMNS = range(12, 16)
WIDTH = 16
MAX_LAYER_COUNT = 10**14
"""Multiplications or values of a layer's maps at most; sums over layers then fit 64 bits."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or linear layer.

    Attributes:
        kernels: Output channels.
        depth: Input channels that each kernel spans (those of its group).
        size: Rows and columns of the kernel.
        out: Rows and columns of the output map.
        input: Values of the entire input map.
        groups: Groups of channels.
        stride: Step between outputs along rows and columns; ``None`` derives it from both maps.
        dilation: Step between the rows and columns of the input that a kernel reads.
        padding: Rows above and columns left of the input map that the first windows reach.
        map_size: Rows and columns of the input map; 0 where they are unknown.
    """

    kernels: int
    depth: int
    size: tuple[int, int]
    out: tuple[int, int]
    input: int
    groups: int = 1
    stride: tuple[int, int] | None = None
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    map_size: tuple[int, int] = (0, 0)

    @property
    def row(self) -> tuple[int, ...]:
        """The layer as a row of a subnet's table."""
        stride = self.stride or self._derive_stride()
        parts = (*stride, *self.dilation, *self.padding, *self.map_size)
        return (self.kernels, self.depth, *self.size, *self.out, self.groups, self.input, *parts)

    def _derive_stride(self) -> tuple[int, int]:
        pixels = self.input // max(1, self.depth * self.groups)
        if self.out[1] == 1 and self.size[1] == 1:
            return max(1, round(pixels / self.out[0])), 1
        edge = max(1, round((pixels / math.prod(self.out)) ** 0.5))
        return edge, edge

    @property
    def is_countable(self) -> bool:
        """Whether its multiplications and values can be counted."""
        macs = self.kernels * self.depth * math.prod(self.size) * math.prod(self.out)
        return max(macs, self.input) <= MAX_LAYER_COUNT


@dataclass(frozen=True, slots=True)
class SubnetLayers:
    """A subnet as a table [layers, 16] over all layers of its family; layers that it lacks are zero rows.

    Attributes:
        name: Name of the subnet.
        table: One row for each layer, columns as in :attr:`Layer.row`.
        accuracy: In percent.
    """

    name: str
    table: IntArray
    accuracy: float

    @property
    def graph(self) -> IntArray:
        """Its weights as a subgraph: kernels, depth, rows and columns of each layer."""
        return self.table[:, :GROUPS][:, [KERNELS, DEPTH, ROWS, COLUMNS]]

    @property
    def weights(self) -> IntArray:
        """(layers,) number of weights of each layer, without their precision."""
        return count_weights(self.graph)

    @property
    def macs(self) -> IntArray:
        """Multiply-accumulates of each layer."""
        return self.weights * self.table[:, OUT_ROWS] * self.table[:, OUT_COLUMNS]

    @property
    def outputs(self) -> IntArray:
        """Values of the output map of each layer."""
        return self.table[:, KERNELS] * self.table[:, OUT_ROWS] * self.table[:, OUT_COLUMNS]


@dataclass(frozen=True, slots=True)
class Family:
    """Subnets that share one set of weights, smallest first; ``layers`` names the rows of their tables."""

    name: str
    layers: tuple[str, ...]
    subnets: tuple[SubnetLayers, ...]
    about: str = ""

    @property
    def core(self) -> IntArray:
        """The subgraph that every subnet uses."""
        return intersect_subgraphs([subnet.graph for subnet in self.subnets])


def tabulate_subnet(name: str, layer_names: Sequence[str], layers: dict[str, Layer], accuracy: float) -> SubnetLayers:
    """Build a subnet's table with a row for each of ``layer_names``."""
    table = np.zeros((len(layer_names), WIDTH), np.int64)
    for row, layer_name in enumerate(layer_names):
        if layer_name in layers:
            table[row] = layers[layer_name].row
    return SubnetLayers(name, table, accuracy)


def count_weights(graph: IntArray) -> IntArray:
    """Count the weights of each layer of a subgraph [..., layers, 4]."""
    counts: IntArray = graph.prod(axis=-1)
    return counts


def intersect_subgraphs(graphs: Iterable[IntArray]) -> IntArray:
    """Intersect subgraphs: each is a prefix in every dimension, so this is the element-wise minimum."""
    core: IntArray = np.minimum.reduce(list(graphs))
    return core


def count_hits(graph: IntArray, cached: IntArray) -> IntArray:
    """Count the weights of each layer of ``graph`` that are in ``cached`` (SUSHI, SubGraph Stationary)."""
    return count_weights(np.minimum(graph, cached))
