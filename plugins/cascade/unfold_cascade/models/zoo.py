"""The models of a cascade: fitted in parallel, evaluated once on every row, and stored so that training resumes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.data.dataset import Dataset, DatasetOptions, load_features, number_label_groups
from unfold_cascade.learners import estimators
from unfold_cascade.learners.estimator_names import select_inspection
from unfold_cascade.learners.estimators import Recipe
from unfold_cascade.models.training import FitJob, fit_model
from unfoldkit.api import Run, RunDir, fingerprint, user_error
from unfoldkit.safe_io.arrays import read_npz
from unfoldkit.safe_io.files import parse_object

BASELINE = "baseline"
WHOLE = "all"
"""The group name of a stage that decides about all cases."""
RESUME_HINT = "unfold train on the same spec resumes"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """A model of a stage, or a candidate for the baseline.

    ``key`` is its path in the spec. ``features`` are its feature groups, ``None`` for all; ``price`` is that of one
    call.
    """

    key: str
    name: str
    recipe: Recipe
    features: tuple[str, ...] | None
    price: float

    @property
    def is_baseline(self) -> bool:
        """Whether the model of the stage is the baseline itself, which is fitted as a candidate."""
        return self.recipe.estimator == BASELINE


@dataclass(frozen=True, slots=True)
class StageOptions:
    """One stage: its name, its models, and whether it decides between groups of labels."""

    name: str
    models: tuple[ModelOptions, ...]
    decides_groups: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooOptions:
    """All models to fit and how.

    ``confidence`` is what gates read; ``batch`` the rows per call when latency is measured; ``identity`` plain data
    of the data source and the targets, for fingerprints of the models.
    """

    stages: tuple[StageOptions, ...]
    candidates: tuple[ModelOptions, ...]
    confidence: str | None
    folds: int
    batch: int
    seed: int
    identity: tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class ModelSlot:
    """One model to fit and where the run stores it.

    Attributes:
        key: Path of the estimator in the spec.
        stage: Name of the stage, or ``baseline``.
        group: Group of labels that the model decides about, or ``all``.
        model: Name of the model.
        recipe: How the model is made.
        columns: Numbers of the columns that it reads.
        in_scope: (n,) whether the model decides about a row.
        labels: (n,) labels of the model, numbered from 0; -1 out of scope.
        answers: (C,) the label (or group) number of the data set behind each label of the model.
        made_from: Fingerprint of all that the model depends on.
        inside: The confidence that reads the internals of the model, or ``None``.
    """

    key: str
    stage: str
    group: str
    model: str
    recipe: Recipe
    columns: IntArray
    in_scope: BoolArray
    labels: IntArray
    answers: IntArray
    made_from: str
    inside: str | None = None

    @property
    def place(self) -> str:
        """Stage, group and model, as a path."""
        return f"{self.stage}/{self.group}/{self.model}"

    @property
    def classes(self) -> int:
        """The number of labels of the model."""
        return len(self.answers)

    @property
    def model_file(self) -> str:
        """The file of the model in the run."""
        return f"models/{self.place}{estimators.file_suffix(self.recipe)}"

    @property
    def log_file(self) -> str:
        """The file of its predictions in the run."""
        return f"logs/{self.place}.npz"


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions of one model for every row, out of fold on training rows, and the cost of a call.

    ``probability`` is (n, C). ``confidence`` (n,) comes from the internals of the model, out of fold too; it is
    ``None`` where gates read the probabilities.
    """

    probability: FloatArray
    flops: float
    bytes: float
    latency_us: float
    confidence: FloatArray | None = None


PredictedSlot = tuple[ModelSlot, Predictions]


def fit_models(options: ZooOptions, data: DatasetOptions, dataset: Dataset, run: Run) -> list[PredictedSlot]:
    """Fit every model that the run does not store yet, in parallel, and load all predictions.

    Raises:
        UnfoldError: An estimator does not exist or cannot be fitted, or a worker died.
    """
    fit_missing_models(options, data, [(dataset, run.directory)], run)
    return load_models(options, data, dataset, run.directory)


def fit_missing_models(
    options: ZooOptions,
    data: DatasetOptions,
    splits: Sequence[tuple[Dataset, RunDir]],
    run: Run,
    step: str = "models",
) -> None:
    """Fit every model that is not stored yet, for each of some splits of one table, in one pool of workers.

    Args:
        options: The models.
        data: The table.
        splits: Data sets that differ in their parts only, and the run of each.
        run: Engine, log and progress.
        step: Name of the progress.

    Raises:
        UnfoldError: An estimator does not exist or cannot be fitted, or a worker died.
    """
    slots = [(*split, slot) for split in splits for slot in list_slots(options, data, split[0])]
    missing = [each for each in slots if not _is_stored(each[1], each[2])]
    for _, _, slot in missing:
        estimators.check_recipe(slot.recipe, key=slot.key, allow_code=run.allow_code)
    fitted = itertools.count(len(slots) - len(missing) + 1)

    def store(index: int, result: tuple[bytes, bytes]) -> None:
        _, directory, slot = missing[index]
        directory.write(slot.model_file, result[0], made_from=slot.made_from)
        directory.write(slot.log_file, result[1], made_from=slot.made_from)
        run.log.info("fitted %s %s %s", slot.stage, slot.group, slot.model)
        run.progress(step, next(fitted), len(slots))

    if missing:
        x = load_features(data, splits[0][0])
        # models of one feature set share its columns, whatever the number of splits
        parts = {slot.columns.tobytes(): np.ascontiguousarray(x[:, slot.columns]) for _, _, slot in missing}
        has_gaps = estimators.has_gaps(x)
        jobs = [
            _build_job(options, dataset, slot, parts[slot.columns.tobytes()], has_gaps=has_gaps)
            for dataset, _, slot in missing
        ]
        run.engine.map(fit_model, jobs, on_result=store)


