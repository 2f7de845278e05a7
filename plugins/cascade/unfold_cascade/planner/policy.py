"""A cascade as data, and the path of each case through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.gates.calibrated import Calibration, score_chain
from unfold_cascade.planner.score_tables import ScoreTable, ScoreTables


@dataclass(frozen=True, slots=True)
class StagePolicy:
    """The chain of one stage: model numbers in order; each but the last exits when ``score >= cut``.

    The score is the confidence of the model, or what ``curves`` (one per gate) make of it and of earlier predictions.
    """

    chain: tuple[int, ...]
    cuts: tuple[float, ...]
    curves: tuple[Calibration, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """A cascade: the policy of the first stage, and of the second stage by group number."""

    first_stage: StagePolicy
    second_stage: Mapping[int, StagePolicy]

    def stages(self, tables: ScoreTables) -> list[tuple[ScoreTable, StagePolicy]]:
        """Pair each table that the cascade uses with its policy."""
        groups = self.second_stage.items()
        second = [(tables.second_stage[group], policy) for group, policy in groups]
        return [(tables.first_stage, self.first_stage), *second]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a policy for n cases.

    Attributes:
        answer: (n,) predicted labels.
        cost: (n,) costs.
        latency_us: (n,) measured times, NaN where models were not measured.
        exit_first: (n,) position in the chain where the first stage exits.
        group: (n,) predictions of the first stage.
        exit_second: (n,) position where the second stage exits, -1 without one.
    """

    answer: IntArray
    cost: FloatArray
    latency_us: FloatArray
    exit_first: IntArray
    group: IntArray
    exit_second: IntArray


def describe_policy(tables: ScoreTables, policy: Policy) -> list[dict[str, Any]]:
    """Describe each stage of a cascade with the names of its models, in the format of a plan."""
    return [describe_stage(table, stage) for table, stage in policy.stages(tables)]


def describe_stage(table: ScoreTable, stage: StagePolicy) -> dict[str, Any]:
    """Describe one stage; its cuts apply to the scores that its gates read."""
    models = [table.models[m] for m in stage.chain]
    return {"stage": table.stage, "group": table.group, "models": models, "cuts": describe_cuts(stage.cuts)}


def describe_cuts(cuts: Iterable[float]) -> list[float | str]:
    """Write cuts as in a plan: ``always`` where every score exits, ``never`` where none does."""
    return [cut if np.isfinite(cut) else ("always" if cut < 0 else "never") for cut in cuts]


def as_indices(models: Sequence[int]) -> IntArray:
    """Convert model numbers to an index array, which may be empty."""
    return np.array(models, dtype=np.int64)


def find_exits(table: ScoreTable, stage: StagePolicy, rows: IntArray) -> IntArray:
    """Find the (n,) position where each row exits the chain: the first model with a score that reaches its cut."""
    return find_reached_cuts(read_scores(table, stage, rows), stage.cuts)


def read_scores(table: ScoreTable, stage: StagePolicy, rows: IntArray) -> FloatArray:
    """Read the (n, K-1) scores that the gates of a chain read."""
    if stage.curves:
        return score_chain(stage.curves, table.score[rows], table.answer[rows], stage.chain)
    return table.score[np.ix_(rows, as_indices(stage.chain[:-1]))]


def find_reached_cuts(score: FloatArray, cuts: Sequence[float]) -> IntArray:
    """Find the (n,) first of K-1 cuts that (n, K-1) scores reach, K-1 where they reach none."""
    final = np.ones(len(score), dtype=np.bool_)
    exits: IntArray = np.column_stack([score >= np.array(cuts), final]).argmax(axis=1)
    return exits


def exit_answers(table: ScoreTable, stage: StagePolicy, rows: IntArray, exits: IntArray) -> IntArray:
    """Return the (n,) predictions of the models at which rows exit."""
    answers: IntArray = table.answer[rows, np.array(stage.chain)[exits]]
    return answers


