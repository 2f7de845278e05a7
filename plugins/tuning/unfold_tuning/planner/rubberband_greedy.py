"""RubberBand's greedy planner, a baseline (EuroSys 2021), and steps in both directions that start from its plan.

The paper gives an outline: warm start from the best static cluster, then shrink the stage with the best marginal
benefit. It leaves details open, which are chosen here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unfold_tuning.job.allocation import Plan, select_allocation
from unfold_tuning.planner.baselines import Baseline, Goal, select_cheapest, simulate_static_clusters
from unfold_tuning.simulator.allocation_table import AllocationRow, build_allocation_table
from unfold_tuning.simulator.execution_model import ExecutionModel
from unfold_tuning.simulator.plan_cost import COST_TOLERANCE_USD, SimulatedPlan, simulate_plans


def plan_greedily(model: ExecutionModel, goal: Goal, start: SimulatedPlan | None) -> Baseline:
    """Shrink one stage at a time while the plan stays on time and becomes cheaper.

    Args:
        model: The job.
        goal: The guarantee.
        start: The plan to start from, for RubberBand the best static cluster.

    Returns:
        The plan at which no step saves money; each step saves the most dollars per second of delay.
    """
    if start is None:
        return Baseline(None, 0)
    table, current, simulated = build_allocation_table(model), start, 0
    while True:
        candidates = simulate_plans(model, list(_list_smaller_plans(current.plan, table)))
        simulated += len(candidates)
        max_cost = current.mean_cost_usd - COST_TOLERANCE_USD
        better = [plan for plan in candidates if goal.is_met_by(plan) and plan.mean_cost_usd < max_cost]
        if not better:
            return Baseline(current, simulated)
        base = current
        current = max(better, key=lambda plan: _compute_marginal_benefit(base, plan))


def plan_greedily_from_all(model: ExecutionModel, goal: Goal, starts: Sequence[SimulatedPlan]) -> Baseline:
    """Return the cheapest result of the greedy over all starting plans that are on time."""
    results = [plan_greedily(model, goal, start) for start in starts if goal.is_met_by(start)]
    plans = [result.plan for result in results if result.plan]
    cheapest = min(plans, key=lambda plan: plan.mean_cost_usd, default=None)
    return Baseline(cheapest, sum(result.simulated for result in results))


def improve_by_single_steps(model: ExecutionModel, start: SimulatedPlan, goal: Goal) -> SimulatedPlan:
    """Improve a plan by steps of one instance in one stage while it stays on time and becomes cheaper.

    The steps begin at the cheapest of the plan itself, the greedy's result from it, and the greedy baseline.
    """
    table = build_allocation_table(model)
    static = select_cheapest(simulate_static_clusters(model), goal).plan
    results = (plan_greedily(model, goal, begin).plan for begin in (start, static))
    best = min([start, *filter(None, results)], key=_rank_by_cost)
    while True:
        neighbours = simulate_plans(model, list(_list_neighbours(best.plan, table, model.machine.max_instances)))
        neighbour = min((plan for plan in neighbours if goal.is_met_by(plan)), key=_rank_by_cost, default=best)
        if _rank_by_cost(neighbour) >= _rank_by_cost(best):
            return best
        best = neighbour


def _compute_marginal_benefit(base: SimulatedPlan, plan: SimulatedPlan) -> float:
    delay_s = plan.mean_seconds - base.mean_seconds
    saved_usd = base.mean_cost_usd - plan.mean_cost_usd
    return saved_usd / delay_s if delay_s > 1e-9 else float("inf")


def _rank_by_cost(plan: SimulatedPlan) -> tuple[float, float]:
    # bills that round up are often equal: the earlier plan is then the better one
    return round(plan.mean_cost_usd, 6), round(plan.mean_seconds, 3)


def _list_neighbours(plan: Plan, table: Sequence[AllocationRow], max_instances: int) -> Iterator[Plan]:
    for index, row in enumerate(table):
        for instances in (plan[index].instances - 1, plan[index].instances + 1):
            if row[0].instances <= instances <= max_instances:
                yield (*plan[:index], select_allocation(row, instances), *plan[index + 1 :])


def _list_smaller_plans(plan: Plan, table: Sequence[AllocationRow]) -> Iterator[Plan]:
    for index, row in enumerate(table):
        smaller = [allocation for allocation in row if allocation.instances < plan[index].instances]
        if smaller:
            yield (*plan[:index], smaller[-1], *plan[index + 1 :])
