"""Thresholds on the raw confidence, by predicted label: calibrated gates in a form that other programs can run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.data.dataset import number_label_groups
from unfold_cascade.gates.calibrated import find_raw_cuts
from unfold_cascade.planner.policy import Policy, StagePolicy, describe_cuts, describe_policy, describe_stage
from unfold_cascade.planner.problem import Problem
from unfold_cascade.planner.score_tables import ScoreTable, ScoreTables
from unfoldkit.api import Cell, Column, Table

MAX_TABLE_ROWS = 60


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Thresholds of a model for cases where exactly the models ``agree``, among those before it, agree with it.

    ``cuts`` (L + 1,) are the smallest confidences by predicted label; the last is for predictions that are not labels.
    """

    model: str
    agree: tuple[str, ...]
    cuts: FloatArray


@dataclass(frozen=True, slots=True)
class StageThresholds:
    """The thresholds of one stage and the names of its (L,) answers; none where gates read raw confidences."""

    table: ScoreTable
    stage: StagePolicy
    names: tuple[str, ...]
    thresholds: tuple[Thresholds, ...]


def describe_with_thresholds(problem: Problem, tables: ScoreTables, policy: Policy) -> list[dict[str, Any]]:
    """Describe the stages of a cascade for a plan; calibrated gates with their thresholds on the raw confidence."""
    return [_describe(thresholds) for thresholds in list_thresholds(problem, tables, policy)]


def matches_plan(tables: ScoreTables, policy: Policy, stages: Sequence[dict[str, Any]]) -> bool:
    """Whether the stages of a plan describe this policy."""
    return describe_policy(tables, policy) == [_remove_thresholds(stage) for stage in stages]


def list_thresholds(problem: Problem, tables: ScoreTables, policy: Policy) -> Iterator[StageThresholds]:
    """Yield the thresholds of each stage of a policy."""
    names = problem.dataset.names
    groups = problem.group_names or names
    yield _stage_thresholds(tables.first_stage, policy.first_stage, np.arange(len(groups)), groups)
    group_of_label = number_label_groups(problem.data.label_groups, names)
    for number, stage in policy.second_stage.items():
        labels = np.flatnonzero(group_of_label == number)
        yield _stage_thresholds(tables.second_stage[number], stage, labels, names)


def build_threshold_tables(stages: Sequence[StageThresholds]) -> list[Table]:
    """Build a table of thresholds by predicted label for each stage with calibrated gates."""
    return [_build_table(stage) for stage in stages if stage.thresholds]


def _stage_thresholds(table: ScoreTable, stage: StagePolicy, labels: IntArray, names: Sequence[str]) -> StageThresholds:
    # recorded answers that are not labels have the number after the last label
    answers = np.append(labels, len(names))
    gates = range(len(stage.curves))
    thresholds = tuple(found for gate in gates for found in _gate_thresholds(table, stage, gate, answers))
    return StageThresholds(table, stage, tuple(names[label] for label in labels), thresholds)


def _gate_thresholds(table: ScoreTable, stage: StagePolicy, gate: int, answers: IntArray) -> Iterator[Thresholds]:
    earlier = [table.models[m] for m in stage.chain[:gate]]
    for bits in itertools.product((1, 0), repeat=gate):
        context = answers.copy()
        for bit in bits:
            context = 2 * context + bit
        cuts = find_raw_cuts(stage.curves[gate], context, stage.cuts[gate])
        yield Thresholds(table.models[stage.chain[gate]], tuple(itertools.compress(earlier, bits)), cuts)


def _describe(stage: StageThresholds) -> dict[str, Any]:
    document = describe_stage(stage.table, stage.stage)
    if not stage.thresholds:
        return document
    document["calibrated_cuts"] = document.pop("cuts")
    return document | {"trust_from": [_describe_thresholds(stage, found) for found in stage.thresholds]}


def _describe_thresholds(stage: StageThresholds, thresholds: Thresholds) -> dict[str, Any]:
    *cuts, otherwise = describe_cuts(thresholds.cuts.tolist())
    by_answer = dict(zip(stage.names, cuts, strict=True))
    return {"model": thresholds.model, "agree": list(thresholds.agree), "from": by_answer, "else": otherwise}


def _remove_thresholds(stage: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in stage.items() if key != "trust_from"}
    return {"cuts" if key == "calibrated_cuts" else key: value for key, value in plain.items()}


def _build_table(stage: StageThresholds) -> Table:
    table, thresholds = stage.table, stage.thresholds
    head = Column(f"{table.stage}/{table.group}: threshold by prediction")
    first_model = thresholds[0].model
    columns = (head, *(_build_column(found, is_first=found.model == first_model) for found in thresholds))
    cuts = zip(*(describe_cuts(found.cuts.tolist()) for found in thresholds), strict=True)
    rows: list[tuple[Cell, ...]] = [(name, *row) for name, row in zip((*stage.names, "any other"), cuts, strict=True)]
    if len(rows) > MAX_TABLE_ROWS:
        rows[MAX_TABLE_ROWS:] = [("remaining labels: see the plan", *(None for _ in thresholds))]
    return Table("trust", columns, tuple(rows))


def _build_column(thresholds: Thresholds, *, is_first: bool) -> Column:
    agreement = f" if {', '.join(thresholds.agree)} agree" if thresholds.agree else " without agreement"
    return Column(f"{thresholds.model}{'' if is_first else agreement}", "", 3)
