"""What does not fit together in a spec, by whether its cases are seen over time."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import TYPE_CHECKING

from unfold_cascade.clinical_rules import RULE_CARRY_H
from unfoldkit.api import Model, Problem, did_you_mean

if TYPE_CHECKING:
    from unfold_cascade.schema.cascade import CascadeSpec
    from unfold_cascade.schema.parts import ModelSpec, Stage

Path = tuple[str | int, ...]
TIMED = "goes with data over time (source: physionet2019 or long) only"


def without_time(spec: CascadeSpec) -> Iterator[Problem]:
    """Yield the keys that speak of time, in a spec whose cases have none."""
    for key in ("moves", "alerts"):
        if getattr(spec, key) is not None:
            yield Problem((key,), TIMED, at_key=True)
    yield from _timed_features(spec)
    for s, stage in enumerate(spec.stages):
        yield from _timed_stage(stage, ("stages", s))
    if len(spec.stages) > 2:
        yield Problem(("stages",), "more than two stages go with data over time only")
    if spec.cost.by == "price+flops":
        yield Problem(("cost", "by"), TIMED)
    if spec.baseline is not None and spec.baseline.estimator is not None:
        yield Problem(("baseline", "estimator"), TIMED, "candidates: [{estimator: svc}]", at_key=True)
    if spec.baseline is not None and spec.baseline.rivals:
        yield Problem(("baseline", "rivals"), TIMED, at_key=True)


def over_time(spec: CascadeSpec) -> Iterator[Problem]:
    """Yield what is missing or out of place in a spec of cases over time."""
    if not spec.features:
        yield Problem(("features",), "this key is missing", "features: {all: {columns: [HR, Resp]}}")
    yield from _given(spec)
    yield from _repeated([(("stages", s, "name"), stage.name) for s, stage in enumerate(spec.stages)])
    for s, stage in enumerate(spec.stages):
        if stage.learn == "utility" and s < len(spec.stages) - 1:
            yield Problem(("stages", s, "learn"), "only the last stage warns", at_key=True)
        yield from _target(stage, ("stages", s, "target"))
        names: list[tuple[Path, str]] = [
            (("stages", s, "models", m, "name"), model.name) for m, model in enumerate(stage.models)
        ]
        yield from _repeated(names)
        for m, model in enumerate(stage.models):
            yield from _model(spec, model, ("stages", s, "models", m))
    yield from _baseline(spec)
    yield from _free(spec)


def _free(spec: CascadeSpec) -> Iterator[Problem]:
    """Yield a cost by which the baseline costs nothing: there is nothing to save, and no share of it."""
    base = spec.baseline
    if base is None or "price" not in spec.cost.by:
        return
    read = spec.features if base.features is None else base.features
    if not any(spec.features[name].price for name in read if name in spec.features):
        hint = "price: 4 on a feature group, or cost: {by: flops}"
        yield Problem(("cost", "by"), "the baseline costs nothing: no feature that it reads has a price", hint)


def _given(spec: CascadeSpec) -> Iterator[Problem]:
    """Yield the groups that give no feature at all."""
    for name, group in spec.features.items():
        if not group.derive and group.rule is None:
            yield Problem(("features", name, "derive"), "gives no feature", "derive: [last]")
        known = RULE_CARRY_H[group.rule] if group.rule is not None else group.columns
        if not any(fnmatch.fnmatchcase(column, pattern) for column in known for pattern in group.columns):
            hint = f"it reads {', '.join(known)}"
            yield Problem(("features", name, "rule"), f"no column of the group is in {group.rule}", hint)


def _timed_features(spec: CascadeSpec) -> Iterator[Problem]:
    for name, group in spec.features.items():
        for key in ("valid_for", "window", "derive", "rule"):
            if _changed(group, key):
                yield Problem(("features", name, key), TIMED, at_key=True)


def _changed(part: Model, key: str) -> bool:
    # not model_fields_set: a spec that was written by the tool names its defaults too
    return bool(getattr(part, key) != type(part).model_fields[key].get_default(call_default_factory=True))


def _timed_stage(stage: Stage, place: Path) -> Iterator[Problem]:
    for key in ("parallel", "fresh", "learn"):
        if _changed(stage, key):
            yield Problem((*place, key), TIMED, at_key=True)
    for key in ("rule", "ahead"):
        if getattr(stage.target, key) is not None:
            yield Problem((*place, "target", key), TIMED, at_key=True)


def _target(stage: Stage, place: Path) -> Iterator[Problem]:
    if stage.target.groups is not None:
        yield Problem((*place, "groups"), "goes with cases without time only", at_key=True)
    if (stage.target.column is None) == (stage.target.rule is None):
        yield Problem(place, "give either a column or a rule", "target: {rule: sirs, ahead: 6 h}")


def _model(spec: CascadeSpec, model: ModelSpec, place: Path) -> Iterator[Problem]:
    if model.estimator is None:
        yield Problem(place, "which estimator?", "estimator: logistic-regression")
    if model.recorded is not None:
        yield Problem((*place, "recorded"), "goes with data: {source: recorded} only", at_key=True)
    yield from _features(spec, model.features, place)


def _baseline(spec: CascadeSpec) -> Iterator[Problem]:
    base = spec.baseline
    if base is None or base.estimator is None:
        yield Problem(("baseline",), "which monolithic model?", "baseline: {estimator: xgboost}")
        return
    if base.candidates:
        yield Problem(("baseline", "candidates"), "over time there is one baseline: give its estimator", at_key=True)
    yield from _features(spec, base.features, ("baseline",))
    names: list[tuple[Path, str]] = [(("baseline", "rivals", r, "name"), one.name) for r, one in enumerate(base.rivals)]
    yield from _repeated([(("baseline",), "monolith"), *names])
    for r, rival in enumerate(base.rivals):
        yield from _features(spec, rival.features, ("baseline", "rivals", r))


def _features(spec: CascadeSpec, features: tuple[str, ...] | None, place: Path) -> Iterator[Problem]:
    for f, name in enumerate(features or ()):
        if name not in spec.features:
            hint = did_you_mean(name, spec.features)
            yield Problem((*place, "features", f), f'no such feature group: "{name}"', hint)


def _repeated(names: list[tuple[Path, str]]) -> Iterator[Problem]:
    seen: set[str] = set()
    for place, name in names:
        if name in seen:
            yield Problem(place, f'the name "{name}" is taken')
        seen.add(name)
