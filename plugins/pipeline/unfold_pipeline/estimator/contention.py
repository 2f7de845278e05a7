"""A pipeline whose replicas share the cores of one machine: a busy core makes a batch take longer.

The stages can no longer be simulated one after the other, as a batch of one slows a batch of another down. The rules of
a stage are those of :mod:`unfoldkit.queueing.reference`; the cores are those of an operating system: a batch starts on
the core with the fewest, those on one core share it evenly, and a core that runs dry takes one from the fullest.
Replicas that keep to a core do neither.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.problem.pipeline import Pipeline
from unfold_pipeline.problem.routing import Item, Routes, routes
from unfold_pipeline.problem.sample import Sample
from unfoldkit.queueing.stage import Server

Times = NDArray[np.float64]
NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Speed:
    """How many times its latency a batch of a stage took, by when it began: ``factor`` is ordered by ``when``, in s."""

    when: Times
    factor: Times

    def at(self, now: float) -> float:
        """Return the factor of the batch that began nearest to a moment."""
        after = int(np.searchsorted(self.when, now))
        near = [index for index in (after - 1, after) if 0 <= index < self.when.size]
        nearest = min(near, key=lambda index: abs(self.when[index] - now))
        return float(self.factor[nearest])


# not frozen: they are the state of the simulation
@dataclass(slots=True)
class Work:
    """A batch being served: when it ends if nothing changes, how many times as long as alone it takes at present."""

    stage: int
    items: list[Item]
    end: float
    core: int
    replica: int
    slow: float = 1.0


@dataclass(slots=True)
class Line:
    """A stage at a moment: how it serves, the share of its service that needs a core, its queue, idle replicas.

    ``idle`` holds since when each idle replica is idle, and its number; ``kept`` the core of each, if they keep to one.
    With a ``speed`` batches take as long as those did, and not as the factors of the server say.
    """

    server: Server
    cpu: float
    idle: deque[tuple[float, int]]
    kept: tuple[int, ...] = ()
    speed: Speed | None = None
    queue: deque[tuple[float, Item]] = field(default_factory=deque)
    batches: int = 0
    leaving: int = 0
    full: int = 0

    def __post_init__(self) -> None:
        self.full = self.server.full or self.server.latency.size - 1

    def change(self, more: int, largest: int, now: float) -> None:
        """Add idle replicas, or take some away: idle ones, or else those whose batches end first; resize batches."""
        self.full = largest or self.full
        self.idle.extend((now, 0) for _ in range(more))
        for _ in range(-more):
            if self.idle:
                self.idle.popleft()
            else:
                self.leaving += 1

    def free(self, replica: int, now: float) -> None:
        """Take back a replica whose batch has ended, unless it is to leave."""
        if self.leaving:
            self.leaving -= 1
        else:
            self.idle.append((now, replica))

    def due(self) -> float:
        """Return when the next batch may start: a full one at once, another when its oldest item has waited."""
        if not self.queue or not self.idle:
            return math.inf
        return NEVER if len(self.queue) >= self.full else self.queue[0][0] + self.server.wait

    def take(self) -> tuple[float, int]:
        """Return the idle replica that serves next: the first where they differ, else the one idle longest."""
        if not self.kept:
            return self.idle.popleft()
        found = min(self.idle, key=lambda item: item[1])
        self.idle.remove(found)
        return found

    def end(self, batch: int, now: float, since: float) -> float:
        """Return when a batch that starts now on a replica idle ``since`` would end on a core of its own."""
        factors = self.server.factor
        factor = self.speed.at(now) if self.speed else float(factors[self.batches % factors.size])
        end = now + float(self.server.latency[batch]) * factor
        return end + self.server.wake if now > since else end


@dataclass(slots=True)
class Machine:
    """What is served at a moment, on which core."""

    lines: list[Line]
    cores: int
    works: list[Work] = field(default_factory=list)

    def place(self) -> int:
        """Return the core with the fewest batches."""
        return min(range(self.cores), key=lambda core: sum(work.core == core for work in self.works))

    def settle(self, now: float) -> None:
        """Take in that the batches on the cores have changed."""
        for core in range(self.cores):
            here = [work for work in self.works if work.core == core]
            wanted = max(1.0, math.fsum(self.lines[work.stage].cpu for work in here))
            for work in here:
                slow = 1.0 + self.lines[work.stage].cpu * (wanted - 1.0)
                if slow != work.slow:
                    work.end = now + (work.end - now) / work.slow * slow
                    work.slow = slow

    def next_end(self) -> float:
        """Return when the next batch ends if none starts before."""
        return min((work.end for work in self.works), default=math.inf)

    def ended(self, now: float) -> list[Work]:
        """Return the batches that end now, in the order of their start."""
        done = [work for work in self.works if work.end <= now]
        self.works = [work for work in self.works if work.end > now]
        if not any(line.kept for line in self.lines):
            self._spread()
        return done

    def _spread(self) -> None:
        counts = [[work for work in self.works if work.core == core] for core in range(self.cores)]
        while (most := max(counts, key=len)) and len(most) > 1 and (least := min(counts, key=len)) == []:
            work = most.pop()
            work.core = counts.index(least)
            least.append(work)


def crowded(
    pipeline: Pipeline,
    sample: Sample,
    servers: Sequence[Server],
    shares: Sequence[float],
    cores: int,
    kept: Sequence[tuple[int, ...]] | None = None,
    changes: Sequence[tuple[float, int, int, int]] = (),
    speeds: Sequence[Speed | None] = (),
) -> Times:
    """Return the seconds of every query (inf: shed) if all replicas run on one machine.

    Args:
        pipeline: the stages.
        sample: arrivals and routes.
        servers: how each stage serves on a core of its own, with its replicas, factors and patience.
        shares: the share of each stage's service in which it needs a core, 0 to 1.
        cores: of the machine.
        kept: the core of each replica of each stage, from 0, if replicas keep to a core.
        changes: times in order, each with a stage, how many replicas it gets, and its largest batch from then on (0: as
            before); not for replicas that keep to a core.
        speeds: how long batches of each stage took in a run, where that is known, instead of the servers' factors.
    """
    way = routes(pipeline, sample)
    given = zip(servers, shares, kept or [()] * len(servers), speeds or [None] * len(servers), strict=True)
    lines = [
        Line(server, share, deque((NEVER, number) for number in range(server.replicas)), own, speed)
        for server, share, own, speed in given
    ]
    machine = Machine(lines, cores)
    finish = np.full(sample.size, np.inf)
    arrivals = sample.arrivals.tolist()
    query, orders = 0, deque(changes)
    while query < len(arrivals) or machine.works or any(line.queue for line in lines):
        came = arrivals[query] if query < len(arrivals) else math.inf
        order = orders[0][0] if orders else math.inf
        now = min(came, order, machine.next_end(), *(line.due() for line in lines))
        _end(machine, way, machine.ended(now), now, finish)
        while orders and orders[0][0] <= now:
            _, stage, more, largest = orders.popleft()
            lines[stage].change(more, largest, now)
        while query < len(arrivals) and arrivals[query] <= now:
            _enter(lines, way, query, now, finish)
            query += 1
        for stage in range(len(lines)):
            _start(machine, stage, sample, now)
        machine.settle(now)
    result: Times = finish - sample.arrivals
    return result


def _enter(lines: list[Line], way: Routes, query: int, now: float, finish: Times) -> None:
    if way.left[query] == 0:
        finish[query] = now
    for item in way.entries(query):
        lines[item[0]].queue.append((now, item))


def _end(machine: Machine, way: Routes, done: list[Work], now: float, finish: Times) -> None:
    come: list[list[Item]] = [[] for _ in machine.lines]
    for work in done:
        machine.lines[work.stage].free(work.replica, now)
        for item in work.items:
            for after in way.after(item):
                come[after[0]].append(after)
            if way.finished(item):
                finish[way.query(item)] = now
    for line, stage, items in zip(machine.lines, way.pipeline.stages, come, strict=True):
        # behind a join those of one instant queue by query, as in the estimator
        line.queue.extend((now, item) for item in (sorted(items) if len(stage.parents) > 1 else items))


def _start(machine: Machine, stage: int, sample: Sample, now: float) -> None:
    line = machine.lines[stage]
    origin = sample.visits[stage].origin
    while line.due() <= now:
        batch: list[Item] = []
        while line.queue and len(batch) < line.full:
            item = line.queue.popleft()[1]
            if now - origin[item[1]] <= line.server.patience:
                batch.append(item)
        if batch:
            since, replica = line.take()
            core = line.kept[replica] if line.kept else machine.place()
            machine.works.append(Work(stage, batch, line.end(len(batch), now, since), core, replica))
            line.batches += 1
