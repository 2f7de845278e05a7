"""What a trial trains, as one function: ``(config, state, iters, accelerators, seed) -> (metric, state)``.

``state`` is bytes, ``None`` for a new trial. The function runs ``iters`` further iterations and returns its metric
and its new state. Checkpoints, moves and resumes need nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unfold_tuning._types import FloatArray, IntArray
from unfold_tuning.job.problem import TrainableConfig
from unfold_tuning.trial.estimators import BUILDERS, TrainFunction, split_rows
from unfoldkit.api import CsvRow, csv_rows, did_you_mean, user_error

COLUMN_MEANINGS = {"target": "the column to predict", "group": "the column of rows that are held out together"}


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a worker needs to build its training function; it is sent once."""

    trainable: TrainableConfig
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """A data set: features [rows, columns], labels from 0, and the group of each row if rows are grouped."""

    features: FloatArray
    labels: IntArray
    groups: IntArray | None = None


def build_train_function(setup: WorkerSetup) -> TrainFunction:
    """Build the function that trains.

    Raises:
        UnfoldError: The data or the function cannot be loaded.
    """
    trainable = setup.trainable
    if trainable.function is not None:
        return load_user_function(trainable.function)
    rows = _load_rows(trainable)
    split = split_rows(rows.features, rows.labels, trainable.rounds, trainable.metric_name, setup.seed, rows.groups)
    return BUILDERS[str(trainable.estimator)](split)


def load_user_function(reference: str) -> TrainFunction:
    """Import the user's function ``module:function``.

    Raises:
        UnfoldError: It cannot be imported, or is not a function.
    """
    import pkgutil

    hint = "write module:function; the module must be importable"
    try:
        function: TrainFunction = pkgutil.resolve_name(reference)
    except Exception as error:  # an imported module may raise anything
        message = f"cannot load {reference!r}: {type(error).__name__}: {error}"
        raise user_error(message, key="trainable.function", hint=hint) from error
    if not callable(function):
        raise user_error(f"{reference!r} is not a function", key="trainable.function", hint=hint)
    return function


def _load_rows(trainable: TrainableConfig) -> LabelledRows:
    if trainable.data_path is not None:
        return read_table(trainable.data_path, trainable)
    from sklearn import datasets

    loaders = {
        "digits": datasets.load_digits,
        "breast-cancer": datasets.load_breast_cancer,
        "wine": datasets.load_wine,
    }
    bunch = loaders[str(trainable.data)]()
    return LabelledRows(np.asarray(bunch.data, dtype=float), np.asarray(bunch.target, dtype=np.int64))


def read_table(path: Path, trainable: TrainableConfig) -> LabelledRows:
    """Read features, labels and groups from a CSV file.

    Raises:
        UnfoldError: A column is missing, or a feature is not a number.
    """
    rows = list(csv_rows(path))
    names = _select_features(list(rows[0].cells) if rows else [], trainable, path)
    features = np.array([[_parse_feature(row, name) for name in names] for row in rows])
    groups = None if trainable.group is None else _number_values([row[trainable.group] for row in rows])
    return LabelledRows(features, _number_values([row[trainable.target] for row in rows]), groups)


def _parse_feature(row: CsvRow, name: str) -> float:
    try:
        return float(row[name] or "nan")
    except ValueError as error:
        hint = "trainable.columns names the feature columns"
        raise row.wrong(f"{row[name][:40]!r} is not a number", name, hint) from error


def _select_features(columns: Sequence[str], trainable: TrainableConfig, path: Path) -> list[str]:
    """Select the feature columns; every column that the spec names must exist."""
    required = {
        "target": [trainable.target],
        "group": [trainable.group] if trainable.group else [],
        "columns": trainable.columns or (),
    }
    for key, names in required.items():
        for name in names:
            if name not in columns:
                meaning = COLUMN_MEANINGS.get(key)
                hint = f"trainable.{key} names {meaning}" if meaning else did_you_mean(name, columns)
                raise user_error(f"no column {name!r}", file=str(path), key=f"trainable.{key}", hint=hint)
    return list(trainable.columns or [name for name in columns if name not in (trainable.target, trainable.group)])


def _number_values(values: Sequence[str]) -> IntArray:
    return np.unique(np.array(values), return_inverse=True)[1].astype(np.int64)
