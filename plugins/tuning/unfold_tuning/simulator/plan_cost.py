"""Duration and cost of a plan in every sampled run, under the true billing rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from unfold_tuning._types import FloatArray
from unfold_tuning.job.allocation import Allocation, Plan
from unfold_tuning.job.profile import Machine
from unfold_tuning.simulator.execution_model import ExecutionModel
from unfold_tuning.simulator.spot_preemptions import compute_replacement_usd_per_second

TIME_TOLERANCE_S = 1e-6
COST_TOLERANCE_USD = 1e-9
CONFIDENCE_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class SimulatedPlan:
    """The sampled runs of a plan.

    Attributes:
        plan: The plan.
        seconds: Completion times: [samples].
        cost_usd: Costs: [samples].
        stage_ends: The end of each stage: [samples] seconds each.
    """

    plan: Plan
    seconds: FloatArray
    cost_usd: FloatArray
    stage_ends: tuple[FloatArray, ...]

    @property
    def ends(self) -> FloatArray:
        """The end of each stage: [stages, samples] seconds."""
        return np.array(self.stage_ends)

    @property
    def mean_stage_seconds(self) -> FloatArray:
        """The expected duration of each stage: [stages]."""
        return np.diff(self.ends.mean(axis=1), prepend=0.0)

    @property
    def mean_seconds(self) -> float:
        """The expected completion time."""
        return float(self.seconds.mean())

    @property
    def mean_cost_usd(self) -> float:
        """The mean bill over the sampled runs, in dollars."""
        return float(self.cost_usd.mean())

    def estimate_on_time_probability(self, deadline_s: float) -> float:
        """Estimate the probability of completing by a deadline."""
        return float((self.seconds <= deadline_s + TIME_TOLERANCE_S).mean())

    def estimate_within_budget_probability(self, budget_usd: float) -> float:
        """Estimate the probability of staying within a budget."""
        return float((self.cost_usd <= budget_usd + COST_TOLERANCE_USD).mean())

    def compute_guaranteed_seconds(self, confidence: float) -> float:
        """Compute the time by which at least the fraction ``confidence`` of the runs has completed."""
        return compute_quantile(self.seconds, confidence)

    def compute_cost_quantile_usd(self, level: float) -> float:
        """Return the dollars that the fraction ``level`` of the sampled runs does not exceed."""
        return float(np.quantile(self.cost_usd, level, method="higher"))


@dataclass(frozen=True, slots=True)
class BilledInstances:
    """Instances that began to be billed together.

    Attributes:
        count: How many there are.
        since: When their bills began: [samples] seconds after the start of the run.
        is_past_minimum: Whether they ran before the job and have used up their minimum charge.
    """

    count: int
    since: FloatArray
    is_past_minimum: bool = False


@dataclass(frozen=True, slots=True)
class _State:
    """Runs at the end of a stage: the time, the dollars of released instances, and the instances that run."""

    clock: FloatArray
    cost_usd: FloatArray
    running: tuple[BilledInstances, ...]


def compute_quantile(values: FloatArray, level: float) -> float:
    """Compute the smallest value that at least the fraction ``level`` of all values does not exceed."""
    rank = max(min(len(values) - 1, int(np.ceil(level * len(values) - 1e-9)) - 1), 0)
    return float(np.partition(values, rank)[rank])


def simulate_plan(model: ExecutionModel, plan: Plan) -> SimulatedPlan:
    """Simulate a plan in every sampled run."""
    return simulate_plans(model, [plan])[0]


def simulate_plans(model: ExecutionModel, plans: Sequence[Plan]) -> list[SimulatedPlan]:
    """Simulate plans in every sampled run; plans that begin alike are simulated once up to their first difference."""
    results: dict[int, SimulatedPlan] = {}
    path: list[_State] = [_start(model)]
    previous: Plan = ()
    for rank in sorted(range(len(plans)), key=lambda rank: plans[rank]):
        plan = plans[rank]
        pairs = enumerate(zip(previous, plan, strict=False))
        common = next((index for index, (old, new) in pairs if old != new), len(previous))
        path, previous = path[: common + 1], plan
        for index in range(common, len(plan)):
            path.append(_run_stage(model, path[-1], index, plan[index]))
        results[rank] = _finish(model, plan, path[1:])
    return [results[rank] for rank in range(len(plans))]


def simulate_early_release(model: ExecutionModel, plan: Plan, kept: Sequence[int] = ()) -> SimulatedPlan:
    """Simulate a plan that releases idle instances before the barrier.

    An instance is released once no trial of the stage is left for it, unless a later trial or the next stage needs it.

    Args:
        model: The job.
        plan: The plan.
        kept: Instances that each stage keeps for the next one; those that the plan gives to it if empty.

    Returns:
        The runs; if only the time in which trials run is billed, they are those of :func:`simulate_plan`.
    """
    if model.machine.billing.per == "function":
        return simulate_plan(model, plan)
    counts = kept or (*(allocation.instances for allocation in plan[1:]), 0)
    path = [_start(model)]
    for index, (allocation, count) in enumerate(zip(plan, counts, strict=True)):
        state = _run_stage(model, path[-1], index, allocation)
        path.append(_release_idle(model, state, index, allocation, count))
    return _finish(model, plan, path[1:])


def _release_idle(model: ExecutionModel, state: _State, index: int, allocation: Allocation, kept: int) -> _State:
    """Release the instances that a stage keeps for no other, each after its last trial."""
    cost_usd, running = state.cost_usd, list(state.running)
    idle_s = model.sample_idle_seconds(index, allocation) if kept < allocation.instances else np.zeros((1, 0))
    for column in range(max(0, allocation.instances - max(kept, 1))):
        running, bill_usd = release_oldest(running, 1, state.clock - idle_s[:, column], model.machine)
        cost_usd = cost_usd + bill_usd
    return _State(state.clock, cost_usd, tuple(running))


def _start(model: ExecutionModel) -> _State:
    clock = np.zeros(model.samples)
    count = model.running_instances
    return _State(clock, clock, (BilledInstances(count, clock, is_past_minimum=True),) if count else ())


def _run_stage(model: ExecutionModel, state: _State, index: int, allocation: Allocation) -> _State:
    clock, cost_usd, running = state.clock, state.cost_usd, list(state.running)
    new = allocation.instances - sum(instances.count for instances in running)
    if new < 0:
        running, bill_usd = release_oldest(running, -new, clock, model.machine)
        cost_usd = cost_usd + bill_usd
    elif new > 0:
        since = clock + model.sample_provision_seconds(index)
        running = [*running, BilledInstances(new, since)]
        clock = since + model.sample_startup_seconds(index, new)
        cost_usd = cost_usd + new * model.machine.ingress_usd
    return _State(clock + model.sample_stage_seconds(index, allocation), cost_usd, tuple(running))


def _finish(model: ExecutionModel, plan: Plan, path: Sequence[_State]) -> SimulatedPlan:
    clock, running, machine = path[-1].clock, list(path[-1].running), model.machine
    if machine.billing.per == "function":
        cost_usd = _bill_by_function(model, plan, clock)
    else:
        count = sum(instances.count for instances in running)
        cost_usd = path[-1].cost_usd + release_oldest(running, count, clock, machine)[1]
        cost_usd = cost_usd + clock * machine.head_usd_per_second
    if machine.interruptions_per_hour:
        cost_usd = cost_usd + _compute_replacement_usd(model, plan)
    return SimulatedPlan(plan, clock, cost_usd, tuple(state.clock for state in path))


def _compute_replacement_usd(model: ExecutionModel, plan: Plan) -> FloatArray:
    """Compute what replacements of preempted instances add to the bill, in expectation over the time held."""
    rate = compute_replacement_usd_per_second(model.machine, model.profile)
    instance_seconds = (
        allocation.instances * model.sample_stage_seconds(index, allocation) for index, allocation in enumerate(plan)
    )
    return np.asarray(rate * sum(instance_seconds, np.zeros(1)))


def release_oldest(
    running: list[BilledInstances], count: int, now: FloatArray, machine: Machine
) -> tuple[list[BilledInstances], FloatArray]:
    """Release ``count`` instances, oldest first, which is best: bills are convex, and only the young are below minimum.

    Args:
        running: The instances that run, oldest first.
        count: How many to release.
        now: The time: [samples] seconds.
        machine: Price and billing rules.

    Returns:
        The instances that still run, and the bill of the released ones: [samples] dollars.
    """
    remaining: list[BilledInstances] = []
    bill_usd = np.zeros_like(now)
    for instances in running:
        released = min(count, instances.count)
        count -= released
        if released:
            lifetime = now - instances.since
            if instances.is_past_minimum:
                bill_usd += released * (lifetime * machine.usd_per_second)
            else:
                bill_usd += released * machine.billing.cost(lifetime, machine.usd_per_hour)
        if instances.count > released:
            remaining.append(replace(instances, count=instances.count - released))
    return remaining, bill_usd


def _bill_by_function(model: ExecutionModel, plan: Plan, clock: FloatArray) -> FloatArray:
    """Bill the accelerator-seconds in which trials run, instead of instances."""
    machine = model.machine
    usd_per_accelerator_second = machine.usd_per_second / machine.accelerators
    busy = (model.sample_busy_accelerator_seconds(index, allocation) for index, allocation in enumerate(plan))
    grown = max(0, plan[0].instances - model.running_instances) + sum(
        max(0, new.instances - old.instances) for old, new in pairwise(plan)
    )
    return np.asarray(
        sum(busy, np.zeros_like(clock)) * usd_per_accelerator_second
        + grown * machine.ingress_usd
        + clock * machine.head_usd_per_second
    )
