"""What a trial trains, as one function: ``(config, state, iters, accelerators, seed) -> (metric, state)``.

``state`` is bytes, ``None`` for a fresh trial; the function runs ``iters`` further iterations and returns its metric
(higher is better) and its new state. That is all that a checkpoint, a move and a resume need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfold_tuning.schema.models import Choice, Log, Trainable, Uniform, Whole
from unfold_tuning.trial.estimators import BUILT_IN, Floats, Ints, Train, split
from unfoldkit.api import CsvRow, csv_rows, did_you_mean, fail

SETS = ("digits", "breast-cancer", "wine")
MEANING = {"target": "the column to predict", "group": "the column whose rows are held out together"}


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker needs to make its function: sent to it once. ``path`` is the CSV file, if the data is one."""

    trainable: Trainable
    path: Path | None = None
    seed: int = 0


def make(work: Work) -> Train:
    """Return the function that trains.

    Raises:
        UnfoldError: the data or the function cannot be found.
    """
    if work.trainable.function is not None:
        return own(work.trainable.function)
    x, y, group = _data(work)
    given = work.trainable
    return BUILT_IN[str(given.estimator)](split(x, y, given.rounds, given.measured, work.seed, group))


def own(reference: str) -> Train:
    """Return the user's function ``module:function``."""
    import pkgutil

    hint = "write module:function; the module must be importable"
    try:
        found: Train = pkgutil.resolve_name(reference)
    except Exception as error:  # a module that is imported may raise anything
        what = f"cannot load {reference!r}: {type(error).__name__}: {error}"
        raise fail(what, key="trainable.function", hint=hint) from error
    if not callable(found):
        raise fail(f"{reference!r} is no function", key="trainable.function", hint=hint)
    return found


def sample(space: Mapping[str, Log | Uniform | Whole | Choice], rng: np.random.Generator) -> dict[str, Any]:
    """Draw one configuration."""
    return {name: _one(item, rng) for name, item in space.items()}


def _one(item: Log | Uniform | Whole | Choice, rng: np.random.Generator) -> Any:
    if isinstance(item, Log):
        return float(np.exp(rng.uniform(math.log(item.log[0]), math.log(item.log[1]))))
    if isinstance(item, Uniform):
        return float(rng.uniform(*item.uniform))
    if isinstance(item, Whole):
        return int(rng.integers(item.int_[0], item.int_[1] + 1))
    return item.choice[int(rng.integers(len(item.choice)))]


def _data(work: Work) -> tuple[Floats, Ints, Ints | None]:
    if work.path is not None:
        return table(work.path, work.trainable)
    from sklearn import datasets

    load = {"digits": datasets.load_digits, "breast-cancer": datasets.load_breast_cancer, "wine": datasets.load_wine}
    bunch = load[str(work.trainable.data)]()
    return np.asarray(bunch.data, dtype=float), np.asarray(bunch.target, dtype=np.int64), None


def table(path: Path, given: Trainable) -> tuple[Floats, Ints, Ints | None]:
    """Return features, labels and groups of the rows of a CSV file.

    Raises:
        UnfoldError: a column is not there, or a cell is no number.
    """
    rows = list(csv_rows(path))
    names = _columns(list(rows[0].cells) if rows else [], given, path)
    x = np.array([[_cell(row, name) for name in names] for row in rows])
    group = None if given.group is None else _numbered([row[given.group] for row in rows])
    return x, _numbered([row[given.target] for row in rows]), group


def _cell(row: CsvRow, name: str) -> float:
    try:
        return float(row[name] or "nan")
    except ValueError as error:
        hint = "trainable.columns names those to learn from"
        raise row.wrong(f"{row[name][:40]!r} is not a number", name, hint) from error


def _columns(there: Sequence[str], given: Trainable, path: Path) -> list[str]:
    """Return the columns to learn from; whatever the spec names must be there."""
    wanted = {"target": [given.target], "group": [given.group] if given.group else [], "columns": given.columns or ()}
    for key, names in wanted.items():
        for name in names:
            if name not in there:
                hint = did_you_mean(name, there) if key == "columns" else f"trainable.{key} names {MEANING[key]}"
                raise fail(f"no column {name!r}", file=str(path), key=f"trainable.{key}", hint=hint)
    return list(given.columns or [name for name in there if name not in (given.target, given.group)])


def _numbered(values: Sequence[str]) -> Ints:
    return np.unique(np.array(values), return_inverse=True)[1].astype(np.int64)
