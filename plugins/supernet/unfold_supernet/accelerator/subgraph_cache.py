"""Sub-graphs that fit the persistent buffer: what can be kept there, and what a change costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfold_supernet.accelerator.cost_model import Work, seconds
from unfold_supernet.accelerator.hardware import Machine
from unfold_supernet.accelerator.layers import Family, hits, shared, sizes
from unfold_supernet.arrays import Floats, Ints

ABOUT = 0.995
ORDERS = ("stall", "reuse", "front", "back")
"""Which layers are filled first: most stall a byte, least reuse a byte, first, last."""


@dataclass(frozen=True, slots=True)
class Column:
    """A candidate: a sub-graph [layers, 4] of at most the buffer's bytes, and what it was cut from in which order."""

    source: str
    order: str
    graph: Ints


def columns(family: Family, works: Sequence[Work], machine: Machine, orders: Sequence[str] = ORDERS) -> list[Column]:
    """Return the different candidates: the core, the nets, and what pairs of nets share, each cut to the buffer."""
    sources = {"core": family.core} | {net.name: net.graph for net in family.nets}
    for one, two in itertools.combinations(family.nets, 2):
        sources[f"{one.name}∩{two.name}"] = shared([one.graph, two.graph])
    room = machine.persistent // machine.weight
    found: dict[bytes, Column] = {}
    for order in orders:
        ranks = ranking(works, machine, order)
        core = cut(np.zeros_like(family.core), family.core, ranks, room)
        # a core that does not fit leaves no room for anything else
        whole = int(sizes(core).sum()) == int(sizes(family.core).sum())
        for name, target in sources.items() if whole else [("core", core)]:
            graph = cut(core, target, ranks, room)
            found.setdefault(graph.tobytes(), Column(name, order, graph))
    return list(found.values())


def ranking(works: Sequence[Work], machine: Machine, order: str) -> Ints:
    """Return the layers in the order in which they are filled."""
    if order == "front":
        return np.arange(works[0].weights.size)
    if order == "back":
        return np.arange(works[0].weights.size)[::-1]
    score = _stall(works, machine) if order == "stall" else -_reuse(works)
    return np.argsort(-score, kind="stable").astype(np.int64)


def cut(graph: Ints, target: Ints, ranks: Ints, room: int) -> Ints:
    """Return ``graph`` grown towards ``target`` within ``room`` weights, layers in the order of ``ranks``."""
    if int(sizes(target).sum()) <= room:
        return target.copy()
    have, wanted = graph.tolist(), target.tolist()
    left = room - int(sizes(graph).sum())
    for layer in ranks:
        if not left:
            break
        grown = _grow(have[layer], wanted[layer], left)
        left -= math.prod(grown) - math.prod(have[layer])
        have[layer] = grown
    return np.array(have, np.int64)


def fixed(found: Sequence[Column], works: Sequence[Work], machine: Machine, counts: Floats | None = None) -> int:
    """Return the column that saves most bytes over the nets; of about equal, the fastest.

    Each net is asked for ``counts`` times, or alike. Bytes are energy at any bandwidth, latency only where memory is
    the bottleneck.
    """
    graphs = [column.graph for column in found]
    often = np.ones(len(works)) if counts is None else counts
    saved = np.array([[hits(item.net.graph, graph).sum() for item in works] for graph in graphs]) @ often
    good = np.flatnonzero(saved >= ABOUT * saved.max())
    slow = [often @ [seconds(item, graphs[index], machine) for item in works] for index in good]
    return int(good[int(np.argmin(slow))])


def refills(found: Sequence[Column], works: Sequence[Work] = ()) -> Floats:
    """Return the weights to bring from column i to column j, as [columns, columns].

    With ``works`` the result is [nets, columns, columns]: what a net brings on chip anyway as it passes is free.
    """
    graphs = np.stack([column.graph for column in found])
    whole = sizes(graphs).sum(axis=1)
    common = np.stack([sizes(np.minimum(graphs, graph)).sum(axis=1) for graph in graphs])
    absent = whole[None, :] - common
    if not works:
        return np.asarray(absent, np.float64)
    return np.asarray([absent - _brought(graphs, item.net.graph) for item in works], np.float64)


def _brought(graphs: Ints, net: Ints) -> Ints:
    """Return the weights of column j that are in a net but not in column i."""
    used = np.minimum(graphs, net)
    by_net = sizes(used).sum(axis=1)
    both = np.stack([sizes(np.minimum(graph, used)).sum(axis=1) for graph in graphs])
    result: Ints = by_net[None, :] - both
    return result


def _grow(have: list[int], goal: list[int], left: int) -> list[int]:
    """Return ``goal`` if it fits, else as many whole kernels of it as fit in the place of what is there."""
    there, one = math.prod(have), math.prod(goal[1:])
    if math.prod(goal) - there <= left:
        return goal
    part = [min(goal[0], (left + there) // one if one else 0), *goal[1:]]
    larger = all(new >= old for new, old in zip(part, have, strict=True))
    return part if larger and math.prod(part) > there else have


def _stall(works: Sequence[Work], machine: Machine) -> Floats:
    loads = [item.weights / machine.bandwidth for item in works]
    waits = [np.maximum(0.0, load - item.compute) for load, item in zip(loads, works, strict=True)]
    total = np.sum([item.weights for item in works], axis=0)
    return np.asarray(np.sum(waits, axis=0) / np.maximum(1, total) * 1e9)


def _reuse(works: Sequence[Work]) -> Floats:
    macs = np.sum([item.net.macs for item in works], axis=0)
    return np.asarray(macs / np.maximum(1, np.sum([item.weights for item in works], axis=0)))
