"""Plays a scenario on a live cluster, and reports its events as a simulation does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from plugins.placement.tests.cases import policy
from plugins.placement.tests.live.scenarios import Scenario
from plugins.placement.tests.live.worlds import World
from unfold_placement.core import kernel
from unfold_placement.core.types import Task
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Change
from unfold_placement.live.control_loop import ControlLoop
from unfold_placement.policies.registry import build_policies
from unfold_placement.simulation.simulator import EventLog, SimulationResult, simulate

LOG_KINDS = {
    kinds.SUBMITTED: kernel.LOG_SUBMITTED, kinds.STARTED: kernel.LOG_STARTED, kinds.ENDED: kernel.LOG_ENDED,
    kinds.PREEMPTED: kernel.LOG_PREEMPTED, kinds.FAILED: kernel.LOG_PREEMPTED, kinds.DECLINED: kernel.LOG_REFUSED,
}  # fmt: skip
MOST = 480.0


@dataclass(slots=True)
class Stage:
    """A scenario that is being played: what is still to come, and since when the clock runs."""

    world: World
    scenario: Scenario
    live: ControlLoop
    pending: list[Task]
    origin: float

    def come(self) -> float:
        """Submit what is due; return when the next comes."""
        now = self.live.backend.now() - self.origin
        while self.pending and self.pending[0].arrival <= now + 1e-9:
            task = self.pending.pop(0)
            self.world.submit(replace(task, deadline=task.deadline - task.arrival))
        return self.origin + self.pending[0].arrival if self.pending else math.inf

    def over(self) -> bool:
        """Return whether everything came and went."""
        states = {record.state for record in self.live.backend.snapshot().records}
        return not self.pending and not states & {kinds.WAITING, kinds.RUNNING}

    def finish(self) -> None:
        """Play to the end."""
        limit = self.live.backend.now() + MOST * self.world.pace
        while not self.over():
            assert self.live.backend.now() < limit, "it never ends"
            self.world.step(self.live, min(self.come(), limit))


def stage(world: World, scenario: Scenario, who: str = "one") -> Stage:
    """Return a scenario that is about to be played by one controller."""
    handle = world.handle()
    live = ControlLoop(handle, lambda: build_policies(policy(**scenario.policy)), who, "conformance")
    while not live.step(0.0) or live.actuator is None:
        pass
    tasks = sorted(scenario.tasks, key=lambda task: task.arrival)
    return Stage(world, scenario, live, tasks, handle.now())


def perform(world: World, scenario: Scenario) -> SimulationResult:
    """Play a scenario to its end, and return what happened."""
    played = stage(world, scenario)
    after = played.live.backend.snapshot().after
    played.finish()
    changes = played.live.backend.watch(after, 0.0) or ()
    played.live.stop()
    return outcome(scenario, changes, played.origin)


def outcome(scenario: Scenario, changes: Sequence[Change], origin: float) -> SimulationResult:
    """Return changes as the log of a simulation, so that the same audit holds them against the policies."""
    rows = {task.name: row for row, task in enumerate(scenario.tasks)}
    place = {node.name: row for row, node in enumerate(scenario.nodes)}
    logged = [change for change in changes if change.kind in LOG_KINDS and change.task in rows]
    log = EventLog(
        np.array([when(change) - origin for change in logged]),
        np.array([LOG_KINDS[change.kind] for change in logged], np.int32),
        np.array([rows[change.task] for change in logged], np.int32),
        np.array([place.get(change.node, -1) for change in logged], np.int32),
    )
    last = {change.task: change for change in logged if change.kind == kinds.STARTED}
    ends = {change.task: change for change in logged if change.kind == kinds.ENDED}
    names = [task.name for task in scenario.tasks]
    start = np.array([when(last[name]) - origin if name in last else math.inf for name in names])
    end = np.array([ends[name].time - origin if name in ends else math.inf for name in names])
    node = np.array([place[last[name].node] if name in last else -1 for name in names], np.int32)
    refused = {change.task: "" for change in logged if change.kind == kinds.DECLINED}
    nothing = cast("Any", None)
    return SimulationResult(
        nodes=tuple(scenario.nodes),
        tasks=tuple(scenario.tasks),
        start_s=start,
        end_s=end,
        node_rows=node,
        log=log,
        decisions=0,
        rejections=refused,
        table=nothing,
    )


def when(change: Change) -> float:
    """Return when something happened: tasks of a unit start at one moment, however long it takes to write that down."""
    return change.record.started if change.kind == kinds.STARTED and change.record else change.time


def simulated(scenario: Scenario) -> SimulationResult:
    """Return the same scenario in the simulator."""
    return simulate(scenario.nodes, scenario.tasks, build_policies(policy(**scenario.policy)))


def placements(found: SimulationResult) -> list[tuple[str, str, int]]:
    """Return what started where, how often, in the order of the names."""
    counts: dict[tuple[str, str], int] = {}
    for kind, row, place in zip(found.log.kinds, found.log.tasks, found.log.nodes, strict=True):
        if kind == kernel.LOG_STARTED:
            key = found.tasks[row].name, found.nodes[place].name
            counts[key] = counts.get(key, 0) + 1
    return [(*key, count) for key, count in sorted(counts.items())]


def order(found: SimulationResult, gap: float) -> list[list[str]]:
    """Return the jobs in the order of their starts: those closer than ``gap`` seconds are ties."""
    starts = sorted(
        (float(time), found.tasks[row].job)
        for time, kind, row in zip(found.log.times, found.log.kinds, found.log.tasks, strict=True)
        if kind == kernel.LOG_STARTED
    )
    groups: list[list[str]] = []
    before = -math.inf
    for time, job in starts:
        if time - before > gap:
            groups.append([])
        groups[-1].append(job)
        before = time
    return [sorted(group) for group in groups]
