"""The cost of the paper's greedy search (UnfoldML, Algorithm 1, HARDGATING) at the loss of the exact gates."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.data.dataset import number_label_groups
from unfold_cascade.gates.exact import search_exact_front
from unfold_cascade.gates.hard_gating import search_greedy_for_loss
from unfold_cascade.planner.planner import Solution
from unfold_cascade.planner.policy import StagePolicy, as_indices, exit_answers, find_exits, marginal_cost
from unfold_cascade.planner.score_tables import ScoreTable


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
