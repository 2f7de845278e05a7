"""What the trials of a spec train: a built-in estimator on a data set, or a user's function, with its search space."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from unfoldkit.api import Duration, Model, Problem, did_you_mean
from unfoldkit.errors import shorten

ESTIMATOR_MODES: Mapping[str, Literal["min", "max"]] = {"accuracy": "max", "log-loss": "min"}
"""The metrics of the built-in estimators, and which values of them are better."""


Scalar = int | float | str | bool
Value = Annotated[Scalar | tuple[Scalar, ...] | None, Field(union_mode="left_to_right")]


LOSS_WORDS = frozenset(
    {
        "loss",
        "logloss",
        "error",
        "err",
        "rmse",
        "mse",
        "mae",
        "mape",
        "nll",
        "perplexity",
        "ppl",
        "wer",
        "cer",
        "regret",
    }
)
"""Words in the name of a metric that is better if smaller."""
DISTRIBUTION_WORDS: Mapping[str, str] = {
    "loguniform": "{log: [low, high]}",
    "lograndint": "{log_int: [low, high]}",
    "uniform": "{uniform: [low, high]}",
    "randint": "{int: [low, high]}",
    "choice": "a list of values",
    "gridsearch": "a list of values",
    "randn": "{uniform: [low, high]}",
    "normal": "{uniform: [low, high]}",
}
"""Distributions as other tools call them, without prefixes and underscores, and what is written here instead."""
DISTRIBUTION_CALL = re.compile(r"^\s*(?:[A-Za-z]+\.)*(?:suggest_|q(?=log|uni|rand))?([a-z_]+?)\s*\(.*\)\s*$", re.DOTALL)
OWN_FORMS = frozenset({"log", "uniform", "int", "log_int", "choice", "value"})
FOREIGN_LISTS = ("values", "choices", "categories", "grid_search", "_value")
FOREIGN_BOUNDS = (("low", "high"), ("min", "max"), ("lower", "upper"))
FOREIGN_KINDS = ("type", "_type", "distribution", "name")
"""Keys with which Optuna, W&B, NNI, Ax and ConfigSpace describe a dimension."""
BOUNDS_TEXT = "[low, high]"
MAX_LISTED = 1000
"""Values of an integer range that a condition may name."""
MAX_INTEGER = 2**63
"""Integers are drawn with 64 bits."""


class ConditionalModel(Model):
    """A dimension that may depend on others."""

    when: dict[str, Value] = Field(
        default_factory=dict,
        description="by name of other parameters: the value, or a list of values, with which this one exists",
    )


class Log(ConditionalModel):
    """Log-uniform between two bounds."""

    log: tuple[float, float] = Field(description=BOUNDS_TEXT)


class Uniform(ConditionalModel):
    """Uniform between two bounds."""

    uniform: tuple[float, float] = Field(description=BOUNDS_TEXT)


class Integer(ConditionalModel):
    """An integer between two bounds, both included."""

    int_: tuple[int, int] = Field(alias="int", description=BOUNDS_TEXT)


class LogInteger(ConditionalModel):
    """A log-uniform integer between two bounds, both included."""

    log_int: tuple[int, int] = Field(description=BOUNDS_TEXT)


class Choice(ConditionalModel):
    """One of several values; a value may be a list."""

    choice: Annotated[tuple[Value, ...], Field(min_length=1)] = Field(description="the values")


class Constant(ConditionalModel):
    """Always the same value; a list is passed as it is."""

    value: Value = Field(description="the value")


Dimension = Log | Uniform | Integer | LogInteger | Choice | Constant


def refuse_foreign_form(dimension: Any) -> Any:
    """Reject a dimension in the form of another tool, and return others with tuples in place of lists.

    Raises:
        PydanticCustomError: It has such a form; the hint is the same dimension in the form of this schema.
    """
    if not isinstance(dimension, Mapping) or not all(isinstance(key, str) for key in dimension):
        return _to_tuples(dimension)
    for key, value in dimension.items():
        own = DISTRIBUTION_WORDS.get(re.sub("^q(?=log|uni|rand)", "", key.replace("_", "")))
        if own is not None and key not in OWN_FORMS | set(FOREIGN_LISTS) and isinstance(value, list):
            hint = f"write {own.replace(BOUNDS_TEXT, shorten(str(value[:2])))}"
            raise PydanticCustomError("space", "this is the form of another tool ({keys})", {"keys": key, "hint": hint})
    lists = [dimension[key] for key in (*FOREIGN_LISTS, "bounds", "range") if isinstance(dimension.get(key), list)]
    pairs = [[dimension[low], dimension[high]] for low, high in FOREIGN_BOUNDS if {low, high} <= set(dimension)]
    is_own = any(not isinstance(dimension[key], bool) for key in OWN_FORMS & set(dimension))
    if is_own or not (lists or pairs):
        return _to_tuples(dimension)
    kind = " ".join(str(dimension.get(key, "")) for key in FOREIGN_KINDS).lower()
    is_log = "log" in kind or any(dimension.get(key) is True for key in ("log", "log_scale"))
    is_range = bool(pairs) or {"bounds", "range"} & set(dimension) or "uniform" in kind or "randint" in kind
    bounds = pairs[0] if pairs else lists[0]
    is_int = "int" in kind or ("float" not in kind and "uniform" not in kind and {*map(type, bounds)} == {int})
    form = {(0, 0): "uniform", (0, 1): "int", (1, 0): "log", (1, 1): "log_int"}[is_log, is_int]
    values = shorten(str(bounds))
    hint = f"write {{{form}: {values}}}" if is_range else f"write {values}"
    keys = ", ".join(dimension)
    raise PydanticCustomError("space", "this is the form of another tool ({keys})", {"keys": keys, "hint": hint})


def _to_tuples(value: Any) -> Any:
    """Return a raw value with tuples in place of lists: the models validate strictly from here on."""
    if isinstance(value, Mapping):
        return {key: _to_tuples(item) for key, item in value.items()}
    return tuple(map(_to_tuples, value)) if isinstance(value, list) else value


SpaceValue = Annotated[Dimension | Scalar | tuple[Value, ...], Field(union_mode="left_to_right")]
"""A dimension; a bare value is a constant, a bare list a choice."""


class EarlyStop(Model):
    """Rules that only shorten a run: no trial runs longer, and no further trial starts, because of them."""

    patience: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="a trial ends after so many iterations without a better metric, which it keeps"
    )
    min_delta: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=0.0, description="a metric is better if it differs by more than this"
    )
    target: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        default=None, description="the search ends as soon as a trial reaches a metric at least as good"
    )
    stragglers: bool = Field(
        default=False,
        description="the last trials of a stage lose once waiting for them would make the run late",
    )

    @property
    def is_empty(self) -> bool:
        """Whether there is no rule."""
        return self.patience is self.target is None and not self.stragglers


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
    metric: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9 _./@:()-]{0,59}$")] | None = Field(
        default=None,
        description="ranks trials on the held-out 30 %: accuracy (default) or log-loss; a function names its metric",
    )
    mode: Literal["min", "max"] | None = Field(
        default=None, description="whether a smaller or a larger metric is better; max if left out, but for log-loss"
    )
    early_stop: EarlyStop | None = Field(
        default=None, description="rules that end trials or the search early; a plan assumes that they never do"
    )
    span: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1,
        description="instances that a trial of a function may span; unfold profile measures the speed-up there",
    )
    rounds: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=1, description="boosting rounds, or passes over the data, in one iteration"
    )
    timeout: Annotated[Duration, Field(gt=0)] | None = Field(
        default=None, description="kill a trial after this long without a checkpoint; drop it the third time"
    )
    space: dict[str, Annotated[SpaceValue, BeforeValidator(refuse_foreign_form)]] = Field(
        default_factory=dict, description="by name: a range, a choice or a list of values, or a constant"
    )


def check_trainable(trainable: Trainable) -> Iterable[Problem]:
    """Yield contradictions within a trainable."""
    if (trainable.estimator is None) == (trainable.function is None):
        yield Problem(("trainable",), "name an estimator or a function, not both", hint="write estimator: xgboost")
    if trainable.estimator is not None and trainable.data is None:
        yield Problem(("trainable",), "an estimator needs data", hint="write data: digits")
    if trainable.estimator is not None:
        yield from _check_estimator(trainable)
    elif trainable.mode is None and _is_loss(trainable.metric or ""):
        message = f"without mode, the largest {trainable.metric} would win"
        yield Problem(("trainable", "metric"), message, hint="write mode: min, or mode: max if that is meant")
    if trainable.early_stop is not None and trainable.early_stop.is_empty:
        yield Problem(("trainable", "early_stop"), "no rule", hint="write {patience: 5} or {target: 0.95}")
    for name, dimension in trainable.space.items():
        yield from _check_values(name, dimension)
        yield from _check_texts(name, dimension)
        if isinstance(dimension, ConditionalModel):
            yield from _check_conditions(trainable.space, name, dimension.when)


def _is_loss(metric: str) -> bool:
    """Return whether a word in the name of a metric says that a smaller value is better."""
    words = re.split(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])", metric)
    return not LOSS_WORDS.isdisjoint(word.lower() for word in words)


def _check_values(name: str, dimension: SpaceValue) -> Iterable[Problem]:
    """Yield bounds between which nothing can be drawn, and choices without a value."""
    if _is_empty_range(dimension):
        yield Problem(("trainable", "space", name), "the bounds are not in order", hint="write [low, high]")
    if isinstance(dimension, Uniform) and math.isinf(dimension.uniform[1] - dimension.uniform[0]):
        yield Problem(("trainable", "space", name), "the bounds are too far apart", hint="write a smaller range")
    if isinstance(dimension, Integer) and max(map(abs, dimension.int_)) >= MAX_INTEGER:
        yield Problem(("trainable", "space", name), "the bounds exceed 64 bits", hint="write a smaller range")
    if isinstance(dimension, tuple) and not dimension:
        yield Problem(("trainable", "space", name), "no value to choose", hint="write [16, 32]")


def _check_texts(name: str, dimension: SpaceValue) -> Iterable[Problem]:
    """Yield texts that call a distribution: every trial would receive the text."""
    for value in list_values(dimension) or ():
        call = DISTRIBUTION_CALL.match(value) if isinstance(value, str) else None
        form = DISTRIBUTION_WORDS.get(call[1].replace("_", "")) if call else None
        if form is not None:
            message = f"{value!r} is a text, and every trial would receive it"
            yield Problem(("trainable", "space", name), message, hint=f"write {form}")


def _check_estimator(trainable: Trainable) -> Iterable[Problem]:
    """Yield what a built-in estimator cannot do."""
    metric = trainable.metric or "accuracy"
    if metric not in ESTIMATOR_MODES:
        hint = (
            did_you_mean(metric, ESTIMATOR_MODES) or "write accuracy or log-loss; only a function names its own metric"
        )
        yield Problem(("trainable", "metric"), f"an estimator has no metric {metric!r}", hint=hint)
    if trainable.mode not in (None, ESTIMATOR_MODES.get(metric)):
        hint = "leave mode out: the metric of an estimator implies it"
        yield Problem(("trainable", "mode"), f"a {trainable.mode}imal {metric} is not a goal", hint=hint)
    target = trainable.early_stop.target if trainable.early_stop else None
    if target is not None and (target <= 0 or (metric == "accuracy" and target > 1)):
        message = f"no trial can reach {'an' if metric == 'accuracy' else 'a'} {metric} of {target:g}"
        hint = f"write {target / 100:g}" if 1 < target <= 100 else "an accuracy is between 0 and 1, a log-loss positive"
        yield Problem(("trainable", "early_stop", "target"), message, hint=hint)
    if trainable.span > 1:
        hint = "leave span out, or write function: a function may communicate between instances"
        yield Problem(("trainable", "span"), "a trial of an estimator is one process on one instance", hint=hint)


def _check_conditions(space: Mapping[str, SpaceValue], name: str, when: Mapping[str, Value]) -> Iterable[Problem]:
    """Yield conditions on unknown dimensions, on values that these never have, and on the dimension itself."""
    for parent, value in when.items():
        key = ("trainable", "space", name, "when", parent)
        if parent not in space:
            yield Problem(key, "no such dimension", hint=did_you_mean(parent, space), at_key=True)
            continue
        if name in _list_ancestors(space, name):
            yield Problem(key, f"{name} would depend on itself", at_key=True)
        dimension = space[parent]
        values = list_values(dimension)
        if isinstance(dimension, (Integer, LogInteger)):
            low, high = dimension.int_ if isinstance(dimension, Integer) else dimension.log_int
            values = tuple(range(low, min(high, low + MAX_LISTED) + 1))
        if values is None:
            yield Problem(key, f"{parent} is a range; a condition needs a list of values", at_key=True)
            continue
        kinds = [(item, isinstance(item, bool)) for item in values]
        wanted = value if isinstance(value, tuple) and value not in values else (value,)
        # a truth value equals no number
        missing = [item for item in wanted if (item, isinstance(item, bool)) not in kinds]
        if missing or not wanted:
            hint = f"one of: {', '.join(map(str, values[:MAX_LISTED]))}"
            yield Problem(key, f"{parent} is never {missing[0] if missing else 'in an empty list'}", hint=hint)


def list_values(dimension: SpaceValue) -> tuple[Value, ...] | None:
    """List the values of a choice or a constant; ``None`` for a range."""
    if isinstance(dimension, Choice):
        return dimension.choice
    if isinstance(dimension, Constant):
        return (dimension.value,)
    if isinstance(dimension, tuple):
        return dimension
    return None if isinstance(dimension, ConditionalModel) else (dimension,)


def _list_ancestors(space: Mapping[str, SpaceValue], name: str) -> set[str]:
    """List the dimensions on which a dimension depends, directly or not."""
    ancestors: set[str] = set()
    waiting = [name]
    while waiting:
        dimension = space.get(waiting.pop())
        parents = set(dimension.when) if isinstance(dimension, ConditionalModel) else set()
        waiting += parents - ancestors
        ancestors |= parents
    return ancestors


def _is_empty_range(dimension: SpaceValue) -> bool:
    """Return whether the bounds of a dimension are out of order, or not positive where a logarithm is taken."""
    if isinstance(dimension, (Log, LogInteger)):
        low, high = dimension.log if isinstance(dimension, Log) else dimension.log_int
        return low >= high or low <= 0
    if isinstance(dimension, (Uniform, Integer)):
        low, high = dimension.uniform if isinstance(dimension, Uniform) else dimension.int_
        return low >= high
    return False
