"""Every execution path of a cascade, enumerated before the first request: its models, cuts and costs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from unfold_cascade._types import FloatArray
from unfold_cascade.planner.policy import Policy, StagePolicy, list_paid_groups, path_cost
from unfold_cascade.planner.score_tables import ScoreTable, ScoreTables
from unfold_cascade.serving.model import PathTable
from unfoldkit.serving.model import Field

MAX_CUT = 2.0
"""How a cut that no score reaches is reported."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One model on an execution path: its stage, the cut of its gate, and what it adds to the cost."""

    stage: str
    model: str
    cut: float
    cost: float


def build_path_table(tables: ScoreTables, policy: Policy, labels: tuple[str, ...]) -> PathTable:
    """Enumerate the paths of ``policy``, numbered as in ``PathTable``; shorter ones are padded with empty visits."""
    groups = len(policy.second_stage) or 1
    second = max((len(stage.chain) for stage in policy.second_stage.values()), default=1)
    exits = itertools.product(range(len(policy.first_stage.chain)), range(groups), range(second))
    paths = [list(_list_visits(tables, policy, *exit_)) for exit_ in exits]
    length = len(policy.first_stage.chain) + (second if policy.second_stage else 0)
    padded = [[*path, *[Visit("", "", 0.0, 0.0)] * (length - len(path))] for path in paths]
    return PathTable(
        labels=labels,
        groups=groups,
        second_exits=second,
        cost=np.array([sum(visit.cost for visit in path) for path in paths]),
        length=tuple(len(path) for path in paths),
        stages=tuple(tuple(visit.stage for visit in path) for path in padded),
        models=tuple(tuple(visit.model for visit in path) for path in padded),
        cuts=tuple(tuple(visit.cut for visit in path) for path in padded),
        call_costs=tuple(tuple(visit.cost for visit in path) for path in padded),
    )


def encode_outputs(paths: PathTable) -> dict[str, tuple[msgspec.Raw, ...]]:
    """Encode as JSON, by path number, every output that depends on the path only."""
    columns = {
        "cost": paths.cost.tolist(),
        "route_steps": paths.length,
        "route_stage": paths.stages,
        "route_model": paths.models,
        "route_cut": paths.cuts,
        "route_cost": paths.call_costs,
    }
    return {
        name: tuple(msgspec.Raw(msgspec.json.encode(value)) for value in column) for name, column in columns.items()
    }


def list_outputs(paths: PathTable) -> tuple[Field, ...]:
    """List the outputs of a served cascade: the answer, and the path of each row with one entry per model."""
    length = (len(paths.stages[0]),)
    answer = (Field("label", "BYTES"), Field("confidence"), Field("cost"), Field("route_steps", "INT64"))
    names = (Field("route_stage", "BYTES", length), Field("route_model", "BYTES", length))
    return (*answer, *names, *(Field(f"route_{name}", "FP64", length) for name in ("confidence", "cut", "cost")))


def _list_visits(tables: ScoreTables, policy: Policy, exit_first: int, group: int, exit_second: int) -> Iterator[Visit]:
    first, table = policy.first_stage, tables.first_stage
    yield from _list_stage_visits(table, first, exit_first, path_cost(tables, table, first.chain))
    if group in policy.second_stage and not tables.second_stage[group].is_single_label:
        stage, second_table = policy.second_stage[group], tables.second_stage[group]
        paid = list_paid_groups(table, first.chain)[exit_first]
        cost = path_cost(tables, second_table, stage.chain, paid)
        yield from _list_stage_visits(second_table, stage, min(exit_second, len(stage.chain) - 1), cost)


def _list_stage_visits(table: ScoreTable, stage: StagePolicy, exit_: int, cost: FloatArray) -> Iterator[Visit]:
    call_costs = np.diff(cost, prepend=0.0)
    for position in range(exit_ + 1):
        cut = stage.cuts[position] if position < len(stage.cuts) else 0.0
        reported = float(np.clip(cut, 0.0, MAX_CUT))
        yield Visit(table.title, table.models[stage.chain[position]], reported, float(call_costs[position]))
