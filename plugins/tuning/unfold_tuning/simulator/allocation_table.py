"""The allocation of each stage at each number of instances, chosen by its expected time over sampled runs.

With equal trials a stage takes as long as its waves. If trials differ, the slowest one decides: more accelerators per
trial may then beat fewer waves, and slots between two numbers of waves help. Allocations are therefore compared by
their means over some of the sampled runs; without randomness these are the times of the deterministic model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unfold_tuning.job.allocation import (
    RELATIVE_TIE,
    Allocation,
    count_slots,
    list_faster_allocations,
    list_instance_levels,
    select_allocation,
)
from unfold_tuning.simulator.execution_model import ExecutionModel

COMPARED_RUNS = 200
MIN_GAIN = 0.01
"""Between the steps of the deterministic model, more instances must make a stage faster by this fraction."""
COUNT_RATIO = 1.1
"""Ratio between the numbers of instances that are tried there."""

AllocationRow = tuple[Allocation, ...]
"""The allocations of one stage, by instances, ascending."""


def build_allocation_table(model: ExecutionModel) -> tuple[AllocationRow, ...]:
    """Build each stage's row of allocations at which more instances make it faster."""
    return _build_rows(model, model.profile.list_worker_counts(model.machine.accelerators))


def build_search_table(model: ExecutionModel) -> tuple[list[int], tuple[AllocationRow, ...]]:
    """Build the table that a search needs: the numbers of instances, and each stage's allocation at each of them.

    If idle accelerators are not billed, the fastest allocation may cost more than a slower one: a number of instances
    then occurs once per number of workers.
    """
    machine, fastest = model.machine, build_allocation_table(model)
    if machine.billing.per == "instance":
        counts = list_instance_levels(fastest, machine, model.running_instances)
        return counts, tuple(tuple(select_allocation(row, count) for count in counts) for row in fastest)
    by_workers = [_build_rows(model, (workers,)) for workers in model.profile.list_worker_counts(machine.accelerators)]
    smallest = max(row[0].instances for row in fastest)
    levels = {step.instances for table in by_workers for row in table for step in row if step.instances >= smallest}
    if machine.ingress_usd > 0 and smallest <= model.running_instances <= machine.max_instances:
        levels.add(model.running_instances)
    pairs = [(count, table) for count in sorted(levels | {smallest}) for table in by_workers]
    allocations = tuple(
        tuple(select_allocation(_select_row(table[index], row, count), count) for count, table in pairs)
        for index, row in enumerate(fastest)
    )
    return [count for count, _ in pairs], allocations


def _select_row(row: AllocationRow, fallback: AllocationRow, count: int) -> AllocationRow:
    return row if row and row[0].instances <= count else fallback


def _build_rows(model: ExecutionModel, worker_counts: Sequence[int]) -> tuple[AllocationRow, ...]:
    key = (model.machine.max_instances, tuple(worker_counts))
    if key not in model.allocation_cache:
        sampled = model.select_first_runs(COMPARED_RUNS)
        model.allocation_cache[key] = tuple(
            _build_row(sampled, index, worker_counts) for index in range(len(model.stages))
        )
    return model.allocation_cache[key]


def _build_row(sampled: ExecutionModel, index: int, worker_counts: Sequence[int]) -> AllocationRow:
    machine = sampled.machine
    deterministic = list_faster_allocations(sampled.stages[index], sampled.profile, machine, tuple(worker_counts))
    if not sampled.is_stochastic:
        return deterministic
    steps = {allocation.instances for allocation in deterministic}
    counts = sorted(steps | set(_list_spaced_counts(machine.max_instances)))
    row: list[Allocation] = []
    fastest_s = float("inf")
    for count, (seconds, workers) in sorted(_find_fastest_workers(sampled, index, worker_counts, counts).items()):
        if seconds < fastest_s * (1 - (RELATIVE_TIE if count in steps else MIN_GAIN)):
            row.append(Allocation(count, workers, count_slots(count, workers, machine.accelerators)))
            fastest_s = seconds
    return tuple(row)


def _find_fastest_workers(
    sampled: ExecutionModel, index: int, worker_counts: Sequence[int], counts: Sequence[int]
) -> dict[int, tuple[float, int]]:
    """Find, for each number of instances, the least expected seconds and the workers per trial that give them."""
    fastest: dict[int, tuple[float, int]] = {}
    unknown = (float("inf"), 0)
    for workers in worker_counts:
        trials = sampled.sample_trial_seconds(index, workers)
        longest_s, total_s = float(trials.max(axis=1).mean()), float(trials.sum(axis=1).mean())
        for count in counts:
            slots = count_slots(count, workers, sampled.machine.accelerators)
            # no schedule beats the longest trial, or all slots busy throughout
            if slots and max(longest_s, total_s / slots) < fastest.get(count, unknown)[0]:
                seconds = float(sampled.sample_stage_seconds(index, Allocation(count, workers, slots)).mean())
                fastest[count] = min(fastest.get(count, unknown), (seconds, workers))
    return fastest


def _list_spaced_counts(max_instances: int) -> Iterator[int]:
    count = 1.0
    while count <= max_instances:
        yield round(count)
        count = max(count * COUNT_RATIO, count + 1)
