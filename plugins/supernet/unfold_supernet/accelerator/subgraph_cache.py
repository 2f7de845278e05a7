"""Subgraphs that fit the persistent buffer: the candidates, the static choice, and the cost of a change (SUSHI)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfold_supernet._types import FloatArray, IntArray
from unfold_supernet.accelerator.cost_model import SubnetWork, estimate_latency
from unfold_supernet.accelerator.hardware import Accelerator
from unfold_supernet.accelerator.layers import Family, count_hits, count_weights, intersect_subgraphs

NEARLY_BEST = 0.995
"""Fraction of the best savings from which a candidate counts as equal."""
ORDERS = ("stall", "reuse", "front", "back")
"""Which layers are cached first: most stall per byte, least reuse per byte, first, last."""


@dataclass(frozen=True, slots=True)
class CachedSubgraph:
    """A candidate for the persistent buffer.

    Attributes:
        source: What it was cut from: ``core``, a subnet, or the intersection ``a∩b`` of two.
        order: The order in which layers were filled; one of ``ORDERS``.
        graph: Kernels, depth, rows and columns of each layer [layers, 4].
    """

    source: str
    order: str
    graph: IntArray


def list_candidates(
    family: Family, works: Sequence[SubnetWork], machine: Accelerator, orders: Sequence[str] = ORDERS
) -> list[CachedSubgraph]:
    """List the distinct candidates: the core, the subnets and pairwise intersections, each cut to the buffer."""
    # a single subnet shares nothing
    core_name = "core" if len(family.subnets) > 1 else family.subnets[0].name
    sources = {core_name: family.core} | {subnet.name: subnet.graph for subnet in family.subnets}
    for left, right in itertools.combinations(family.subnets, 2):
        sources[f"{left.name}∩{right.name}"] = intersect_subgraphs([left.graph, right.graph])
    capacity = machine.persistent_bytes // machine.weight_bytes
    candidates: dict[bytes, CachedSubgraph] = {}
    for order in orders:
        ranks = rank_layers(works, machine, order)
        core = grow_subgraph(np.zeros_like(family.core), family.core, ranks, capacity)
        # a core that does not fit leaves no room for other weights
        has_entire_core = int(count_weights(core).sum()) == int(count_weights(family.core).sum())
        for name, target in sources.items() if has_entire_core else [(core_name, core)]:
            graph = grow_subgraph(core, target, ranks, capacity)
            candidates.setdefault(graph.tobytes(), CachedSubgraph(name, order, graph))
    return list(candidates.values())


def rank_layers(works: Sequence[SubnetWork], machine: Accelerator, order: str) -> IntArray:
    """Rank the layers by the order in which they are filled."""
    if order == "front":
        return np.arange(works[0].weights.size)
    if order == "back":
        return np.arange(works[0].weights.size)[::-1]
    score = _measure_stall(works, machine) if order == "stall" else -_measure_reuse(works)
    return np.argsort(-score, kind="stable").astype(np.int64)


def grow_subgraph(graph: IntArray, target: IntArray, ranks: IntArray, capacity: int) -> IntArray:
    """Grow ``graph`` towards ``target`` within ``capacity`` weights, layers in the order of ``ranks``."""
    if int(count_weights(target).sum()) <= capacity:
        return target.copy()
    current, goal = graph.tolist(), target.tolist()
    free = capacity - int(count_weights(graph).sum())
    for layer in ranks:
        if not free:
            break
        grown = _grow_layer(current[layer], goal[layer], free)
        free -= math.prod(grown) - math.prod(current[layer])
        current[layer] = grown
    return np.array(current, np.int64)


def choose_static(
    candidates: Sequence[CachedSubgraph],
    works: Sequence[SubnetWork],
    machine: Accelerator,
    counts: FloatArray | None = None,
) -> int:
    """Choose the candidate that saves the most bytes; among nearly equal ones, the fastest.

    Bytes are energy at any bandwidth, latency only if memory is the bottleneck.

    Args:
        candidates: What may be cached.
        works: The subnets.
        machine: The accelerator.
        counts: How often each subnet is used; by default equally often.

    Returns:
        Index of the candidate.
    """
    graphs = [candidate.graph for candidate in candidates]
    usage = np.ones(len(works)) if counts is None else counts
    saved = np.array([[count_hits(work.subnet.graph, graph).sum() for work in works] for graph in graphs]) @ usage
    nearly_best = np.flatnonzero(saved >= NEARLY_BEST * saved.max())
    latencies = [usage @ [estimate_latency(work, graphs[index], machine) for work in works] for index in nearly_best]
    return int(nearly_best[int(np.argmin(latencies))])


def count_refill_weights(candidates: Sequence[CachedSubgraph], works: Sequence[SubnetWork] = ()) -> FloatArray:
    """Count the weights to transfer from candidate i to candidate j, as [candidates, candidates].

    With ``works`` the result is [subnets, candidates, candidates]: weights that a subnet transfers anyway are free.
    """
    graphs = np.stack([candidate.graph for candidate in candidates])
    sizes = count_weights(graphs).sum(axis=1)
    common = np.stack([count_weights(np.minimum(graphs, graph)).sum(axis=1) for graph in graphs])
    absent = sizes[None, :] - common
    if not works:
        return np.asarray(absent, np.float64)
    return np.asarray([absent - _count_transferred(graphs, work.subnet.graph) for work in works], np.float64)


def _count_transferred(graphs: IntArray, subnet: IntArray) -> IntArray:
    """Count the weights of candidate j that a subnet uses but candidate i lacks."""
    used = np.minimum(graphs, subnet)
    used_sizes = count_weights(used).sum(axis=1)
    common = np.stack([count_weights(np.minimum(graph, used)).sum(axis=1) for graph in graphs])
    transferred: IntArray = used_sizes[None, :] - common
    return transferred


def _grow_layer(current: list[int], goal: list[int], free: int) -> list[int]:
    """Grow a layer to ``goal`` if it fits, else to as many full kernels of it as fit in place of the present ones."""
    present, kernel = math.prod(current), math.prod(goal[1:])
    if math.prod(goal) - present <= free:
        return goal
    partial = [min(goal[0], (free + present) // kernel if kernel else 0), *goal[1:]]
    contains_current = all(new >= old for new, old in zip(partial, current, strict=True))
    return partial if contains_current and math.prod(partial) > present else current


def _measure_stall(works: Sequence[SubnetWork], machine: Accelerator) -> FloatArray:
    loads = [work.weights / machine.bandwidth for work in works]
    stalls = [np.maximum(0.0, load - work.compute_s) for load, work in zip(loads, works, strict=True)]
    total = np.sum([work.weights for work in works], axis=0)
    return np.asarray(np.sum(stalls, axis=0) / np.maximum(1, total) * 1e9)


def _measure_reuse(works: Sequence[SubnetWork]) -> FloatArray:
    macs = np.sum([work.subnet.macs for work in works], axis=0)
    return np.asarray(macs / np.maximum(1, np.sum([work.weights for work in works], axis=0)))
