"""CPU contention: replicas that share the cores of one machine, so that busy cores stretch batches.

The stages can no longer be simulated one after the other, because a batch of one slows down a batch of another. Stages
follow the rules of :mod:`unfoldkit.queueing.reference`, cores those of an operating system: a batch starts on the core
with the fewest batches, batches on one core share it evenly, and an idle core takes a batch from the fullest. Pinned
replicas do neither.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.problem.pipeline import Pipeline
from unfold_pipeline.problem.routing import Item, Routes, build_routes
from unfold_pipeline.problem.sample import Sample
from unfoldkit.queueing.stage import Server

IMMEDIATELY = float("-inf")


@dataclass(frozen=True, slots=True)
class SpeedTrace:
    """Measured time over planned latency of a stage's batches (``factor``), sorted by start in seconds."""

    start_s: FloatArray
    factor: FloatArray

    def factor_at(self, now_s: float) -> float:
        """Return the factor of the batch that started nearest to ``now_s``."""
        after = int(np.searchsorted(self.start_s, now_s))
        neighbours = [index for index in (after - 1, after) if 0 <= index < self.start_s.size]
        return float(self.factor[min(neighbours, key=lambda index: abs(self.start_s[index] - now_s))])


@dataclass(frozen=True, slots=True)
class ReplicaChange:
    """A change of a stage at a time: replicas added, and the maximum batch from then on (0: unchanged)."""

    time_s: float
    stage: int
    added: int
    max_batch: int


# not frozen: the state of the simulation
@dataclass(slots=True)
class RunningBatch:
    """A batch in service: its end in seconds if nothing changes, and its current slowdown on a shared core."""

    stage: int
    items: list[Item]
    end_s: float
    core: int
    replica: int
    slowdown: float = 1.0


@dataclass(slots=True)
class StageState:
    """A stage at a moment.

    Attributes:
        server: How it serves on a core of its own.
        cpu_fraction: Fraction of its service time that needs a core.
        idle: For each idle replica, since when it is idle, and its number.
        pinned_cores: Core of each replica, if replicas are pinned.
        speed: Measured factors on the latency, which replace those of the server.
        queue: Arrival time and item, in queueing order.
        batches: Number of batches started.
        leaving: Replicas to remove when their batch ends.
        max_batch: The maximum batch size at present.
    """

    server: Server
    cpu_fraction: float
    idle: deque[tuple[float, int]]
    pinned_cores: tuple[int, ...] = ()
    speed: SpeedTrace | None = None
    queue: deque[tuple[float, Item]] = field(default_factory=deque)
    batches: int = 0
    leaving: int = 0
    max_batch: int = 0

    def __post_init__(self) -> None:
        self.max_batch = self.server.full or self.server.latency.size - 1

    def apply_change(self, change: ReplicaChange) -> None:
        """Add idle replicas or remove some: idle ones first, then those that finish first. Resize batches."""
        self.max_batch = change.max_batch or self.max_batch
        self.idle.extend((change.time_s, 0) for _ in range(change.added))
        for _ in range(-change.added):
            if self.idle:
                self.idle.popleft()
            else:
                self.leaving += 1

    def release_replica(self, replica: int, now_s: float) -> None:
        """Mark a replica as idle when its batch has ended, unless it is to leave."""
        if self.leaving:
            self.leaving -= 1
        else:
            self.idle.append((now_s, replica))

    def next_start_s(self) -> float:
        """Return when the next batch may start: a full one at once, another when its oldest item has waited."""
        if not self.queue or not self.idle:
            return math.inf
        return IMMEDIATELY if len(self.queue) >= self.max_batch else self.queue[0][0] + self.server.wait

    def take_replica(self) -> tuple[float, int]:
        """Return the replica that serves next: the lowest number if pinned, otherwise the one idle longest."""
        if not self.pinned_cores:
            return self.idle.popleft()
        replica = min(self.idle, key=lambda entry: entry[1])
        self.idle.remove(replica)
        return replica

    def compute_end_s(self, batch: int, now_s: float, idle_since_s: float) -> float:
        """Return when a batch that starts now would end on a core of its own."""
        factors = self.server.factor
        factor = self.speed.factor_at(now_s) if self.speed else float(factors[self.batches % factors.size])
        end_s = now_s + float(self.server.latency[batch]) * factor
        return end_s + self.server.wake if now_s > idle_since_s else end_s