def path_cost(
    tables: ScoreTables, table: ScoreTable, chain: Sequence[int], paid: frozenset[str] = frozenset()
) -> FloatArray:
    """Compute the (K,) cost of exiting a chain at its k-th model; feature groups in ``paid`` are free."""
    return _accumulate(table, table.price, tables.sum_prices, chain, paid)


def path_time_us(
    tables: ScoreTables, table: ScoreTable, chain: Sequence[int], paid: frozenset[str] = frozenset()
) -> FloatArray:
    """Compute the (K,) measured time of exiting a chain at its k-th model, NaN if it was not measured."""
    return _accumulate(table, table.latency_us, tables.sum_times_us, chain, paid)


def marginal_cost(tables: ScoreTables, table: ScoreTable, chain: tuple[int, ...], rows: IntArray) -> FloatArray:
    """Compute the cost that each model of a chain adds: (K,), or (n, K) where prices vary by case."""
    if table.call_prices is not None:
        return table.call_prices[np.ix_(rows, as_indices(chain))]
    return np.diff(path_cost(tables, table, chain), prepend=0.0)


def second_stage_cost(tables: ScoreTables, first: StagePolicy, table: ScoreTable, chain: tuple[int, ...]) -> FloatArray:
    """Compute the (K1, K2) cost of the second chain, by the exits of the first and of the second."""
    paid = list_paid_groups(tables.first_stage, first.chain)
    return np.array([path_cost(tables, table, chain, groups) for groups in paid])


def list_paid_groups(table: ScoreTable, chain: Sequence[int]) -> list[frozenset[str]]:
    """List the feature groups that are paid for when a chain exits at its k-th model."""
    result, paid = [], frozenset[str]()
    for model in chain:
        paid |= table.feature_groups[model]
        result.append(paid)
    return result


def follow(tables: ScoreTables, policy: Policy, rows: IntArray) -> Outcome:
    """Send ``rows`` through the cascade."""
    first = policy.first_stage
    exit_first = find_exits(tables.first_stage, first, rows)
    group = exit_answers(tables.first_stage, first, rows, exit_first)
    cost = _exit_cost(tables, tables.first_stage, first.chain, rows, exit_first)
    latency_us = path_time_us(tables, tables.first_stage, first.chain)[exit_first]
    answer, exit_second = group.copy(), np.full(len(rows), -1, dtype=np.int64)
    paid = list_paid_groups(tables.first_stage, first.chain)
    for number, stage in policy.second_stage.items():
        cases = np.flatnonzero(group == number)
        table = tables.second_stage[number]
        exits = find_exits(table, stage, rows[cases])
        cost[cases] += second_stage_cost(tables, first, table, stage.chain)[exit_first[cases], exits]
        times_us = np.array([path_time_us(tables, table, stage.chain, groups) for groups in paid])
        latency_us[cases] += times_us[exit_first[cases], exits]
        answer[cases], exit_second[cases] = exit_answers(table, stage, rows[cases], exits), exits
    return Outcome(answer, cost, latency_us, exit_first, group, exit_second)


def _exit_cost(
    tables: ScoreTables, table: ScoreTable, chain: tuple[int, ...], rows: IntArray, exits: IntArray
) -> FloatArray:
    """Compute the (n,) cost of a chain that each row leaves at its exit."""
    sums = np.cumsum(marginal_cost(tables, table, chain, rows), axis=-1)
    by_row = np.broadcast_to(sums, (len(rows), len(chain)))
    cost: FloatArray = np.take_along_axis(by_row, exits[:, None], axis=1)[:, 0].copy()
    return cost


def _accumulate(
    table: ScoreTable,
    by_model: FloatArray,
    shared: Callable[[frozenset[str]], float],
    chain: Sequence[int],
    paid: frozenset[str],
) -> FloatArray:
    """Add up calls along a chain, with what each model needs that is not paid for yet."""
    sums, total = [], 0.0
    for model in chain:
        total += float(by_model[model]) + shared(table.feature_groups[model] - paid)
        paid |= table.feature_groups[model]
        sums.append(total)
    return np.array(sums)
