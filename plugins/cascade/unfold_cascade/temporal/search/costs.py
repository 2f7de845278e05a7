"""What policies cost the patients of a cohort: the sums on which a saving or a budget is certified.

A saving is a ratio of sums over hours. ``A / B >= x`` is tested as ``E[x * b - a] <= 0``, where a and b are the costs
of the baseline and of the cascade over all hours of one patient: patients are independent, their hours are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.temporal.models.study import Cohort
from unfold_cascade.temporal.problem import Transitions
from unfold_cascade.temporal.simulation.cost import CallCosts, sum_costs
from unfold_cascade.temporal.simulation.policy import Policy, StagePolicy, build_policy_arrays
from unfold_cascade.temporal.simulation.trajectories import Trajectories, simulate


@dataclass(frozen=True, slots=True)
class CostMeasure:
    """Costs in the currencies of a comparison, added up with weights.

    Attributes:
        call_costs: What one call of each model costs.
        weights: Weight of each currency: 1 for a single one. Where several are compared, the weights make the mean cost
            of the baseline on the tuning patients 1 per hour.
    """

    call_costs: CallCosts
    weights: Mapping[str, float]

    def sum_by_patient(self, cohort: Cohort, trajectories: Trajectories) -> FloatArray:
        """Sum (P,) the cost of each patient over its hours."""
        totals = [
            weight * sum_costs(trajectories, cohort.scores, self.call_costs, currency)
            for currency, weight in self.weights.items()
        ]
        return np.asarray(np.sum(totals, axis=0), dtype=np.float64)


def build_cost_measure(by: str, baseline_bill: Mapping[str, float], call_costs: CallCosts) -> CostMeasure:
    """Build the measure of a comparison.

    Args:
        by: A currency, or ``price+flops`` for the mean of both relative to the baseline.
        baseline_bill: Mean cost of an hour of the baseline on the tuning patients, by currency.
        call_costs: What one call of each model costs.
    """
    names = by.split("+")
    if len(names) == 1:
        return CostMeasure(call_costs, {by: 1.0})
    return CostMeasure(call_costs, {name: 1.0 / (len(names) * baseline_bill[name]) for name in names})


def follow_longest_path(cohort: Cohort, transitions: Transitions, policy: Policy) -> Trajectories:
    """Simulate the models of a policy with gates that never decide, so that all are evaluated at every hour.

    No gates make the policy more expensive: purchases that stay valid are fewest for the hours that need them.
    """
    unsure = (-np.inf, np.inf)
    undecided = tuple(StagePolicy(stage.chain, (unsure,) * (len(stage.chain) - 1), np.inf) for stage in policy)
    arrays = build_policy_arrays(undecided, np.ones(len(policy), dtype=np.bool_))
    return simulate(cohort.timeline, cohort.scores, arrays, replace(transitions, entry="reset"))
