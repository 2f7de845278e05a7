"""Execution paths of a plan over time (``exits.json``): which models unseen hours reach, for other kinds to read.

A query is one hour of an entity. Earlier hours decide which stages are evaluated in it, so an hour enters at the first
model of each such stage. It continues along the chain while models are uncertain.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade._types import IntArray
from unfold_cascade.models.zoo import WHOLE
from unfold_cascade.report.handoff import EXITS_FILE, SCHEMA, is_loadable, make_unique_names
from unfold_cascade.temporal.data.online_features import build_online_features, compute_probe_features
from unfold_cascade.temporal.data.serving_probe import PROBE_FILE, Probe, load_probe
from unfold_cascade.temporal.models.study import Cohort
from unfold_cascade.temporal.problem import Transitions
from unfold_cascade.temporal.search.planner import Solution
from unfold_cascade.temporal.simulation.policy import ALWAYS_EVALUATED, Policy, build_policy_arrays
from unfold_cascade.temporal.simulation.trajectories import simulate
from unfoldkit.api import Run, fingerprint

ROWS_FILE = "serving/rows.npz"


@dataclass(frozen=True, slots=True)
class ExitPoint:
    """Where a model stands in a policy: model number, stage, position in its chain, and its share of all hours."""

    name: str
    model: int
    stage: int
    position: int
    share: float


def write_exits(solution: Solution, run: Run) -> None:
    """Write ``exits.json`` and input rows for its models to the run.

    Nothing is written where paths cannot describe the plan (``has_fixed_paths``), or by a check of new data.
    """
    if run.options.get("baseline_plan") or not has_fixed_paths(solution.problem.transitions):
        return
    documents = solution.problem.documents
    made_from = fingerprint(documents.features, run.directory.files()[PROBE_FILE])
    run.directory.once(ROWS_FILE, made_from, lambda: _pack_rows(solution, load_probe(run)))
    body = json.dumps(build_exits(solution), indent=1) + "\n"
    run.directory.write(EXITS_FILE, body.encode(), made_from=fingerprint(documents.spec))


def has_fixed_paths(transitions: Transitions) -> bool:
    """Check that hours start at first models and that no answer opens another stage within the same hour."""
    return transitions.entry == "reset" and transitions.advance == "next-step"


def build_exits(solution: Solution) -> dict[str, Any]:
    """Describe the models of a plan by stage, the share of hours that each receives, and the execution paths."""
    study = solution.study
    evaluated = np.concatenate([_count_evaluated(solution, cohort) for cohort in (study.calibrate, study.test)])
    points = _list_exit_points(solution, evaluated)
    reached = [point for point in points if point.share > 0]
    return {
        "schema": SCHEMA,
        "spec_sha256": fingerprint(study.problem.documents.spec),
        "unit": "hours",
        "cases": len(evaluated),
        "columns": build_online_features(study.features).width,
        "rows_per_call": study.problem.cost.batch_rows,
        "probe": ROWS_FILE,
        "models": [_describe_point(solution, point, reached) for point in reached],
        "ways": _count_paths(evaluated, reached),
        "unasked": [point.name for point in points if point.share == 0],
    }


def select_served_policy(solution: Solution) -> Policy:
    """Select the policy that a server follows: the baseline's alone if no cascade is certified."""
    return solution.selection.point.policy if solution.selection.is_certified else solution.rule.policy


def _count_evaluated(solution: Solution, cohort: Cohort) -> IntArray:
    """Count (n, S) the models evaluated in each hour of a cohort."""
    parallel = solution.study.parallel if solution.selection.is_certified else ALWAYS_EVALUATED
    arrays = build_policy_arrays(select_served_policy(solution), parallel)
    trajectories = simulate(cohort.timeline, cohort.scores, arrays, solution.problem.transitions)
    return trajectories.evaluated.astype(np.int64)


def _list_exit_points(solution: Solution, evaluated: IntArray) -> list[ExitPoint]:
    positions = [
        (model, s, position)
        for s, stage in enumerate(select_served_policy(solution))
        for position, model in enumerate(stage.chain)
    ]
    names = make_unique_names([solution.study.models[model].split("/", 1) for model, _, _ in positions])
    shares = [float((evaluated[:, s] > position).mean()) for _, s, position in positions]
    return [ExitPoint(name, *spot, share) for name, spot, share in zip(names, positions, shares, strict=True)]


def _count_paths(evaluated: IntArray, reached: Sequence[ExitPoint]) -> list[dict[str, Any]]:
    rows, counts = np.unique(evaluated, axis=0, return_counts=True)
    return [
        {"models": [i for i, point in enumerate(reached) if row[point.stage] > point.position], "cases": int(count)}
        for row, count in zip(rows, counts, strict=True)
    ]


def _describe_point(solution: Solution, point: ExitPoint, reached: Sequence[ExitPoint]) -> dict[str, Any]:
    study = solution.study
    stored, (stage, model) = study.stored_models[point.model], study.models[point.model].split("/", 1)
    previous = [
        earlier for earlier in reached if (earlier.stage, earlier.position) == (point.stage, point.position - 1)
    ]
    return {
        "name": point.name,
        "stage": stage,
        "group": WHOLE,
        "model": model,
        "file": stored.file if is_loadable(stored.estimator) else None,
        "columns": stored.columns.tolist(),
        "latency_us": float(study.call_costs.latency[point.model]),
        "cases": round(point.share * (len(study.calibrate.highest) + len(study.test.highest))),
        "share": 1.0 if previous else point.share,
        "after": {earlier.name: point.share / earlier.share for earlier in previous},
    }


def _pack_rows(solution: Solution, probe: Probe) -> bytes:
    stream = io.BytesIO()
    online = build_online_features(solution.study.features)
    np.savez(stream, allow_pickle=False, x=compute_probe_features(online, probe))
    return stream.getvalue()
