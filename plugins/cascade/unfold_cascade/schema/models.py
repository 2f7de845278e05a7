"""What a user writes in a spec of kind ``cascade``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import Field

from unfold_cascade.schema.goals import Goal
from unfold_cascade.schema.temporal import Alerts, Drift, LongData, Moves, PhysioNetData, Split
from unfoldkit.api import Duration, Model, Name, Problem, Spec, did_you_mean

FEW_MODELS = 5
Label = str | int | bool | float
Derived = Literal["last", "age", "mean", "min", "max", "change", "spread"]
Confidence = Literal["max-probability", "margin", "entropy", "label-conditional", "either", "evidential", "ensemble"]
Params = dict[str, str | int | float | bool | list[int] | list[float] | None]


class SklearnData(Model):
    """A set that comes with scikit-learn."""

    source: Literal["sklearn"]
    dataset: Literal["digits", "iris", "wine", "breast_cancer"]
    split: Split = Split()


class TableData(Model):
    """A CSV, Parquet or JSON Lines file with one row a case."""

    source: Literal["table"]
    path: str = Field(
        min_length=1, description="a .csv or .jsonl file, also as .gz, or a .parquet file, relative to the spec"
    )
    categories: tuple[str, ...] = Field(
        default=(), description="names or patterns of columns of words: each word is a column COLUMN=WORD of 0 and 1"
    )
    group: str | None = Field(
        default=None,
        description="a column: rows with the same word in it (a customer, a conversation) are split as a whole, and "
        "the average of them is certified",
    )
    split: Split = Split()


class RecordedData(Model):
    """A CSV, Parquet or JSON Lines file with what each model answered: no model is fitted."""

    source: Literal["recorded"]
    path: str = Field(
        min_length=1, description="a .csv or .jsonl file, also as .gz, or a .parquet file, relative to the spec"
    )
    group: str | None = Field(
        default=None,
        description="a column: rows with the same word in it (a customer, a conversation) are split as a whole, and "
        "the average of them is certified",
    )
    split: Split = Split()


Data = Annotated[SklearnData | TableData | RecordedData | PhysioNetData | LongData, Field(discriminator="source")]


class FeatureGroup(Model):
    """Columns that are bought together; ``price`` is paid once a case, whichever models use them."""

    columns: tuple[str, ...] = Field(min_length=1, description="names or patterns such as pixel_*")
    price: float = Field(default=0.0, ge=0.0)
    valid_for: Duration | None = Field(default=None, description="over time: how long a purchase and its values hold")
    derive: tuple[Derived, ...] = Field(default=("last",), description="over time: what is made of them")
    window: Duration | None = Field(default=None, description="over time: of mean, min, max, change and spread")
    rule: Literal["sirs", "sofa"] | None = Field(
        default=None, description="over time: also how many points of a rule these columns give, now and at most so far"
    )


class Recorded(Model):
    """Where a recorded model's answer, or a judge's score of it, its confidence and what the call cost stand."""

    prediction: str | None = None
    score: str | None = Field(
        default=None, description="in the place of an answer: whether it was right (1 or 0, true or false), or a score"
    )
    right_from: float | None = Field(default=None, description="the least score of a right answer; 0.5 if left out")
    confidence: str
    price: str | None = Field(default=None, description="the column of what each call cost, in the place of price")


class Tune(Model):
    """A tuning run that found a model's parameters, within its own deadline and budget."""

    run: str = Field(alias="from", min_length=1, description="its folder, such as runs/digits-sha")


class ModelSpec(Model):
    """One model of a stage: fitted (``estimator``) or recorded."""

    name: Name
    estimator: str | None = Field(
        default=None,
        description="a short name (see the reference page), a dotted path, or baseline: the monolith itself, "
        "asked as the last resort and paid once a case",
    )
    features: tuple[str, ...] | None = Field(default=None, description="feature groups; all if left out")
    params: Params = Field(default_factory=dict)
    scale: bool | None = Field(default=None, description="standardise the columns; by default where it helps")
    tune: Tune | None = Field(default=None, description="take the parameters that a tuning run found")
    recorded: Recorded | None = None
    price: float | None = Field(default=None, ge=0.0, description="of one call; for recorded models and cost by price")


class Target(Model):
    """What a stage decides: the label in a column, or which group of those labels."""

    column: str | None = None
    groups: dict[str, tuple[Label, ...]] | None = None
    rule: Literal["sirs", "sofa"] | None = Field(default=None, description="over time: two criteria or points")
    ahead: Duration | None = Field(default=None, description="over time: how early the stage is to be announced")


class Stage(Model):
    """One question, and the models that can answer it, from cheap to costly."""

    name: Name
    target: Target = Target()
    models: tuple[ModelSpec, ...] = Field(min_length=1, max_length=8)
    parallel: bool = Field(default=False, description="over time: asked at every hour, whatever stage a case is in")
    fresh: Duration | None = Field(
        default=None, description="over time: no longer than this after entry is learnt from"
    )
    learn: Literal["label", "utility"] = Field(
        default="label", description="over time: whether the stage is entered, or whether a warning pays at that hour"
    )


