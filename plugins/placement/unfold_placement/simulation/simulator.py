"""The simulator: tasks arrive, run and end in virtual time, matched by the compiled kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfold_placement.core import kernel
from unfold_placement.core.controller import Controller, build_controller, collect_requests
from unfold_placement.core.policy import Policy
from unfold_placement.core.resources import ResourceTable, build_resource_table
from unfold_placement.core.state import grow_log, schedule_arrivals
from unfold_placement.core.types import Node, Task


@dataclass(frozen=True, slots=True)
class EventLog:
    """What happened, line by line: times in s, kinds (see ``core/kernel.py``), rows of tasks and nodes."""

    times: NDArray[np.float64]
    kinds: NDArray[np.int32]
    tasks: NDArray[np.int32]
    nodes: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """A replay: start, end (infinite if never) and node (-1) of each task's last run, the log, and what is left."""

    nodes: tuple[Node, ...]
    tasks: tuple[Task, ...]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    node_rows: NDArray[np.int32]
    log: EventLog
    decisions: int
    rejections: dict[str, str]
    table: ResourceTable

    @property
    def stuck(self) -> tuple[Task, ...]:
        """The tasks that wait for ever."""
        waiting = self.table.state.status[: len(self.tasks)] == kernel.WAITING
        return tuple(self.tasks[row] for row in np.flatnonzero(waiting))


def prepare_simulation(nodes: Sequence[Node], tasks: Sequence[Task], policies: Sequence[Policy]) -> Controller:
    """Return the controller of a simulation that has not begun."""
    made = build_resource_table(nodes)
    loop = build_controller(made, policies)
    made.add_tasks(tasks, [collect_requests(loop.policies, task) for task in tasks])
    made.state = schedule_arrivals(made.state, len(tasks))
    return loop


def run_simulation(loop: Controller, until: float = np.inf, on_step: Callable[[int], None] | None = None) -> Controller:
    """Let a simulation run to its end, or to a time. Policies that only begin are not asked again."""
    if not loop.has_begun:
        loop.begin()
    watched = loop.stop_mask
    while True:
        stop = min(until, loop.next_wakeup_s)
        told = kernel.call_advance(loop.table.state, stop, watched)
        if told == kernel.LOG_FULL:
            loop.table.state = grow_log(loop.table.state, 2 * loop.table.state.log_time.size)
        elif told == kernel.EVENT_WATCHED:
            loop.process_events()
            if on_step is not None:
                on_step(int(loop.table.state.counters[kernel.STARTS]))
        elif loop.next_wakeup_s <= loop.table.now:
            loop.fire_timers()
        elif told == kernel.IDLE or loop.table.now >= until:
            return loop


def collect_result(loop: Controller) -> SimulationResult:
    """Return what a simulation did."""
    a, count, logged = loop.table.state, len(loop.table.tasks), loop.table.state.counters[kernel.LOGGED]
    log = EventLog(a.log_time[:logged], a.log_kind[:logged], a.log_task[:logged], a.log_node[:logged])
    ran = np.isin(a.status[:count], (kernel.DONE,))
    start = np.where(ran | (a.status[:count] == kernel.RUNNING), a.start_s[:count], np.inf)
    end = np.where(ran, a.end_s[:count], np.inf)
    node = np.where(np.isfinite(start), a.task_node[:count], -1).astype(np.int32)
    tasks = tuple(loop.table.tasks)
    decisions = int(a.counters[kernel.DECISIONS])
    return SimulationResult(
        loop.table.nodes, tasks, start, end, node, log, decisions, dict(loop.rejections), loop.table
    )


def simulate(nodes: Sequence[Node], tasks: Sequence[Task], policies: Sequence[Policy] = ()) -> SimulationResult:
    """Replay a workload under some policies; without any, as a plain first-come scheduler does."""
    return collect_result(run_simulation(prepare_simulation(nodes, tasks, policies)))
