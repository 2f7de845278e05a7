"""Layers, nets and the sub-graphs that they share, as small integer tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_supernet.arrays import Ints

KERNELS, DEPTH, ROWS, COLUMNS, OUT_ROWS, OUT_COLUMNS, GROUPS, INPUT = range(8)
WIDTH = 8


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or linear layer.

    ``kernels`` output channels; each kernel spans ``depth`` input channels of its group and ``size`` rows x columns;
    ``out`` is the output map; ``input`` the values of the whole input map.
    """

    kernels: int
    depth: int
    size: tuple[int, int]
    out: tuple[int, int]
    input: int
    groups: int = 1

    @property
    def row(self) -> tuple[int, ...]:
        """The layer as a row of a net's table."""
        return (self.kernels, self.depth, *self.size, *self.out, self.groups, self.input)


@dataclass(frozen=True, slots=True)
class Net:
    """One member of a family: a table [layers, 8] over all layers of the family, zeros where it has none."""

    name: str
    table: Ints
    accuracy: float

    @property
    def graph(self) -> Ints:
        """Its weights as a sub-graph: (kernels, depth, rows, columns) of each layer."""
        return self.table[:, :GROUPS][:, [KERNELS, DEPTH, ROWS, COLUMNS]]

    @property
    def weights(self) -> Ints:
        """Number of weights of each layer."""
        return sizes(self.graph)

    @property
    def macs(self) -> Ints:
        """Multiply-accumulates of each layer."""
        return self.weights * self.table[:, OUT_ROWS] * self.table[:, OUT_COLUMNS]

    @property
    def outputs(self) -> Ints:
        """Values of the output map of each layer."""
        return self.table[:, KERNELS] * self.table[:, OUT_ROWS] * self.table[:, OUT_COLUMNS]


@dataclass(frozen=True, slots=True)
class Family:
    """Nets that share one set of weights, smallest first; ``layers`` names the rows of their tables."""

    name: str
    layers: tuple[str, ...]
    nets: tuple[Net, ...]
    about: str = ""

    @property
    def core(self) -> Ints:
        """What every net uses."""
        return shared([net.graph for net in self.nets])


def net(name: str, places: Sequence[str], layers: dict[str, Layer], accuracy: float) -> Net:
    """Return a net whose table has a row for each of ``places``."""
    table = np.zeros((len(places), WIDTH), np.int64)
    for index, place in enumerate(places):
        if place in layers:
            table[index] = layers[place].row
    return Net(name, table, accuracy)


def sizes(graph: Ints) -> Ints:
    """Return the weights of each layer of a sub-graph [..., layers, 4]."""
    result: Ints = graph.prod(axis=-1)
    return result


def shared(graphs: Iterable[Ints]) -> Ints:
    """Return what all sub-graphs have: as each is a prefix in every dimension, the element-wise minimum."""
    result: Ints = np.minimum.reduce(list(graphs))
    return result


def hits(weights: Ints, cached: Ints) -> Ints:
    """Return how many of each layer's ``weights`` are in ``cached`` (SUSHI, section on SubGraph-stationary)."""
    return sizes(np.minimum(weights, cached))