class Candidate(Model):
    """One monolithic model that the cascade is compared with."""

    estimator: str
    params: Params = Field(default_factory=dict)
    scale: bool | None = None
    features: tuple[str, ...] | None = None
    price: float | None = Field(
        default=None, ge=0.0, description="of one call, for cost by price; also where a model is estimator: baseline"
    )


class Rival(Model):
    """Another monolithic model over time, judged beside the baseline; nothing is certified against it."""

    name: Name
    estimator: str
    params: Params = Field(default_factory=dict)
    scale: bool | None = None
    features: tuple[str, ...] | None = Field(default=None, description="feature groups; all if left out")


class Baseline(Model):
    """The monolithic models that were tried, the best by cross-validation on ``train`` being the reference; or one."""

    candidates: tuple[Candidate, ...] = Field(default=(), description="for cases without time")
    estimator: str | None = Field(default=None, description="over time: the one monolithic model")
    params: Params = Field(default_factory=dict)
    scale: bool | None = None
    features: tuple[str, ...] | None = Field(default=None, description="feature groups; all if left out")
    rivals: tuple[Rival, ...] = Field(default=(), max_length=4, description="over time: others, laid beside it")


class CostSpec(Model):
    """What one call costs, and the unit that reports print."""

    by: Literal["flops", "bytes", "latency", "price", "price+flops"] = "flops"
    batch: int = Field(default=256, ge=1, le=65536, description="rows of one call when latency is measured")
    unit: str | None = Field(default=None, max_length=40)


class GateSpec(Model):
    """How gates are searched."""

    confidence: Confidence | None = Field(
        default=None,
        description="what gates read: by default max-probability, and of recorded answers either, the better at each "
        "point of the front of max-probability and label-conditional; evidential (leaf counts) and ensemble "
        "(agreement) look into trees and forests, ensemble into xgboost too, and other models beside them are read "
        "by max-probability",
    )
    order: Literal["sorted", "all"] | None = Field(
        default=None,
        description="only cheap to costly, or every order; by default sorted, and all of up to five recorded models",
    )
    max_models: int = Field(default=3, ge=1, le=5, description="longest chain that is searched")
    bins: int | None = Field(default=None, ge=2, le=4096, description="cuts tried per gate; by default all or many")
    learnt: tuple[Literal["soft", "induction"], ...] = Field(
        default=(), description="also tried beside the exact search: gates by gradient, or by backward induction"
    )
    folds: int = Field(default=5, ge=2, le=20, description="gates are tuned on out-of-fold answers of this many folds")


class CascadeSpec(Spec):
    """Asks the cheap models first and the costly ones only where it must."""

    kind: Literal["cascade"]
    data: Data
    features: dict[str, FeatureGroup] = Field(default_factory=dict)
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=4)
    baseline: Baseline | None = Field(default=None, description="left out for recorded models: the best of them")
    cost: CostSpec = CostSpec()
    gates: GateSpec = GateSpec()
    moves: Moves | None = Field(default=None, description="over time: how a case moves through the stages")
    alerts: Alerts | None = Field(default=None, description="over time: how often the last stage may say yes")
    drift: Drift | None = Field(default=None, description="what a check of new data tells, and, over time, an audit")
    goal: Goal

    @property
    def over_time(self) -> bool:
        """Whether the cases are seen hour after hour."""
        return isinstance(self.data, (PhysioNetData, LongData))

    @property
    def group(self) -> str | None:
        """The column that says which rows of a table belong together."""
        return self.data.group if self.data.source in ("table", "recorded") else None

    @property
    def scored(self) -> bool:
        """Whether recorded answers are not compared with a label: their scores say which are right."""
        recorded = [model.recorded for model in self.stages[0].models if self.data.source == "recorded"]
        return any(one is not None and one.score is not None for one in recorded)

    @property
    def order(self) -> Literal["sorted", "all"]:
        """In which orders models are asked; a dear service may know less than a cheap one, one fitted here rarely."""
        few = self.data.source == "recorded" and len(self.stages[0].models) <= FEW_MODELS
        return self.gates.order or ("all" if few else "sorted")

    @property
    def conditional(self) -> tuple[bool, ...]:
        """Which scores gates are searched on: those of the models (False), those that know the answer (True)."""
        default = "either" if self.data.source == "recorded" and not self.scored else "max-probability"
        return {"either": (False, True), "label-conditional": (True,)}.get(self.gates.confidence or default, (False,))

    def problems(self) -> Iterable[Problem]:
        """Say what does not fit together."""
        from unfold_cascade.schema import goals, names, temporal_rules

        yield from goals.problems(self)
        yield from _split_problems(self.data.split)
        yield from names.problems(self)
        if self.over_time:
            yield from temporal_rules.over_time(self)
            yield from _confidence_problems(self)
            return
        yield from temporal_rules.without_time(self)
        yield from _stage_problems(self)
        yield from _model_problems(self)
        yield from _confidence_problems(self)
        if self.data.source != "recorded" and (self.baseline is None or not self.baseline.candidates):
            yield Problem(("baseline",), "this key is missing", "baseline: {candidates: [{estimator: svc}]}")


