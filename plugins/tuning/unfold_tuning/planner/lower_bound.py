"""A proven lower bound on the cost of any plan that gives the guarantee, and hence on the gap of the plan found.

If a plan is on time in at least a fraction p of all samples, then of any subset with a fraction q of them (q > 1 - p)
it is on time in at least ``(p - 1 + q)/q``. The mean of that many of the subset's smallest run times is then at most
the deadline, and the sum of each stage's own such mean is smaller still. A label search on these stage times, with the
expected costs, therefore finds no plan that costs more than the cheapest one with the guarantee. Subsets of slow runs
give the tightest bounds.

Where few plans lie between the bound and the plan found, all of them are simulated, and the bound is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from unfold_tuning._types import FloatArray, IntArray
from unfold_tuning.job.allocation import Plan
from unfold_tuning.planner.baselines import Goal
from unfold_tuning.planner.frontier import StageCosts, compute_growth, count_new_instances, search_frontier
from unfold_tuning.simulator.execution_model import ExecutionModel
from unfold_tuning.simulator.plan_cost import TIME_TOLERANCE_S, simulate_plans

GROWTH_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)
SUBSET_FRACTIONS = (0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0)
MAX_PARTIAL_PLANS = 10_000
MAX_OPEN_PLANS = 1000
"""Plans between the bound and the plan found that are simulated."""


def compute_lower_bound(model: ExecutionModel, costs: StageCosts, goal: Goal, plan_usd: float = np.inf) -> float:
    """Compute dollars that no plan undercuts with P(run time <= deadline) >= confidence on these samples.

    The bound covers the plans made of ``costs.allocations``. Unless it is exact, it leaves out minimum charges and
    increments except those of the instances that every plan needs at once, which only lowers it.

    Args:
        model: The job on a machine.
        costs: Its stage times and costs.
        goal: The deadline and the confidence.
        plan_usd: Expected cost of the plan found: what is not cheaper does not matter.

    Returns:
        The bound; infinite if no plan gives the guarantee.
    """
    costs = replace(costs, growth_usd=_sample_growth_usd(model, costs))
    slowest_first = np.argsort(-_estimate_run_seconds(model, costs)).astype(np.int64)
    relaxations: list[StageCosts] = []
    for fraction in SUBSET_FRACTIONS:
        on_time_fraction = (goal.confidence - 1 + fraction) / fraction
        if on_time_fraction > 0:
            rows = slowest_first[: max(1, round(fraction * model.samples))]
            relaxations.append(_relax_times(model, costs, rows, on_time_fraction))
    bounds = [_search_cheapest(relaxed, goal.deadline_s) for relaxed in relaxations]
    instances = _count_least_instances(relaxations, goal.deadline_s)
    bound_usd = max((*bounds, instances * _compute_smallest_bill_usd(model)))
    if not bound_usd < plan_usd < np.inf:
        return bound_usd
    open_plans = list_open_plans(relaxations, goal.deadline_s, plan_usd)
    if open_plans is None:
        return bound_usd
    on_time = (plan.mean_cost_usd for plan in simulate_plans(model, open_plans) if goal.is_met_by(plan))
    return min((plan_usd, *on_time))


def list_open_plans(relaxations: Sequence[StageCosts], deadline_s: float, plan_usd: float) -> list[Plan] | None:
    """List every plan that is cheaper than the one found and that no relaxation rules out; ``None`` if too many.

    Plans are extended stage by stage. A partial one is dropped if even the cheapest rest makes it too expensive, or the
    fastest rest too late.

    Args:
        relaxations: Stage times that are not above those of any plan that gives the guarantee; the costs are equal.
        deadline_s: The deadline.
        plan_usd: Dollars of the plan found.
    """
    costs = relaxations[0]
    stages, levels = costs.seconds.shape
    # [relaxations, stages, level before, level]
    seconds = np.stack([relaxed.growth_s + relaxed.seconds[:, None, :] for relaxed in relaxations])
    step_usd = costs.growth_usd + costs.cost_usd[:, None, :]
    rest_s, rest_usd = np.zeros((len(relaxations), stages + 1, levels + 1)), np.zeros((stages + 1, levels + 1))
    for stage in reversed(range(stages)):
        rest_s[:, stage] = (seconds[:, stage] + rest_s[:, stage + 1, None, 1:]).min(axis=-1)
        rest_usd[stage] = (step_usd[stage] + rest_usd[stage + 1, None, 1:]).min(axis=-1)
    chosen = np.zeros((1, 0), dtype=np.int64)
    spent_s, spent_usd = np.zeros((len(relaxations), 1)), np.zeros(1)
    for stage in range(stages):
        before = chosen[:, -1] + 1 if stage else np.zeros(1, dtype=np.int64)
        total_s = spent_s[:, :, None] + seconds[:, stage, before]
        total_usd = spent_usd[:, None] + step_usd[stage, before]
        is_open = (total_usd + rest_usd[stage + 1, 1:] < plan_usd) & (
            total_s + rest_s[:, stage + 1, None, 1:] <= deadline_s + TIME_TOLERANCE_S
        ).all(axis=0)
        rows, level = np.nonzero(is_open)
        if len(rows) > (MAX_OPEN_PLANS if stage == stages - 1 else MAX_PARTIAL_PLANS):
            return None
        chosen = np.column_stack([chosen[rows], level])
        spent_s, spent_usd = total_s[:, rows, level], total_usd[rows, level]
    return [tuple(row[level] for row, level in zip(costs.allocations, plan, strict=True)) for plan in chosen.tolist()]


def _relax_times(model: ExecutionModel, costs: StageCosts, rows: IntArray, on_time_fraction: float) -> StageCosts:
    """Replace the times by means of each stage's smallest ones in a subset of the runs."""
    size = max(1, int(np.ceil(on_time_fraction * len(rows) - 1e-9)))
    seconds = np.array(
        [
            [_average_smallest(model.sample_stage_seconds(index, allocation)[rows], size) for allocation in row]
            for index, row in enumerate(costs.allocations)
        ]
    )
    wait_s = np.array(
        [
            _average_smallest(
                model.sample_provision_seconds(index)[rows] + model.sample_startup_seconds(index, 1)[rows], size
            )
            for index in range(len(seconds))
        ]
    )
    is_growth = count_new_instances(costs.counts, model.running_instances) > 0
    return replace(costs, seconds=seconds, growth_s=wait_s[:, None, None] * is_growth)


