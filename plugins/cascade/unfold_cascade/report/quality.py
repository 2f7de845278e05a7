"""How good and how cheap answers to the test rows are: accuracy, utility, loss, saving and class skew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import IntArray
from unfold_cascade.planner.certificate import per_cluster
from unfold_cascade.planner.planner import Solution
from unfold_cascade.planner.policy import Outcome, Policy, follow
from unfold_cascade.report.sentences import FREE

SKEWED_SHARE = 0.9
"""From this share of one label on, accuracy hides errors on the other labels."""


@dataclass(frozen=True, slots=True)
class ClassSkew:
    """The dominant label of the test rows, its share, and the correct answers among the other rows."""

    label: str
    share: float
    others: int
    correct_of_cascade: int | None
    correct_of_baseline: int


def evaluate_test_rows(solution: Solution, policy: Policy | None) -> Outcome:
    """Compute the outcome of the test rows; without a cascade the baseline answers them."""
    rows, baseline = solution.problem.dataset.rows.test, solution.baseline
    if policy is not None:
        return follow(solution.tables, policy, rows)
    ones, no_exit = np.ones(len(rows)), np.full(len(rows), -1, dtype=np.int64)
    cost, latency_us = ones * baseline_cost(solution), ones * baseline.latency_us
    return Outcome(baseline.answer[rows], cost, latency_us, no_exit, no_exit, no_exit)


def baseline_cost(solution: Solution) -> float:
    """Compute the mean cost of the baseline on the test rows."""
    prices = solution.tables.candidates.call_prices
    if prices is None:
        return solution.baseline.cost
    return float(prices[solution.problem.dataset.rows.test, solution.baseline.index].mean())


def accuracy(solution: Solution, answer: IntArray) -> float:
    """Compute the share of correct answers among (n,) answers to the test rows."""
    dataset = solution.problem.dataset
    return float((answer == dataset.labels[dataset.rows.test]).mean())


def baseline_accuracy(solution: Solution) -> float:
    """Compute the share of correct answers of the baseline."""
    return accuracy(solution, _baseline_answer(solution))


def utility(solution: Solution, answer: IntArray) -> float:
    """Compute 1 minus the mean loss of (n,) answers: the accuracy, weighted by the costs of errors."""
    dataset = solution.problem.dataset
    return 1 - float(solution.tables.error_costs.losses(answer, dataset.labels[dataset.rows.test]).mean())


def baseline_utility(solution: Solution) -> float:
    """Compute the utility of the baseline."""
    return utility(solution, _baseline_answer(solution))


def loss_points(solution: Solution, outcome: Outcome) -> float:
    """Compute the utility that an outcome loses against the baseline, in percentage points."""
    return 100 * (baseline_utility(solution) - utility(solution, outcome.answer))


def certified_loss_points(solution: Solution, outcome: Outcome) -> float:
    """Compute the loss as it is certified: the mean over clusters, where there are some."""
    dataset, costs = solution.problem.dataset, solution.tables.error_costs
    if dataset.clusters is None:
        return loss_points(solution, outcome)
    rows = dataset.rows.test
    cascade = costs.losses(outcome.answer, dataset.labels[rows])
    baseline = costs.losses(_baseline_answer(solution), dataset.labels[rows])
    return 100 * float(per_cluster(cascade - baseline, dataset.clusters[rows]).mean())


def has_error_costs(solution: Solution) -> bool:
    """Whether errors differ in cost."""
    return solution.tables.error_costs.matrix is not None


def saving_ratio(baseline: float, cost: float) -> float | None:
    """Compute how many times cheaper ``cost`` is than ``baseline``; ``None`` where it is free."""
    if cost > 0:
        return baseline / cost
    return None if baseline > 0 else 1.0


def saving_cell(baseline: float, cost: float) -> float | str:
    """Return the saving as a cell of a table."""
    ratio = saving_ratio(baseline, cost)
    return FREE if ratio is None else ratio


def class_skew(solution: Solution, outcome: Outcome) -> ClassSkew | None:
    """Describe the skew of the test rows if at least 90 % of them have one label; otherwise ``None``."""
    dataset = solution.problem.dataset
    labels = dataset.labels[dataset.rows.test]
    counts = np.bincount(labels, minlength=len(dataset.names))
    dominant = int(counts.argmax())
    is_other = labels != dominant
    if counts[dominant] < SKEWED_SHARE * len(labels) or not is_other.any():
        return None

    def count_correct(answer: IntArray) -> int:
        return int((answer == labels)[is_other].sum())

    return ClassSkew(
        label=dataset.names[dominant],
        share=counts[dominant] / len(labels),
        others=int(is_other.sum()),
        correct_of_cascade=None if solution.policy is None else count_correct(outcome.answer),
        correct_of_baseline=count_correct(_baseline_answer(solution)),
    )


def _baseline_answer(solution: Solution) -> IntArray:
    return solution.baseline.answer[solution.problem.dataset.rows.test]
