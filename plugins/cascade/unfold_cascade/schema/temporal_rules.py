"""Checks between the parts of a spec that depend on time: keys of time without such data, and data over time."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence

from unfold_cascade.clinical_rules import RULE_CARRY_H
from unfold_cascade.schema.spec_sections import Baseline, CostSpec, FeatureGroup, ModelSpec, Stage, Target
from unfold_cascade.schema.temporal import Alerts, Moves
from unfold_cascade.schema.validation import feature_problems, repeated_name_problems
from unfoldkit.api import Model, Problem

Path = tuple[str | int, ...]
NEEDS_TIME = "applies to data over time (source: physionet2019 or long) only"


def keys_of_time_problems(
    *,
    features: Mapping[str, FeatureGroup],
    stages: Sequence[Stage],
    baseline: Baseline | None,
    cost: CostSpec,
    moves: Moves | None,
    alerts: Alerts | None,
    durability: str | None,
) -> Iterator[Problem]:
    """Yield every key of time in a spec without data over time."""
    for key, value in (("moves", moves), ("alerts", alerts), ("durability", durability)):
        if value is not None:
            yield Problem((key,), NEEDS_TIME, at_key=True)
    for name, group in features.items():
        yield from _changed_keys(group, ("valid_for", "window", "derive", "rule"), ("features", name))
    for s, stage in enumerate(stages):
        yield from _stage_keys_of_time(stage, ("stages", s))
    if len(stages) > 2:
        yield Problem(("stages",), "more than two stages require data over time")
    if cost.by == "price+flops":
        yield Problem(("cost", "by"), NEEDS_TIME)
    if baseline is not None and baseline.estimator is not None:
        yield Problem(("baseline", "estimator"), NEEDS_TIME, "candidates: [{estimator: svc}]", at_key=True)
    if baseline is not None and baseline.rivals:
        yield Problem(("baseline", "rivals"), NEEDS_TIME, at_key=True)


def temporal_problems(
    *, features: Mapping[str, FeatureGroup], stages: Sequence[Stage], baseline: Baseline | None, cost: CostSpec
) -> Iterator[Problem]:
    """Yield the contradictions and missing keys of a spec over time."""
    if not features:
        yield Problem(("features",), "this key is missing", "features: {all: {columns: [HR, Resp]}}")
    yield from _feature_group_problems(features)
    yield from repeated_name_problems([(("stages", s, "name"), stage.name) for s, stage in enumerate(stages)])
    for s, stage in enumerate(stages):
        if stage.learn == "utility" and s < len(stages) - 1:
            yield Problem(("stages", s, "learn"), "only the last stage alerts", at_key=True)
        yield from _target_problems(stage.target, ("stages", s, "target"))
        names: list[tuple[Path, str]] = [
            (("stages", s, "models", m, "name"), model.name) for m, model in enumerate(stage.models)
        ]
        yield from repeated_name_problems(names)
        for m, model in enumerate(stage.models):
            yield from _model_problems(model, features, ("stages", s, "models", m))
    yield from _baseline_problems(baseline, features)
    if baseline is not None and "price" in cost.by:
        yield from _free_baseline_problems(baseline, features)


def _stage_keys_of_time(stage: Stage, path: Path) -> Iterator[Problem]:
    yield from _changed_keys(stage, ("parallel", "fresh", "learn"), path)
    yield from _changed_keys(stage.target, ("rule", "ahead"), (*path, "target"))


def _changed_keys(model: Model, keys: Sequence[str], path: Path) -> Iterator[Problem]:
    """Yield the keys of time that differ from their default."""
    for key in keys:
        # model_fields_set does not help: a spec written by this tool contains its defaults too
        default = type(model).model_fields[key].get_default(call_default_factory=True)
        if getattr(model, key) != default:
            yield Problem((*path, key), NEEDS_TIME, at_key=True)


def _feature_group_problems(features: Mapping[str, FeatureGroup]) -> Iterator[Problem]:
    """Yield the groups that provide no feature."""
    for name, group in features.items():
        if not group.derive and group.rule is None:
            yield Problem(("features", name, "derive"), "provides no feature", "derive: [last]")
        if group.rule is None:
            continue
        columns = RULE_CARRY_H[group.rule]
        if not any(fnmatch.fnmatchcase(column, pattern) for column in columns for pattern in group.columns):
            hint = f"it reads {', '.join(columns)}"
            yield Problem(("features", name, "rule"), f"no column of the group is in {group.rule}", hint)


def _target_problems(target: Target, path: Path) -> Iterator[Problem]:
    if target.groups is not None:
        yield Problem((*path, "groups"), "applies to cases without time only", at_key=True)
    if (target.column is None) == (target.rule is None):
        yield Problem(path, "give either a column or a rule", "target: {rule: sirs, ahead: 6 h}")


def _model_problems(model: ModelSpec, features: Collection[str], path: Path) -> Iterator[Problem]:
    if model.estimator is None:
        yield Problem(path, "the estimator is missing", "estimator: logistic-regression")
    if model.recorded is not None:
        yield Problem((*path, "recorded"), "applies to data: {source: recorded} only", at_key=True)
    yield from feature_problems(model.features, features, path)


def _baseline_problems(baseline: Baseline | None, features: Collection[str]) -> Iterator[Problem]:
    if baseline is None or baseline.estimator is None:
        yield Problem(("baseline",), "the baseline model is missing", "baseline: {estimator: xgboost}")
        return
    if baseline.candidates:
        message = "over time there is one baseline: give its estimator"
        yield Problem(("baseline", "candidates"), message, at_key=True)
    yield from feature_problems(baseline.features, features, ("baseline",))
    names: list[tuple[Path, str]] = [
        (("baseline", "rivals", r, "name"), rival.name) for r, rival in enumerate(baseline.rivals)
    ]
    yield from repeated_name_problems([(("baseline",), "monolith"), *names])
    for r, rival in enumerate(baseline.rivals):
        yield from feature_problems(rival.features, features, ("baseline", "rivals", r))


def _free_baseline_problems(baseline: Baseline, features: Mapping[str, FeatureGroup]) -> Iterator[Problem]:
    """Yield a baseline that costs nothing: savings relative to it are undefined."""
    names = features if baseline.features is None else baseline.features
    if not any(features[name].price for name in names if name in features):
        hint = "price: 4 on a feature group, or cost: {by: flops}"
        yield Problem(("cost", "by"), "the baseline costs nothing: no feature that it reads has a price", hint)
