"""The hand-over file ``exits.json``: models of a plan, their latency, and the share of cases passed on between them.

Other kinds plan a pipeline from it. Shares are measured on the calibration and test rows, which the search for gates
has not seen.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unfold_cascade._types import IntArray
from unfold_cascade.learners.estimator_names import SHORT_NAMES
from unfold_cascade.models.onnx_runtime import PROBE_FILE
from unfold_cascade.models.zoo import BASELINE, WHOLE, ModelSlot, Predictions, load_models
from unfold_cascade.planner.planner import Solution
from unfold_cascade.planner.policy import Policy, StagePolicy, follow
from unfold_cascade.planner.score_tables import ScoreTables
from unfoldkit.api import Run, RunDir, fingerprint

EXITS_FILE = "exits.json"
SCHEMA = "unfold_cascade.exits/1"
TRUSTED = ("sklearn.", "xgboost.")

ExecutionPath = tuple[int, ...]
"""Numbers of the models that a case visits, in order."""


@dataclass(frozen=True, slots=True)
class VisitedModel:
    """A model of the cascade. ``slot`` is what the run stores: for the last resort, that of the baseline."""

    stage: str
    group: str
    model: str
    slot: ModelSlot
    predictions: Predictions

    @property
    def is_baseline(self) -> bool:
        """Whether it is the baseline, which is evaluated once per case."""
        return self.slot.stage == BASELINE


def write_handoff(solution: Solution, run: Run) -> None:
    """Write ``exits.json`` to the run. Recorded predictions have no models, and a drift check changes no run."""
    if not solution.problem.is_recorded and not run.options.get("baseline_plan"):
        body = json.dumps(describe_exits(solution, run.directory), indent=1) + "\n"
        run.directory.write(EXITS_FILE, body.encode(), made_from=fingerprint(solution.problem.identity))


def describe_exits(solution: Solution, directory: RunDir) -> dict[str, Any]:
    """Describe the models of a plan in execution order, the shares passed on, and the paths of cases."""
    problem, rows = solution.problem, solution.problem.dataset.rows
    tables, policy = select_served_policy(solution)
    models = _list_models(solution, tables, policy, directory)
    paths = _count_paths(tables, policy, models, np.concatenate([rows.calibrate, rows.test]))
    visited = sorted({index for path in paths for index in path})
    names, number = _name_models(models), {index: position for position, index in enumerate(visited)}
    return {
        "schema": SCHEMA,
        "spec_sha256": fingerprint(problem.identity),
        "cases": sum(paths.values()),
        "columns": len(problem.dataset.order),
        "rows_per_call": problem.cost.batch,
        "probe": PROBE_FILE if directory.has(PROBE_FILE) else None,
        "models": [_describe_model(models[index], names, index, paths) for index in visited],
        "ways": [{"models": [number[i] for i in path], "cases": count} for path, count in sorted(paths.items())],
        "unasked": [name for index, name in enumerate(names) if index not in number],
    }


def select_served_policy(solution: Solution) -> tuple[ScoreTables, Policy]:
    """Select the tables and the policy to serve; without a cascade those of the baseline, a chain of one model."""
    tables, policy = solution.tables, solution.policy
    if policy is None:
        baseline = Policy(StagePolicy((solution.baseline.index,), ()), {})
        return replace(tables, first_stage=tables.candidates, second_stage={}), baseline
    groups = policy.second_stage.items()
    second = {number: stage for number, stage in groups if not tables.second_stage[number].is_single_label}
    return tables, replace(policy, second_stage=second)


def transition_shares(paths: Mapping[ExecutionPath, int]) -> dict[tuple[int, int], float]:
    """Compute, for each (model, next model), the share of the cases at the model that go on to the next."""
    at_model = Counter[int]()
    passed_on = Counter[tuple[int, int]]()
    for path, count in paths.items():
        at_model.update(dict.fromkeys(path, count))
        passed_on.update(dict.fromkeys(itertools.pairwise(path), count))
    return {edge: count / at_model[edge[0]] for edge, count in sorted(passed_on.items())}


def make_unique_names(words: Sequence[Sequence[str]]) -> list[str]:
    """Join the words of each model to a unique name that is valid as a key and as a file name."""
    names = [re.sub(r"[^\w.-]", "_", "-".join(parts)) for parts in words]
    count = Counter(names)
    return [name if count[name] == 1 else f"{name}-{index + 1}" for index, name in enumerate(names)]


def is_loadable(estimator: str) -> bool:
    """Whether other kinds may load the stored estimator: only those of trusted libraries."""
    return SHORT_NAMES.get(estimator, estimator).startswith(TRUSTED)


def _list_models(solution: Solution, tables: ScoreTables, policy: Policy, directory: RunDir) -> list[VisitedModel]:
    """List the models of a cascade, stage by stage."""
    problem = solution.problem
    loaded = load_models(problem.zoo, problem.data, problem.dataset, directory)
    stored = {(slot.stage, slot.group, slot.model): (slot, predictions) for slot, predictions in loaded}
    baseline = stored[BASELINE, WHOLE, solution.baseline.name]
    names = [(table.stage, table.group, table.models[m]) for table, stage in policy.stages(tables) for m in stage.chain]
    return [VisitedModel(*name, *stored.get(name, baseline)) for name in names]


def _count_paths(
    tables: ScoreTables, policy: Policy, models: Sequence[VisitedModel], rows: IntArray
) -> dict[ExecutionPath, int]:
    """Count how many of ``rows`` take each execution path."""
    outcome = follow(tables, policy, rows)
    exits = zip(outcome.exit_first.tolist(), outcome.group.tolist(), outcome.exit_second.tolist(), strict=True)
    paths = Counter[ExecutionPath]()
    for (exit_first, group, exit_second), count in Counter(exits).items():
        paths[_drop_repeated_baseline(_list_path(policy, exit_first, group, exit_second), models)] += count
    return dict(paths)


def _list_path(policy: Policy, exit_first: int, group: int, exit_second: int) -> list[int]:
    path = list(range(exit_first + 1))
    start = len(policy.first_stage.chain)
    for number, stage in policy.second_stage.items():
        if number == group:
            path += range(start, start + exit_second + 1)
        start += len(stage.chain)
    return path


def _drop_repeated_baseline(path: Sequence[int], models: Sequence[VisitedModel]) -> ExecutionPath:
    """Omit the baseline where it was evaluated before."""
    baselines = [index for index in path if models[index].is_baseline]
    return tuple(index for index in path if index not in baselines[1:])


def _name_models(models: Sequence[VisitedModel]) -> list[str]:
    return make_unique_names([(m.stage, m.group, m.model) if m.group != WHOLE else (m.stage, m.model) for m in models])


def _describe_model(
    visited: VisitedModel, names: Sequence[str], index: int, paths: Mapping[ExecutionPath, int]
) -> dict[str, Any]:
    shares = transition_shares(paths).items()
    return {
        "name": names[index],
        "stage": visited.stage,
        "group": visited.group,
        "model": visited.model,
        "file": visited.slot.model_file if is_loadable(visited.slot.recipe.estimator) else None,
        "columns": visited.slot.columns.tolist(),
        "latency_us": visited.predictions.latency_us,
        "cases": sum(count for path, count in paths.items() if index in path),
        "after": {names[parent]: share for (parent, child), share in shares if child == index},
    }