def _compute_smallest_bill_usd(model: ExecutionModel) -> float:
    """Compute the bill of an instance that is released as soon as it is ready."""
    machine = model.machine
    if machine.billing.per != "instance" or model.running_instances:
        return 0.0
    shortest_s = float(model.sample_startup_seconds(0, 1).min())
    return float(machine.billing.cost(shortest_s, machine.usd_per_hour))


def _count_least_instances(relaxations: Sequence[StageCosts], deadline_s: float) -> int:
    """Count the instances that every plan in time holds at once in some stage: with fewer, a relaxation is late."""
    counts = relaxations[0].counts
    for level, count in enumerate(counts):
        if all(_compute_shortest_s(relaxed, level + 1) <= deadline_s + TIME_TOLERANCE_S for relaxed in relaxations):
            return int(count)
    return int(counts[-1])


def _compute_shortest_s(relaxed: StageCosts, levels: int) -> float:
    """Compute the shortest time of a run that uses the first levels alone."""
    rest_s = np.zeros(levels)
    for index in reversed(range(len(relaxed.seconds))):
        step_s = relaxed.growth_s[index, : levels + 1, :levels] + relaxed.seconds[index, :levels]
        total_s = (step_s + rest_s).min(axis=1)
        rest_s = total_s[1:]
    return float(total_s[0])


def _search_cheapest(relaxed: StageCosts, deadline_s: float) -> float:
    frontier = search_frontier(relaxed, deadline_s + TIME_TOLERANCE_S)
    return float(frontier.cost_usd.min()) if len(frontier.cost_usd) else float("inf")


def _sample_growth_usd(model: ExecutionModel, costs: StageCosts) -> FloatArray:
    """Compute the sampled cost of growing; between two steps that of the smaller one, which is no more expensive."""
    new = count_new_instances(costs.counts, model.running_instances)
    steps = [step for step in GROWTH_STEPS if step <= new.max()]
    step_index = np.maximum(np.searchsorted(steps, new, side="right") - 1, 0)
    means = [
        [model.sample_startup_seconds(index, step).mean() for step in steps] for index in range(len(costs.allocations))
    ]
    return compute_growth(model, costs.counts, np.array(means)[:, step_index])[1]


def _average_smallest(values: FloatArray, size: int) -> float:
    return float(np.partition(values, size - 1)[:size].mean())


def _estimate_run_seconds(model: ExecutionModel, costs: StageCosts) -> FloatArray:
    """Estimate how slow each run is, from its stages at a middle level."""
    middle = len(costs.allocations[0]) // 2
    total = np.zeros(model.samples)
    for index, row in enumerate(costs.allocations):
        total += model.sample_stage_seconds(index, row[middle])
    return total
