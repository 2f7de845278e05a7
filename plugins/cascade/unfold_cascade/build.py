"""Resolve a spec of cases without time into a ``Problem``: the only module below the verbs that reads a spec."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from unfold_cascade.data.dataset import Dataset, DatasetOptions, load_dataset
from unfold_cascade.data.splits import resolve_split
from unfold_cascade.data.table import TableSource
from unfold_cascade.learners.estimators import Recipe
from unfold_cascade.models.tuned_params import resolve_recipe
from unfold_cascade.models.zoo import BASELINE, ModelOptions, StageOptions, ZooOptions, name_candidate
from unfold_cascade.planner.ledger import split_confidence
from unfold_cascade.planner.problem import CostOptions, DriftRule, GateOptions, Goal, Problem, RecordedModel
from unfold_cascade.schema.cascade import CascadeSpec
from unfold_cascade.schema.cell_values import label_text
from unfold_cascade.schema.spec_sections import Candidate, ModelSpec, Stage
from unfold_cascade.schema.temporal import Drift
from unfold_cascade.schema.validation import list_baseline_prices
from unfoldkit.api import Run, dump, user_error
from unfoldkit.safe_io.files import first_line

COST_UNITS = {"flops": "FLOPs", "bytes": "bytes", "latency": "µs", "price": "$"}


def build_problem(spec: CascadeSpec, run: Run, dataset: Dataset | None = None) -> Problem:
    """Resolve a spec: read its table (unless ``dataset`` is given), tuned parameters and prices.

    Raises:
        UnfoldError: A file, column, label or tuning run is not as the spec says.
    """
    data = build_dataset_options(spec, run)
    return Problem(
        name=spec.name,
        data=data,
        dataset=load_dataset(data, run) if dataset is None else dataset,
        zoo=_build_zoo_options(spec, run),
        recorded=build_recorded_models(spec),
        cost=_build_cost_options(spec),
        gates=GateOptions(
            confidence=spec.gates.confidence,
            order=spec.order,
            conditional=spec.conditional,
            max_models=spec.gates.max_models,
            bins=spec.gates.bins,
            learnt=spec.gates.learnt,
            identity=dump(spec.gates),
        ),
        goal=_build_goal(spec),
        drift=_build_drift_rule(spec),
        identity=dump(spec),
    )


def find_checked_spec(spec: CascadeSpec, run: Run, file: str, is_same_data: Callable[[], bool]) -> CascadeSpec | None:
    """Find the spec of the plan to check, if the run stores ``file`` and ``spec`` names other data.

    Args:
        spec: The new spec.
        run: Names the plan to check among its options, if there is one.
        file: A file that every trained run stores.
        is_same_data: Whether the run was made from the data of ``spec``.

    Raises:
        UnfoldError: The plan's spec is damaged, or other keys than the data changed: there is no single cause to check.
    """
    plan: Mapping[str, Any] = run.options.get("baseline_plan") or {}
    if not plan or not run.directory.has(file) or "spec" not in plan:
        return None
    # validated as JSON: only there may a list stand for a tuple
    try:
        checked = CascadeSpec.model_validate_json(json.dumps(plan["spec"]))
    except ValueError as error:
        hint = "unfold plan SPEC --out PLAN writes it again"
        raise user_error(f"the spec in the plan to check is damaged: {first_line(error)}", hint=hint) from error
    is_same_source = dump(checked.data) == dump(spec.data)
    if is_same_source and (dump(checked) != dump(spec) or is_same_data()):
        return None
    if dump(checked.model_copy(update={"data": spec.data})) != dump(spec):
        hint = "keep the spec of the plan: unfold plan --check PLAN --set data.path=..."
        raise user_error("the data and other keys of the spec changed together", key="data", hint=hint)
    return checked


def build_dataset_options(spec: CascadeSpec, run: Run) -> DatasetOptions:
    """Resolve the data of a spec; no file is read yet."""
    final = len(spec.stages) - 1
    groups = spec.stages[0].target.groups
    features = {name: group.columns for name, group in spec.features.items()}
    return DatasetOptions(
        source=build_table_source(spec, run),
        label_column=spec.stages[final].target.column or "",
        label_key=f"stages[{final}].target.column",
        is_recorded=spec.data.source == "recorded",
        is_scored=spec.scored,
        label_groups=None if groups is None else {name: tuple(map(label_text, ls)) for name, ls in groups.items()},
        features=features,
        split=resolve_split(spec.data.split, run),
        seed=run.seed,
        recorded=_list_recorded_columns(spec),
        groups_copies=getattr(spec.data, "duplicates", None) != "keep",
        trusted=getattr(spec.data, "trusted", None) or (),
        identity=(dump(spec.data), _dump_targets(spec), {name: list(columns) for name, columns in features.items()}),
    )


def _list_recorded_columns(spec: CascadeSpec) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """List the columns of recorded models: those with numbers, and those with predictions."""
    recorded = [model.recorded for model in spec.stages[0].models if model.recorded is not None]
    numbers = [column for each in recorded for column in (each.confidence, each.score, each.price) if column]
    return tuple(numbers), tuple(each.prediction for each in recorded if each.prediction)


def build_table_source(spec: CascadeSpec, run: Run) -> TableSource:
    """Resolve the table of a spec; it is located when it is read, as a service does not need it."""
    data = spec.data
    if data.source == "sklearn":
        return TableSource(bundled=data.dataset)
    if data.source == "endpoints":
        raise user_error("a log of calls is read by the plan of language models only", key="data.source")
    return TableSource(
        path=data.path,
        locate=partial(run.path, data.path, key="data.path"),
        allows_categories=data.source == "table",
        categories=data.categories if data.source == "table" else (),
        group=spec.group or "",
    )


def build_recorded_models(spec: CascadeSpec) -> tuple[RecordedModel, ...]:
    """Resolve the recorded models of a spec; none where models are fitted."""
    models = spec.stages[0].models if spec.data.source == "recorded" else ()
    return tuple(
        RecordedModel(
            name=model.name,
            key=f"stages[0].models[{m}].recorded",
            prediction=model.recorded.prediction,
            score=model.recorded.score or "",
            correct_from=model.recorded.right_from,
            confidence=model.recorded.confidence or "",
            price=fixed_price(model),
            price_column=model.recorded.price,
            identity=dump(model),
        )
        for m, model in enumerate(models)
        if model.recorded is not None
    )


def fixed_price(model: ModelSpec) -> float:
    """Return the price of one call in the unit of the costs; token prices belong to language models."""
    return model.price if isinstance(model.price, float) else 0.0


def _build_zoo_options(spec: CascadeSpec, run: Run) -> ZooOptions:
    is_recorded = spec.data.source == "recorded"
    candidates = spec.baseline.candidates if spec.baseline and not is_recorded else ()
    return ZooOptions(
        stages=tuple(_build_stage(stage, s, run, is_recorded=is_recorded) for s, stage in enumerate(spec.stages)),
        candidates=tuple(_build_candidate(spec, candidate, c, run) for c, candidate in enumerate(candidates)),
        confidence=spec.gates.confidence,
        folds=spec.gates.folds,
        batch=spec.cost.batch,
        seed=run.seed,
        identity=(dump(spec.data), _dump_targets(spec)),
    )


def _build_stage(stage: Stage, s: int, run: Run, *, is_recorded: bool) -> StageOptions:
    models = [] if is_recorded else list(enumerate(stage.models))
    return StageOptions(
        name=stage.name,
        models=tuple(_build_model(model, f"stages[{s}].models[{m}].estimator", run) for m, model in models),
        decides_groups=stage.target.groups is not None,
    )


def _build_model(model: ModelSpec, key: str, run: Run) -> ModelOptions:
    is_baseline = model.estimator == BASELINE
    recipe = Recipe(BASELINE, {}) if is_baseline else resolve_recipe(model, run, key=key)
    return ModelOptions(key=key, name=model.name, recipe=recipe, features=model.features, price=fixed_price(model))


def _build_candidate(spec: CascadeSpec, candidate: Candidate, c: int, run: Run) -> ModelOptions:
    key = f"baseline.candidates[{c}].estimator"
    price = candidate.price
    if price is None:
        # the price may be given at a model of a stage that is the baseline
        price = next((stage_price for _, stage_price in list_baseline_prices(spec.stages)), None)
    return ModelOptions(
        key=key,
        name=name_candidate(c, candidate.estimator),
        recipe=resolve_recipe(candidate, run, key=key),
        features=candidate.features,
        price=price or 0.0,
    )


def _build_cost_options(spec: CascadeSpec) -> CostOptions:
    prices = {name: group.price for name, group in spec.features.items()} if spec.cost.by == "price" else {}
    unit = spec.cost.unit or COST_UNITS[spec.cost.by]
    return CostOptions(by=spec.cost.by, unit=unit, batch=spec.cost.batch, feature_prices=prices)


def _build_goal(spec: CascadeSpec) -> Goal:
    goal = spec.goal
    return Goal(
        max_loss=goal.max_loss,
        max_loss_of=goal.max_loss_of or {},
        budget=goal.budget,
        min_saving=goal.required_saving,
        confidence=split_confidence(goal.confidence, goal.attempts or 1),
        attempts=goal.attempts or 1,
        errors=goal.errors,
        document=goal.model_dump(mode="json", exclude_none=True),
    )


def _build_drift_rule(spec: CascadeSpec) -> DriftRule:
    drift = spec.drift or Drift()
    return DriftRule(level=drift.level, margin=drift.margin)


def _dump_targets(spec: CascadeSpec) -> list[Any]:
    return [dump(stage.target) for stage in spec.stages]
