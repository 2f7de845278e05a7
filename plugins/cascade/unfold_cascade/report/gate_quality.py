"""How well the scores that gates read separate right from wrong answers: risk by coverage, and reliability."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.data.dataset import number_label_groups
from unfold_cascade.planner.planner import Solution
from unfold_cascade.planner.policy import Outcome, Policy, StagePolicy, read_scores
from unfold_cascade.planner.score_tables import ScoreTable
from unfold_cascade.report import sentences
from unfoldkit.api import Figure, Series

MIN_CASES = 30
"""Test cases that a gate needs for a curve."""
MAX_GATES = 5
MAX_POINTS = 100
BINS, BIN_CASES = 10, 20
"""Points of a reliability curve at most, and the cases of each at least."""


@dataclass(frozen=True, slots=True)
class GateScores:
    """A gate on the test cases that reach it.

    Attributes:
        name: Its model.
        score: (n,) scores that it reads.
        is_right: (n,) whether the answer of its model is right.
        cut: The score from which on it trusts the answer.
    """

    name: str
    score: FloatArray
    is_right: BoolArray
    cut: float


def list_gates(solution: Solution, policy: Policy, outcome: Outcome) -> list[GateScores]:
    """List the gates with enough cases, in the order of the chains; of many those with the most cases."""
    dataset, tables = solution.problem.dataset, solution.tables
    rows = dataset.rows.test
    labels = dataset.labels[rows]
    groups = number_label_groups(solution.problem.data.label_groups, dataset.names)
    first_truth = groups[labels] if policy.second_stage else labels
    gates = list(_list_of_stage(tables.first_stage, policy.first_stage, rows, outcome.exit_first, first_truth, ""))
    for number, stage in policy.second_stage.items():
        cases = np.flatnonzero(outcome.group == number)
        table = tables.second_stage[number]
        prefix = f"{table.group or table.stage}: "
        gates += _list_of_stage(table, stage, rows[cases], outcome.exit_second[cases], labels[cases], prefix)
    largest = sorted(gates, key=lambda gate: -len(gate.score))[:MAX_GATES]
    return [gate for gate in gates if any(gate is each for each in largest)]


def _list_of_stage(
    table: ScoreTable, stage: StagePolicy, rows: IntArray, exits: IntArray, truth: IntArray, prefix: str
) -> Iterator[GateScores]:
    scores = read_scores(table, stage, rows)
    for position, (model, cut) in enumerate(zip(stage.chain, stage.cuts, strict=False)):
        reached = exits >= position
        score, is_right = scores[reached, position], (table.answer[rows, model] == truth)[reached]
        if len(score) >= MIN_CASES and np.isfinite(score).all():
            yield GateScores(f"{prefix}{table.models[model]}", score, is_right, cut)


def draw_risk_coverage(gates: Sequence[GateScores], *, timed: bool) -> Figure | None:
    """Draw the share of wrong answers among the most confident ones, by how many there are.

    The points are the thresholds of the plan. Cases of equal scores are covered together
    (El-Yaniv and Wiener 2010, JMLR 11).
    """
    series, chosen = [], []
    for gate in gates:
        coverage, risk = compute_risk(gate.score, gate.is_right)
        picks = np.unique(np.linspace(0, len(coverage) - 1, MAX_POINTS).astype(int))
        series.append(Series(gate.name, tuple(100 * coverage[picks]), tuple(100 * risk[picks])))
        is_trusted = gate.score >= gate.cut
        if is_trusted.any():
            chosen.append((100 * float(is_trusted.mean()), 100 * float(1.0 - gate.is_right[is_trusted].mean())))
    if not series:
        return None
    if chosen:
        x, y = zip(*chosen, strict=True)
        series.append(Series(sentences.THRESHOLDS, x, y, "points"))
    return Figure("risk", sentences.RISK_TITLE, "answered %", "wrong %", tuple(series), timed=timed)


def compute_risk(score: FloatArray, is_right: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Compute coverage and risk, shares of 1, at each distinct score from the largest to the smallest.

    Args:
        score: (n,) scores.
        is_right: (n,) whether each answer is right.
    """
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    count = np.arange(1, len(score) + 1)
    risk = np.cumsum(~is_right[order]) / count
    return count[ends] / len(score), risk[ends]


def draw_reliability(gates: Sequence[GateScores], *, timed: bool) -> Figure | None:
    """Draw the share of right answers by the mean score, for scores that are probabilities.

    The bins of a gate hold equally many cases (Niculescu-Mizil and Caruana 2005, ICML).
    """
    series = []
    for gate in gates:
        if gate.score.min() < 0.0 or gate.score.max() > 1.0:
            continue
        parts = np.array_split(np.argsort(gate.score, kind="stable"), min(BINS, max(1, len(gate.score) // BIN_CASES)))
        stated = tuple(100 * float(gate.score[part].mean()) for part in parts)
        series.append(Series(gate.name, stated, tuple(100 * float(gate.is_right[part].mean()) for part in parts)))
    if not series:
        return None
    low = min(min(*each.x, *each.y) for each in series)
    series.append(Series(sentences.AS_STATED, (low, 100.0), (low, 100.0)))
    return Figure("reliability", sentences.RELIABILITY_TITLE, "score %", "right %", tuple(series), timed=timed)