@dataclass(slots=True)
class SharedCores:
    """The cores of a machine and the batches that run on them."""

    stages: list[StageState]
    cores: int
    running: list[RunningBatch] = field(default_factory=list)

    def find_idlest_core(self) -> int:
        """Return the core with the fewest batches."""
        return min(range(self.cores), key=lambda core: sum(batch.core == core for batch in self.running))

    def update_slowdowns(self, now_s: float) -> None:
        """Move the ends of batches on cores where the number of batches has changed."""
        for core in range(self.cores):
            batches = [batch for batch in self.running if batch.core == core]
            demand = max(1.0, math.fsum(self.stages[batch.stage].cpu_fraction for batch in batches))
            for batch in batches:
                slowdown = 1.0 + self.stages[batch.stage].cpu_fraction * (demand - 1.0)
                if slowdown != batch.slowdown:
                    batch.end_s = now_s + (batch.end_s - now_s) / batch.slowdown * slowdown
                    batch.slowdown = slowdown

    def next_end_s(self) -> float:
        """Return when the next batch ends if none starts before."""
        return min((batch.end_s for batch in self.running), default=math.inf)

    def pop_ended(self, now_s: float) -> list[RunningBatch]:
        """Remove and return the batches that end now, in order of their start."""
        ended = [batch for batch in self.running if batch.end_s <= now_s]
        self.running = [batch for batch in self.running if batch.end_s > now_s]
        if not any(stage.pinned_cores for stage in self.stages):
            self._rebalance_cores()
        return ended

    def _rebalance_cores(self) -> None:
        loads = [[batch for batch in self.running if batch.core == core] for core in range(self.cores)]
        while (fullest := max(loads, key=len)) and len(fullest) > 1 and (idlest := min(loads, key=len)) == []:
            batch = fullest.pop()
            batch.core = loads.index(idlest)
            idlest.append(batch)


def simulate_contention(
    pipeline: Pipeline,
    sample: Sample,
    servers: Sequence[Server],
    cpu_fractions: Sequence[float],
    cores: int,
    pinned_cores: Sequence[tuple[int, ...]] | None = None,
    changes: Sequence[ReplicaChange] = (),
    speeds: Sequence[SpeedTrace | None] = (),
) -> FloatArray:
    """Return the seconds of every query if all replicas run on one machine; infinite for queries that were shed.

    Args:
        pipeline: The stages.
        sample: Arrivals and routes.
        servers: How each stage serves on a core of its own, with its replicas, factors and patience.
        cpu_fractions: Fraction of each stage's service time in which it needs a core, 0 to 1.
        cores: Number of cores of the machine.
        pinned_cores: Core of each replica of each stage, from 0, if replicas are pinned.
        changes: Changes of replicas and batch sizes, in order of time; not for pinned replicas.
        speeds: Measured speed of each stage's batches, where known, instead of the servers' factors.
    """
    routes = build_routes(pipeline, sample)
    stages = [
        StageState(server, fraction, deque((IMMEDIATELY, n) for n in range(server.replicas)), pinned, speed)
        for server, fraction, pinned, speed in zip(
            servers, cpu_fractions, pinned_cores or [()] * len(servers), speeds or [None] * len(servers), strict=True
        )
    ]
    machine = SharedCores(stages, cores)
    finish = np.full(sample.size, np.inf)
    arrivals = sample.arrivals.tolist()
    query, pending = 0, deque(changes)
    while query < len(arrivals) or machine.running or any(stage.queue for stage in stages):
        arrival_s = arrivals[query] if query < len(arrivals) else math.inf
        change_s = pending[0].time_s if pending else math.inf
        now_s = min(arrival_s, change_s, machine.next_end_s(), *(stage.next_start_s() for stage in stages))
        _complete_batches(machine, routes, machine.pop_ended(now_s), now_s, finish)
        while pending and pending[0].time_s <= now_s:
            change = pending.popleft()
            stages[change.stage].apply_change(change)
        while query < len(arrivals) and arrivals[query] <= now_s:
            _admit_query(stages, routes, query, now_s, finish)
            query += 1
        for index in range(len(stages)):
            _start_batches(machine, index, sample, now_s)
        machine.update_slowdowns(now_s)
    result: FloatArray = finish - sample.arrivals
    return result


def _admit_query(stages: list[StageState], routes: Routes, query: int, now_s: float, finish: FloatArray) -> None:
    if routes.open_items[query] == 0:
        finish[query] = now_s
    for item in routes.find_entries(query):
        stages[item[0]].queue.append((now_s, item))


def _complete_batches(
    machine: SharedCores, routes: Routes, ended: list[RunningBatch], now_s: float, finish: FloatArray
) -> None:
    arriving: list[list[Item]] = [[] for _ in machine.stages]
    for batch in ended:
        machine.stages[batch.stage].release_replica(batch.replica, now_s)
        for item in batch.items:
            for child in routes.release_children(item):
                arriving[child[0]].append(child)
            if routes.complete_item(item):
                finish[routes.query_of(item)] = now_s
    for state, stage, items in zip(machine.stages, routes.pipeline.stages, arriving, strict=True):
        # at a join, items of one instant queue by query, as in the estimator
        state.queue.extend((now_s, item) for item in (sorted(items) if len(stage.parents) > 1 else items))


def _start_batches(machine: SharedCores, index: int, sample: Sample, now_s: float) -> None:
    stage = machine.stages[index]
    origin_s = sample.visits[index].origin_s
    while stage.next_start_s() <= now_s:
        batch: list[Item] = []
        while stage.queue and len(batch) < stage.max_batch:
            item = stage.queue.popleft()[1]
            if now_s - origin_s[item[1]] <= stage.server.patience:
                batch.append(item)
        if batch:
            idle_since_s, replica = stage.take_replica()
            core = stage.pinned_cores[replica] if stage.pinned_cores else machine.find_idlest_core()
            end_s = stage.compute_end_s(len(batch), now_s, idle_since_s)
            machine.running.append(RunningBatch(index, batch, end_s, core, replica))
            stage.batches += 1
