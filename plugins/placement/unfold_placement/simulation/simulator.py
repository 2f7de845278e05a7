"""The simulator: tasks arrive, run and end in virtual time, matched by the compiled kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_placement._types import FloatArray, Int32Array
from unfold_placement.core import kernel
from unfold_placement.core.controller import Controller, build_controller, collect_requests
from unfold_placement.core.policy import Policy
from unfold_placement.core.resources import ResourceTable, build_resource_table
from unfold_placement.core.state import grow_log, schedule_arrivals
from unfold_placement.core.types import Node, NodeChange, Task

MAX_IDLE_WAKES = 100_000
"""Timers that may fire in succession while nothing runs or arrives, before the tasks that wait count as stuck."""


@dataclass(frozen=True, slots=True)
class EventLog:
    """The logged events, as parallel arrays.

    Attributes:
        times: Times in seconds.
        kinds: Codes ``LOG_*`` of ``core/kernel.py``.
        tasks: Rows of tasks.
        nodes: Rows of nodes, -1 for none.
    """

    times: FloatArray
    kinds: Int32Array
    tasks: Int32Array
    nodes: Int32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResult:
    """What a simulation did.

    Attributes:
        nodes: The nodes.
        tasks: The tasks.
        start_s: [tasks] last start in seconds, infinity for never.
        end_s: [tasks] end of the last run in seconds, infinity for never.
        node_rows: [tasks] row of the node of the last run, -1 for none.
        log: The events.
        decisions: Tasks that the matcher examined.
        rejections: Reasons of rejected tasks by name.
        table: The final state.
        node_changes: Changes of nodes that happened, in order of time.
    """

    nodes: tuple[Node, ...]
    tasks: tuple[Task, ...]
    start_s: FloatArray
    end_s: FloatArray
    node_rows: Int32Array
    log: EventLog
    decisions: int
    rejections: dict[str, str]
    table: ResourceTable
    node_changes: tuple[NodeChange, ...] = ()

    @property
    def stuck(self) -> tuple[Task, ...]:
        """The tasks that still wait at the end, hence forever."""
        is_waiting = self.table.state.status[: len(self.tasks)] == kernel.WAITING
        return tuple(self.tasks[row] for row in np.flatnonzero(is_waiting))


@dataclass(slots=True)
class Idleness:
    """Ends a simulation in which policies wake for ever and nothing else happens.

    Attributes:
        max_wakes: Timers that may fire in vain.
        wakes: Timers that fired since the last start, while nothing ran or was to come.
        starts: Starts so far.
    """

    max_wakes: int
    wakes: int = 0
    starts: int = -1

    def is_over(self, controller: Controller) -> bool:
        """Return whether no timer needs to fire any more: no task waits, or too many have fired in vain."""
        state = controller.table.state
        has_arrivals = state.counters[kernel.ARRIVED] < state.arrival_order.size
        if has_arrivals or state.counters[kernel.HEAPED] or controller.node_changes:
            return False
        starts = int(state.counters[kernel.STARTS])
        self.wakes, self.starts = self.wakes + 1 if starts == self.starts else 0, starts
        has_waiting = (state.status[: len(controller.table.tasks)] == kernel.WAITING).any()
        return not has_waiting or self.wakes > self.max_wakes


def prepare_simulation(
    nodes: Sequence[Node], tasks: Sequence[Task], policies: Sequence[Policy], changes: Sequence[NodeChange] = ()
) -> Controller:
    """Build the controller of a simulation that has not begun; nodes change at the times of ``changes``."""
    table = build_resource_table(nodes)
    controller = build_controller(table, policies)
    table.add_tasks(tasks, [collect_requests(controller.policies, task) for task in tasks])
    table.state = schedule_arrivals(table.state, len(tasks))
    controller.node_changes.extend(sorted(changes, key=lambda change: change.at))
    return controller


def run_simulation(
    controller: Controller,
    until: float = np.inf,
    on_step: Callable[[int], None] | None = None,
    *,
    max_idle_wakes: int | None = None,
) -> Controller:
    """Run a simulation to its end or to a time (s); a simulation that has begun continues.

    Args:
        controller: The controller of ``prepare_simulation``.
        until: Latest time in seconds.
        on_step: Called with the number of starts so far.
        max_idle_wakes: Timers that may fire in vain; ``MAX_IDLE_WAKES`` where it is not given.
    """
    if not controller.has_begun:
        controller.begin()
    stop_mask, table = controller.stop_mask, controller.table
    idleness = Idleness(MAX_IDLE_WAKES if max_idle_wakes is None else max_idle_wakes)
    while True:
        next_change_s = controller.next_change_s
        # what ends at the instant of a change ends before it, and what arrives then arrives after it
        has_change = math.isfinite(next_change_s) and next_change_s <= until
        before_change_s = math.nextafter(next_change_s, -math.inf) if has_change else math.inf
        reason = kernel.call_advance(table.state, min(until, controller.next_wakeup_s, before_change_s), stop_mask)
        if reason == kernel.LOG_FULL:
            table.state = grow_log(table.state, 2 * table.state.log_time.size)
        elif reason == kernel.EVENT_WATCHED:
            controller.process_events()
            if on_step is not None:
                on_step(int(table.state.counters[kernel.STARTS]))
        elif controller.next_wakeup_s <= table.now:
            if math.isinf(until) and idleness.is_over(controller):
                return controller
            controller.fire_timers()
        elif table.now >= before_change_s:
            controller.apply_node_changes()
        elif reason == kernel.IDLE or table.now >= until:
            return controller


def collect_result(controller: Controller) -> SimulationResult:
    """Copy starts, ends (s, infinity if there is none), nodes (-1) and the event log out of a controller's arrays."""
    table = controller.table
    state, count = table.state, len(table.tasks)
    logged = state.counters[kernel.LOGGED]
    status = state.status[:count]
    is_done = status == kernel.DONE
    start_s = np.where(is_done | (status == kernel.RUNNING), state.start_s[:count], np.inf)
    return SimulationResult(
        nodes=table.nodes,
        tasks=tuple(table.tasks),
        start_s=start_s,
        end_s=np.where(is_done, state.end_s[:count], np.inf),
        node_rows=np.where(np.isfinite(start_s), state.task_node[:count], -1).astype(np.int32),
        log=EventLog(
            state.log_time[:logged], state.log_kind[:logged], state.log_task[:logged], state.log_node[:logged]
        ),
        decisions=int(state.counters[kernel.DECISIONS]),
        rejections=dict(controller.rejections),
        table=table,
        node_changes=tuple(controller.past_node_changes),
    )


def simulate(
    nodes: Sequence[Node],
    tasks: Sequence[Task],
    policies: Sequence[Policy] = (),
    changes: Sequence[NodeChange] = (),
) -> SimulationResult:
    """Replay a workload under policies; without policies, first come first served with passing."""
    return collect_result(run_simulation(prepare_simulation(nodes, tasks, policies, changes)))
