"""The pipeline as the algorithms see it: stages in topological order, options with latency tables, prices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Option:
    """A kind of hardware on which a stage can run.

    ``latency[b]`` is the time in seconds of a batch of ``b`` (index 0 is 0); ``price`` is in $ an hour and replica, of
    a full instance where ``shared`` replicas, of any stage, are on one; ``wake`` is what a batch takes longer on a
    replica that stood idle.
    """

    hardware: str
    price: float
    latency: Table
    wake: float = 0.0
    shared: int = 1

    def instances(self, replicas: int) -> int:
        """Return the instances that must be rented for some replicas."""
        return -(-replicas // self.shared)

    @property
    def batches(self) -> tuple[int, ...]:
        """The largest batches that a plan may choose: powers of two, and the largest that was profiled."""
        top = self.latency.size - 1
        return tuple(sorted({*(1 << power for power in range(top.bit_length()) if 1 << power <= top), top}))

    @property
    def quickest(self) -> float:
        """The least seconds that any batch takes."""
        return float(self.latency[1:].min())

    @property
    def throughputs(self) -> Table:
        """Queries a second of one replica with full batches, by their size (none of size 0)."""
        rates: Table = np.zeros(self.latency.size)
        rates[1:] = np.arange(1, self.latency.size) / self.latency[1:]
        return rates

    def throughput(self, batch: int) -> float:
        """Return queries a second of one replica with full batches of ``batch``."""
        return batch / float(self.latency[batch])

    def best_throughput(self, batch: int) -> float:
        """Return the most queries a second with any batch up to ``batch``."""
        return float(np.max(np.arange(1, batch + 1) / self.latency[1 : batch + 1]))


@dataclass(frozen=True, slots=True)
class Edge:
    """A flow from the stage ``parent``; a query that was there comes here with probability ``share``."""

    parent: int
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Stage:
    """A model of the pipeline: where its queries come from and how it can be served.

    ``share`` is that of all queries which start here (without ``parents``); ``fan_out`` is the mean number of items
    that a visit makes of one query of the parent; ``wait`` holds back a batch that is not full.
    """

    name: str
    parents: tuple[Edge, ...]
    options: tuple[Option, ...]
    share: float = 1.0
    fan_out: float = 1.0
    wait: float = 0.0

    @property
    def quickest_option(self) -> int:
        """The index of the hardware on which a query alone is quickest; the cheapest of equals."""
        found = [
            (float(option.latency[1]), option.price * option.shared, index) for index, option in enumerate(self.options)
        ]
        return min(found)[2]

    def sure(self, edge: Edge) -> bool:
        """Whether each item of the stage before comes here; a fan-out below 1 makes none of some."""
        return edge.share >= 1 and self.fan_out >= 1


@dataclass(frozen=True, slots=True)
class Choice:
    """What a plan says of one stage: the index of its hardware among the options, its largest batch, its replicas."""

    option: int
    batch: int
    replicas: int


Plan = tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Stages, parents before children; ``quotas`` limits the replicas of a kind of hardware over all stages."""

    stages: tuple[Stage, ...]
    quotas: tuple[tuple[str, int], ...] = ()

    def children(self, index: int) -> tuple[int, ...]:
        """Return the stages that take from stage ``index``."""
        return tuple(
            place for place, stage in enumerate(self.stages) if any(edge.parent == index for edge in stage.parents)
        )

    def ancestors(self, index: int) -> tuple[int, ...]:
        """Return the stages above stage ``index`` and itself, in order."""
        found = {index}
        for place in range(index, -1, -1):
            if place in found:
                found |= {edge.parent for edge in self.stages[place].parents}
        return tuple(sorted(found))

    def price(self, index: int, choice: Choice) -> float:
        """Return the $ an hour of one stage on full instances, which is the least that it can cost."""
        return choice.replicas * self.stages[index].options[choice.option].price

    def cost(self, plan: Sequence[Choice]) -> float:
        """Return the $ an hour of a plan, or of the first stages of one: whole instances, shared by the stages."""
        return hourly(self.options(plan), [choice.replicas for choice in plan])

    def floor(self, plan: Sequence[Choice]) -> float:
        """Return the $ an hour of a plan if every instance is full: never above its cost, and a sum over stages."""
        return sum(self.price(index, choice) for index, choice in enumerate(plan))

    def options(self, plan: Sequence[Choice]) -> tuple[Option, ...]:
        """Return what the stages of a plan run on."""
        return tuple([self.stages[index].options[choice.option] for index, choice in enumerate(plan)])

    def bills(self, plan: Sequence[Choice]) -> tuple[float, ...]:
        """Return the $ an hour of each stage, where stages share what an instance of theirs does not use."""
        used = counted(self.options(plan), [choice.replicas for choice in plan])
        return tuple(
            self.price(index, choice) * option.instances(used[option.hardware]) * option.shared / used[option.hardware]
            if option.shared > 1
            else self.price(index, choice)
            for index, (choice, option) in enumerate(zip(plan, self.options(plan), strict=True))
        )

    def within_quotas(self, plan: Sequence[Choice]) -> bool:
        """Whether the first ``len(plan)`` stages keep to the quotas."""
        return not self.quotas or not self.over_quotas(plan)

    def over_quotas(self, plan: Sequence[Choice]) -> tuple[tuple[str, int, int], ...]:
        """Return ``(hardware, replicas used, quota)`` where the first ``len(plan)`` stages use more than the quota."""
        used = counted(self.options(plan), [choice.replicas for choice in plan])
        return tuple([(name, used[name], most) for name, most in self.quotas if used.get(name, 0) > most])


