"""The study: all hours of a problem with the predictions of all models, by cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from unfold_cascade._types import BoolArray, Float32, FloatArray, IntArray
from unfold_cascade.data.doubtful_values import Doubt
from unfold_cascade.data.leakage import LabelMark
from unfold_cascade.data.table import Rows
from unfold_cascade.temporal.data.features import build_feature_matrix, build_layout, build_purchase_terms
from unfold_cascade.temporal.data.labels import LabelledHours, label_hours, load_hours
from unfold_cascade.temporal.data.online_features import build_online_features
from unfold_cascade.temporal.data.readers import read_table
from unfold_cascade.temporal.data.serving_probe import store_probe
from unfold_cascade.temporal.data.splits import assign_folds, split_entities
from unfold_cascade.temporal.data.table import Timeline, index_entities, select_rows
from unfold_cascade.temporal.early_warning_metrics import EventTimes, HourlyUtility, compute_utility, locate_events
from unfold_cascade.temporal.models.predictions import (
    Predictions,
    check_operations,
    collect_call_costs,
    require_predictions,
)
from unfold_cascade.temporal.models.training import fit_models
from unfold_cascade.temporal.models.training_sets import ModelSlot, build_slots
from unfold_cascade.temporal.problem import BASELINE, FeatureSet, TemporalProblem
from unfold_cascade.temporal.simulation.cost import CallCosts
from unfold_cascade.temporal.simulation.trajectories import ModelScores
from unfoldkit.api import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """The entities of one part of the split.

    Attributes:
        timeline: Their hours.
        scores: Probabilities of all models: stage by stage, then the baselines with their probability of the last
            stage, the baseline model last.
        entered: (n, S) stages entered.
        since: (n, S) hours since then.
        highest: (n,) highest stage entered.
        baseline_p: By model number of a baseline, its (n, S+1) probabilities.
        utility: Utility of alerts at every hour.
        events: When the events occur.
        ids: What reports call the entities: their numbers in the table, as a report is passed on and a name is not.
    """

    timeline: Timeline
    scores: ModelScores
    entered: BoolArray
    since: FloatArray
    highest: IntArray
    baseline_p: Mapping[int, Float32]
    utility: HourlyUtility
    events: EventTimes
    ids: tuple[str, ...] = ()

    @property
    def label(self) -> BoolArray:
        """(n,) whether the last stage was entered."""
        label: BoolArray = self.entered[:, -1]
        return label

    @property
    def entity(self) -> IntArray:
        """(n,) the entity number of each hour."""
        return index_entities(self.timeline.starts)

    @property
    def entities(self) -> int:
        """The number of entities."""
        return len(self.timeline.starts) - 1

    @property
    def cluster(self) -> IntArray:
        """(n,) the number of the independent unit of each hour: the group of its entity, or the entity itself."""
        return self.timeline.row_cluster

    @property
    def clusters(self) -> int:
        """The number of independent units."""
        return self.timeline.clusters

    def take(self, entities: int) -> Cohort:
        """Return the cohort of the first entities."""
        timeline = self.timeline.select(np.arange(entities))
        starts, end = timeline.starts, len(timeline.hour)
        since = self.since[:end]
        return Cohort(
            timeline=timeline,
            scores=ModelScores(np.ascontiguousarray(self.scores.p[:, :end]), self.scores.needs, self.scores.purchase),
            entered=self.entered[:end],
            since=since,
            highest=self.highest[:end],
            baseline_p={m: p[:end] for m, p in self.baseline_p.items()},
            utility=compute_utility(since[:, -1]),
            events=locate_events(since[:, -1], starts),
            ids=self.ids[:entities],
        )


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A fitted model in the run: its file, the features it reads, and its estimator."""

    file: str
    columns: IntArray
    estimator: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A problem with fitted models.

    Attributes:
        problem: The problem.
        train: The cohort on which gates are tuned; its predictions are out of fold.
        calibrate: The cohort that certifies.
        test: The cohort that is reported.
        models: Names ``stage/model`` by model number.
        stages: Model numbers of each stage.
        call_costs: What one call of each model costs.
        digest: Hash of the table.
        stored_models: Files by model number.
        features: Feature sets with their columns by name.
        leaks: Columns of features that predict the stages without error.
        repeated: A column that names one patient for several entities, if the spec does not name it; or empty.
        stays: A column that names several stays of one entity; or empty.
        doubts: Columns of features with values that may be no measurements.
        copies: Independent units that repeat the records of another one.
        marks: Columns of features with a state that occurs in one stage and hardly any other.
    """

    problem: TemporalProblem
    train: Cohort
    calibrate: Cohort
    test: Cohort
    models: tuple[str, ...]
    stages: tuple[tuple[int, ...], ...]
    call_costs: CallCosts
    digest: str
    stored_models: tuple[StoredModel, ...]
    features: Mapping[str, FeatureSet]
    leaks: tuple[str, ...] = ()
    repeated: str = ""
    stays: str = ""
    doubts: tuple[Doubt, ...] = ()
    copies: int = 0
    marks: tuple[LabelMark, ...] = ()

    @property
    def baseline(self) -> int:
        """The number of the baseline model."""
        return len(self.models) - 1

    @property
    def other_baselines(self) -> range:
        """The numbers of the baselines that are only reported."""
        return range(sum(map(len, self.stages)), self.baseline)

    @property
    def parallel(self) -> BoolArray:
        """(S,) stages that are evaluated at every hour."""
        return np.array([stage.is_parallel for stage in self.problem.stages])

    def model_name(self, model: int) -> str:
        """Name a model without its stage."""
        return self.models[model].split("/", 1)[1]


@dataclass(frozen=True, slots=True)
class StoredStudy:
    """What a run stores: its hours, their split, and slot and predictions of each model, the baseline model last."""

    hours: LabelledHours
    rows: Rows
    slots: tuple[ModelSlot, ...]
    predictions: tuple[Predictions, ...]
    features: Mapping[str, FeatureSet]


def fit_study(problem: TemporalProblem, run: Run) -> Study:
    """Fit the models that the run does not hold and assemble the study.

    Raises:
        UnfoldError: A file, column or label does not match the spec, or there are too few entities.
    """
    load_table = cache(lambda: read_table(problem.source, run))
    hours = label_hours(problem, run, load_table)
    rows, features = split_entities(problem, hours), hours.expand_features(problem)
    slots = build_slots(problem, hours, build_layout(features))
    fold = assign_folds(hours.timeline, rows.train, problem.gates.folds, problem.seed)
    predictions = fit_models(problem, run, slots, lambda: build_feature_matrix(load_table(), features), fold)
    unseen = np.concatenate([rows.calibrate, rows.test])
    columns = build_online_features(features).columns
    store_probe(run, hours.digest, columns, unseen, hours.timeline.starts, load_table)
    return assemble_study(problem, hours, rows, slots, predictions)


def load_study(problem: TemporalProblem, run: Run) -> StoredStudy:
    """Load what the run stores of a problem; neither reads the table nor fits a model.

    Raises:
        UnfoldError: A model is missing, or was fitted with another seed or other library versions.
    """
    hours = load_hours(run)
    rows, features = split_entities(problem, hours), hours.expand_features(problem)
    slots = build_slots(problem, hours, build_layout(features))
    return StoredStudy(hours, rows, tuple(slots), tuple(require_predictions(run, slots)), features)


def assemble_study(
    problem: TemporalProblem,
    hours: LabelledHours,
    rows: Rows,
    slots: Sequence[ModelSlot],
    predictions: Sequence[Predictions],
) -> Study:
    """Assemble a study from hours, the parts of their entities, and the predictions of all models for them."""
    check_operations(problem.cost.by, slots, predictions)
    purchase = build_purchase_terms(problem.features)
    needs = np.array([purchase.bit_mask(slot.feature_sets) for slot in slots], dtype=np.int64)
    scores = ModelScores(np.array([prediction.p[:, -1] for prediction in predictions]), needs, purchase)
    baseline_p = {m: prediction.p for m, prediction in enumerate(predictions) if slots[m].stage == BASELINE}
    train, calibrate, test = (
        _select_cohort(hours, scores, baseline_p, entities) for entities in (rows.train, rows.calibrate, rows.test)
    )
    return Study(
        problem=problem,
        train=train,
        calibrate=calibrate,
        test=test,
        models=tuple(slot.place for slot in slots),
        stages=tuple(tuple(m for m, slot in enumerate(slots) if slot.stage == name) for name in problem.stage_names),
        call_costs=collect_call_costs(problem, predictions),
        digest=hours.digest,
        stored_models=tuple(StoredModel(slot.model_file, slot.columns, slot.recipe.estimator) for slot in slots),
        features=hours.expand_features(problem),
        leaks=hours.leaks,
        repeated=hours.repeated,
        stays=hours.stays,
        doubts=hours.doubts,
        copies=hours.copies,
        marks=hours.marks,
    )


def _select_cohort(
    hours: LabelledHours, scores: ModelScores, baseline_p: Mapping[int, Float32], entities: IntArray
) -> Cohort:
    rows = select_rows(hours.timeline.starts, entities)
    timeline, since = hours.timeline.select(entities), hours.since[rows]
    return Cohort(
        timeline=timeline,
        scores=ModelScores(np.ascontiguousarray(scores.p[:, rows]), scores.needs, scores.purchase),
        entered=hours.entered[rows],
        since=since,
        highest=hours.highest[rows],
        baseline_p={m: p[rows] for m, p in baseline_p.items()},
        utility=compute_utility(since[:, -1]),
        events=locate_events(since[:, -1], timeline.starts),
        ids=tuple(f"case {entity + 1}" for entity in entities),
    )
