"""Load what a run stores of a plan: score tables, models, and the policy to serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from unfold_cascade.models.zoo import BASELINE, RESUME_HINT, WHOLE, ModelSlot, Predictions, load_models
from unfold_cascade.planner.planner import FRONT_FILE, read_fronts
from unfold_cascade.planner.policy import Policy, StagePolicy
from unfold_cascade.planner.problem import Problem
from unfold_cascade.planner.recorded_scores import load_stored_tables
from unfold_cascade.planner.score_tables import ScoreTable, ScoreTables, build_tables
from unfold_cascade.planner.select import Baseline, select_baseline
from unfold_cascade.report.threshold_tables import matches_plan
from unfoldkit.api import Run, RunDir, fingerprint, user_error
from unfoldkit.safe_io.files import decoding
from unfoldkit.spec.resolve import RUN_PLAN

ModelKey = tuple[str, str, str]
"""Stage, group and name of a model."""


@dataclass(frozen=True, slots=True)
class LoadedPlan:
    """A plan and all that the run stores of it; without a cascade the policy is the baseline, a chain of one model.

    ``models`` is empty for recorded predictions.
    """

    problem: Problem
    tables: ScoreTables
    models: Mapping[ModelKey, tuple[ModelSlot, Predictions]]
    policy: Policy
    baseline: Baseline
    is_cascade: bool

    def stored_key(self, table: ScoreTable, m: int) -> ModelKey:
        """Return the key of a model as the run stores it: that of the baseline for the last resort."""
        key = (table.stage, table.group, table.models[m])
        return key if key in self.models else (BASELINE, WHOLE, self.baseline.name)

    def is_last_resort(self, table: ScoreTable, m: int) -> bool:
        """Whether the model of a stage is the baseline itself."""
        return (table.stage, table.group, table.models[m]) not in self.models

    def evaluated_stages(self) -> list[tuple[ScoreTable, StagePolicy]]:
        """List the tables and policies of the stages that evaluate models."""
        return [(table, stage) for table, stage in self.policy.stages(self.tables) if not table.is_single_label]


def load_plan(identity: Any, run: Run, file: str) -> Mapping[str, Any]:
    """Load the plan to serve.

    Args:
        identity: The spec as plain data.
        run: The run, which names the plan among its options.
        file: A file that every trained run stores.

    Raises:
        UnfoldError: There is no plan, or it was made for another spec.
    """
    plan: Mapping[str, Any] = run.options.get("plan") or {}
    if not plan or not run.directory.has(file):
        hint = "run unfold train SPEC first"
        raise user_error("the run has no plan: this cascade was not trained", file=str(run.directory.path), hint=hint)
    if plan.get("spec_sha256") != fingerprint(identity):
        raise user_error("the plan was made for another spec", file=str(run.directory.path), hint=RESUME_HINT)
    return plan


def load_stored_plan(problem: Problem, plan: Mapping[str, Any], directory: RunDir) -> LoadedPlan:
    """Load a plan from a run; nothing is fitted.

    Raises:
        UnfoldError: A file was changed, or the plan is not of this run.
    """
    if problem.is_recorded:
        models, tables = [], load_stored_tables(problem, directory)
    else:
        models = load_models(problem.zoo, problem.data, problem.dataset, directory)
        tables = build_tables(problem, models)
    by_key = {(slot.stage, slot.group, slot.model): (slot, predictions) for slot, predictions in models}
    baseline = select_baseline(tables, problem.dataset.labels, problem.dataset.rows.train)
    stages = plan["decision"].get("cascade")
    if stages is None:
        single = replace(tables, first_stage=tables.candidates, second_stage={})
        policy = Policy(StagePolicy((baseline.index,), ()), {})
        return LoadedPlan(problem, single, by_key, policy, baseline, is_cascade=False)
    policy = _find_policy(tables, stages, directory)
    return LoadedPlan(problem, tables, by_key, policy, baseline, is_cascade=True)


def _find_policy(tables: ScoreTables, stages: Any, directory: RunDir) -> Policy:
    """Find the policy of the stored front that a plan describes."""
    fronts, file = read_fronts(directory.read(FRONT_FILE), str(directory.path / FRONT_FILE)), directory.path / RUN_PLAN
    with decoding(str(file), "the plan of this run"):
        for policy in fronts.front.policies + fronts.cautious.policies:
            if matches_plan(tables, policy, stages):
                return policy
    message = "the plan is not from this run: its front has no such cascade"
    raise user_error(message, file=str(file), hint=RESUME_HINT)
