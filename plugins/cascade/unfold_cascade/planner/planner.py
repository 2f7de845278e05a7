"""The planner of a cascade: fit models, search the front, certify and select. The run stores the front."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unfold_cascade.data.dataset import number_label_groups
from unfold_cascade.data.leakage import is_oracle
from unfold_cascade.gates import calibrated
from unfold_cascade.models.zoo import fit_models
from unfold_cascade.planner.ledger import Attempt, AttemptCount, identify_attempt, record_attempt
from unfold_cascade.planner.policy import Policy, StagePolicy
from unfold_cascade.planner.policy_search import (
    PolicyFront,
    SearchedFronts,
    search_policies,
)
from unfold_cascade.planner.problem import Problem
from unfold_cascade.planner.recorded_scores import load_recorded_tables
from unfold_cascade.planner.score_tables import ScoreTables, build_tables
from unfold_cascade.planner.select import (
    LEAKED,
    MAX_CAUTIOUS_POINTS,
    Baseline,
    Selection,
    count_units,
    price_as_served,
    refuse_late_break,
    retest_selection,
    select_baseline,
    select_cascade,
    select_none,
    shortlist_points,
)
from unfoldkit.api import Progress, Run, fingerprint, ignore_progress
from unfoldkit.safe_io.files import decoding, parse_object

FRONT_FILE = "front.json"
SCHEMA = "unfold_cascade.front/1"
ALWAYS, NEVER = "always", "never"


@dataclass(frozen=True, slots=True)
class Solution:
    """The result of the search: score tables, Pareto front, baseline and selection.

    ``candidates`` are the cascades to select from: those of the front, followed by cautious ones.
    """

    problem: Problem
    tables: ScoreTables
    front: PolicyFront
    candidates: PolicyFront
    baseline: Baseline
    selection: Selection
    attempt: AttemptCount | None = None

    @property
    def policy(self) -> Policy | None:
        """The selected cascade; ``None`` if only the baseline meets the goal."""
        return None if self.selection.point is None else self.candidates.policies[self.selection.point]

    @property
    def fronts(self) -> SearchedFronts:
        """The fronts, priced as served."""
        cautious = np.arange(len(self.front.policies), len(self.candidates.policies))
        return SearchedFronts(self.front, self.candidates.take(cautious))


def solve(problem: Problem, run: Run) -> Solution:
    """Fit the models that the run does not store, and search, certify and test on one part of the rows each."""
    tables = load_tables(problem, run)
    baseline = select_baseline(tables, problem.dataset.labels, problem.dataset.rows.train)
    return certify_fronts(problem, tables, _load_fronts(problem, tables, baseline, run), baseline, run)


def search_fronts(
    problem: Problem, tables: ScoreTables, baseline: Baseline, progress: Progress = ignore_progress
) -> SearchedFronts:
    """Search the cascades to select from on the training rows."""
    labels, rows, gates = problem.dataset.labels, problem.dataset.rows.train, problem.gates
    groups = number_label_groups(problem.data.label_groups, problem.dataset.names)
    front = shortlist_points(search_policies(tables, labels, groups, rows, gates, progress))
    if problem.goal.budget is not None:
        return SearchedFronts(front, front.take(np.arange(0)))
    cautious = search_policies(tables, labels, groups, rows, gates, progress, baseline.answer)
    return SearchedFronts(front, shortlist_points(cautious, MAX_CAUTIOUS_POINTS))


def certify_fronts(
    problem: Problem, tables: ScoreTables, fronts: SearchedFronts, baseline: Baseline, run: Run
) -> Solution:
    """Select and certify a cascade of fronts that were searched on the training rows, and record the attempt."""
    dataset, goal = problem.dataset, problem.goal
    labels, names, rows = dataset.labels, dataset.names, dataset.rows
    priced = price_as_served(tables, fronts.front, labels, rows.train).drop_dominated()
    all_priced = priced.append(price_as_served(tables, fronts.cautious, labels, rows.train))
    front, candidates = priced.points, all_priced.points
    if list_leaks(problem, tables):
        selection = select_none(goal, count_units(tables, rows.calibrate), LEAKED)
    else:
        selection = select_cascade(
            tables, candidates, baseline, labels, rows.train, rows.calibrate, goal, names, all_priced.held_out
        )
        selection = retest_selection(
            tables, candidates, selection, baseline, labels, rows.train, rows.test, goal, names
        )
        parts = [rows.train, rows.calibrate, rows.test]
        # parts in the order of time or by site differ by more than chance: what the cascade was tuned on is left out
        ordered = np.concatenate(parts if problem.data.split.kind in ("random", "leave-out") else parts[1:])
        in_time = dataset.sort_by_time(ordered)
        selection = refuse_late_break(tables, candidates, selection, baseline, labels, in_time, goal, names)
    attempt = _record(problem, candidates, selection, run)
    return Solution(problem, tables, front, candidates, baseline, selection, attempt)


def _record(problem: Problem, front: PolicyFront, selection: Selection, run: Run) -> AttemptCount:
    """Record the certificate, issued or refused, as an attempt on these data."""
    policy = None if selection.point is None else front.policies[selection.point]
    decision = None if policy is None else [_write_stage(stage) for stage in _stages_of(policy)]
    key = identify_attempt(problem.identity, problem.data.seed, problem.dataset.digest, decision)
    attempt = Attempt(key, problem.goal.confidence, problem.name, selection.point is not None)
    return record_attempt(attempt, problem.dataset.digest, problem.goal.attempts, run)


def _stages_of(policy: Policy) -> list[StagePolicy]:
    return [policy.first_stage, *(policy.second_stage[number] for number in sorted(policy.second_stage))]


def list_leaks(problem: Problem, tables: ScoreTables) -> tuple[str, ...]:
    """List the columns that have seen the label: features that predict it, and confidences that separate errors."""
    if not problem.is_recorded:
        return problem.dataset.leaks
    table, labels = tables.first_stage, problem.dataset.labels
    return tuple(
        model.confidence
        for m, model in enumerate(problem.recorded)
        if model.confidence not in problem.data.trusted and is_oracle(table.score[:, m], table.answer[:, m] == labels)
    )


def load_tables(problem: Problem, run: Run) -> ScoreTables:
    """Load the score tables, from recorded predictions or from models, which are fitted if the run lacks them."""
    if problem.is_recorded:
        return load_recorded_tables(problem, run.directory)
    return build_tables(problem, fit_models(problem.zoo, problem.data, problem.dataset, run))


def write_fronts(fronts: SearchedFronts) -> bytes:
    """Encode the searched fronts for the run, the cautious one only if it has points; ``plan`` reads them back."""
    document = {"schema": SCHEMA, "points": _write_points(fronts.front)}
    if fronts.cautious.policies:
        document["cautious"] = _write_points(fronts.cautious)
    return (json.dumps(document) + "\n").encode()


def _write_points(front: PolicyFront) -> list[dict[str, Any]]:
    return [
        {
            "loss": float(loss),
            "cost": float(cost),
            "first": _write_stage(policy.first_stage),
            "then": {str(group): _write_stage(stage) for group, stage in policy.second_stage.items()},
        }
        for loss, cost, policy in zip(front.loss, front.cost, front.policies, strict=True)
    ]


def read_fronts(data: bytes, file: str) -> SearchedFronts:
    """Read the fronts that ``write_fronts`` wrote; those of earlier versions have no cautious cascades.

    Raises:
        UnfoldError: The file is not a front.
    """
    with decoding(file, "a front"):
        document = parse_object(data)
        return SearchedFronts(_read_points(document["points"]), _read_points(document.get("cautious", [])))


def _read_points(points: list[dict[str, Any]]) -> PolicyFront:
    loss, cost = (np.array([float(point[name]) for point in points]) for name in ("loss", "cost"))
    return PolicyFront(loss, cost, tuple(_read_policy(point) for point in points))


def _load_fronts(problem: Problem, tables: ScoreTables, baseline: Baseline, run: Run) -> SearchedFronts:
    gates, dataset = problem.gates, problem.dataset
    inputs = _identify_inputs(problem, tables)
    if problem.goal.budget is None:
        inputs.append(_hash(baseline.answer[dataset.rows.train]))
    made_from = fingerprint(gates.identity, gates.order, gates.conditional, dict(tables.shared_prices), inputs)

    def search() -> bytes:
        run.log.info("searching the gates on %d rows", len(dataset.rows.train))
        return write_fronts(search_fronts(problem, tables, baseline, run.progress))

    file = str(run.directory.path / FRONT_FILE)
    fronts = read_fronts(run.directory.once(FRONT_FILE, made_from, search), file)
    # runs of earlier versions store every point
    return replace(fronts, front=shortlist_points(fronts.front))


def _identify_inputs(problem: Problem, tables: ScoreTables) -> list[Any]:
    """Identify what the front depends on besides the spec."""
    stages = [tables.first_stage, *tables.second_stage.values()]
    arrays = [(table.answer, table.score, table.price, table.call_prices) for table in stages]
    matrix = tables.error_costs.matrix
    return [
        _hash(problem.dataset.labels),
        _hash(problem.dataset.rows.train),
        *(_hash(array) for parts in arrays for array in parts if array is not None),
        [sorted(groups) for table in stages for groups in table.feature_groups],
        # omitted where costs are equal, so that stored fronts keep their fingerprints
        *([] if matrix is None else [_hash(matrix)]),
    ]


def _hash(array: Any) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def _write_stage(stage: StagePolicy) -> dict[str, Any]:
    cuts = [cut if math.isfinite(cut) else (ALWAYS if cut < 0 else NEVER) for cut in stage.cuts]
    document: dict[str, Any] = {"chain": list(stage.chain), "cuts": cuts}
    if stage.curves:
        document["curves"] = [calibrated.write_calibration(curve) for curve in stage.curves]
    return document


def _read_policy(point: dict[str, Any]) -> Policy:
    second = {int(group): _read_stage(stage) for group, stage in point["then"].items()}
    return Policy(_read_stage(point["first"]), second)


def _read_stage(document: dict[str, Any]) -> StagePolicy:
    infinite = {ALWAYS: -math.inf, NEVER: math.inf}
    cuts = tuple(infinite[cut] if isinstance(cut, str) else float(cut) for cut in document["cuts"])
    curves = tuple(calibrated.read_calibration(curve) for curve in document.get("curves", ()))
    return StagePolicy(tuple(int(model) for model in document["chain"]), cuts, curves)
