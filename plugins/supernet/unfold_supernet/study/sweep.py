"""What a buffer saves: sweeps over its size and the bandwidth, against machines that keep nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_supernet.accelerator import latency_table, scheduler, subgraph_cache
from unfold_supernet.accelerator.cost_model import Work, work
from unfold_supernet.accelerator.hardware import Machine
from unfold_supernet.accelerator.latency_table import Known
from unfold_supernet.accelerator.layers import Family
from unfold_supernet.accelerator.queries import Asked
from unfold_supernet.accelerator.scheduler import Outcome
from unfold_supernet.accelerator.subgraph_cache import Column
from unfold_supernet.arrays import Floats


@dataclass(frozen=True, slots=True)
class Setting:
    """A family on a machine: its work, what can be kept, and the tables of both prefetch models.

    ``fixed`` is the column of ``layered`` and ``deep`` that is kept all the time; their column 0 keeps nothing.
    """

    machine: Machine
    works: tuple[Work, ...]
    columns: tuple[Column, ...]
    layered: Known
    deep: Known
    fixed: int

    @property
    def kept(self) -> Column:
        """What is kept all the time."""
        return self.columns[self.fixed - 1]


@dataclass(frozen=True, slots=True)
class Savings:
    """Shares saved by keeping the core, against a machine of equal silicon that keeps nothing.

    ``traffic`` is also off-chip energy, which is proportional to it. ``best`` is the net that gains most, under the
    column that suits it best; the others are means over a stream. ``fair`` lets the machine that keeps nothing
    prefetch through the layers with the same bytes. ``points`` of accuracy are gained at equal deadlines.
    """

    persistent: int
    bandwidth: float
    traffic: float
    traffic_best: float
    latency: float
    latency_best: float
    fair: float
    fair_best: float
    points: float
    fair_points: float
    energy: float


def setting(family: Family, machine: Machine, orders: Sequence[str] = subgraph_cache.ORDERS) -> Setting:
    """Return a family on a machine, every table filled in."""
    works = tuple(work(net, machine) for net in family.nets)
    columns = tuple(subgraph_cache.columns(family, works, machine, orders))
    layered, deep = (latency_table.known(works, columns, machine, deep=way) for way in (False, True))
    return Setting(machine, works, columns, layered, deep, subgraph_cache.fixed(columns, works, machine) + 1)


def suited(what: Setting, asked: Asked, policy: str) -> Setting:
    """Return the setting with what suits a stream kept all the time: nets count as often as they answer."""
    wanted, _others = asked.targets(what.layered, policy)
    counts = scheduler.demand(wanted, what.layered, policy)
    return replace(what, fixed=subgraph_cache.fixed(what.columns, what.works, what.machine, counts) + 1)


def savings(what: Setting, asked: Asked, policy: str) -> Savings:
    """Return what the buffer of a setting saves for a stream of queries."""
    streams = {way: _pair(what, known, asked, policy) for way, known in _ways(what).items()}
    points = {way: _pair(what, known, asked, "strict-latency") for way, known in _ways(what).items()}
    none, kept = streams["layered"]
    return Savings(
        what.machine.persistent,
        what.machine.bandwidth,
        1 - kept.bytes / none.bytes,
        _best(what.layered.bytes),
        1 - kept.seconds / none.seconds,
        _best(what.layered.seconds),
        1 - streams["deep"][1].seconds / streams["deep"][0].seconds,
        _best(what.deep.seconds),
        points["layered"][1].accuracy - points["layered"][0].accuracy,
        points["deep"][1].accuracy - points["deep"][0].accuracy,
        _energy(what, asked, policy),
    )


def sweep(
    family: Family, machine: Machine, sizes: Sequence[int], bandwidths: Sequence[float], asked: Asked, policy: str
) -> Iterator[Savings]:
    """Yield the savings of every size under every bandwidth, layers being filled by stall and by reuse."""
    for bandwidth in bandwidths:
        for size in sizes:
            at = replace(machine, persistent=size, bandwidth=bandwidth)
            yield savings(suited(setting(family, at, ("stall", "reuse")), asked, policy), asked, policy)


def only(what: Setting, order: str) -> Setting:
    """Return the setting with the columns of one order beside the fixed one.

    Distance mixes orders up: it counts channels, not bytes or stall.
    """
    kept = [index + 1 for index, column in enumerate(what.columns) if column.order == order or index + 1 == what.fixed]
    at = [0, *kept]
    columns = tuple(what.columns[index - 1] for index in kept)
    layered, deep = (_restricted(known, at) for known in (what.layered, what.deep))
    return Setting(what.machine, what.works, columns, layered, deep, at.index(what.fixed))


def _restricted(known: Known, at: list[int]) -> Known:
    return Known(
        known.seconds[:, at],
        known.bytes[:, at],
        known.hit[:, at],
        known.refill[np.ix_(at, at)],
        known.passing[:, at][:, :, at],
        known.near[:, at],
        known.norm[at],
        known.accuracy,
    )


def _ways(what: Setting) -> dict[str, Known]:
    return {"layered": what.layered, "deep": what.deep}


def _pair(what: Setting, known: Known, asked: Asked, policy: str) -> tuple[Outcome, Outcome]:
    wanted, _others = asked.targets(known, policy)
    none, kept = (
        scheduler.play(wanted, known, what.machine.bandwidth, policy=policy, column=column)
        for column in (0, what.fixed)
    )
    return none, kept


def _best(values: Floats) -> float:
    return float((1 - values.min(axis=1) / values[:, 0]).max())


def _energy(what: Setting, asked: Asked, policy: str) -> float:
    """Return the share of the whole energy, arithmetic and on-chip memory included, that is saved."""
    from unfold_supernet.accelerator.cost_model import joules

    spent = []
    for column in (0, what.fixed):
        graph = what.columns[column - 1].graph if column else what.kept.graph * 0
        by_net = np.array([joules(item, graph, what.machine) for item in what.works])
        known = replace(what.layered, bytes=np.repeat(by_net[:, None], what.layered.bytes.shape[1], axis=1))
        wanted, _others = asked.targets(what.layered, policy)
        spent.append(scheduler.play(wanted, known, what.machine.bandwidth, policy=policy, column=column).bytes)
    return 1 - spent[1] / spent[0]
