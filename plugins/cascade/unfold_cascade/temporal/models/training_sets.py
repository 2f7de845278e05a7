"""Model slots: for every model of a cascade over time, its training rows, labels and weights, and its files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.learners import estimators
from unfold_cascade.learners.estimators import Recipe
from unfold_cascade.models.zoo import library_versions
from unfold_cascade.temporal.data.features import FeatureLayout
from unfold_cascade.temporal.data.labels import LabelledHours
from unfold_cascade.temporal.early_warning_metrics import compute_utility
from unfold_cascade.temporal.problem import ModelTask, StageTask, TemporalProblem
from unfoldkit.api import fingerprint


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """What a model learns from: (n,) row mask, (n,) labels, and (n,) weights (1 if ``None``)."""

    mask: BoolArray
    labels: IntArray
    weight: FloatArray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSlot:
    """One model to fit.

    Attributes:
        key: Spec key of the estimator, for messages.
        stage: The stage it decides, or ``baseline``.
        model: Its name.
        recipe: Estimator and parameters.
        feature_sets: The sets it needs, all if ``None``.
        columns: Its feature numbers.
        rows: The rows it learns from, within the training cohort.
        made_from: Fingerprint of all that the fitted model depends on.
        inside: A confidence that reads the fitted model's leaves or members, if any.
    """

    key: str
    stage: str
    model: str
    recipe: Recipe
    feature_sets: tuple[str, ...] | None
    columns: IntArray
    rows: TrainingRows
    made_from: str
    inside: str | None = None

    @property
    def place(self) -> str:
        """``stage/model``."""
        return f"{self.stage}/{self.model}"

    @property
    def classes(self) -> int:
        """The number of classes that it predicts."""
        return int(self.rows.labels.max()) + 1

    @property
    def model_file(self) -> str:
        """The file of the fitted model in the run."""
        return f"models/{self.stage}/{self.model}{estimators.file_suffix(self.recipe)}"

    @property
    def log_file(self) -> str:
        """The file of its predictions in the run."""
        return f"logs/{self.stage}/{self.model}.npz"


def build_slots(problem: TemporalProblem, hours: LabelledHours, layout: FeatureLayout) -> list[ModelSlot]:
    """Build the slots of all models: stage by stage, then the other baselines, the baseline model last."""
    return list(_iterate_slots(problem, hours, layout))


def _iterate_slots(problem: TemporalProblem, hours: LabelledHours, layout: FeatureLayout) -> Iterator[ModelSlot]:
    for s, stage in enumerate(problem.stages):
        rows = _select_training_rows(stage, hours, s)
        for task in stage.models:
            yield _build_slot(problem, task, hours, layout, rows)
    every_hour = np.ones(len(hours.highest), dtype=np.bool_)
    for task in problem.baselines:
        yield _build_slot(problem, task, hours, layout, TrainingRows(every_hour, hours.highest.astype(np.int64)))


def _select_training_rows(stage: StageTask, hours: LabelledHours, s: int) -> TrainingRows:
    """Select the rows and labels of a stage.

    A stage that learns the utility is labelled by whether an alert pays at that hour, and weighted by how much.
    """
    mask = select_rows_in_stage(hours.highest, hours.since, s, is_parallel=stage.is_parallel, fresh_h=stage.fresh_h)
    if not stage.learns_utility:
        return TrainingRows(mask, hours.entered[:, s].astype(np.int64))
    utility = compute_utility(hours.since[:, s])
    gain = utility.alert - utility.silence
    return TrainingRows(mask & (gain != 0.0), (gain > 0.0).astype(np.int64), np.abs(gain))


def select_rows_in_stage(
    highest: IntArray, since: FloatArray, s: int, *, is_parallel: bool, fresh_h: float
) -> BoolArray:
    """Mark (n,) the rows from which the models of stage ``s`` learn.

    A parallel stage is evaluated at every hour and learns from every hour. A gated stage is evaluated from the entry
    into the previous stage until the entity moves on. It learns from the hours in the previous stage and in its own;
    the latter end with the entry into the next stage or ``fresh_h`` hours after its own entry.
    """
    if is_parallel:
        return np.ones(len(highest), dtype=np.bool_)
    in_stage = (highest == s) | (highest == s + 1)
    mask: BoolArray = in_stage & (since[:, s] < fresh_h)
    return mask


def _build_slot(
    problem: TemporalProblem, task: ModelTask, hours: LabelledHours, layout: FeatureLayout, rows: TrainingRows
) -> ModelSlot:
    columns = layout.column_numbers(task.feature_sets)
    names = [layout.names[column] for column in columns]
    recipe = task.recipe
    settings = [recipe.estimator, dict(recipe.params), recipe.scale, problem.seed]
    settings += [problem.gates.folds, problem.cost.batch_rows, problem.documents.data["split"]]
    # added only where they exist, so that the models of older runs stay valid
    extra = [task.inspection] if task.inspection else []
    extra += [] if rows.weight is None else [_hash_array(rows.weight)]
    extra += [] if hours.part is None else [_hash_array(hours.part)]
    made_from = fingerprint(
        hours.digest, names, settings, _hash_array(rows.mask), _hash_array(rows.labels), library_versions(), *extra
    )
    return ModelSlot(
        key=task.key,
        stage=task.stage,
        model=task.name,
        recipe=recipe,
        feature_sets=task.feature_sets,
        columns=columns,
        rows=rows,
        made_from=made_from,
        inside=task.inspection,
    )


def _hash_array(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
