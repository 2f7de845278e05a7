"""Parameters from a tuning run: its file ``winner.json`` is the only connection between the two kinds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from unfold_cascade.learners.estimators import Recipe
from unfoldkit.api import Run, RunDir, user_error

WINNER = "winner.json"
SCHEMA = "unfoldkit.winner/1"
TRAIN_HINT = "run unfold train on the tuning spec first"


class EstimatorOptions(Protocol):
    """The keys of a spec that define an estimator; ``tune``, where a part has it, names a tuning run."""

    @property
    def estimator(self) -> str | None:
        """Short name or dotted path."""

    @property
    def params(self) -> Mapping[str, Any]:
        """Parameters of the estimator."""

    @property
    def scale(self) -> bool | None:
        """Whether columns are standardized."""


def resolve_recipe(options: EstimatorOptions, run: Run, *, key: str) -> Recipe:
    """Combine the parameters of the spec with those of a tuning run; the spec has priority.

    Raises:
        UnfoldError: The tuning run is missing, has no winner, or tuned another estimator.
    """
    tune = getattr(options, "tune", None)
    estimator = options.estimator or ""
    tuned = _read_params(str(tune.run), estimator, run, key) if tune is not None else {}
    return Recipe(estimator, {**tuned, **options.params}, options.scale)


def _read_params(tuning_run: str, estimator: str, run: Run, key: str) -> Mapping[str, Any]:
    tune_key = key.replace(".estimator", ".tune.from")
    copy = f"tuned/{tuning_run.strip('/').replace('/', '-')}.json"
    # a copy in the cascade's run makes it servable where the tuning run is absent
    if run.directory.has(copy) and not _exists(tuning_run, run):
        data = run.directory.read(copy)
    else:
        data = _read_winner(tuning_run, run, tune_key)
        if not run.directory.has(copy) or run.directory.read(copy) != data:
            run.directory.write(copy, data)
    winner = _parse_winner(data, tuning_run, tune_key)
    if winner.get("estimator") != estimator:
        raise user_error(f"{tuning_run} tuned {winner.get('estimator')}, not {estimator}", key=tune_key)
    if not winner.get("finished", True):
        run.log.warning("the winner of %s was stopped after %s iterations", tuning_run, winner.get("iterations"))
    params: Mapping[str, Any] = winner["params"]
    return params


def _exists(tuning_run: str, run: Run) -> bool:
    return any((folder / tuning_run).exists() for folder in (run.base, run.base.cwd()))


def _read_winner(tuning_run: str, run: Run, key: str) -> bytes:
    directory = RunDir(run.path(tuning_run, key=key))
    if not directory.has(WINNER):
        raise user_error("this run has no tuning winner", file=str(directory.path), key=key, hint=TRAIN_HINT)
    return directory.read(WINNER)


def _parse_winner(data: bytes, tuning_run: str, key: str) -> Mapping[str, Any]:
    try:
        winner = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise user_error(f"{WINNER} is not JSON: {error}", file=tuning_run, key=key) from error
    if not isinstance(winner, dict) or winner.get("schema") != SCHEMA or not isinstance(winner.get("params"), dict):
        raise user_error(f"{WINNER} is not of the schema {SCHEMA}", file=tuning_run, key=key, hint=TRAIN_HINT)
    return winner
