"""What the scheduler knows (SUSHI's SushiAbs): latency, bytes and hits of every net under every cached sub-graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfold_supernet.accelerator import cost_model, tile_simulator
from unfold_supernet.accelerator.cost_model import Work
from unfold_supernet.accelerator.hardware import Machine
from unfold_supernet.accelerator.layers import hits
from unfold_supernet.accelerator.subgraph_cache import Column, refills
from unfold_supernet.arrays import Floats, Ints


@dataclass(frozen=True, slots=True)
class Known:
    """Arrays over nets and columns; column 0 is an empty buffer.

    ``seconds`` and ``bytes`` are [nets, columns], ``hit`` the share of a net's weights found in the buffer,
    ``refill`` bytes [columns, columns], ``passing`` the same by net last served, ``near`` the products of the encoded
    nets with the columns and ``norm`` the squared lengths of the columns, for the distance to AvgNet.
    """

    seconds: Floats
    bytes: Floats
    hit: Floats
    refill: Floats
    passing: Floats
    near: Floats
    norm: Floats
    accuracy: Floats


def known(works: Sequence[Work], found: Sequence[Column], machine: Machine, *, deep: bool = False) -> Known:
    """Return the table of a machine.

    With ``deep`` the transfers run ahead through the dynamic buffer, which has the persistent buffer's bytes where
    nothing is kept, so that the silicon is equal.
    """
    empty = Column("nothing", "", np.zeros_like(found[0].graph) if found else works[0].net.graph * 0)
    all_columns = [empty, *found]
    graphs = [column.graph for column in all_columns]
    near, norm = _distances(works, graphs)
    return Known(
        np.array([[_seconds(item, graph, machine, deep=deep) for graph in graphs] for item in works]),
        np.array([[float(cost_model.traffic(item, graph)) for graph in graphs] for item in works]),
        np.array([[hits(item.net.graph, graph).sum() / item.net.weights.sum() for graph in graphs] for item in works]),
        refills(all_columns) * machine.weight,
        refills(all_columns, works) * machine.weight,
        near,
        norm,
        np.array([item.net.accuracy for item in works]),
    )


def _seconds(item: Work, graph: Ints, machine: Machine, *, deep: bool) -> float:
    if not deep:
        return cost_model.seconds(item, graph, machine)
    room = machine.dynamic + (0 if graph.any() else machine.persistent)
    return tile_simulator.seconds(item, graph, machine, deep=True, dynamic=room)


def _distances(works: Sequence[Work], graphs: Sequence[Ints]) -> tuple[Floats, Floats]:
    """Encode nets and graphs as [K1, C1, ..., KN, CN], as SUSHI does."""
    nets = np.stack([item.net.graph[:, :2].ravel() for item in works]).astype(np.float64)
    columns = np.stack([graph[:, :2].ravel() for graph in graphs]).astype(np.float64)
    return nets @ columns.T, (columns**2).sum(axis=1)
