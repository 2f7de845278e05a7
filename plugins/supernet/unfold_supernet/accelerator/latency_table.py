"""The scheduler's table (SUSHI's SushiAbs): latency, bytes and hits of every subnet under every cached subgraph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfold_supernet._types import FloatArray, IntArray
from unfold_supernet.accelerator import cost_model, tile_simulator
from unfold_supernet.accelerator.cost_model import SubnetWork
from unfold_supernet.accelerator.hardware import Accelerator
from unfold_supernet.accelerator.layers import count_hits
from unfold_supernet.accelerator.subgraph_cache import CachedSubgraph, count_refill_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTable:
    """Arrays over subnets and columns. A column is a cached subgraph; column 0 is an empty buffer.

    Attributes:
        seconds: Latency [subnets, columns].
        bytes: Off-chip traffic [subnets, columns].
        hit: Fraction of a subnet's weights found in the buffer [subnets, columns].
        refill: Bytes to change the buffer [columns, columns].
        passing: The same by the subnet that ran last: its transfers are free [subnets, columns, columns].
        near: Products of the encoded subnets with the columns, for the distance to AvgNet [subnets, columns].
        norm: Squared lengths of the encoded columns [columns].
        accuracy: In percent [subnets].
    """

    seconds: FloatArray
    bytes: FloatArray
    hit: FloatArray
    refill: FloatArray
    passing: FloatArray
    near: FloatArray
    norm: FloatArray
    accuracy: FloatArray

    def restrict_columns(self, columns: list[int]) -> LatencyTable:
        """Keep some of the columns, in the order given."""
        return LatencyTable(
            seconds=self.seconds[:, columns],
            bytes=self.bytes[:, columns],
            hit=self.hit[:, columns],
            refill=self.refill[np.ix_(columns, columns)],
            passing=self.passing[:, columns][:, :, columns],
            near=self.near[:, columns],
            norm=self.norm[columns],
            accuracy=self.accuracy,
        )


def build_latency_table(
    works: Sequence[SubnetWork], candidates: Sequence[CachedSubgraph], machine: Accelerator, *, deep: bool = False
) -> LatencyTable:
    """Fill in the table of an accelerator.

    Args:
        works: The subnets.
        candidates: What may be cached.
        machine: The accelerator.
        deep: Whether transfers run ahead through layers. With an empty cache the dynamic buffer then also gets the
            bytes of the persistent buffer, so that the silicon is equal.
    """
    empty = CachedSubgraph("nothing", "", np.zeros_like(candidates[0].graph if candidates else works[0].subnet.graph))
    columns = [empty, *candidates]
    graphs = [column.graph for column in columns]
    near, norm = _encode_distances(works, graphs)
    hits = [
        [count_hits(work.subnet.graph, graph).sum() / work.subnet.weights.sum() for graph in graphs] for work in works
    ]
    return LatencyTable(
        seconds=np.array([[_estimate_seconds(work, graph, machine, deep=deep) for graph in graphs] for work in works]),
        bytes=np.array([[float(cost_model.count_traffic(work, graph)) for graph in graphs] for work in works]),
        hit=np.array(hits),
        refill=count_refill_weights(columns) * machine.weight_bytes,
        passing=count_refill_weights(columns, works) * machine.weight_bytes,
        near=near,
        norm=norm,
        accuracy=np.array([work.subnet.accuracy for work in works]),
    )


def _estimate_seconds(work: SubnetWork, graph: IntArray, machine: Accelerator, *, deep: bool) -> float:
    if not deep:
        return cost_model.estimate_latency(work, graph, machine)
    capacity = machine.dynamic_bytes + (0 if graph.any() else machine.persistent_bytes)
    return tile_simulator.simulate_latency(work, graph, machine, deep=True, dynamic_bytes=capacity)


def _encode_distances(works: Sequence[SubnetWork], graphs: Sequence[IntArray]) -> tuple[FloatArray, FloatArray]:
    """Encode subnets and graphs as [K1, C1, ..., KN, CN], as SUSHI does; compute products and squared lengths."""
    subnets = np.stack([work.subnet.graph[:, :2].ravel() for work in works]).astype(np.float64)
    columns = np.stack([graph[:, :2].ravel() for graph in graphs]).astype(np.float64)
    return subnets @ columns.T, (columns**2).sum(axis=1)
