"""Starvation in a replay: the wait of an old task grows with the length of the trace.

A task that is served in time does not wait longer because more tasks arrive after it. One that starts only when no
more arrive does: in a trace of twice the length it waits twice as long. Hence the workload is replayed again, cut off
at a half and at three quarters of its arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_placement.core.policy import Policy
from unfold_placement.core.types import Node, Task
from unfold_placement.simulation.simulator import SimulationResult, simulate

EARLY = 0.25
"""A task is old if it arrives within this first part of the arrivals."""
CUTS = (0.5, 0.75)
"""Parts of the arrivals after which the shorter traces end."""
SLOPE = 0.9
"""Least growth of the wait per added length of the trace."""
MIN_LATER = 8
"""Tasks that must arrive after the old one."""


@dataclass(frozen=True, slots=True)
class Starvation:
    """A task with a wait that grows with the trace.

    Attributes:
        task: The task.
        lengths_s: Lengths of the traces in seconds.
        waits_s: Its wait in each of them, in seconds.
        is_by_design: Only tasks of higher classes arrive after it.
    """

    task: Task
    lengths_s: tuple[float, ...]
    waits_s: tuple[float, ...]
    is_by_design: bool


def find_starvation(
    nodes: Sequence[Node], result: SimulationResult, new_policies: Callable[[], Sequence[Policy]]
) -> Starvation | None:
    """Return the oldest task that starts only when no more tasks arrive, however long the trace is; None for none."""
    task = _oldest_late_task(result)
    if task is None:
        return None
    arrivals = [other.arrival for other in result.tasks]
    first, last = min(arrivals), max(arrivals)
    lengths, waits = [], []
    for part in (*CUTS, 1.0):
        length_s = (last - first) * part
        # a job arrives as a whole or not at all
        jobs = {other.job for other in result.tasks if other.arrival > first + length_s}
        kept = [other for other in result.tasks if other.job not in jobs or other.job == task.job]
        replayed = result if part == 1.0 else simulate(nodes, kept, new_policies(), result.node_changes)
        start_s = float(replayed.start_s[[other.name for other in replayed.tasks].index(task.name)])
        waits.append(min(start_s, max(last, float(replayed.table.now))) - task.arrival)
        lengths.append(length_s)
    grows = all(
        later_wait - wait >= SLOPE * (later - length)
        for length, later, wait, later_wait in zip(lengths, lengths[1:], waits, waits[1:], strict=False)
    )
    if not grows:
        return None
    later = [other for other in result.tasks if other.arrival > task.arrival]
    is_by_design = all(other.priority > task.priority for other in later)
    return Starvation(task, tuple(lengths), tuple(waits), is_by_design)


def _oldest_late_task(result: SimulationResult) -> Task | None:
    """Return the oldest task if it arrives early and starts after the last arrival, although later ones started."""
    arrival_s = np.array([task.arrival for task in result.tasks])
    if arrival_s.size <= MIN_LATER:
        return None
    first, last = float(arrival_s.min()), float(arrival_s.max())
    refused = np.array([task.name in result.rejections for task in result.tasks])
    is_late = (result.start_s >= last) & (arrival_s <= first + EARLY * (last - first)) & ~refused
    if last == first or not is_late.any():
        return None
    row = int(np.flatnonzero(is_late)[arrival_s[is_late].argmin()])
    later_starts = result.start_s[(arrival_s > arrival_s[row]) & (result.start_s < last)]
    is_last_gang = math.isinf(float(result.start_s[row])) and later_starts.size == 0
    return None if later_starts.size < MIN_LATER or is_last_gang else result.tasks[row]
