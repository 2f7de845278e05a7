"""A proven lower bound on the cost of any plan that gives the guarantee, and hence on the gap of the plan found.

If a plan is on time in at least a fraction p of all samples, then of any subset with a fraction q of them (q > 1 - p)
it is on time in at least ``(p - 1 + q)/q``. The mean of that many of the subset's smallest run times is then at most
the deadline, and the sum of each stage's own such mean is smaller still. A label search on these stage times, with the
expected costs, therefore finds no plan that costs more than the cheapest one with the guarantee. Subsets of slow runs
give the tightest bounds.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from unfold_tuning._types import FloatArray, IntArray
from unfold_tuning.planner.frontier import StageCosts, compute_growth, count_new_instances, search_frontier
from unfold_tuning.simulator.execution_model import ExecutionModel
from unfold_tuning.simulator.plan_cost import TIME_TOLERANCE_S

GROWTH_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)
SUBSET_FRACTIONS = (0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0)


def compute_lower_bound(model: ExecutionModel, costs: StageCosts, deadline_s: float, confidence: float) -> float:
    """Compute dollars that no plan undercuts with P(run time <= deadline) >= confidence on these samples.

    The bound covers the plans made of ``costs.allocations``. It leaves out minimum charges and increments, which only
    lowers it.

    Returns:
        The bound; infinite if no plan gives the guarantee.
    """
    costs = replace(costs, growth_usd=_sample_growth_usd(model, costs))
    slowest_first = np.argsort(-_estimate_run_seconds(model, costs)).astype(np.int64)
    bound_usd = 0.0
    for fraction in SUBSET_FRACTIONS:
        on_time_fraction = (confidence - 1 + fraction) / fraction
        if on_time_fraction > 0:
            rows = slowest_first[: max(1, round(fraction * model.samples))]
            bound_usd = max(bound_usd, _bound_on_subset(model, costs, rows, on_time_fraction, deadline_s))
    return bound_usd


def _bound_on_subset(
    model: ExecutionModel, costs: StageCosts, rows: IntArray, on_time_fraction: float, deadline_s: float
) -> float:
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
    relaxed = replace(costs, seconds=seconds, growth_s=wait_s[:, None, None] * is_growth)
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
