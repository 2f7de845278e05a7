"""The parts of a cascade spec: data sources, feature groups, stages, models, baseline, costs and gates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from unfold_cascade.schema.language_models import CallPrice, Endpoint, Tokens
from unfold_cascade.schema.splits import LOG_SPLIT, AnySplit, Split
from unfold_cascade.schema.temporal import LongData, PhysioNetData
from unfoldkit.api import Duration, Model, Name

Label = str | int | bool | float
Derived = Literal["last", "age", "mean", "min", "max", "change", "spread"]
Confidence = Literal["max-probability", "margin", "entropy", "label-conditional", "either", "evidential", "ensemble"]
Duplicates = Annotated[
    Literal["group", "keep"] | None,
    Field(
        description="rows that repeat others (features, or recorded predictions and confidences): group keeps "
        "them in one part of the split and counts them once, keep takes each for a case of its own; group if omitted"
    ),
]
Params = dict[str, str | int | float | bool | list[int] | list[float] | None]
PARAMS_TEXT = "parameters of the estimator"
SCALE_TEXT = "standardize the columns; by default where it helps"


class SklearnData(Model):
    """A data set that is bundled with scikit-learn."""

    source: Literal["sklearn"]
    dataset: Literal["digits", "iris", "wine", "breast_cancer"] = Field(description="name of the data set")
    duplicates: Duplicates = None
    split: AnySplit = Split()


class TableData(Model):
    """A CSV, Parquet or JSON Lines file with one row per case."""

    source: Literal["table"]
    path: str = Field(
        min_length=1, description="a .csv, .jsonl or .json file, also as .gz, or a .parquet file, relative to the spec"
    )
    categories: tuple[str, ...] = Field(
        default=(),
        description="names or patterns of categorical columns; each value becomes a column COLUMN=WORD of 0 and 1",
    )
    group: str | None = Field(
        default=None,
        description="a column: rows with the same value (a customer, a conversation) stay in one part of the split, "
        "and the certificate covers the average group",
    )
    duplicates: Duplicates = None
    trusted: tuple[str, ...] | None = Field(
        default=None,
        description="columns that may predict the label, or the right answers, without error; any other such column is "
        "taken for a leaked label, and nothing is certified",
    )
    split: AnySplit = Split()


class RecordedData(Model):
    """A CSV, Parquet or JSON Lines file with the recorded predictions of each model; no model is fitted."""

    source: Literal["recorded"]
    path: str = Field(
        min_length=1,
        description="a .csv, .jsonl or .json file, also as .gz, a .parquet file, or results of lm-evaluation-harness, "
        "HELM, Inspect, promptfoo or OpenAI evals (a folder, or promptfoo's file), relative to the spec",
    )
    group: str | None = Field(
        default=None,
        description="a column: rows with the same value (a customer, a conversation) stay in one part of the split, "
        "and the certificate covers the average group",
    )
    prompt: str | None = Field(
        default=None,
        description="language models: the column of prompts; rows with the same prompt stay in one part of the split",
    )
    duplicates: Duplicates = None
    trusted: tuple[str, ...] | None = Field(
        default=None,
        description="columns that may predict the label, or the right answers, without error; any other such column is "
        "taken for a leaked label, and nothing is certified",
    )
    split: AnySplit = Field(
        default=Split(),
        description="parts to tune on, to certify on and to report: at random, by site, in time order or from a file; "
        "language models: at random, 25 %, 60 % and 15 % if omitted",
    )


class CallData(Model):
    """Prompts that ``unfold profile`` sends to every endpoint; the log in the run is what ``plan`` reads."""

    source: Literal["endpoints"]
    prompts: str = Field(min_length=1, description="a .csv, .jsonl or .json file, also as .gz, or a .parquet file")
    prompt: str = Field(default="prompt", description="the column of prompts")
    expected: str | None = Field(default=None, description="the column of expected answers, for scoring")
    group: str | None = Field(
        default=None, description="a column: rows with the same value stay in one part of the split"
    )
    split: Split = LOG_SPLIT


Data = Annotated[
    SklearnData | TableData | RecordedData | CallData | PhysioNetData | LongData, Field(discriminator="source")
]


class FeatureGroup(Model):
    """Columns that are acquired together; ``price`` is paid once per case, whichever models use them."""

    columns: tuple[str, ...] = Field(min_length=1, description="names or patterns such as pixel_*")
    price: float = Field(default=0.0, ge=0.0, description="paid once per case; over time, once while it is valid")
    valid_for: Duration | None = Field(
        default=None, description="over time: how long a purchase and its values stay valid"
    )
    derive: tuple[Derived, ...] = Field(
        default=("last",), description="over time: the features derived from the columns"
    )
    window: Duration | None = Field(
        default=None, description="over time: the window of mean, min, max, change and spread"
    )
    rule: Literal["sirs", "sofa"] | None = Field(
        default=None,
        description="over time: also the points of a clinical rule from these columns, now and the maximum so far",
    )


class Recorded(Model):
    """Columns of a recorded model: its prediction (or a judge's score of it), its confidence and the call cost."""

    prediction: str | None = Field(default=None, description="the column of predicted labels")
    score: str | None = Field(
        default=None, description="instead of a prediction: whether it was right (1 or 0, true or false), or a score"
    )
    right_from: float | None = Field(default=None, description="the smallest score of a right answer; 0.5 if omitted")
    confidence: str | None = Field(
        default=None, description="required, except for language models: one without it can only be the last of a chain"
    )
    price: str | None = Field(default=None, description="the column with the cost of each call, instead of price")
    price_of_confidence: str | None = Field(
        default=None, description="language models: the column with the cost of each confidence"
    )
    tokens: Tokens | None = Field(default=None, description="language models: the columns of tokens, for token prices")
    latency: str | None = Field(
        default=None,
        description="language models: the column with the duration of each call, ms, or s if its name ends in _s",
    )
    answer: str | None = Field(
        default=None,
        description="language models: the column with the text of each answer; where a score is missing, an answer "
        "equal to that of the reference needs none",
    )
    confidence_latency: str | None = Field(
        default=None,
        description="language models: the column with the duration of each confidence, ms; where a gate follows, it "
        "adds to the latency",
    )
    gated_score: str | None = Field(
        default=None,
        description="language models, votes: whether the answer of the majority, which a gate trusts, was right; score "
        "is that of one sample, which the last model gives",
    )
    gated_answer: str | None = Field(
        default=None, description="language models, votes: the column with the text of the majority's answer"
    )


class Tune(Model):
    """A tuning run; its winner supplies the parameters of a model."""

    run: str = Field(alias="from", min_length=1, description="the run folder, such as runs/digits-sha")


class ModelSpec(Model):
    """One model of a stage: fitted (``estimator``) or recorded."""

    name: Name
    estimator: str | None = Field(
        default=None,
        description="a short name (see the reference page), a dotted path, or baseline: the baseline model itself, "
        "the last resort, paid once per case",
    )
    features: tuple[str, ...] | None = Field(default=None, description="feature groups; all if omitted")
    params: Params = Field(default_factory=dict, description=PARAMS_TEXT)
    scale: bool | None = Field(default=None, description=SCALE_TEXT)
    tune: Tune | None = Field(default=None, description="take the parameters of the winner of a tuning run")
    recorded: Recorded | None = Field(default=None, description="the columns of a recorded model")
    price: CallPrice | None = Field(
        default=None,
        description="of one call; for recorded models and cost by price. Language models: {in: 0.15, out: 0.6}",
    )
    price_of_confidence: CallPrice | None = Field(
        default=None, description="language models: of the confidence (a self-check), paid only where a gate follows"
    )
    endpoint: Endpoint | None = Field(default=None, description="language models: where profile and serve call it")


class Target(Model):
    """What a stage decides: the label of a column, or the group that contains it."""

    column: str | None = Field(default=None, description="the column of the label")
    groups: dict[str, tuple[Label, ...]] | None = Field(
        default=None, description="the labels of each group that the stage decides between"
    )
    rule: Literal["sirs", "sofa"] | None = Field(default=None, description="over time: two criteria or points")
    ahead: Duration | None = Field(default=None, description="over time: how far ahead the stage is to be predicted")


class Stage(Model):
    """One decision and the models that can take it, from cheap to expensive."""

    name: Name
    target: Target = Field(default=Target(), description="what the stage decides")
    models: tuple[ModelSpec, ...] = Field(min_length=1, max_length=32, description="from cheap to expensive")
    parallel: bool = Field(default=False, description="over time: evaluated every hour, whatever the stage of the case")
    fresh: Duration | None = Field(
        default=None, description="over time: the period after entry that is used for training"
    )
    learn: Literal["label", "utility"] = Field(
        default="label",
        description="over time: predict whether the stage is entered, or whether a warning pays off at that hour",
    )


class Candidate(Model):
    """One candidate for the baseline model."""

    estimator: str = Field(description="a short name or a dotted path")
    params: Params = Field(default_factory=dict, description=PARAMS_TEXT)
    scale: bool | None = Field(default=None, description=SCALE_TEXT)
    features: tuple[str, ...] | None = Field(default=None, description="feature groups; all if omitted")
    price: float | None = Field(
        default=None,
        ge=0.0,
        description="of one call, for cost by price; also where a model of a stage is estimator: baseline",
    )


class Rival(Model):
    """Another single model over time, evaluated beside the baseline; nothing is certified against it."""

    name: Name
    estimator: str = Field(description="a short name or a dotted path")
    params: Params = Field(default_factory=dict, description=PARAMS_TEXT)
    scale: bool | None = Field(default=None, description=SCALE_TEXT)
    features: tuple[str, ...] | None = Field(default=None, description="feature groups; all if omitted")


class Baseline(Model):
    """The baseline: the best candidate by cross-validation on ``train``; over time, one model."""

    candidates: tuple[Candidate, ...] = Field(default=(), description="for cases without time")
    estimator: str | None = Field(default=None, description="over time: the baseline model")
    params: Params = Field(default_factory=dict, description=PARAMS_TEXT)
    scale: bool | None = Field(default=None, description=SCALE_TEXT)
    features: tuple[str, ...] | None = Field(default=None, description="feature groups; all if omitted")
    rivals: tuple[Rival, ...] = Field(default=(), max_length=4, description="over time: other models to compare")


class CostSpec(Model):
    """How the cost of a call is measured, and its unit in reports."""

    by: Literal["flops", "bytes", "latency", "price", "price+flops"] = Field(
        default="flops",
        description="what is saved: operations, stored bytes, time or money; over time also price+flops",
    )
    batch: int = Field(default=256, ge=1, le=65536, description="rows per call when latency is measured")
    unit: str | None = Field(default=None, max_length=40, description="the unit of prices in reports, such as $")


class GateSpec(Model):
    """How gates are searched."""

    confidence: Confidence | None = Field(
        default=None,
        description="the confidence that gates compare: by default max-probability; for recorded predictions either, "
        "the better of max-probability and label-conditional at each point of the front. evidential (leaf counts) and "
        "ensemble (agreement) need trees or forests, ensemble also accepts xgboost; other models use max-probability",
    )
    order: Literal["sorted", "all"] | None = Field(
        default=None,
        description="sorted: only from cheap to expensive; all: every order. Default: sorted, or all for up to five "
        "recorded models",
    )
    max_models: int = Field(default=3, ge=1, le=5, description="the longest chain to search")
    bins: int | None = Field(
        default=None, ge=2, le=4096, description="thresholds tried per gate; by default all or many"
    )
    learnt: tuple[Literal["soft", "induction"], ...] = Field(
        default=(), description="also try gates learnt by gradient (soft) or by backward induction"
    )
    folds: int = Field(
        default=5, ge=2, le=20, description="gates are tuned on out-of-fold predictions with this many folds"
    )