def _confidence_problems(spec: CascadeSpec) -> Iterator[Problem]:
    """Yield a confidence that looks into models where no model of a stage can be looked into."""
    from unfold_cascade.learners.estimator_internals import INSIDE, inside

    name = spec.gates.confidence or ""
    named = [model.estimator or "" for stage in spec.stages for model in stage.models]
    if name in INSIDE and not any(inside(name, estimator) for estimator in named):
        hint = f"it looks into {', '.join(one for one in INSIDE[name] if '.' not in one)}"
        yield Problem(("gates", "confidence"), f"no model of the stages can be read by {name}", hint)
    if spec.over_time and name in ("label-conditional", "either"):
        yield Problem(("gates", "confidence"), f"{name} goes with cases without time only")


def _split_problems(split: Split) -> Iterator[Problem]:
    total = split.train + split.calibrate + split.test
    if abs(total - 1) > 1e-9:
        yield Problem(("data", "split"), f"the shares add up to {total:g}, not 1")
    for name in ("train", "calibrate", "test"):
        if getattr(split, name) <= 0:
            yield Problem(("data", "split", name), "must be above 0")


def _stage_problems(spec: CascadeSpec) -> Iterator[Problem]:
    yield from _repeated([(("stages", i, "name"), stage.name) for i, stage in enumerate(spec.stages)])
    last = len(spec.stages) - 1
    for index, stage in enumerate(spec.stages):
        target, place = stage.target, ("stages", index, "target")
        if spec.scored:
            continue
        if index == last and (target.column is None or target.groups is not None):
            yield Problem(place, "the last stage decides the label itself", "target: {column: NAME}")
        if index < last and (target.groups is None or target.column is not None):
            yield Problem(
                place, "a stage before the last decides between groups", "target: {groups: {a: [0, 1], b: [2]}}"
            )
        yield from _group_problems(target, place)


def _group_problems(target: Target, place: tuple[str | int, ...]) -> Iterator[Problem]:
    if target.groups is None:
        return
    if len(target.groups) < 2:
        yield Problem((*place, "groups"), "needs at least two groups")
    seen: dict[str, str] = {}
    for name, labels in target.groups.items():
        for label in labels:
            if str(label) in seen:
                yield Problem((*place, "groups", name), f"the label {label} is in {seen[str(label)]!r} too")
            seen[str(label)] = name


def _model_problems(spec: CascadeSpec) -> Iterator[Problem]:
    from unfold_cascade.schema import prices, recorded

    logged = spec.data.source == "recorded"
    for s, stage in enumerate(spec.stages):
        yield from _repeated([(("stages", s, "models", m, "name"), model.name) for m, model in enumerate(stage.models)])
        for m, model in enumerate(stage.models):
            place: tuple[str | int, ...] = ("stages", s, "models", m)
            yield from () if logged else _fitted_problems(spec, model, place)
    if logged:
        yield from recorded.problems(spec)
    for c, candidate in enumerate(spec.baseline.candidates if spec.baseline else ()):
        yield from _feature_problems(spec, candidate.features, ("baseline", "candidates", c))
    yield from prices.problems(spec)


def _fitted_problems(spec: CascadeSpec, model: ModelSpec, place: tuple[str | int, ...]) -> Iterator[Problem]:
    if model.estimator is None:
        yield Problem(place, "which estimator?", "estimator: logistic-regression")
    given = (model.features, model.scale, model.tune)
    if model.estimator == "baseline" and (model.params or any(one is not None for one in given)):
        yield Problem((*place, "estimator"), "the baseline is taken as it is, without params, features or scale")
    if model.recorded is not None:
        yield Problem((*place, "recorded"), "goes with data: {source: recorded} only", at_key=True)
    yield from _feature_problems(spec, model.features, place)


def _feature_problems(
    spec: CascadeSpec, features: tuple[str, ...] | None, place: tuple[str | int, ...]
) -> Iterator[Problem]:
    for f, name in enumerate(features or ()):
        if name not in spec.features:
            yield Problem(
                (*place, "features", f), f'no such feature group: "{name}"', did_you_mean(name, spec.features)
            )


def _repeated(names: list[tuple[tuple[str | int, ...], str]]) -> Iterator[Problem]:
    seen: set[str] = set()
    for place, name in names:
        if name in seen:
            yield Problem(place, f'the name "{name}" is taken')
        seen.add(name)
