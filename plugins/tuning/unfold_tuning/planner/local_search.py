"""Cheaper plans near the frontier, which is that of expected times, while a guarantee is a quantile.

If trials vary much, the allocation with the least mean does not have the shortest tail. A plan off the frontier may
then give the guarantee for less. Plans that are cheaper in expectation are simulated, cheapest first, with other
allocations in up to two stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, product

from unfold_tuning.job.allocation import Allocation, Plan, count_slots
from unfold_tuning.planner.baselines import Goal
from unfold_tuning.simulator.execution_model import ExecutionModel, compute_mean_startup_s
from unfold_tuning.simulator.plan_cost import SimulatedPlan, simulate_plans
from unfold_tuning.simulator.spot_preemptions import compute_replacement_usd_per_second

BATCH_SIZE = 20
MAX_SIMULATED = 400
"""Plans simulated in one step."""
MAX_STAGES_FOR_PAIRS = 12
"""With more stages, pairs of changed stages are too many."""
MIN_SAVING = 1e-6


def refine_plan(model: ExecutionModel, start: SimulatedPlan, goal: Goal) -> SimulatedPlan:
    """Refine a plan on time by local search; without randomness the frontier is already optimal."""
    if not model.is_stochastic or model.machine.billing.per != "instance":
        return start
    expected_cost, best = ExpectedCost(model), start
    while (cheaper := _find_cheaper_plan(model, best, goal, expected_cost)) is not None:
        best = cheaper
    return best


@dataclass(frozen=True, slots=True)
class ExpectedCost:
    """Expected cost and time of plans, without minimum charges and increments of the bill."""

    model: ExecutionModel
    stage_means: dict[tuple[int, Allocation], float] = field(default_factory=dict)
    startup_means: dict[int, float] = field(default_factory=dict)

    def estimate(self, plan: Plan) -> tuple[float, float]:
        """Estimate the expected dollars and seconds of a plan."""
        machine, running = self.model.machine, self.model.running_instances
        seconds = cost_usd = 0.0
        rate = machine.usd_per_second + compute_replacement_usd_per_second(machine, self.model.profile)
        for index, allocation in enumerate(plan):
            if allocation.instances > running:
                wait_s = self.model.profile.provision.mean
                ready_s = self._estimate_startup_s(allocation.instances - running)
                seconds += wait_s + ready_s
                cost_usd += machine.usd_per_second * (running * wait_s + allocation.instances * ready_s)
                cost_usd += machine.ingress_usd * (allocation.instances - running)
            stage_s = self._estimate_stage_s(index, allocation)
            seconds += stage_s
            cost_usd += rate * allocation.instances * stage_s
            running = allocation.instances
        return cost_usd + seconds * machine.head_usd_per_hour / 3600.0, seconds

    def _estimate_stage_s(self, index: int, allocation: Allocation) -> float:
        if (index, allocation) not in self.stage_means:
            self.stage_means[index, allocation] = float(self.model.sample_stage_seconds(index, allocation).mean())
        return self.stage_means[index, allocation]

    def _estimate_startup_s(self, new_instances: int) -> float:
        if new_instances not in self.startup_means:
            self.startup_means[new_instances] = compute_mean_startup_s(self.model.profile, new_instances)
        return self.startup_means[new_instances]


def _find_cheaper_plan(
    model: ExecutionModel, best: SimulatedPlan, goal: Goal, expected_cost: ExpectedCost
) -> SimulatedPlan | None:
    max_cost_usd = best.mean_cost_usd * (1 - MIN_SAVING)
    estimates = {plan: expected_cost.estimate(plan) for plan in _list_variants(model, best.plan)}
    promising = sorted(
        (cost_usd, seconds, plan)
        for plan, (cost_usd, seconds) in estimates.items()
        if cost_usd < max_cost_usd and seconds <= goal.deadline_s
    )
    for begin in range(0, min(len(promising), MAX_SIMULATED), BATCH_SIZE):
        simulated = simulate_plans(model, [plan for _, _, plan in promising[begin : begin + BATCH_SIZE]])
        cheaper = [plan for plan in simulated if goal.is_met_by(plan) and plan.mean_cost_usd < max_cost_usd]
        if cheaper:
            return min(cheaper, key=lambda plan: (plan.mean_cost_usd, plan.plan))
    return None


def _list_variants(model: ExecutionModel, plan: Plan) -> Iterator[Plan]:
    neighbours = [_list_neighbours(model, allocation) for allocation in plan]
    stages = range(len(plan))
    pairs = combinations(stages, 2) if len(plan) <= MAX_STAGES_FOR_PAIRS else ()
    for changed in chain(((index,) for index in stages), pairs):
        for allocations in product(*(neighbours[index] for index in changed)):
            variant = list(plan)
            for index, allocation in zip(changed, allocations, strict=True):
                variant[index] = allocation
            yield tuple(variant)


def _list_neighbours(model: ExecutionModel, allocation: Allocation) -> Sequence[Allocation]:
    accelerators = model.machine.accelerators
    counts = (allocation.instances - 1, allocation.instances, allocation.instances + 1)
    # number of workers by number of workers: the model caches the trial times of only a few
    pairs = product(
        model.profile.list_worker_counts(accelerators),
        (count for count in counts if 1 <= count <= model.machine.max_instances),
    )
    neighbours = (Allocation(count, workers, count_slots(count, workers, accelerators)) for workers, count in pairs)
    return [neighbour for neighbour in neighbours if neighbour.slots and neighbour != allocation]
