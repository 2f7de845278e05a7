"""What the trials of a spec train: a built-in estimator on a data set, or a user's function, with its search space."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from unfoldkit.api import Duration, Model, Problem, did_you_mean

ESTIMATOR_METRICS = ("accuracy", "log-loss")


class Log(Model):
    """Log-uniform between two bounds."""

    log: tuple[float, float]


class Uniform(Model):
    """Uniform between two bounds."""

    uniform: tuple[float, float]


class Integer(Model):
    """An integer between two bounds, both included."""

    int_: tuple[int, int] = Field(alias="int")


class Choice(Model):
    """One of several values."""

    choice: Annotated[tuple[float | int | str | bool, ...], Field(min_length=1)]


class Trainable(Model):
    """What a trial trains: a built-in estimator on a data set, or a function of yours (needs ``--allow-code``)."""

    estimator: Literal["xgboost", "sgd", "mlp", "torch-mlp"] | None = Field(
        default=None, description="XGBoost; scikit-learn's SGDClassifier or MLPClassifier; a PyTorch MLP"
    )
    function: str | None = Field(default=None, description="module:function of yours; the docs describe its signature")
    data: str | None = Field(
        default=None, description="digits, breast-cancer, wine, or a CSV file with a target column"
    )
    target: str = Field(default="target", description="the column of a CSV file to predict")
    columns: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None, description="the feature columns of a CSV file; all others if left out"
    )
    group: str | None = Field(
        default=None, description="a column of a CSV file, such as patient; equal rows are held out together"
    )
    metric: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9 _-]{0,39}$")] | None = Field(
        default=None,
        description="ranks trials on the held-out 30 %: accuracy (default) or log-loss; a function names its metric",
    )
    rounds: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=1, description="boosting rounds, or passes over the data, in one iteration"
    )
    timeout: Annotated[Duration, Field(gt=0)] | None = Field(
        default=None, description="kill a trial after this long without a checkpoint; drop it the third time"
    )
    space: dict[str, Log | Uniform | Integer | Choice] = Field(default_factory=dict)


def check_trainable(trainable: Trainable) -> Iterable[Problem]:
    """Yield contradictions within a trainable."""
    if (trainable.estimator is None) == (trainable.function is None):
        yield Problem(("trainable",), "name an estimator or a function, not both", hint="write estimator: xgboost")
    if trainable.estimator is not None and trainable.data is None:
        yield Problem(("trainable",), "an estimator needs data", hint="write data: digits")
    if trainable.estimator is not None and trainable.metric not in (None, *ESTIMATOR_METRICS):
        hint = did_you_mean(str(trainable.metric), ESTIMATOR_METRICS)
        hint = hint or "write accuracy or log-loss; only a function names its own metric"
        yield Problem(("trainable", "metric"), f"an estimator has no metric {trainable.metric!r}", hint=hint)
    for name, dimension in trainable.space.items():
        if _is_empty_range(dimension):
            yield Problem(("trainable", "space", name), "the bounds are not in order", hint="write [low, high]")


def _is_empty_range(dimension: Log | Uniform | Integer | Choice) -> bool:
    """Return whether the bounds of a dimension are out of order, or not positive where a logarithm is taken."""
    if isinstance(dimension, Choice):
        return False
    if isinstance(dimension, Log):
        low, high = dimension.log
        return low >= high or low <= 0
    low, high = dimension.uniform if isinstance(dimension, Uniform) else dimension.int_
    return low >= high
