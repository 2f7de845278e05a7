"""Spatio-temporal cost of a policy (UnfoldML): what calls and purchases cost per entity-hour, in four currencies.

A saving is a ratio of sums over hours. ``A / B >= x`` is tested as ``E[x * b - a] <= 0``, where a and b are the costs
of the baseline and of the cascade over all hours of one patient: patients are independent, their hours are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.temporal.data.table import Timeline
from unfold_cascade.temporal.problem import Transitions
from unfold_cascade.temporal.simulation.policy import Policy, StagePolicy, build_policy_arrays
from unfold_cascade.temporal.simulation.trajectories import ModelScores, Trajectories, simulate

CURRENCIES = ("price", "flops", "bytes", "latency")


@dataclass(frozen=True, slots=True)
class CallCosts:
    """What one call of each of M models costs, each (M,): price besides its features, FLOPs, bytes, latency in µs."""

    price: FloatArray
    flops: FloatArray
    bytes: FloatArray
    latency: FloatArray


def sum_costs(trajectories: Trajectories, scores: ModelScores, call_costs: CallCosts, currency: str) -> FloatArray:
    """Sum (P,) the cost of each entity over its hours: its calls and, for ``price``, its purchases."""
    calls: FloatArray = trajectories.calls @ getattr(call_costs, currency)
    return calls + trajectories.purchases @ scores.purchase.price if currency == "price" else calls


def compute_bill(trajectories: Trajectories, scores: ModelScores, call_costs: CallCosts) -> dict[str, float]:
    """Compute the mean cost of an entity-hour in every currency."""
    hours = len(trajectories.stage)
    return {
        currency: float(sum_costs(trajectories, scores, call_costs, currency).sum()) / hours for currency in CURRENCIES
    }


def compute_relative_cost(bill: dict[str, float], base: dict[str, float], by: str) -> float:
    """Divide a bill by that of the baseline model.

    Args:
        bill: Mean cost of an entity-hour, by currency.
        base: The same of the baseline model.
        by: A currency, or ``price+flops`` for the mean of both ratios.
    """
    return float(np.mean([bill[currency] / base[currency] for currency in by.split("+")]))


def compute_savings(base: dict[str, float], bill: dict[str, float], currencies: tuple[str, ...]) -> dict[str, float]:
    """Compute how many times cheaper ``bill`` is than ``base``; a currency in which it costs nothing is omitted."""
    return {currency: base[currency] / bill[currency] for currency in currencies if bill[currency] > 0}


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

    def sum_by_patient(self, scores: ModelScores, trajectories: Trajectories) -> FloatArray:
        """Sum (P,) the cost of each patient over its hours."""
        totals = [
            weight * sum_costs(trajectories, scores, self.call_costs, currency)
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


def follow_longest_path(
    timeline: Timeline, scores: ModelScores, transitions: Transitions, policy: Policy
) -> Trajectories:
    """Simulate the models of a policy with gates that never decide, so that all are evaluated at every hour.

    No gates make the policy more expensive: purchases that stay valid are fewest for the hours that need them.
    """
    unsure = (-np.inf, np.inf)
    undecided = tuple(StagePolicy(stage.chain, (unsure,) * (len(stage.chain) - 1), np.inf) for stage in policy)
    arrays = build_policy_arrays(undecided, np.ones(len(policy), dtype=np.bool_))
    return simulate(timeline, scores, arrays, replace(transitions, entry="reset"))