def counted(options: Sequence[Option], replicas: Sequence[int]) -> dict[str, int]:
    """Return the replicas on each kind of hardware."""
    used: dict[str, int] = {}
    for option, count in zip(options, replicas, strict=True):
        used[option.hardware] = used.get(option.hardware, 0) + count
    return used


def hourly(options: Sequence[Option], replicas: Sequence[int]) -> float:
    """Return the $ an hour of replicas on some hardware: whole instances, on which they stand whatever their stage."""
    used: dict[str, int] = {}
    total = 0.0
    for option, count in zip(options, replicas, strict=True):
        if option.shared == 1:  # the usual case, asked for each node of a search
            total += count * option.price
            continue
        before = used.get(option.hardware, 0)
        used[option.hardware] = before + count
        more = option.instances(before + count) - option.instances(before)
        total += more * option.shared * option.price
    return total


@dataclass(frozen=True, slots=True)
class Depth:
    """Seconds that a query cannot avoid before (``above``) and after (``below``) each stage."""

    above: tuple[float, ...]
    below: tuple[float, ...]


def depths(pipeline: Pipeline, seconds: Sequence[float]) -> Depth:
    """Return the unavoidable seconds around each stage, if stage ``i`` takes at least ``seconds[i]``.

    A flow that a query may skip counts for nothing below; above, the shortest way in counts unless every query takes a
    longer one.
    """
    above = [0.0] * len(seconds)
    below = [0.0] * len(seconds)
    every: list[bool] = []
    for index, stage in enumerate(pipeline.stages):
        ways = [
            (above[edge.parent] + seconds[edge.parent], every[edge.parent] and stage.sure(edge))
            for edge in stage.parents
        ]
        taken = [way for way, certain in ways if certain]
        above[index] = max(taken) if taken else min((way for way, _ in ways), default=0.0)
        every.append(bool(taken) or (not ways and stage.share >= 1))
    for index in range(len(seconds) - 1, -1, -1):
        stage = pipeline.stages[index]
        for edge in stage.parents:
            if stage.sure(edge):
                below[edge.parent] = max(below[edge.parent], seconds[index] + below[index])
    return Depth(tuple(above), tuple(below))


def service_time(pipeline: Pipeline, seconds: Sequence[float]) -> float:
    """Return the longest path if stage ``i`` takes ``seconds[i]``, every flow taken."""
    ends: list[float] = []
    for index, stage in enumerate(pipeline.stages):
        ends.append(max((ends[edge.parent] for edge in stage.parents), default=0.0) + seconds[index])
    return max(ends)


def table(points: Sequence[tuple[int, float]]) -> Table:
    """Return the latency by batch size, piecewise linear between the measured points; the first must be batch 1."""
    sizes, seconds = zip(*sorted(points), strict=True)
    result: Table = np.interp(np.arange(sizes[-1] + 1), sizes, seconds)
    result[0] = 0.0
    return result


def needed(rate: float, throughput: float) -> int:
    """Return the least replicas that serve ``rate`` queries a second."""
    return max(1, math.ceil(rate / throughput - 1e-9))
