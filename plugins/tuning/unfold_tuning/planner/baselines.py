"""The guarantee that every planner gives, and two baselines: the best static cluster and naive elasticity.

All baselines give the same guarantee on the same sampled runs, so that a difference in cost comes from planning alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unfold_tuning.job.allocation import Allocation, Plan, count_slots, select_allocation
from unfold_tuning.simulator.allocation_table import build_allocation_table
from unfold_tuning.simulator.execution_model import ExecutionModel
from unfold_tuning.simulator.plan_cost import CONFIDENCE_TOLERANCE, SimulatedPlan, simulate_plans


@dataclass(frozen=True, slots=True)
class Goal:
    """The guarantee: at least the fraction ``confidence`` of the sampled runs ends by ``deadline_s`` seconds."""

    deadline_s: float
    confidence: float

    def is_met_by(self, plan: SimulatedPlan) -> bool:
        """Return whether a plan gives the guarantee."""
        return plan.estimate_on_time_probability(self.deadline_s) >= self.confidence - CONFIDENCE_TOLERANCE


@dataclass(frozen=True, slots=True)
class Baseline:
    """A baseline's plan (``None`` if it has none on time), and how many plans it simulated."""

    plan: SimulatedPlan | None
    simulated: int


def select_cheapest(plans: Sequence[SimulatedPlan], goal: Goal) -> Baseline:
    """Select the cheapest plan that gives the guarantee."""
    on_time = [plan for plan in plans if goal.is_met_by(plan)]
    return Baseline(min(on_time, key=lambda plan: plan.mean_cost_usd, default=None), len(plans))


def simulate_static_clusters(model: ExecutionModel) -> list[SimulatedPlan]:
    """Simulate every fixed cluster, smallest first."""
    table = build_allocation_table(model)
    counts = sorted({allocation.instances for row in table for allocation in row})
    counts = [count for count in counts if all(row[0].instances <= count for row in table)]
    return simulate_plans(model, [tuple(select_allocation(row, count) for row in table) for count in counts])


def simulate_naive_clusters(model: ExecutionModel) -> list[SimulatedPlan]:
    """Simulate the shrinking clusters that give every trial the same number of accelerators throughout."""
    return simulate_plans(model, list(_list_constant_worker_plans(model)))


def _list_constant_worker_plans(model: ExecutionModel) -> Iterator[Plan]:
    accelerators, max_instances = model.machine.accelerators, model.machine.max_instances
    for workers in model.profile.list_worker_counts(accelerators):
        hosts = -(-workers // accelerators)
        if hosts > max_instances:
            continue
        trials_per_instance = max(1, accelerators // workers)
        counts = [max(hosts, hosts * -(-stage.trials // trials_per_instance)) for stage in model.stages]
        counts = [min(count, max_instances) for count in counts]
        yield tuple(Allocation(count, workers, max(1, count_slots(count, workers, accelerators))) for count in counts)
