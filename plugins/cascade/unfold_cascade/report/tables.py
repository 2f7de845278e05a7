"""The tables of a cascade's report: policies, stages and candidates for the baseline."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from unfold_cascade._types import IntArray
from unfold_cascade.planner.planner import Solution
from unfold_cascade.planner.policy import Outcome, Policy, StagePolicy, path_cost
from unfold_cascade.planner.score_tables import ScoreTable, ScoreTables
from unfold_cascade.report.quality import (
    accuracy,
    baseline_accuracy,
    baseline_cost,
    baseline_utility,
    evaluate_test_rows,
    has_error_costs,
    saving_cell,
    utility,
)
from unfold_cascade.report.threshold_tables import build_threshold_tables, list_thresholds
from unfoldkit.api import Cell, Column, Table

MAX_DIGITS = 12


def build_policy_table(solution: Solution) -> Table:
    """Build the table of the baseline, the selected cascade and both ends of the front."""
    timed, unit = solution.problem.cost.is_measured, solution.tables.unit
    is_weighted = has_error_costs(solution)
    columns = (
        Column("policy"),
        Column("accuracy", "%", 1, timed=timed),
        *([Column("weighted", "%", 1, timed=timed)] if is_weighted else []),
        Column("cost", unit, cost_digits(baseline_cost(solution), float(solution.front.cost[0])), timed=timed),
        Column("saving", "x", 1, timed=timed),
        Column("exits at first", "%", 0, timed=timed),
        Column("time", "µs", 1, timed=True),
    )
    baseline_row: tuple[Cell, ...] = (
        f"baseline ({solution.baseline.name})",
        baseline_accuracy(solution) * 100,
        *([baseline_utility(solution) * 100] if is_weighted else []),
        baseline_cost(solution),
        1.0,
        None,
        solution.baseline.latency_us,
    )
    labelled = list(_label_policies(solution))
    rows = [baseline_row, *(_policy_row(solution, label, policy) for label, policy in labelled)]
    selected = [index for index, (_, policy) in enumerate(labelled, 1) if policy is solution.policy]
    return Table("policies", columns, tuple(rows), selected[-1] if selected else None)


def build_stage_tables(solution: Solution, outcome: Outcome) -> list[Table]:
    """Build the table of evaluated models and exits, and those of calibrated thresholds; none without a cascade."""
    policy, tables = solution.policy, solution.tables
    if policy is None:
        return []
    timed = solution.problem.cost.is_measured
    thresholds = list(list_thresholds(solution.problem, tables, policy))
    is_calibrated = any(stage.thresholds for stage in thresholds)
    columns = (
        Column("stage"),
        Column("group"),
        Column("model"),
        Column("evaluated", "%", 1, timed=timed),
        Column("exits", "%", 1, timed=timed),
        Column("calibrated threshold" if is_calibrated else "threshold", "", 3, timed=timed),
    )
    rows = list(_list_stage_rows(tables, policy, outcome))
    calls = [call for _, call in rows]
    call_column = Column("cost per call", tables.unit, cost_digits(*calls), timed=timed)
    cells = tuple((*row, call) for row, call in rows)
    return [Table("route", (*columns, call_column), cells), *build_threshold_tables(thresholds)]


def build_candidate_table(solution: Solution) -> Table:
    """Tabulate train and test accuracy (%), cost and time (µs) of every single model that could be the baseline."""
    tables, dataset = solution.tables, solution.problem.dataset
    table, timed = tables.candidates, solution.problem.cost.is_measured
    losses = tables.error_costs.losses(table.answer, dataset.labels[:, None])
    prices = table.price if table.call_prices is None else table.call_prices[dataset.rows.test].mean(axis=0)
    costs = [
        float(price + tables.sum_prices(groups)) for price, groups in zip(prices, table.feature_groups, strict=True)
    ]
    measure = "weighted" if has_error_costs(solution) else "accuracy"
    columns = (
        Column("baseline candidate"),
        *(Column(f"{part} {measure}", "%", 1) for part in ("train", "test")),
        Column("cost", tables.unit, cost_digits(*costs), timed=timed),
        Column("time", "µs", 1, timed=True),
    )
    parts = (dataset.rows.train, dataset.rows.test)
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            name,
            *(100 * (1 - float(losses[part, m].mean())) for part in parts),
            costs[m],
            float(table.latency_us[m]),
        )
        for m, name in enumerate(table.models)
    )
    return Table("single models", columns, rows, solution.baseline.index)


def cost_digits(*costs: float) -> int:
    """Choose the digits after the point that show the smallest of some costs, with two significant ones if tiny."""
    smallest = min((cost for cost in costs if cost > 0), default=1.0)
    if smallest < 0.01:
        return min(max(5, 1 - math.floor(math.log10(smallest))), MAX_DIGITS)
    return 0 if smallest >= 100 else 1 if smallest >= 10 else 2


def _label_policies(solution: Solution) -> Iterator[tuple[str, Policy]]:
    policies, goal = solution.front.policies, solution.problem.goal
    if solution.policy is not None:
        yield f"cascade, {'certified' if goal.max_loss is not None else 'within the budget'}", solution.policy
    for label, policy in (("cascade, most accurate", policies[-1]), ("cascade, cheapest", policies[0])):
        if policy is not solution.policy:
            yield label, policy


def _policy_row(solution: Solution, label: str, policy: Policy) -> tuple[Cell, ...]:
    outcome = evaluate_test_rows(solution, policy)
    cost = float(outcome.cost.mean())
    return (
        label,
        accuracy(solution, outcome.answer) * 100,
        *([utility(solution, outcome.answer) * 100] if has_error_costs(solution) else []),
        cost,
        saving_cell(baseline_cost(solution), cost),
        float((outcome.exit_first == 0).mean()) * 100,
        float(outcome.latency_us.mean()),
    )


def _list_stage_rows(tables: ScoreTables, policy: Policy, outcome: Outcome) -> Iterator[tuple[tuple[Cell, ...], float]]:
    """Yield the cells of each model of a cascade, and the cost of its call."""
    cases, first = len(outcome.answer), policy.first_stage
    yield from _list_chain_rows(tables, tables.first_stage, first, outcome.exit_first, cases, frozenset())
    # features of the first model are paid for whichever way a case enters the second stage
    paid = tables.first_stage.feature_groups[first.chain[0]]
    for number, stage in policy.second_stage.items():
        exits = outcome.exit_second[outcome.group == number]
        yield from _list_chain_rows(tables, tables.second_stage[number], stage, exits, cases, paid)


def _list_chain_rows(
    tables: ScoreTables,
    table: ScoreTable,
    stage: StagePolicy,
    exits: IntArray,
    cases: int,
    paid: frozenset[str],
) -> Iterator[tuple[tuple[Cell, ...], float]]:
    """Yield the rows of one chain; the cost of a call includes features that are not ``paid`` for yet."""
    calls = np.diff(path_cost(tables, table, stage.chain, paid), prepend=0.0)
    for position, model in enumerate(stage.chain):
        evaluated, exited = int((exits >= position).sum()), int((exits == position).sum())
        cut = stage.cuts[position] if position < len(stage.cuts) else None
        threshold = None if cut is None or not np.isfinite(cut) else cut
        exit_share = 100 * exited / evaluated if evaluated else None
        cells: tuple[Cell, ...] = (
            table.stage,
            table.group,
            table.models[model],
            100 * evaluated / cases,
            exit_share,
            threshold,
        )
        yield cells, float(calls[position])
