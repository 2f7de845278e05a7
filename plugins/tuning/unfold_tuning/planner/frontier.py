"""The exact cost–deadline frontier of a job on a machine: every plan that no other plan beats in both.

States are (stage, number of instances), labels (time, cost); a dominated label can be dropped because what follows
adds the same to both. The frontier is exact for the expected stage times, E[max over trials] included. RubberBand
(EuroSys 2021) plans greedily instead; see :mod:`unfold_tuning.planner.rubberband_greedy`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_tuning._types import FloatArray, IntArray
from unfold_tuning.job.allocation import Allocation, Plan
from unfold_tuning.job.profile import Machine
from unfold_tuning.simulator.allocation_table import build_search_table
from unfold_tuning.simulator.execution_model import ExecutionModel, compute_mean_startup_s
from unfold_tuning.simulator.kernels import search_labels
from unfold_tuning.simulator.spot_preemptions import compute_replacement_usd_per_second


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCosts:
    """The expected times and costs that the label search adds up.

    Attributes:
        allocations: The allocation of each stage at each level.
        seconds: Seconds of each stage at each level: [stages, levels].
        cost_usd: Dollars of the same: [stages, levels].
        growth_s: Seconds of growing from a level up to a level: [stages, levels + 1, levels]; row 0 from the instances
            that run at the start.
        growth_usd: Dollars of the same.
    """

    allocations: tuple[tuple[Allocation, ...], ...]
    seconds: FloatArray
    cost_usd: FloatArray
    growth_s: FloatArray
    growth_usd: FloatArray

    @property
    def counts(self) -> IntArray:
        """Instances at each level."""
        return np.array([allocation.instances for allocation in self.allocations[0]], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Frontier:
    """The plans on the frontier, fastest and most expensive first, with their expected seconds and dollars."""

    plans: tuple[Plan, ...]
    seconds: FloatArray
    cost_usd: FloatArray


def build_stage_costs(model: ExecutionModel, on_stage: Callable[[], None] = lambda: None) -> StageCosts:
    """Compute the expected time and cost of every stage at every level.

    Args:
        model: The job.
        on_stage: Called after each stage, to report progress.
    """
    machine = model.machine
    counts, allocations = build_search_table(model)
    levels = np.array(counts)
    seconds = np.array([_average_stage_seconds(model, index, row, on_stage) for index, row in enumerate(allocations)])
    cost_usd = seconds * _compute_holding_usd_per_second(machine, levels)
    if machine.billing.per == "function":
        usd_per_accelerator_second = machine.usd_per_second / machine.accelerators
        busy = [
            [float(model.sample_busy_accelerator_seconds(index, allocation).mean()) for allocation in row]
            for index, row in enumerate(allocations)
        ]
        cost_usd = cost_usd + usd_per_accelerator_second * np.array(busy)
    cost_usd = cost_usd + seconds * levels * compute_replacement_usd_per_second(machine, model.profile)
    ready_s = compute_growth_startup_s(model, count_new_instances(levels, model.running_instances))
    growth_s, growth_usd = compute_growth(model, levels, ready_s)
    return StageCosts(
        allocations=allocations, seconds=seconds, cost_usd=cost_usd, growth_s=growth_s, growth_usd=growth_usd
    )


def _average_stage_seconds(
    model: ExecutionModel, index: int, row: Sequence[Allocation], on_stage: Callable[[], None]
) -> list[float]:
    means = [float(model.sample_stage_seconds(index, allocation).mean()) for allocation in row]
    on_stage()
    return means


def _compute_holding_usd_per_second(machine: Machine, counts: IntArray) -> FloatArray:
    """Compute the dollars per second of holding numbers of instances, the head node included."""
    billed = counts if machine.billing.per == "instance" else counts * 0
    return np.asarray(billed * machine.usd_per_second + machine.head_usd_per_second)


def compute_growth_startup_s(model: ExecutionModel, new: IntArray) -> FloatArray:
    """Compute the expected start-up time of the slowest of ``new`` instances: [stages, ...] seconds."""
    seconds = {int(k): compute_mean_startup_s(model.profile, int(k)) for k in np.unique(new) if k > 0}
    ready_s = np.array([seconds.get(int(k), 0.0) for k in new.ravel()]).reshape(new.shape)
    return np.broadcast_to(ready_s, (len(model.stages), *new.shape))


def compute_growth(model: ExecutionModel, counts: IntArray, ready_s: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Compute the time and cost of growing; while new instances are awaited, the old ones are billed.

    Args:
        model: The job.
        counts: Instances at each level.
        ready_s: Start-up times: [stages, levels + 1, levels].

    Returns:
        Seconds and dollars: [stages, levels + 1, levels] each.
    """
    machine = model.machine
    before = np.array([model.running_instances, *counts])
    new = count_new_instances(counts, model.running_instances)
    provision_s = np.array([model.sample_provision_seconds(index).mean() for index in range(len(model.stages))])
    wait_s = provision_s[:, None, None] * (new > 0)
    ready_s = ready_s * (new > 0)
    cost_usd = (
        wait_s * _compute_holding_usd_per_second(machine, before)[None, :, None]
        + ready_s * _compute_holding_usd_per_second(machine, counts)[None, None, :]
    )
    return wait_s + ready_s, cost_usd + (np.maximum(new, 0) * machine.ingress_usd)[None]


def count_new_instances(counts: IntArray, running_instances: int = 0) -> IntArray:
    """Count the instances that a growth adds: [levels + 1, levels]; negative for a shrink.

    Row 0 grows from the instances that run at the start.
    """
    return np.asarray(counts[None, :] - np.array([running_instances, *counts])[:, None])


def search_frontier(costs: StageCosts, deadline_s: float = np.inf) -> Frontier:
    """Search every plan that no other beats in both expected time and cost, up to a deadline."""
    time, cost, parent, level, last = search_labels(
        costs.seconds, costs.cost_usd, costs.growth_s, costs.growth_usd, deadline_s
    )
    plans = tuple(trace_plan(costs.allocations, parent, level, int(index)) for index in last)
    return Frontier(plans, time[last], cost[last])


def trace_plan(allocations: Sequence[Sequence[Allocation]], parent: IntArray, level: IntArray, index: int) -> Plan:
    """Trace the plan of a final label back through its parents."""
    steps: list[Allocation] = []
    for row in reversed(allocations):
        steps.append(row[int(level[index])])
        index = int(parent[index])
    return tuple(reversed(steps))
