"""One stage of a simulated run as ``train`` carries it out: idle instances are released while the last trials run."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unfold_tuning.executor.early_release import REPLAN_PERIOD_S
from unfold_tuning.job.allocation import Allocation


@dataclass(frozen=True, slots=True)
class PlayedStage:
    """When a stage ends, and when it releases instances, both in seconds from its start."""

    end: float
    released: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PlayedTrial:
    """When a trial begins and ends, and the number of its instance."""

    begin: float
    end: float
    instance: int


def play_stage(
    seconds: Sequence[float],
    allocation: Allocation,
    accelerators: int,
    kept: int,
    replan: Callable[[float, Sequence[PlayedTrial]], int],
) -> PlayedStage:
    """Play a stage.

    Args:
        seconds: How long each trial takes, in the order in which they begin.
        allocation: Its instances, and accelerators of each trial, which do not exceed those of an instance.
        accelerators: Accelerators of an instance.
        kept: Instances of the next stage.
        replan: Given the time and the trials, returns the instances that the next stage needs.
    """
    per_instance = accelerators // allocation.workers
    heap = [(0.0, index // per_instance) for index in range(allocation.instances * per_instance)]
    trials = []
    for length in seconds:
        begin, instance = heapq.heappop(heap)
        trials.append(PlayedTrial(begin, begin + length, instance))
        heapq.heappush(heap, (begin + length, instance))
    stage_end = max(trial.end for trial in trials)
    idle_from = [0.0] * allocation.instances
    for trial in trials:
        idle_from[trial.instance] = max(idle_from[trial.instance], trial.end)
    last_begin = max(trial.begin for trial in trials)
    released: list[float] = []
    replanned_at = -REPLAN_PERIOD_S
    for now in sorted({max(last_begin, trial.end) for trial in trials}):
        if now >= stage_end:
            break
        idle = sum(end <= now for end in idle_from)
        wanted = _count_released(allocation.instances, idle, kept)
        if idle > wanted and now - replanned_at >= REPLAN_PERIOD_S:
            replanned_at, kept = now, min(kept, replan(now, trials))
            wanted = _count_released(allocation.instances, idle, kept)
        released += [now] * (wanted - len(released))
    return PlayedStage(stage_end, tuple(released))


def _count_released(held: int, idle: int, kept: int) -> int:
    return min(idle, max(0, held - kept))
