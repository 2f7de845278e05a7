"""Checks between the parts of a spec without time: each function yields the problems of one part."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from unfold_cascade.learners.estimator_names import (
    INSPECTABLE,
    LIBRARIES,
    NOT_A_CLASSIFIER,
    is_classifier,
    select_inspection,
)
from unfold_cascade.schema.goals import Errors, Goal
from unfold_cascade.schema.spec_sections import Baseline, CostSpec, GateSpec, ModelSpec, Recorded, Stage, Target
from unfoldkit.api import Problem, did_you_mean

Path = tuple[str | int, ...]

MAX_FOLDER_NAME = 80
_FOLDER = re.compile(rf"(?!\.)[^/\\\x00-\x1f\x7f]{{1,{MAX_FOLDER_NAME}}}")


def goal_problems(goal: Goal, *, stages: int, over_time: bool, scored: bool) -> Iterator[Problem]:
    """Yield contradictions within a goal, and between it and the kind of data."""
    if (goal.max_loss is None) == (goal.budget is None):
        yield Problem(("goal",), "give either max_loss or budget", "max_loss: 1%")
    if goal.max_loss is not None and goal.max_loss >= 1:
        yield Problem(("goal", "max_loss"), "must be below 100%: no cascade can lose that much", "max_loss: 1%")
    if goal.max_loss_of is not None:
        yield from _label_loss_problems(goal, over_time=over_time, scored=scored)
    if goal.errors is not None:
        yield from _error_cost_problems(goal.errors, stages=stages, over_time=over_time, scored=scored)


def outcome_problems(goal: Goal, stages: Sequence[Stage], *, over_time: bool) -> Iterator[Problem]:
    """Yield outcomes that are incomplete, ambiguous, or about a stage that the spec does not have."""
    names = [stage.name for stage in stages]
    if goal.outcomes and not over_time:
        yield Problem(("goal", "outcomes"), "applies to cases over time only", at_key=True)
        return
    if goal.outcomes and goal.max_loss is None:
        yield Problem(("goal", "outcomes"), "requires max_loss", "max_loss: 1%", at_key=True)
    for index, outcome in enumerate(goal.outcomes or ()):
        path = ("goal", "outcomes", index)
        kinds = ("sensitivity_within", "alerts_per_100h", "max_utility_loss", "label")
        chosen = [kind for kind in kinds if getattr(outcome, kind) is not None]
        if len(chosen) != 1:
            yield Problem(path, f"give exactly one of {', '.join(kinds)}", "sensitivity_within: 6 h, max_loss: 5%")
        elif outcome.max_loss is not None and chosen[0] not in ("sensitivity_within", "label"):
            yield Problem((*path, "max_loss"), f"does not apply to {chosen[0]}", at_key=True)
        for key, known in (("stage", names), ("label", ["none", *names])):
            name = getattr(outcome, key)
            if name is not None and name not in known:
                yield Problem((*path, key), f'there is no stage "{name}"', did_you_mean(name, known))


def _label_loss_problems(goal: Goal, *, over_time: bool, scored: bool) -> Iterator[Problem]:
    path = ("goal", "max_loss_of")
    if over_time:
        yield Problem(path, "applies to cases without time only", at_key=True)
    elif scored:
        yield Problem(path, "needs labels: scores only say which predictions are correct", at_key=True)
    if goal.max_loss is None:
        yield Problem(path, "requires max_loss", "max_loss: 1%", at_key=True)
    for label, loss in (goal.max_loss_of or {}).items():
        if loss >= 1:
            yield Problem((*path, label), "must be below 100%: no cascade can lose that much", "5%")


def _error_cost_problems(errors: Errors, *, stages: int, over_time: bool, scored: bool) -> Iterator[Problem]:
    path = ("goal", "errors")
    if over_time:
        yield Problem(path, "applies to cases without time only; over time, see alerts", at_key=True)
    elif scored:
        yield Problem(path, "needs labels: scores only say which predictions are correct", at_key=True)
    elif stages > 1:
        yield Problem(path, "applies to one stage only", at_key=True)
    if isinstance(errors, str):
        return
    for label, cost in errors.items():
        if isinstance(cost, dict) and label in cost:
            yield Problem((*path, label, label), "a correct prediction costs nothing", at_key=True)


def name_problems(stages: Sequence[Stage], baseline: Baseline | None) -> Iterator[Problem]:
    """Yield names that cannot be used: of stages, of groups and of estimators."""
    for s, stage in enumerate(stages):
        if stage.name == "baseline":
            yield Problem(("stages", s, "name"), '"baseline" is reserved for the baseline models', "another name")
        for group in stage.target.groups or ():
            yield from _folder_name_problems(group, ("stages", s, "target", "groups", group))
    yield from _estimator_problems(stages, baseline)


def _folder_name_problems(name: str, path: Path) -> Iterator[Problem]:
    """Yield a group name that would leave the folder of models, or create a subfolder."""
    if not _FOLDER.fullmatch(name):
        safe = re.sub(r"[^\w-]+", "-", name).strip("-_") or "rest"
        hint = f'it is also the name of a folder; use "{safe[:MAX_FOLDER_NAME]}"'
        yield Problem(path, f"{name!r} is not a valid group name", hint, at_key=True)


def _estimator_problems(stages: Sequence[Stage], baseline: Baseline | None) -> Iterator[Problem]:
    """Yield paths into scikit-learn and XGBoost that are not classifiers. Paths outside are not imported here."""
    for path, estimator in _list_estimators(stages, baseline):
        if estimator.startswith(LIBRARIES) and not is_classifier(estimator):
            message = f"{estimator} {NOT_A_CLASSIFIER}"
            yield Problem((*path, "estimator"), message, "a classifier, such as random-forest")


def _list_estimators(stages: Sequence[Stage], baseline: Baseline | None) -> Iterator[tuple[Path, str]]:
    for s, stage in enumerate(stages):
        for m, model in enumerate(stage.models):
            yield ("stages", s, "models", m), model.estimator or ""
    if baseline is not None:
        yield ("baseline",), baseline.estimator or ""
        for c, candidate in enumerate(baseline.candidates):
            yield ("baseline", "candidates", c), candidate.estimator
        for r, rival in enumerate(baseline.rivals):
            yield ("baseline", "rivals", r), rival.estimator


def confidence_problems(gates: GateSpec, stages: Sequence[Stage], *, over_time: bool) -> Iterator[Problem]:
    """Yield a confidence that no model of the stages supports."""
    name = gates.confidence or ""
    estimators = [model.estimator or "" for stage in stages for model in stage.models]
    if name in INSPECTABLE and not any(select_inspection(name, estimator) for estimator in estimators):
        short_names = ", ".join(estimator for estimator in INSPECTABLE[name] if "." not in estimator)
        hint = f"it reads the internals of {short_names}"
        yield Problem(("gates", "confidence"), f"no model of the stages supports {name}", hint)
    if over_time and name in ("label-conditional", "either"):
        yield Problem(("gates", "confidence"), f"{name} applies to cases without time only")


def repeated_stage_problems(stages: Sequence[Stage]) -> Iterator[Problem]:
    """Yield the names that two stages share."""
    yield from repeated_name_problems([(("stages", s, "name"), stage.name) for s, stage in enumerate(stages)])


def target_problems(stages: Sequence[Stage]) -> Iterator[Problem]:
    """Yield targets that do not fit the position of their stage."""
    final = len(stages) - 1
    for s, stage in enumerate(stages):
        target, path = stage.target, ("stages", s, "target")
        if s == final and (target.column is None or target.groups is not None):
            yield Problem(path, "the last stage decides the label itself", "target: {column: NAME}")
        if s < final and (target.groups is None or target.column is not None):
            hint = "target: {groups: {a: [0, 1], b: [2]}}"
            yield Problem(path, "a stage before the last decides between groups", hint)
        yield from _group_problems(target, path)


def _group_problems(target: Target, path: Path) -> Iterator[Problem]:
    if target.groups is None:
        return
    if len(target.groups) < 2:
        yield Problem((*path, "groups"), "needs at least two groups")
    group_of: dict[str, str] = {}
    for name, labels in target.groups.items():
        for label in labels:
            if str(label) in group_of:
                yield Problem((*path, "groups", name), f"the label {label} is also in {group_of[str(label)]!r}")
            group_of[str(label)] = name


def model_problems(stages: Sequence[Stage], features: Collection[str], *, recorded: bool) -> Iterator[Problem]:
    """Yield repeated names of models, and problems of the models that are to be fitted."""
    for s, stage in enumerate(stages):
        names: list[tuple[Path, str]] = [
            (("stages", s, "models", m, "name"), model.name) for m, model in enumerate(stage.models)
        ]
        yield from repeated_name_problems(names)
        for m, model in enumerate(stage.models):
            yield from () if recorded else _fitted_model_problems(model, features, ("stages", s, "models", m))


def _fitted_model_problems(model: ModelSpec, features: Collection[str], path: Path) -> Iterator[Problem]:
    if model.estimator is None:
        yield Problem(path, "the estimator is missing", "estimator: logistic-regression")
    options = (model.features, model.scale, model.tune)
    if model.estimator == "baseline" and (model.params or any(option is not None for option in options)):
        yield Problem((*path, "estimator"), "the baseline has no params, features, scale or tune of its own")
    if model.recorded is not None:
        yield Problem((*path, "recorded"), "applies to data: {source: recorded} only", at_key=True)
    yield from feature_problems(model.features, features, path)


def feature_problems(names: Sequence[str] | None, features: Collection[str], path: Path) -> Iterator[Problem]:
    """Yield each of the names, written below ``path``, that no feature group has."""
    for f, name in enumerate(names or ()):
        if name not in features:
            hint = did_you_mean(name, features)
            yield Problem((*path, "features", f), f'no such feature group: "{name}"', hint)


def baseline_problems(
    stages: Sequence[Stage], features: Collection[str], baseline: Baseline | None
) -> Iterator[Problem]:
    """Yield unknown feature groups of the candidates, and contradictory prices of the baseline."""
    candidates = baseline.candidates if baseline else ()
    for c, candidate in enumerate(candidates):
        yield from feature_problems(candidate.features, features, ("baseline", "candidates", c))
    prices = {candidate.price for candidate in candidates} - {None}
    for path, price in list_baseline_prices(stages):
        if prices - {price}:
            yield Problem(path, "contradicts another price of the baseline", "give the price once", at_key=True)
        prices.add(price)


def candidates_problems(baseline: Baseline | None) -> Iterator[Problem]:
    """Yield that the baseline, or its candidates, are missing; ``baseline.estimator`` has a message of its own."""
    candidates = "candidates: [{estimator: svc}]"
    if baseline is None:
        yield Problem(("baseline",), "this key is missing", f"baseline: {{{candidates}}}")
    elif not baseline.candidates and baseline.estimator is None:
        yield Problem(("baseline", "candidates"), "this key is missing", candidates)


def list_baseline_prices(stages: Sequence[Stage]) -> Iterator[tuple[Path, float]]:
    """Yield the price of each model ``estimator: baseline`` that has one, with its path in the spec."""
    for s, stage in enumerate(stages):
        for m, model in enumerate(stage.models):
            if model.estimator == "baseline" and isinstance(model.price, float):
                yield ("stages", s, "models", m, "price"), model.price


def recorded_problems(stages: Sequence[Stage], cost: CostSpec, gates: GateSpec, *, scored: bool) -> Iterator[Problem]:
    """Yield missing and misplaced keys of a spec of recorded predictions."""
    for s, stage in enumerate(stages):
        for m, model in enumerate(stage.models):
            yield from _recorded_model_problems(model, ("stages", s, "models", m))
    if scored:
        yield from _score_problems(stages[0], gates)
    if len(stages) > 1:
        yield Problem(("stages",), "recorded predictions have one stage")
    if cost.by != "price":
        yield Problem(("cost",), "recorded models are compared by price", "cost: {by: price}")


def _recorded_model_problems(model: ModelSpec, path: Path) -> Iterator[Problem]:
    if model.recorded is None:
        yield Problem(
            path, "the columns of its predictions are missing", "recorded: {prediction: COLUMN, confidence: COLUMN}"
        )
    else:
        yield from _column_problems(model.recorded, (*path, "recorded"))
    has_price_column = model.recorded is not None and model.recorded.price is not None
    if model.price is None and not has_price_column:
        yield Problem(path, "the price of one call is missing", "price: 0.001")
    if model.price is not None and has_price_column:
        yield Problem((*path, "price"), "recorded.price already names a column of prices", at_key=True)
    for key in ("estimator", "tune"):
        if getattr(model, key) is not None:
            yield Problem((*path, key), "nothing is fitted from recorded predictions", at_key=True)


def _column_problems(columns: Recorded, path: Path) -> Iterator[Problem]:
    if (columns.prediction is None) == (columns.score is None):
        yield Problem(path, "give either prediction or score", "prediction: COLUMN")
    if columns.confidence is None:
        yield Problem((*path, "confidence"), "this key is missing", "confidence: COLUMN")
    if columns.right_from is not None and columns.score is None:
        yield Problem((*path, "right_from"), "applies to score only", at_key=True)


def _score_problems(stage: Stage, gates: GateSpec) -> Iterator[Problem]:
    """Yield keys that need labels, where a log holds scores only."""
    if stage.target != Target():
        yield Problem(
            ("stages", 0, "target"), "not read: scores already say which predictions are correct", at_key=True
        )
    if gates.confidence in ("label-conditional", "either"):
        yield Problem(("gates", "confidence"), "scores do not contain predictions", "confidence: max-probability")
    for m, model in enumerate(stage.models):
        if model.recorded is not None and model.recorded.score is None:
            hint = "score: COLUMN, as for the other models"
            yield Problem(("stages", 0, "models", m, "recorded"), "has no score", hint)


def repeated_name_problems(names: Sequence[tuple[Path, str]]) -> Iterator[Problem]:
    """Yield each of the names, with their paths, that one before it has."""
    seen: set[str] = set()
    for path, name in names:
        if name in seen:
            yield Problem(path, f'the name "{name}" is taken')
        seen.add(name)
