"""The path of the cases through the models of a cascade, and how often each exit is right."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import BoolArray, IntArray
from unfold_cascade.planner.planner import Solution
from unfold_cascade.planner.policy import Outcome, Policy, StagePolicy, path_cost
from unfold_cascade.planner.score_tables import ScoreTable, ScoreTables
from unfold_cascade.report import sentences
from unfold_cascade.report.quality import baseline_accuracy
from unfold_cascade.report.tables import cost_digits
from unfoldkit.api import Flow, Interval, IntervalPlot, Link, Stop

MAX_STOPS = 12
"""Models that the flow distinguishes; with more, the second stage is one stop."""
Z_95 = 1.959964
"""Quantile of the standard normal distribution for two-sided 95 % intervals."""


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A model in the chain of a stage: the cases that it evaluates, and those of them that it answers.

    Attributes:
        name: Its name in the figures.
        cost: The cost of its call.
        evaluated: (n,) whether it evaluates a case.
        answers: (n,) whether it answers a case.
    """

    name: str
    cost: float
    evaluated: BoolArray
    answers: BoolArray


def draw_case_flow(solution: Solution, policy: Policy, outcome: Outcome) -> Flow:
    """Return how the test rows pass the models of a cascade, and how many of the answers are correct."""
    chains = list_chains(solution.tables, policy, outcome)
    is_correct = find_correct(solution, outcome)
    unit = solution.tables.unit
    stops = [
        Stop(use.name, (sentences.call_cost(use.cost, unit, cost_digits(use.cost)),))
        for chain in chains
        for use in chain
        if use.evaluated.any()
    ]
    return Flow(
        name="flow",
        title=sentences.FLOW_TITLE,
        unit="cases",
        stops=(*stops, Stop(sentences.CORRECT), Stop(sentences.WRONG)),
        links=tuple(_list_links(chains, is_correct)),
        good=sentences.CORRECT.removeprefix("→ "),
        bad=sentences.WRONG.removeprefix("→ "),
        timed=solution.problem.cost.is_measured,
    )


def draw_exit_accuracy(solution: Solution, policy: Policy, outcome: Outcome) -> IntervalPlot | None:
    """Return the share of correct answers of each model that answers, with its 95 % Wilson interval."""
    is_correct = find_correct(solution, outcome)
    intervals = []
    for use in (use for chain in list_chains(solution.tables, policy, outcome) for use in chain):
        cases, correct = int(use.answers.sum()), int((use.answers & is_correct).sum())
        if cases:
            low, value, high = (100 * share for share in _bound_by_wilson(correct, cases))
            name = sentences.exit_cases(use.name, cases)
            # rounding may put a bound of 0 or 1 on the wrong side of the value
            intervals.append(Interval(name=name, value=value, low=min(low, value), high=max(high, value)))
    if len(intervals) < 2:
        return None
    return IntervalPlot(
        name="exits",
        title=sentences.EXITS_TITLE,
        axis="correct %",
        intervals=tuple(intervals),
        target=100 * baseline_accuracy(solution),
        target_name=f"baseline ({solution.baseline.name})",
        timed=solution.problem.cost.is_measured,
    )


def _bound_by_wilson(correct: int, cases: int) -> tuple[float, float, float]:
    """Return a share between the bounds of its Wilson interval; loading ``scipy.stats`` for them takes a second."""
    share, term = correct / cases, Z_95**2 / cases
    centre = (share + term / 2) / (1 + term)
    half = math.sqrt(share * (1 - share) * term + term**2 / 4) / (1 + term)
    return max(centre - half, 0.0), share, min(centre + half, 1.0)


def find_correct(solution: Solution, outcome: Outcome) -> BoolArray:
    """Return whether the answer to each test row is correct."""
    dataset = solution.problem.dataset
    is_correct: BoolArray = outcome.answer == dataset.labels[dataset.rows.test]
    return is_correct


def list_chains(tables: ScoreTables, policy: Policy, outcome: Outcome) -> list[list[ModelUse]]:
    """Return the chain of the first stage, and those of the second one by group, or one stop for all groups."""
    everything = np.ones(len(outcome.answer), dtype=np.bool_)
    has_second = outcome.exit_second >= 0
    first_stage = policy.first_stage
    paid = tables.first_stage.feature_groups[first_stage.chain[0]]
    first = list(_list_uses(tables, tables.first_stage, first_stage, (outcome.exit_first, everything, has_second), ""))
    second = []
    for number, stage in policy.second_stage.items():
        table = tables.second_stage[number]
        members = has_second & (outcome.group == number)
        prefix = f"{table.group or table.stage}: "
        ends = (outcome.exit_second, members, np.zeros_like(members))
        second.append(list(_list_uses(tables, table, stage, ends, prefix, paid)))
    if len(first) + sum(map(len, second)) > MAX_STOPS and second:
        evaluated = np.logical_or.reduce([chain[0].evaluated for chain in second])
        mean_cost = float(np.mean([use.cost for chain in second for use in chain]))
        name = sentences.second_stage(tables.second_stage[next(iter(policy.second_stage))].stage, len(second))
        second = [[ModelUse(name, mean_cost, evaluated, has_second)]]
    return [first, *second]


def _list_uses(
    tables: ScoreTables,
    table: ScoreTable,
    stage: StagePolicy,
    ends: tuple[IntArray, BoolArray, BoolArray],
    prefix: str,
    paid: frozenset[str] = frozenset(),
) -> Iterator[ModelUse]:
    """Yield the models of a chain.

    Args:
        tables: All tables.
        table: That of the stage.
        stage: Its chain.
        ends: Where each case leaves the chain, whether it enters it, and whether it continues in the next stage.
        prefix: What names of models begin with.
        paid: Feature groups that are paid for already.
    """
    exits, enters, continues = ends
    calls = np.diff(path_cost(tables, table, stage.chain, paid), prepend=0.0)
    for position, model in enumerate(stage.chain):
        leaves = enters & (exits == position)
        yield ModelUse(
            f"{prefix}{table.models[model]}", float(calls[position]), enters & (exits >= position), leaves & ~continues
        )


def _list_links(chains: list[list[ModelUse]], is_correct: BoolArray) -> Iterator[Link]:
    counts: dict[tuple[str, str], int] = {}
    for chain in chains:
        for use, following in itertools.pairwise(chain):
            counts[use.name, following.name] = int(following.evaluated.sum())
    first, second = chains[0], chains[1:]
    for chain in second:
        for position, use in enumerate(first):
            later = first[position + 1].evaluated if position + 1 < len(first) else np.zeros_like(use.evaluated)
            # cases that leave the first stage here and begin this chain
            counts[use.name, chain[0].name] = int((use.evaluated & ~later & chain[0].evaluated).sum())
    yield from (Link(source, target, float(count)) for (source, target), count in counts.items() if count)
    for use in (use for chain in chains for use in chain):
        correct, wrong = int((use.answers & is_correct).sum()), int((use.answers & ~is_correct).sum())
        yield from _list_exits(use.name, {sentences.CORRECT: correct, sentences.WRONG: wrong})


def _list_exits(name: str, counts: Mapping[str, int]) -> Iterator[Link]:
    for target, count in counts.items():
        if count:
            yield Link(name, target, float(count), "good" if target == sentences.CORRECT else "bad")
