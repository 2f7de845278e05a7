"""Resolve a spec over time into a ``TemporalProblem``: the only module of this package that reads specs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from unfold_cascade.data.splits import resolve_split
from unfold_cascade.learners.estimator_names import select_inspection
from unfold_cascade.models.tuned_params import resolve_recipe
from unfold_cascade.planner.ledger import split_confidence
from unfold_cascade.planner.problem import DriftRule
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.schema.goals import PromisedOutcome
from unfold_cascade.schema.spec_sections import Baseline, FeatureGroup, ModelSpec, Rival, Stage
from unfold_cascade.schema.temporal import Alerts, Drift, LongData, Moves, PhysioNetData
from unfold_cascade.temporal.problem import (
    BASELINE,
    BASELINE_MODEL,
    HOUR_S,
    WINDOW_H,
    AlertBudget,
    CascadeGoal,
    CostOptions,
    FeatureSet,
    GateOptions,
    LongSource,
    ModelTask,
    OutcomeGoal,
    PsvSource,
    SpecDocuments,
    StageTarget,
    StageTask,
    TableSource,
    TemporalProblem,
    Transitions,
)
from unfoldkit.api import Run, dump


def build_temporal_problem(spec: CascadeSpec, run: Run) -> TemporalProblem:
    """Resolve a spec over time; tuned parameters are read from their tuning runs, the table is not read.

    Raises:
        UnfoldError: A tuning run is missing, has no winner, or tuned another estimator.
    """
    alerts, drift, split = spec.alerts or Alerts(), spec.drift or Drift(), resolve_split(spec.data.split, run)
    return TemporalProblem(
        name=spec.name,
        source=_table_source(spec, split.column),
        features={name: build_feature_set(group) for name, group in spec.features.items()},
        stages=tuple(_stage_task(spec, run, number, stage) for number, stage in enumerate(spec.stages)),
        baselines=tuple(_baseline_tasks(spec, run)),
        transitions=_transitions(spec.moves or Moves()),
        alerts=AlertBudget(alerts.per_100h, alerts.utility_margin, alerts.auprc_margin),
        drift=DriftRule(level=drift.level, margin=drift.margin),
        audit_share=drift.audit,
        durability=spec.durability or "normal",
        goal=_goal(spec),
        cost=CostOptions(spec.cost.by, spec.cost.batch, spec.cost.unit),
        gates=GateOptions(spec.gates.folds, spec.gates.order or "sorted", spec.gates.max_models, spec.gates.learnt),
        split=split,
        seed=run.seed,
        documents=SpecDocuments(
            dump(spec),
            spec.goal.model_dump(mode="json", exclude_none=True),
            spec.moves.model_dump(mode="json") if spec.moves else None,
        ),
    )


def build_feature_set(group: FeatureGroup) -> FeatureSet:
    """Resolve one feature group; without ``valid_for`` values are carried forward without limit but bought hourly."""
    return FeatureSet(
        columns=group.columns,
        derive=group.derive,
        price=group.price,
        valid_h=(group.valid_for or 0.0) / HOUR_S,
        carry_h=math.inf if group.valid_for is None else group.valid_for / HOUR_S,
        window_h=WINDOW_H if group.window is None else group.window / HOUR_S,
        rule=group.rule,
    )


def _table_source(spec: CascadeSpec, split_column: str) -> TableSource:
    if isinstance(spec.data, PhysioNetData):
        return PsvSource(spec.data.path, spec.data.patients, split_column)
    if isinstance(spec.data, LongData):
        return LongSource(spec.data.path, spec.data.entity, spec.data.time, split_column, spec.data.group or "")
    raise TypeError(f"data without time: {spec.data.source}")


def _stage_task(spec: CascadeSpec, run: Run, number: int, stage: Stage) -> StageTask:
    models = (
        _model_task(spec, run, f"stages[{number}].models[{m}].estimator", stage.name, model.name, model)
        for m, model in enumerate(stage.models)
    )
    return StageTask(
        name=stage.name,
        target=StageTarget(stage.target.column, stage.target.rule, (stage.target.ahead or 0.0) / HOUR_S),
        models=tuple(models),
        is_parallel=stage.parallel,
        fresh_h=math.inf if stage.fresh is None else stage.fresh / HOUR_S,
        learns_utility=stage.learn == "utility",
    )


def _baseline_tasks(spec: CascadeSpec, run: Run) -> Iterator[ModelTask]:
    if spec.baseline is None:
        return
    for r, rival in enumerate(spec.baseline.rivals):
        yield _model_task(spec, run, f"baseline.rivals[{r}].estimator", BASELINE, rival.name, rival)
    yield _model_task(spec, run, "baseline.estimator", BASELINE, BASELINE_MODEL, spec.baseline)


def _model_task(
    spec: CascadeSpec, run: Run, key: str, stage: str, name: str, model: ModelSpec | Rival | Baseline
) -> ModelTask:
    resolved = resolve_recipe(model, run, key=key)
    confidence = select_inspection(spec.gates.confidence, resolved.estimator) if stage != BASELINE else None
    return ModelTask(
        key=key,
        stage=stage,
        name=name,
        recipe=resolved,
        feature_sets=model.features,
        price=getattr(model, "price", None) or 0.0,
        inspection=confidence,
    )


def _goal(spec: CascadeSpec) -> CascadeGoal:
    goal, attempts = spec.goal, spec.goal.attempts or 1
    stages = [stage.name for stage in spec.stages]
    outcomes = tuple(_outcome(outcome, stages) for outcome in goal.outcomes or ())
    confidence = split_confidence(goal.confidence, attempts)
    return CascadeGoal(
        max_loss=goal.max_loss,
        budget=goal.budget,
        confidence=confidence,
        attempts=attempts,
        outcomes=outcomes,
        min_saving=goal.required_saving,
    )


def _outcome(outcome: PromisedOutcome, stages: list[str]) -> OutcomeGoal:
    stage = stages.index(outcome.stage) + 1 if outcome.stage else len(stages)
    allowed = outcome.max_loss or 0.0
    of_stage = f" of {stages[stage - 1]}"
    if outcome.sensitivity_within is not None:
        within_h = outcome.sensitivity_within / HOUR_S
        measure = f"sensitivity{of_stage} within {within_h:g} h"
        name = f"{measure}: loss ≤ {100 * allowed:g} points"
        return OutcomeGoal(name=name, measure=measure, stage=stage, within_h=within_h, allowed=allowed)
    if outcome.alerts_per_100h is not None:
        measure = f"alerts{of_stage}"
        name = f"{measure} ≤ {outcome.alerts_per_100h:g} per 100 h"
        return OutcomeGoal(name=name, measure=measure, stage=stage, per_100h=outcome.alerts_per_100h)
    if outcome.label is not None:
        label = stages.index(outcome.label) + 1 if outcome.label in stages else 0
        measure = f"loss in hours of {outcome.label}"
        name = f"{measure} ≤ {100 * allowed:g} points"
        return OutcomeGoal(name=name, measure=measure, stage=stage, label=label, allowed=allowed)
    lost = outcome.max_utility_loss or 0.0
    return OutcomeGoal(name=f"utility: loss ≤ {lost:g}", measure="utility", stage=stage, allowed=lost)


def _transitions(moves: Moves) -> Transitions:
    return Transitions(moves.entry, moves.confirm, moves.advance, moves.alarm)
