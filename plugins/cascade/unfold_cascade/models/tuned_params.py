"""A model's parameters from a tuning run: the two kinds meet in one file, ``winner.json``, held against its hash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from unfold_cascade.learners.estimators import Recipe
from unfold_cascade.schema.models import Baseline, Candidate, ModelSpec, Rival
from unfoldkit.api import Run, RunDir, fail

WINNER = "winner.json"
SCHEMA = "unfoldkit.winner/1"
TRAIN = "unfold train on the tuning spec finds it, within its deadline and budget"


def recipe(model: ModelSpec | Rival | Baseline | Candidate, run: Run, *, key: str) -> Recipe:
    """Return how a model is made; parameters that the spec gives go before those that were found.

    Raises:
        UnfoldError: the tuning run is not there, has no winner, or one for another estimator.
    """
    tune = getattr(model, "tune", None)
    found = _params(str(tune.run), model.estimator or "", run, key) if tune is not None else {}
    return Recipe(model.estimator or "", {**found, **model.params}, model.scale)


def _params(name: str, estimator: str, run: Run, key: str) -> Mapping[str, Any]:
    place, copy = key.replace(".estimator", ".tune.from"), f"tuned/{name.strip('/').replace('/', '-')}.json"
    # what was found is kept in the cascade's own run, so that it can be served where the tuning run is not
    if run.directory.has(copy) and not _there(name, run):
        data = run.directory.read(copy)
    else:
        data = _winner(name, run, place)
        if not run.directory.has(copy) or run.directory.read(copy) != data:
            run.directory.write(copy, data)
    told = _told(data, name, place)
    if told.get("estimator") != estimator:
        raise fail(f"{name} tuned {told.get('estimator')}, not {estimator}", key=place)
    if not told.get("finished", True):
        run.log.warning("the winner of %s was stopped after %s iterations", name, told.get("iterations"))
    params: Mapping[str, Any] = told["params"]
    return params


def _there(name: str, run: Run) -> bool:
    return any((folder / name).exists() for folder in (run.base, run.base.cwd()))


def _winner(name: str, run: Run, place: str) -> bytes:
    directory = RunDir(run.path(name, key=place))
    if not directory.has(WINNER):
        raise fail("this run holds no winner of a tuning", file=str(directory.path), key=place, hint=TRAIN)
    return directory.read(WINNER)


def _told(data: bytes, name: str, place: str) -> Mapping[str, Any]:
    try:
        told = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise fail(f"{WINNER} is not JSON: {error}", file=name, key=place) from error
    if not isinstance(told, dict) or told.get("schema") != SCHEMA or not isinstance(told.get("params"), dict):
        raise fail(f"{WINNER} is not of the schema {SCHEMA}", file=name, key=place, hint=TRAIN)
    return told
