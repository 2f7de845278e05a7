"""How good answers to the test rows are: their accuracy, and what is weighted by what errors cost."""

from __future__ import annotations

from unfold_cascade._types import IntArray
from unfold_cascade.planner.certificate import per_cluster
from unfold_cascade.planner.planner import Plan
from unfold_cascade.planner.policy import Outcome
from unfoldkit.api import Metric


def accuracy(plan: Plan, outcome: Outcome) -> float:
    """Return the share of right answers."""
    return float((outcome.answer == plan.given.labels[plan.given.rows.test]).mean())


def base_accuracy(plan: Plan) -> float:
    """Return the share of right answers of the best single model."""
    rows = plan.given.rows.test
    return float((plan.base.answer[rows] == plan.given.labels[rows]).mean())


def worth(plan: Plan, answer: IntArray) -> float:
    """Return 1 less the mean loss of (n,) answers: the accuracy, or what the cost of errors makes of it."""
    return 1 - float(plan.zoo.stakes.losses(answer, plan.given.labels[plan.given.rows.test]).mean())


def base_worth(plan: Plan) -> float:
    """Return the same of the best single model."""
    return worth(plan, plan.base.answer[plan.given.rows.test])


def lost(plan: Plan, outcome: Outcome) -> float:
    """Return what an outcome loses against the best single model, in points."""
    return 100 * (base_worth(plan) - worth(plan, outcome.answer))


def lost_by_group(plan: Plan, outcome: Outcome) -> float:
    """Return the same as the mean over groups of cases, which is what is certified; without groups each is a case."""
    rows, stakes = plan.given.rows.test, plan.zoo.stakes
    if plan.given.clusters is None:
        return lost(plan, outcome)
    own, base = (stakes.losses(one, plan.given.labels[rows]) for one in (outcome.answer, plan.base.answer[rows]))
    return 100 * float(per_cluster(own - base, plan.given.clusters[rows]).mean())


def weighted(plan: Plan) -> bool:
    """Whether errors do not all cost the same."""
    return plan.zoo.stakes.cost is not None


def weights(plan: Plan, outcome: Outcome, *, timed: bool) -> dict[str, Metric]:
    """Return the metrics that only such a plan has."""
    told = {
        "baseline_weighted_accuracy": Metric(base_worth(plan), timed=False),
        "cascade_weighted_accuracy": Metric(worth(plan, outcome.answer), timed=timed),
    }
    return told if weighted(plan) else {}
