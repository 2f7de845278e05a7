"""Sections ``data`` and ``training``: labelled examples, and how the supernet learns from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from unfoldkit.api import Fraction, Model, Problem

ClassWeights = Literal["balanced"] | dict[str, Annotated[float, Field(gt=0, le=1e6)]]


Targets = str | Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1, max_length=10_000)]


class DataSpec(Model):
    """Labelled examples."""

    source: Literal["digits", "mitbih", "file", "images"] = Field(
        description="scikit-learn's digits, beats of MIT-BIH, your own arrays or tables, or folders of images"
    )
    path: str | None = Field(
        default=None,
        description="beats.npz of MIT-BIH; an NPZ with arrays x and y, a CSV, a Parquet file, or a folder of NPZ or "
        "Parquet shards; or a folder with a folder of images for each class",
    )
    task: Literal["classes", "labels", "values"] = Field(
        default="classes",
        description="what a module of your own learns: one class a row; several labels a row, 0 or 1 each; or real "
        "values (regression)",
    )
    target: Targets = Field(
        default="target",
        description="the label column of a CSV or Parquet file; for task labels or values also a list of columns",
    )
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = Field(
        default=None, description="height and width to which images are resized, in pixels; by default 64"
    )
    channels: Literal["first", "last", "none"] | None = Field(
        default=None, description="position of the channel axis in an NPZ's x, after the rows; needed if ambiguous"
    )
    group: str | None = Field(default=None, description="array or column of a file with the group of each row")
    split: Literal["random", "inter-patient", "given"] = Field(
        default="random",
        description="random rows; whole records or groups on one side; or a file's own split (1 train, 2 test; for "
        "images the folders train and test)",
    )
    test: Annotated[Fraction, Field(gt=0, lt=1)] = Field(
        default=0.4, description="fraction of each class held out for testing"
    )


class TrainingSpec(Model):
    """How the supernet is trained; the defaults are those with the smallest weight-sharing gap."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(default=20, description="passes over the training rows")
    rule: Literal["all", "sandwich", "progressive"] = Field(
        default="all",
        description="train every subnet in each step; or the largest, the smallest and random ones (sandwich rule); "
        "or the largest first, then enable kernel, depth and width one after the other (OFA)",
    )
    samples: Annotated[int, Field(ge=1, le=64)] = Field(
        default=2, description="random subnets in a step of the sandwich rule"
    )
    distill: Fraction | None = Field(
        default=None,
        description="weight of the distillation loss against the largest subnet's output; by default 0, or 0.5 for a "
        "module of your own",
    )
    delay: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=0, description="epochs of the largest subnet before the others join"
    )
    sort: bool = Field(
        default=False,
        description="sort channels by importance before narrow subnets join (with delay or progressive)",
    )
    batch: Annotated[int, Field(ge=2, le=65_536)] = Field(default=256, description="rows of a step")
    rate: Annotated[float, Field(gt=0, le=100)] | None = Field(
        default=None,
        description="learning rate after warm-up; by default 0.1 (SGD), or 0.001 for a module of your own (AdamW)",
    )
    optimizer: Literal["adamw", "sgd"] | None = Field(
        default=None, description="for a module of your own, by default adamw; a space is trained with sgd"
    )
    class_weights: ClassWeights | None = Field(
        default=None,
        description="balanced, or the weight of each class in the loss of a module of your own; by default 1",
    )
    warmup: Annotated[int, Field(ge=0, le=1000)] = Field(default=2, description="epochs of warm-up")
    decay: Annotated[float, Field(ge=0, le=1)] = Field(default=1e-4, description="weight decay")
    clip: Annotated[float, Field(gt=0)] = Field(default=5.0, description="maximum gradient norm")
    smoothing: Fraction = Field(default=0.1, description="label smoothing of a space; its confidences undo it")
    noise: Annotated[float, Field(ge=0, le=10)] = Field(default=0.0, description="standard deviation of input noise")
    shift: Annotated[int, Field(ge=0, le=64)] = Field(default=0, description="maximum random shift of the inputs")
    calibrate: Annotated[int, Field(ge=16, le=1_000_000)] = Field(
        default=4096, description="examples for the norm statistics"
    )
    validation: Annotated[Fraction, Field(ge=0, lt=1)] = Field(
        default=0.1,
        description=(
            "fraction of the training rows held out to calibrate confidences; whole groups where rows have one, "
            "at least three of twenty or more"
        ),
    )
    alone: bool = Field(
        default=True, description="also train smallest, middle and largest subnet as standalone models, to compare"
    )
    threads: Annotated[int, Field(ge=1, le=256)] = Field(default=1, description="threads of torch")