def load_models(options: ZooOptions, data: DatasetOptions, dataset: Dataset, directory: RunDir) -> list[PredictedSlot]:
    """Load the predictions of every model from the run; nothing is fitted.

    Raises:
        UnfoldError: A model is not stored, or was fitted with another seed or other library versions.
    """
    slots = list_slots(options, data, dataset)
    for slot in slots:
        if not _is_stored(directory, slot):
            message = f"the run has no model {slot.model!r} of this spec, seed and library versions"
            raise user_error(message, file=str(directory.path), key=slot.key, hint=RESUME_HINT)
    return [(slot, _read_predictions(directory, slot)) for slot in slots]


def list_slots(options: ZooOptions, data: DatasetOptions, dataset: Dataset) -> list[ModelSlot]:
    """List every model to fit: stage by stage, group by group, then the candidates for the baseline."""
    groups = number_label_groups(data.label_groups, dataset.names)
    group_names = tuple(data.label_groups or ())
    slots: list[ModelSlot] = []
    for s, stage in enumerate(options.stages):
        for group, in_scope in _list_scopes(dataset, groups, group_names, s):
            truth = groups[dataset.labels] if stage.decides_groups else dataset.labels
            slots += [
                _build_slot(options, dataset, model, (stage.name, group), truth, in_scope)
                for model in stage.models
                if not model.is_baseline
            ]
    everywhere = np.ones(len(dataset.labels), dtype=np.bool_)
    slots += [
        _build_slot(options, dataset, candidate, (BASELINE, WHOLE), dataset.labels, everywhere)
        for candidate in options.candidates
    ]
    return slots


def name_candidate(index: int, estimator: str) -> str:
    """Name the candidate for the baseline at ``index``, for files and reports."""
    return f"{estimator.rsplit('.', 1)[-1]}-{index + 1}"


def library_versions() -> list[str]:
    """List the versions of the libraries that a fit depends on."""
    import importlib.metadata

    return [importlib.metadata.version(name) for name in ("scikit-learn", "xgboost", "numpy")]


def _list_scopes(
    dataset: Dataset, groups: IntArray, group_names: Sequence[str], stage: int
) -> Iterator[tuple[str, BoolArray]]:
    """Yield the group and the (n,) rows of each set of models of a stage; single-label groups need no model."""
    if stage == 0 or not group_names:
        yield WHOLE, np.ones(len(dataset.labels), dtype=np.bool_)
        return
    for number, name in enumerate(group_names):
        if (groups == number).sum() > 1:
            yield name, groups[dataset.labels] == number


def _build_slot(
    options: ZooOptions,
    dataset: Dataset,
    model: ModelOptions,
    stage_and_group: tuple[str, str],
    truth: IntArray,
    in_scope: BoolArray,
) -> ModelSlot:
    stage, group = stage_and_group
    answers = np.unique(truth[in_scope])
    if len(answers) < 2:
        raise user_error(
            f"group {group!r} has one label only, so there is nothing to decide", key="stages[0].target.groups"
        )
    number = np.full(int(truth.max()) + 1, -1, dtype=np.int64)
    number[answers] = np.arange(len(answers))
    columns = dataset.column_numbers(model.features)
    recipe, (source, targets) = model.recipe, options.identity
    facts = [dataset.digest, source, dataset.order, columns.tolist(), answers.tolist(), targets]
    how = [recipe.estimator, dict(recipe.params), recipe.scale, options.seed, options.folds, options.batch]
    inspection = select_inspection(options.confidence, recipe.estimator) if stage != BASELINE else None
    # omitted where there is none, so that stored models keep their fingerprints
    extra = [inspection] if inspection else []
    # a split file is not part of the spec
    extra += [dataset.rows.train.tolist()] if "file" in source["split"] else []
    made_from = fingerprint(facts, how, library_versions(), *extra)
    labels = np.where(in_scope, number[truth], -1)
    return ModelSlot(
        model.key, stage, group, model.name, recipe, columns, in_scope, labels, answers, made_from, inspection
    )


def _build_job(options: ZooOptions, dataset: Dataset, slot: ModelSlot, x: FloatArray, *, has_gaps: bool) -> FitJob:
    """Build the fit of a model on ``x``, the (n, d) columns that it reads."""
    train = dataset.rows.train
    return FitJob(
        recipe=slot.recipe,
        x=x,
        labels=slot.labels,
        training_rows=train[slot.in_scope[train]],
        folds=options.folds,
        seed=options.seed,
        batch=options.batch,
        inspection=slot.inside,
        clusters=dataset.clusters,
        has_gaps=has_gaps,
    )


def _is_stored(directory: RunDir, slot: ModelSlot) -> bool:
    return all(directory.has(name, made_from=slot.made_from) for name in (slot.model_file, slot.log_file))


def _read_predictions(directory: RunDir, slot: ModelSlot) -> Predictions:
    with directory.decoding(slot.log_file, "a log of predictions") as data:
        stored = read_npz(data)
        facts = parse_object(stored["facts"].tobytes())
        flops = float("nan") if facts["flops"] is None else float(facts["flops"])
        size, latency_us = float(facts["bytes"]), float(facts["latency_us"])
        return Predictions(stored["probability"], flops, size, latency_us, stored.get("confidence"))
