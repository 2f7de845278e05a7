"""Training: fit the models that the run does not hold yet, in parallel workers, and store model and predictions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfold_cascade._types import BoolArray, Float32, FloatArray, IntArray
from unfold_cascade.gates.evidential import inspect_model, shrink_to_uniform
from unfold_cascade.learners import cost, estimators
from unfold_cascade.learners.estimators import Recipe
from unfold_cascade.temporal.models.predictions import Predictions, is_fitted, pack_predictions, read_predictions
from unfold_cascade.temporal.models.training_sets import ModelSlot, TrainingRows
from unfold_cascade.temporal.problem import TemporalProblem
from unfoldkit.api import Run, internal_error, user_error

SHARED_FILE = "features.tmp.npy"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """One fit, as a worker receives it.

    Attributes:
        recipe: Estimator and parameters.
        file: File of the (n, d) features, mapped into memory.
        columns: The features that the model reads.
        rows: The rows to learn from, their labels and weights.
        fold: (n,) fold of each row. Fold -1 is outside the training cohort; the model fitted on all folds predicts it.
        seed: Seed of the estimator.
        batch_rows: Rows of a call when latency is measured.
        inspection: A confidence that reads the fitted model, if any.
    """

    recipe: Recipe
    file: str
    columns: IntArray
    rows: TrainingRows
    fold: IntArray
    seed: int
    batch_rows: int
    inspection: str | None = None


def fit_models(
    problem: TemporalProblem,
    run: Run,
    slots: Sequence[ModelSlot],
    build_features: Callable[[], Float32],
    fold: IntArray,
) -> list[Predictions]:
    """Fit every model that is not in the run yet, in parallel, and read the predictions of all models.

    Args:
        problem: Seed and batch size.
        run: Stores models and predictions.
        slots: The models.
        build_features: Computes the (n, d) features; called only if a model must be fitted.
        fold: (n,) fold of each row, -1 outside the training cohort.

    Raises:
        UnfoldError: An estimator does not exist or cannot be fitted, a class has no hours, or a worker died.
    """
    # the most expensive models come last in a spec; fitting them first keeps all workers busy to the end
    missing = [slot for slot in reversed(slots) if not is_fitted(run, slot)]
    for slot in missing:
        estimators.check_recipe(slot.recipe, key=slot.key, allow_code=run.allow_code)
        _check_classes(problem, slot, fold)

    def store_result(index: int, result: tuple[bytes, bytes]) -> None:
        run.directory.write(missing[index].model_file, result[0], made_from=missing[index].made_from)
        run.directory.write(missing[index].log_file, result[1], made_from=missing[index].made_from)
        run.log.info("fitted %s %s", missing[index].stage, missing[index].model)
        run.progress("models", len(slots) - len(missing) + index + 1, len(slots))

    if missing:
        with _share_features(run, build_features) as file:
            jobs = [_build_job(problem, slot, file, fold) for slot in missing]
            run.engine.map(run_job, jobs, on_result=store_result)
    return [read_predictions(run, slot) for slot in slots]


def _check_classes(problem: TemporalProblem, slot: ModelSlot, fold: IntArray) -> None:
    """Refuse a model if a class has no hours to learn from, on all folds or on all but one.

    Raises:
        UnfoldError: It names the stage that has no such hours.
    """
    is_baseline = slot.stage not in {stage.name for stage in problem.stages}
    names = [stage.name for stage in problem.stages] if is_baseline else [slot.stage]
    learnable = slot.rows.mask & (fold >= 0)
    for left_out in range(-1, int(fold.max()) + 1):
        present = np.unique(slot.rows.labels[learnable & (fold != left_out)])
        absent = np.setdiff1d(np.arange(max(slot.classes, 2)), present)
        if len(absent):
            number = int(absent[0])
            place = f"before {names[0]}" if number == 0 else f"in {names[number - 1]}"
            later = f" and not yet in {names[number]}" if 0 < number < len(names) else ""
            folds = "" if left_out < 0 else " once a fold is left out"
            message = f"{slot.place} cannot be fitted: no training hour is {place}{later}{folds}"
            raise user_error(message, key=slot.key, hint="each stage needs hours of its own, before it and in it")


def _build_job(problem: TemporalProblem, slot: ModelSlot, file: str, fold: IntArray) -> TrainingJob:
    return TrainingJob(
        recipe=slot.recipe,
        file=file,
        columns=slot.columns,
        rows=slot.rows,
        fold=fold,
        seed=problem.seed,
        batch_rows=problem.cost.batch_rows,
        inspection=slot.inside,
    )


def run_job(job: TrainingJob) -> tuple[bytes, bytes]:
    """Fit one model on all folds and, for out-of-fold predictions, once per fold. Runs in a worker.

    Returns:
        The stored model and its stored predictions.
    """
    classes = int(job.rows.labels.max()) + 1
    x = np.ascontiguousarray(np.load(job.file, mmap_mode="r")[:, job.columns])
    learnable = job.rows.mask & (job.fold >= 0)
    model = _fit(job, x, learnable)
    p = np.empty((len(job.fold), classes), dtype=np.float32)
    p[job.fold < 0] = predict_probabilities(model, x[job.fold < 0], classes, job.inspection)
    for fold in range(int(job.fold.max()) + 1):
        in_fold = job.fold == fold
        fold_model = _fit(job, x, learnable & ~in_fold)
        p[in_fold] = predict_probabilities(fold_model, x[in_fold], classes, job.inspection)
    stored = estimators.to_bytes(job.recipe, model)
    latency_us = cost.measure_latency_us(model.predict_proba, x, job.batch_rows, time.perf_counter)
    flops = cost.count_flops_if_known(model, x.shape[1])
    return stored, pack_predictions(p, flops=flops, size=len(stored), latency_us=latency_us)


def _fit(job: TrainingJob, x: Float32, mask: BoolArray) -> Any:
    weight = None if job.rows.weight is None else job.rows.weight[mask]
    # any measurement may be missing at a later hour or at another site, even where no training patient misses one
    return estimators.fit_estimator(job.recipe, x[mask], job.rows.labels[mask], job.seed, weight, gaps=True)


def predict_probabilities(model: Any, x: Float32, classes: int, inspection: str | None) -> FloatArray:
    """Predict (n, C) probabilities; such a confidence shrinks them towards 1/C by its uncertainty."""
    p = estimators.predict_probabilities(model, x, classes)
    return p if inspection is None else shrink_to_uniform(p, inspect_model(inspection, model, x))


@contextmanager
def _share_features(run: Run, build_features: Callable[[], Float32]) -> Iterator[str]:
    """Write the features to a file that every worker maps; a copy per worker would fill the memory several times."""
    file = run.directory.path.resolve() / SHARED_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        _save(file, build_features())
        yield str(file)
    finally:
        file.unlink(missing_ok=True)


def _save(file: Path, features: Float32) -> None:
    try:
        np.save(file, features, allow_pickle=False)
    except OSError as error:
        # of a full disk NumPy reports counts of values only
        hint = "free some space, or --run DIR on another disk"
        raise internal_error("cannot write the features", file=str(file), hint=hint) from error
