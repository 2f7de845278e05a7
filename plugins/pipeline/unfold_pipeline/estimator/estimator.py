"""The estimator: what latency every query has under a plan, stage after stage, only what changed computed again."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.problem.pipeline import Choice, Pipeline, Plan
from unfold_pipeline.problem.sample import Sample, Visits
from unfoldkit.queueing import kernel
from unfoldkit.queueing.stage import Flow, Goal, Server, serve

Times = NDArray[np.float64]
Items = NDArray[np.int32]
Key = tuple[int, tuple[Choice, ...]]
ROOM = 256 * 1024**2
SLACK = 1e-9


@dataclass(slots=True)
class Memory:
    """What was computed: flows, the least recently used forgotten first, and the budgets that were failed or kept.

    ``ample`` are those of the failed in which no batch had to wait for a replica, so that more of them fail as well.
    ``above`` are the ancestors of stages, ``last`` the stages that can be the last of a query, ``rests`` what items of
    a stage still need at some of its children (see :mod:`unfold_pipeline.estimator.remaining_work`).
    """

    flows: OrderedDict[Key, Flow] = field(default_factory=OrderedDict)
    failed: dict[Key, float] = field(default_factory=dict)
    kept: dict[Key, float] = field(default_factory=dict)
    ample: set[Key] = field(default_factory=set)
    bytes: int = 0
    above: dict[int, tuple[int, ...]] = field(default_factory=dict)
    last: tuple[int, ...] | None = None
    rests: dict[tuple[int, tuple[int, ...]], Times] = field(default_factory=dict)
    passes: int = 0
    items: int = 0

    def get(self, key: Key) -> Flow | None:
        """Return a remembered flow."""
        flow = self.flows.get(key)
        if flow is not None:
            self.flows.move_to_end(key)
        return flow

    def put(self, key: Key, flow: Flow) -> None:
        """Remember a flow."""
        self.flows[key] = flow
        self.bytes += _size(flow)
        while self.bytes > ROOM and len(self.flows) > 8:
            self.bytes -= _size(self.flows.popitem(last=False)[1])


@dataclass(frozen=True, slots=True)
class Estimator:
    """Simulates plans of one pipeline on one sample. Results are exact (see :mod:`unfoldkit.queueing.reference`)."""

    pipeline: Pipeline
    sample: Sample
    percentile: float = 0.99
    memory: Memory = field(default_factory=Memory)

    @property
    def allowed(self) -> int:
        """The number of queries that may be late: nearest-rank percentile."""
        return math.floor((1 - self.percentile) * self.sample.size + SLACK)

    def flow(self, index: int, plan: Sequence[Choice], budget: float = math.inf) -> Flow | None:
        """Return what leaves stage ``index``; ``plan`` covers at least the stages down to it.

        With a ``budget`` in seconds from a query's arrival, ``None`` once more queries are late here than allowed.
        """
        key = self._key(index, plan)
        if not self.sample.visits[index].single:
            budget = math.inf
        if self.memory.failed.get(key, -1.0) >= budget:
            return None
        known = self.memory.get(key)
        if known is not None:
            return known if self._keeps(known, key, budget) else None
        return self._computed(key, index, plan, budget)

    def ample(self, index: int, plan: Sequence[Choice]) -> bool:
        """Whether stage ``index`` failed its last budget though no batch there waited for a replica."""
        return self._key(index, plan) in self.memory.ample

    def known(self, index: int, plan: Sequence[Choice]) -> Flow | None:
        """Return what leaves stage ``index`` if it is remembered."""
        return self.memory.flows.get(self._key(index, plan))

    def latencies(self, plan: Plan) -> Times:
        """Return the seconds of every query, in order of arrival."""
        return self._finish(plan) - self.sample.arrivals

    def tail(self, plan: Plan) -> float:
        """Return the percentile of the latencies, by nearest rank."""
        return self.ranked(self.latencies(plan))

    def ranked(self, seconds: Times) -> float:
        """Return the percentile of the seconds of all queries, by nearest rank."""
        place = max(0, seconds.size - 1 - self.allowed)
        return float(np.partition(seconds, place)[place])

    def late(self, plan: Plan, limit: float) -> int:
        """Return how many queries take longer than ``limit`` seconds."""
        return kernel.late(self._finish(plan), self.sample.arrivals, limit)

    def meets(self, plan: Plan, limit: float, below: Sequence[float]) -> bool:
        """Whether the percentile is at most ``limit`` seconds; stops at the first stage that proves the contrary.

        ``below[i]`` is a time that every query at stage ``i`` still needs after it.
        """
        for index in range(len(plan)):
            if self.flow(index, plan, limit - below[index] + SLACK) is None:
                return False
        return self.late(plan, limit) <= self.allowed

    def waiting(self, index: int, plan: Plan) -> tuple[Times, Items]:
        """Return the arrival times at a stage and the items, in the order in which they queue."""
        parents = {edge.parent: self.sure(edge.parent, plan) for edge in self.pipeline.stages[index].parents}
        return inputs(self.sample, index, parents)

    def server(self, index: int, choice: Choice) -> Server:
        """Return how a stage serves under a choice."""
        return server(self.pipeline, index, choice)

    def sure(self, index: int, plan: Sequence[Choice]) -> Flow:
        """Return all that leaves stage ``index``."""
        flow = self.flow(index, plan)
        if flow is None:
            raise RuntimeError("a pass without a budget cannot fail")
        return flow

    def _key(self, index: int, plan: Sequence[Choice]) -> Key:
        above = self.memory.above.get(index)
        if above is None:
            above = self.memory.above[index] = self.pipeline.ancestors(index)
        return index, tuple([plan[place] for place in above])

    def _keeps(self, flow: Flow, key: Key, budget: float) -> bool:
        if self.memory.kept.get(key, math.inf) <= budget:
            return True
        origin = self.sample.visits[key[0]].origin
        good = kernel.late(flow.times, origin[flow.items], budget) <= self.allowed
        (self.memory.kept if good else self.memory.failed)[key] = budget
        return good

    def _computed(self, key: Key, index: int, plan: Sequence[Choice], budget: float) -> Flow | None:
        times, items = self._inputs(key, plan)
        goal = Goal(self.sample.visits[index].origin, budget, self.allowed if budget < math.inf else 2**62)
        flow = serve(times, items, self.server(index, plan[index]), goal)
        self.memory.passes += 1
        self.memory.items += flow.times.size
        if not flow.ok:
            self.memory.failed[key] = max(budget, self.memory.failed.get(key, -1.0))
            (self.memory.ample.discard if flow.short else self.memory.ample.add)(key)
            return None
        self.memory.put(key, flow)
        self.memory.kept[key] = budget
        return flow

    def _inputs(self, key: Key, plan: Sequence[Choice]) -> tuple[Times, Items]:
        """Return what comes to a stage; remembered, as a search asks again for each choice of the stage itself."""
        index, above = key
        place = (-1 - index, above[:-1])
        known = self.memory.get(place)
        if known is None:
            parents = {edge.parent: self.sure(edge.parent, plan) for edge in self.pipeline.stages[index].parents}
            known = Flow(*inputs(self.sample, index, parents))
            if not self.sample.visits[index].same:
                self.memory.put(place, known)
        return known.times, known.items

    def _finish(self, plan: Sequence[Choice]) -> Times:
        if self.memory.last is None:
            stages = range(len(self.pipeline.stages))
            self.memory.last = tuple(i for i in stages if not _passed_on(self.pipeline, self.sample, i))
        finish = self.sample.arrivals.copy()
        for index in self.memory.last:
            flow = self.sure(index, plan)
            kernel.latest(flow.times, flow.items, flow.times.size, self.sample.visits[index].owner, finish)
        return finish


def server(pipeline: Pipeline, index: int, choice: Choice) -> Server:
    """Return how a stage serves under a choice."""
    stage = pipeline.stages[index]
    option = stage.options[choice.option]
    return Server(option.latency[: choice.batch + 1], choice.replicas, stage.wait, wake=option.wake)


def inputs(sample: Sample, index: int, parents: dict[int, Flow]) -> tuple[Times, Items]:
    """Return arrival times at a stage and its items, in queueing order, from what left the stages above.

    Ties keep the order of the stage above; behind a join they are by query.
    """
    visits = sample.visits[index]
    if not parents:
        return visits.origin, np.arange(visits.owner.size, dtype=np.int32)
    if len(parents) == 1:
        (parent, flow), *_ = parents.items()
        return (flow.times, flow.items) if visits.same else _follow(visits, parent, flow)
    return _join(visits, parents)


def _follow(visits: Visits, parent: int, flow: Flow) -> tuple[Times, Items]:
    # several items of one flow may meet in one joined item, so that the number here says nothing
    size = int(visits.count[parent].sum())
    times, items = np.empty(size), np.empty(size, dtype=np.int32)
    count = kernel.follow(
        flow.times, flow.items, flow.times.size, visits.first[parent], visits.count[parent], times, items
    )
    return times[:count], items[:count]


def _join(visits: Visits, parents: dict[int, Flow]) -> tuple[Times, Items]:
    ready = np.full(visits.owner.size, -np.inf)
    for parent, flow in parents.items():
        times, items = _follow(visits, parent, flow)
        ready[items] = np.maximum(ready[items], times)
    order = np.argsort(ready, kind="stable").astype(np.int32)
    return ready[order], order


def _passed_on(pipeline: Pipeline, sample: Sample, index: int) -> bool:
    """Whether every item of a stage goes on to one and the same child, so that it cannot be the last of its query."""
    return any(
        bool((sample.visits[child].count[index] > 0).all()) if not sample.visits[child].same else True
        for child in pipeline.children(index)
    )


def _size(flow: Flow) -> int:
    return int(flow.times.nbytes + flow.items.nbytes)
