"""How good and how cheap answers to the test rows are: accuracy, utility, loss, saving and class skew.

Also the cost of the paper's greedy search (UnfoldML, Algorithm 1, HARDGATING) at the loss of the exact gates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.data.dataset import number_label_groups
from unfold_cascade.gates.exact_search import search_exact_front
from unfold_cascade.gates.hard_gating import search_greedy_for_loss
from unfold_cascade.planner.certificate import per_cluster
from unfold_cascade.planner.planner import Solution
from unfold_cascade.planner.policy import (
    Outcome,
    Policy,
    StagePolicy,
    as_indices,
    exit_answers,
    find_exits,
    follow,
    marginal_cost,
)
from unfold_cascade.planner.score_tables import ScoreTable
from unfold_cascade.report.sentences import FREE, MIN_ROUNDED_RATIO, short_saving
from unfoldkit.api import divide_costs

SKEWED_SHARE = 0.9
"""From this share of one label on, accuracy hides errors on the other labels."""
MIN_DROP, MIN_DROP_ERRORS = 0.1, 5.0
"""The smallest drop of the accuracy of the baseline to warn of, and in standard errors."""


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


def baseline_drop(solution: Solution) -> tuple[float, float] | None:
    """Return the accuracy of the baseline on tuning and on test cases where it drops by far more than by chance.

    A paired loss stays small where cascade and baseline fail together, such as at a site with other codes of the label.
    """
    dataset = solution.problem.dataset
    before, after = (
        solution.baseline.answer[rows] == dataset.labels[rows] for rows in (dataset.rows.train, dataset.rows.test)
    )
    if not len(before) or not len(after):
        return None
    share = float(np.concatenate((before, after)).mean())
    error = math.sqrt(share * (1.0 - share) * (1.0 / len(before) + 1.0 / len(after)))
    drop = float(before.mean() - after.mean())
    is_large = drop > max(MIN_DROP, MIN_DROP_ERRORS * error)
    return (float(before.mean()), float(after.mean())) if is_large else None


def utility(solution: Solution, answer: IntArray) -> float:
    """Compute 1 minus the mean loss of (n,) answers: the accuracy, weighted by the costs of errors."""
    dataset = solution.problem.dataset
    return 1 - float(solution.tables.error_costs.losses(answer, dataset.labels[dataset.rows.test]).mean())


def baseline_utility(solution: Solution) -> float:
    """Compute the utility of the baseline's answers on the test cases."""
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
    """Whether ``goal.errors`` gives errors different costs, so that figures are losses rather than accuracies."""
    return solution.tables.error_costs.matrix is not None


def saving_cell(baseline: float, cost: float) -> float | str:
    """Return the saving as a cell of a table; a ratio near or below 1 is text, so that it is not rounded to 1.0."""
    ratio = divide_costs(baseline, cost)
    if ratio is None:
        return FREE
    return ratio if ratio >= MIN_ROUNDED_RATIO else short_saving(ratio).removesuffix("x")


def class_skew(solution: Solution, outcome: Outcome) -> ClassSkew | None:
    """Describe the skew of the test rows if at least 90 % of them have one label; otherwise ``None``.

    So too if the baseline or the cascade is right no more often than a constant answer: a loss shows nothing then.
    """
    dataset = solution.problem.dataset
    labels = dataset.labels[dataset.rows.test]
    counts = np.bincount(labels, minlength=len(dataset.names))
    dominant = int(counts.argmax())
    is_other = labels != dominant
    answers = (_baseline_answer(solution), *(() if solution.policy is None else (outcome.answer,)))
    is_informative = min(int((answer == labels).sum()) for answer in answers) > counts[dominant]
    if (counts[dominant] < SKEWED_SHARE * len(labels) and is_informative) or not is_other.any():
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


def list_gaps(solution: Solution) -> Iterator[tuple[str, float | None]]:
    """Yield each stage and how many percent greedy costs more than the exact gates; ``None`` if it fails.

    Stages with one model, or with calibrated gates, which greedy does not know, are omitted.
    """
    costs = solution.tables.error_costs
    for name, table, stage, rows, truth in _list_stages(solution):
        if len(stage.chain) > 1 and len(rows) > 1 and not stage.curves:
            loss = costs.losses(table.answer[np.ix_(rows, as_indices(stage.chain))], truth[:, None])
            answers = exit_answers(table, stage, rows, find_exits(table, stage, rows))
            reached = float(costs.losses(answers, truth).mean())
            cost = marginal_cost(solution.tables, table, stage.chain, rows)
            yield name, _gap_percent(table.score[np.ix_(rows, as_indices(stage.chain[:-1]))], loss, cost, reached)


def _gap_percent(score: FloatArray, loss: FloatArray, cost: FloatArray, reached: float) -> float | None:
    front = search_exact_front(score, loss, cost)
    within = np.flatnonzero(front.loss <= max(reached, float(front.loss[-1])) + 1e-12)
    best = int(within[0])
    greedy = search_greedy_for_loss(score, loss, cost, float(front.loss[best]) + 1e-12)
    if greedy is None or greedy.cost == front.cost[best]:
        return None if greedy is None else 0.0
    return 100 * (greedy.cost / float(front.cost[best]) - 1) if front.cost[best] > 0 else math.inf


def _list_stages(solution: Solution) -> Iterator[tuple[str, ScoreTable, StagePolicy, IntArray, IntArray]]:
    """Yield each stage with its name, table, policy, training rows and (n,) truth."""
    policy, tables, problem = solution.policy, solution.tables, solution.problem
    if policy is None:
        return
    rows, labels = problem.dataset.rows.train, problem.dataset.labels
    groups = number_label_groups(problem.data.label_groups, problem.dataset.names)
    truth = groups[labels] if tables.second_stage else labels
    exits = find_exits(tables.first_stage, policy.first_stage, rows)
    group = exit_answers(tables.first_stage, policy.first_stage, rows, exits)
    yield tables.first_stage.stage, tables.first_stage, policy.first_stage, rows, truth[rows]
    for number, stage in policy.second_stage.items():
        routed = rows[group == number]
        yield tables.second_stage[number].group, tables.second_stage[number], stage, routed, labels[routed]
