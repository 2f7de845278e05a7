"""What a persistent buffer saves: sweeps over its size and the bandwidth, against accelerators that cache nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_supernet._types import FloatArray
from unfold_supernet.accelerator import subgraph_cache
from unfold_supernet.accelerator.cost_model import SubnetWork, build_work, estimate_energy
from unfold_supernet.accelerator.hardware import Accelerator
from unfold_supernet.accelerator.latency_table import LatencyTable, build_latency_table
from unfold_supernet.accelerator.layers import Family
from unfold_supernet.accelerator.queries import QueryStream
from unfold_supernet.accelerator.scheduler import StreamOutcome, count_usage, run_queries
from unfold_supernet.accelerator.subgraph_cache import CachedSubgraph

SWEEP_ORDERS = ("stall", "reuse")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSetup:
    """A family on an accelerator.

    Attributes:
        machine: The accelerator.
        works: Work of each subnet.
        candidates: Subgraphs that fit the persistent buffer.
        layered: Table with prefetch within a layer; column 0 caches nothing, column i + 1 caches candidate i.
        deep: The same with prefetch through layers.
        static_column: Column of the subgraph that is cached throughout.
    """

    machine: Accelerator
    works: tuple[SubnetWork, ...]
    candidates: tuple[CachedSubgraph, ...]
    layered: LatencyTable
    deep: LatencyTable
    static_column: int

    @property
    def cached(self) -> CachedSubgraph:
        """The subgraph that is cached throughout."""
        return self.candidates[self.static_column - 1]

    @property
    def cached_bytes(self) -> int:
        """Bytes of the cached subgraph's weights at the accelerator's precision."""
        return int(self.cached.graph.prod(axis=1).sum()) * self.machine.weight_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """Fractions saved by caching, against an accelerator of equal silicon that caches nothing.

    Attributes:
        persistent_bytes: Size of the persistent buffer.
        bandwidth: Off-chip bandwidth, in bytes per second.
        traffic: Off-chip traffic over the stream; also off-chip energy, which is proportional to it.
        traffic_best: Traffic of the subnet that gains most, under the candidate that suits it best.
        latency: Latency over the stream.
        latency_best: Latency of the subnet that gains most.
        latency_fair: Latency against a baseline that uses the same bytes to run transfers ahead through layers.
        latency_fair_best: The same for the subnet that gains most.
        points: Points of accuracy gained at equal deadlines.
        points_fair: The same against the fair baseline.
        energy: Total energy, arithmetic and on-chip memory included.
    """

    persistent_bytes: int
    bandwidth: float
    traffic: float
    traffic_best: float
    latency: float
    latency_best: float
    latency_fair: float
    latency_fair_best: float
    points: float
    points_fair: float
    energy: float


def build_setup(family: Family, machine: Accelerator, orders: Sequence[str] = subgraph_cache.ORDERS) -> CacheSetup:
    """Put a family on an accelerator and fill in both latency tables."""
    works = tuple(build_work(subnet, machine) for subnet in family.subnets)
    candidates = tuple(subgraph_cache.list_candidates(family, works, machine, orders))
    return CacheSetup(
        machine=machine,
        works=works,
        candidates=candidates,
        layered=build_latency_table(works, candidates, machine),
        deep=build_latency_table(works, candidates, machine, deep=True),
        static_column=subgraph_cache.choose_static(candidates, works, machine) + 1,
    )


def fit_to_stream(setup: CacheSetup, stream: QueryStream, policy: str) -> CacheSetup:
    """Choose the static subgraph for a stream: subnets count as often as they are used."""
    targets = stream.scale_targets(setup.layered, policy)
    counts = count_usage(targets.enforced, setup.layered, policy)
    candidate = subgraph_cache.choose_static(setup.candidates, setup.works, setup.machine, counts)
    return replace(setup, static_column=candidate + 1)


def measure_savings(setup: CacheSetup, stream: QueryStream, policy: str) -> Savings:
    """Measure what the cached subgraph saves on a query stream."""
    baseline, cached = _run_with_and_without(setup, setup.layered, stream, policy)
    deep_baseline, deep_cached = _run_with_and_without(setup, setup.deep, stream, policy)
    strict = [_run_with_and_without(setup, table, stream, "strict-latency") for table in (setup.layered, setup.deep)]
    points, points_fair = (with_cache.accuracy - without.accuracy for without, with_cache in strict)
    return Savings(
        persistent_bytes=setup.machine.persistent_bytes,
        bandwidth=setup.machine.bandwidth,
        traffic=1 - cached.bytes / baseline.bytes,
        traffic_best=_find_largest_gain(setup.layered.bytes),
        latency=1 - cached.seconds / baseline.seconds,
        latency_best=_find_largest_gain(setup.layered.seconds),
        latency_fair=1 - deep_cached.seconds / deep_baseline.seconds,
        latency_fair_best=_find_largest_gain(setup.deep.seconds),
        points=points,
        points_fair=points_fair,
        energy=_measure_energy_saving(setup, stream, policy),
    )


def sweep_buffers(
    family: Family,
    machine: Accelerator,
    sizes: Sequence[int],
    bandwidths: Sequence[float],
    stream: QueryStream,
    policy: str,
) -> Iterator[Savings]:
    """Yield the savings of every buffer size under every bandwidth; layers are filled by stall and by reuse."""
    for bandwidth in bandwidths:
        for size in sizes:
            variant = replace(machine, persistent_bytes=size, bandwidth=bandwidth)
            setup = fit_to_stream(build_setup(family, variant, SWEEP_ORDERS), stream, policy)
            yield measure_savings(setup, stream, policy)


def restrict_order(setup: CacheSetup, order: str) -> CacheSetup:
    """Keep the candidates of one order, and the static one.

    SUSHI's distance does not compare across orders: it counts channels, not bytes or stall.
    """
    kept = [
        column
        for column, candidate in enumerate(setup.candidates, 1)
        if candidate.order == order or column == setup.static_column
    ]
    columns = [0, *kept]
    return CacheSetup(
        machine=setup.machine,
        works=setup.works,
        candidates=tuple(setup.candidates[column - 1] for column in kept),
        layered=setup.layered.restrict_columns(columns),
        deep=setup.deep.restrict_columns(columns),
        static_column=columns.index(setup.static_column),
    )


def _run_with_and_without(
    setup: CacheSetup, table: LatencyTable, stream: QueryStream, policy: str
) -> tuple[StreamOutcome, StreamOutcome]:
    targets = stream.scale_targets(table, policy).enforced
    without, with_cache = (
        run_queries(targets, table, setup.machine.bandwidth, policy=policy, column=column)
        for column in (0, setup.static_column)
    )
    return without, with_cache


def _find_largest_gain(values: FloatArray) -> float:
    return float((1 - values.min(axis=1) / values[:, 0]).max())


def _measure_energy_saving(setup: CacheSetup, stream: QueryStream, policy: str) -> float:
    """Measure the fraction of the total energy saved, 0 of none; the scheduler's byte sums carry the joules."""
    targets = stream.scale_targets(setup.layered, policy).enforced
    spent = []
    for column in (0, setup.static_column):
        graph = setup.candidates[column - 1].graph if column else np.zeros_like(setup.cached.graph)
        joules = np.array([estimate_energy(work, graph, setup.machine) for work in setup.works])
        table = replace(setup.layered, bytes=np.repeat(joules[:, None], setup.layered.bytes.shape[1], axis=1))
        spent.append(run_queries(targets, table, setup.machine.bandwidth, policy=policy, column=column).bytes)
    return 1 - spent[1] / spent[0] if spent[0] else 0.0
