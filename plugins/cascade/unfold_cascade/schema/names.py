"""Names in a spec that cannot be what they are: of stages, of groups, of estimators."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from unfoldkit.api import Problem

if TYPE_CHECKING:
    from unfold_cascade.schema.models import CascadeSpec

Place = tuple[str | int, ...]

LONGEST = 80
_FOLDER = re.compile(rf"(?!\.)[^/\\\x00-\x1f\x7f]{{1,{LONGEST}}}")


def problems(spec: CascadeSpec) -> Iterator[Problem]:
    """Yield every name that cannot be."""
    for s, stage in enumerate(spec.stages):
        if stage.name == "baseline":
            yield Problem(("stages", s, "name"), '"baseline" is the name of the monolith\'s own models', "another name")
        for group in stage.target.groups or ():
            yield from _group_problems(group, ("stages", s, "target", "groups", group))
    yield from _estimator_problems(spec)


def _group_problems(name: str, place: Place) -> Iterator[Problem]:
    """Yield a name that would lead out of the folder of models, or into one within it."""
    if not _FOLDER.fullmatch(name):
        safe = re.sub(r"[^\w-]+", "-", name).strip("-_") or "rest"
        hint = f'its models stand in a folder of this name: "{safe[:LONGEST]}"'
        yield Problem(place, f"{name!r} cannot be the name of a group", hint, at_key=True)


def _estimator_problems(spec: CascadeSpec) -> Iterator[Problem]:
    """Yield paths into scikit-learn and XGBoost that are no classifiers; what stands elsewhere is not imported here."""
    from unfold_cascade.learners.estimators import LIBRARIES, NO_CLASSIFIER, is_classifier

    for place, estimator in _estimators(spec):
        if estimator.startswith(LIBRARIES) and not is_classifier(estimator):
            yield Problem((*place, "estimator"), f"{estimator} {NO_CLASSIFIER}", "a classifier, such as random-forest")


def _estimators(spec: CascadeSpec) -> Iterator[tuple[Place, str]]:
    for s, stage in enumerate(spec.stages):
        for m, model in enumerate(stage.models):
            yield ("stages", s, "models", m), model.estimator or ""
    if spec.baseline is not None:
        yield ("baseline",), spec.baseline.estimator or ""
        yield from ((("baseline", "candidates", c), one.estimator) for c, one in enumerate(spec.baseline.candidates))
        yield from ((("baseline", "rivals", r), one.estimator) for r, one in enumerate(spec.baseline.rivals))
