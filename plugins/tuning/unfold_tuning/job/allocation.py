"""How the trials of a stage share a number of instances, and which numbers of instances a planner must consider."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from unfold_tuning.job.profile import Machine, Profile
from unfold_tuning.job.schedule import Stage

RELATIVE_TIE = 1e-12


@dataclass(frozen=True, slots=True, order=True)
class Allocation:
    """The resources of one stage: ``instances``, ``workers`` accelerators per trial, ``slots`` trials at a time."""

    instances: int
    workers: int
    slots: int

    def count_waves(self, trials: int) -> int:
        """Count the rounds in which that many trials run."""
        return -(-trials // self.slots)


Plan = tuple[Allocation, ...]
"""One allocation per stage."""


def count_slots(instances: int, workers: int, accelerators: int) -> int:
    """Count the trials of ``workers`` accelerators that fit at once; a trial spans as few instances as possible."""
    if workers <= accelerators:
        return instances * (accelerators // workers)
    return instances // -(-workers // accelerators)


def estimate_stage_seconds(stage: Stage, workers: int, slots: int, profile: Profile, machine: Machine) -> float:
    """Estimate the duration of a stage without randomness: list scheduling of its trials, longest first."""
    iteration_s = profile.iteration.mean / (profile.get_speedup(workers, machine.accelerators) * machine.speed)
    if len(stage.groups) == 1:
        waves = -(-stage.trials // slots)
        return waves * (profile.start.mean + stage.groups[0].iters * iteration_s)
    return compute_makespan([profile.start.mean + iters * iteration_s for iters in stage.list_iterations()], slots)


def compute_makespan(lengths: Sequence[float], slots: int) -> float:
    """Compute the end of the last job if each job, in order, takes the slot that is free first."""
    free_at = [0.0] * min(slots, len(lengths))
    for length in lengths:
        heapq.heapreplace(free_at, free_at[0] + length)
    return max(free_at)


def find_fastest_allocation(
    stage: Stage, instances: int, profile: Profile, machine: Machine, worker_counts: Sequence[int] = ()
) -> Allocation | None:
    """Find the number of workers per trial that ends a stage first on ``instances``; the smaller one of equals.

    Args:
        stage: The stage.
        instances: Its number of instances.
        profile: Timings of the job.
        machine: The instance type.
        worker_counts: Numbers of workers to compare; all measured ones if empty.

    Returns:
        The allocation, or ``None`` if no trial fits.
    """
    fastest: tuple[float, int] | None = None
    for workers in worker_counts or profile.list_worker_counts(machine.accelerators):
        slots = count_slots(instances, workers, machine.accelerators)
        if slots:
            seconds = estimate_stage_seconds(stage, workers, slots, profile, machine)
            if fastest is None or seconds < fastest[0] * (1 - RELATIVE_TIE):
                fastest = (seconds, workers)
    if fastest is None:
        return None
    return Allocation(instances, fastest[1], count_slots(instances, fastest[1], machine.accelerators))


@functools.lru_cache(maxsize=4096)
def list_faster_allocations(
    stage: Stage, profile: Profile, machine: Machine, worker_counts: tuple[int, ...] = ()
) -> tuple[Allocation, ...]:
    """List the allocations of a stage at which one more instance makes it faster, without randomness; ascending."""
    steps: list[Allocation] = []
    fastest_s = float("inf")
    for instances in range(1, machine.max_instances + 1):
        allocation = find_fastest_allocation(stage, instances, profile, machine, worker_counts)
        if allocation is not None:
            seconds = estimate_stage_seconds(stage, allocation.workers, allocation.slots, profile, machine)
            if seconds < fastest_s * (1 - RELATIVE_TIE):
                steps.append(allocation)
                fastest_s = seconds
    return tuple(steps)


def select_allocation(steps: Sequence[Allocation], instances: int) -> Allocation:
    """Select the fastest allocation that fits on ``instances``; any further instances stay idle."""
    step = [allocation for allocation in steps if allocation.instances <= instances][-1]
    return Allocation(instances, step.workers, step.slots)


def list_instance_levels(
    table: Sequence[Sequence[Allocation]], machine: Machine, running_instances: int = 0
) -> list[int]:
    """List the numbers of instances that an optimal plan needs to consider.

    These are the numbers at which some stage becomes faster, and the number that runs already. Lowering a run of equal
    numbers to the next level changes no stage's time and adds no growth. With a charge per new instance it may add
    growth, but between two levels and those of the neighbouring runs the cost is linear. One end is therefore as good:
    a run moves to a level, or joins a neighbour and moves with it. (Both arguments ignore the spread of start-up
    times, which makes the slowest of more instances slightly later.)
    """
    smallest = max(steps[0].instances for steps in table)
    levels = {allocation.instances for steps in table for allocation in steps if allocation.instances >= smallest}
    if machine.ingress_usd > 0 and smallest <= running_instances <= machine.max_instances:
        levels.add(running_instances)
    return sorted(levels | {smallest})