def find_data_problems(data: DataSpec | None, form: str) -> Iterable[Problem]:
    """Yield contradictions between the data and the ``form`` of the space that is trained on it."""
    if data is None:
        yield Problem(("data",), "a space needs data to train on", hint="write data: {source: digits}")
        return
    if data.source != "digits" and data.path is None:
        yield Problem(("data",), "the file is not named", hint="write path: data/beats.npz")
    yield from _find_split_problems(data)
    yield from _find_task_problems(data, form)
    if data.image_size is not None and data.source != "images":
        yield Problem(("data", "image_size"), "applies to source: images only", hint="remove image_size")
    required = {"digits": "conv2d", "images": "conv2d", "mitbih": "conv1d"}.get(data.source, form)
    if form not in (required, "transformer", "module"):
        yield Problem(("space", "form"), f"{data.source} requires {required} or transformer")


def find_training_problems(training: TrainingSpec, coupling: str) -> Iterable[Problem]:
    """Yield contradictions between the training rule and the ``coupling`` of the space."""
    if training.rule == "progressive" and coupling == "compound":
        message, hint = "progressive shrinking needs independent lists", "use coupling: independent, or rule: all"
        yield Problem(("training", "rule"), message, hint=hint)
    if training.sort and training.rule != "progressive" and not training.delay:
        message = "channels can be sorted only before narrow subnets join"
        yield Problem(("training", "sort"), message, hint="add a delay")


def _find_task_problems(data: DataSpec, form: str) -> Iterable[Problem]:
    """Yield a task that the network or the file does not have, and target columns that do not go with it."""
    if data.task != "classes" and form != "module":
        message, hint = "a space is trained on classes only", "remove task, or write model: with a module of your own"
        yield Problem(("data", "task"), message, hint=hint)
    if data.task != "classes" and data.source != "file":
        message, hint = f"{data.source} holds one class a row", "remove task, or use source: file"
        yield Problem(("data", "task"), message, hint=hint)
    if data.task == "classes" and not isinstance(data.target, str):
        message, hint = "a classifier has one label column", "write one column, or task: labels"
        yield Problem(("data", "target"), message, hint=hint)
    columns = data.target if isinstance(data.target, tuple) else ()
    for index, name in enumerate(columns):
        if name in columns[:index]:
            yield Problem(("data", "target", index), f"column {name!r} appears twice", hint="name each column once")


def _find_split_problems(data: DataSpec) -> Iterable[Problem]:
    is_file, by_group = data.source == "file", data.split == "inter-patient"
    if is_file and by_group and data.group is None:
        message, hint = "the group of each row is unknown", "write group: patient, an array or column"
        yield Problem(("data", "split"), message, hint=hint)
    if data.group is not None and not (is_file and by_group):
        message, hint = "has no effect on this split", "use source: file with split: inter-patient, or remove group"
        yield Problem(("data", "group"), message, hint=hint)
    if (data.source == "digits" and data.split != "random") or (data.source == "mitbih" and data.split == "given"):
        split = "random" if data.source == "digits" else "inter-patient"
        yield Problem(("data", "split"), f"{data.source} does not support this split", hint=f"split: {split}")
    if data.source == "images" and by_group:
        message, hint = "images does not support this split", "split: random, or given with folders train and test"
        yield Problem(("data", "split"), message, hint=hint)
