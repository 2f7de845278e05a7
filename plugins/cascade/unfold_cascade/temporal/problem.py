"""The resolved problem of a cascade over time: everything that training, search, reports and serving need of a spec.

``build.py`` makes it once per command; no other module of this package reads a spec. Durations are hours here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unfold_cascade.data.splits import SplitRule
from unfold_cascade.learners.estimators import Recipe
from unfold_cascade.planner.problem import DriftRule

HOUR_S = 3600.0
WINDOW_H = 6.0
# Names under which the run stores the baseline models, in the place of a stage and a model.
BASELINE = "baseline"
BASELINE_MODEL = "monolith"
NO_STAGE = "none"
"""The label of hours before the first stage."""


@dataclass(frozen=True, slots=True)
class PsvSource:
    """Records of the PhysioNet/CinC Challenge 2019: one psv file per patient, at most ``max_patients`` of them.

    ``split_column`` is a column of sites or times: one of the table, ``unit`` (from Unit1 and Unit2) or ``patient``.
    """

    path: str
    max_patients: int | None = None
    split_column: str = ""


@dataclass(frozen=True, slots=True)
class LongSource:
    """A table with one row per entity and time; ``entity`` and ``time`` name its key columns.

    ``group`` is the column of the patient that entities such as stays belong to, or empty. ``split_column`` is a column
    of sites or times, which need not hold numbers.
    """

    path: str
    entity: str
    time: str
    split_column: str = ""
    group: str = ""


TableSource = PsvSource | LongSource


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSet:
    """Columns that are bought together, and the features derived from them.

    A purchase costs ``price`` and stays valid for ``valid_h`` hours (0: this hour only). A measured value is carried
    forward for ``carry_h`` hours; window statistics cover ``window_h`` hours. ``rule`` adds the points of a clinical
    rule. ``columns`` may be patterns such as ``lab_*`` until they are expanded.
    """

    columns: tuple[str, ...]
    derive: tuple[str, ...] = ("last",)
    price: float = 0.0
    valid_h: float = 0.0
    carry_h: float = math.inf
    window_h: float = WINDOW_H
    rule: str | None = None


@dataclass(frozen=True, slots=True)
class StageTarget:
    """When an entity enters a stage: ``ahead_h`` hours before ``column`` is first 1, or before ``rule`` first holds."""

    column: str | None = None
    rule: str | None = None
    ahead_h: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTask:
    """One model to fit: its key in the spec, its names, its recipe, and the feature sets it reads (all if ``None``).

    ``inspection`` names a confidence that reads the leaves or members of the fitted model, if the spec asks for one.
    """

    key: str
    stage: str
    name: str
    recipe: Recipe
    feature_sets: tuple[str, ...] | None
    price: float
    inspection: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTask:
    """One stage: what it decides and the models that may decide it.

    A parallel stage is evaluated at every hour, whatever stage the entity is in. Models of a gated stage learn from
    hours up to ``fresh_h`` after its entry.
    """

    name: str
    target: StageTarget
    models: tuple[ModelTask, ...]
    is_parallel: bool = False
    fresh_h: float = math.inf
    learns_utility: bool = False


@dataclass(frozen=True, slots=True)
class Transitions:
    """How an entity moves through the stages (UnfoldML); the keys of ``moves`` in a spec.

    ``entry``: the next hour starts with the first model of the stage (reset), or with the last that decided (sticky).
    ``confirm``: consecutive positive hours before the entity moves on. ``advance``: the next stage is evaluated in the
    same hour or from the next hour on. ``alarm``: the last stage decides every hour, or its first alarm is final.
    """

    entry: Literal["reset", "sticky"] = "reset"
    confirm: int = 1
    advance: Literal["same-step", "next-step"] = "next-step"
    alarm: Literal["hourly", "latched"] = "hourly"


@dataclass(frozen=True, slots=True)
class AlertBudget:
    """Alerts allowed per 100 event-free hours, and the utility and AUPRC that a cascade may lose in tuning."""

    per_100h: float = 10.0
    utility_margin: float = 0.0
    auprc_margin: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeGoal:
    """One outcome that is guaranteed beside the loss; exactly one of ``within_h``, ``per_100h`` and ``label``, or none.

    Attributes:
        name: Its text in a report, with the bound.
        measure: What is measured, without the bound.
        stage: The stage it is about, counted from 1.
        within_h: Sensitivity: hours before the event in which an alert counts.
        per_100h: Alerts allowed per 100 event-free hours.
        label: The true stage, from 0, of the compared hours.
        allowed: What may be lost against the baseline; of utility, where the three above are ``None``.
    """

    name: str
    measure: str
    stage: int
    within_h: float | None = None
    per_100h: float | None = None
    label: int | None = None
    allowed: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeGoal:
    """What the cascade must reach: a certified loss, or a cost budget per entity-hour.

    Losses are fractions of hours; a budget is in the unit of ``CostOptions.by``; ``confidence`` is that of one
    certificate, higher than written where several ``attempts`` share an error rate. ``outcomes`` are certified as well,
    and a cost of at most ``1 / min_saving`` of that of the baseline.
    """

    max_loss: float | None
    budget: float | None
    confidence: float
    attempts: int = 1
    outcomes: tuple[OutcomeGoal, ...] = ()
    min_saving: float | None = None


@dataclass(frozen=True, slots=True)
class CostOptions:
    """What costs are compared by (``price+flops`` is the mean of both), rows per timed call, and the unit of prices."""

    by: str
    batch_rows: int
    unit: str | None = None

    @property
    def currency(self) -> str:
        """What savings are stated in: the currency of the comparison, prices where there are two."""
        return self.by.split("+")[0]


@dataclass(frozen=True, slots=True)
class GateOptions:
    """Limits of the gate search: folds of the predictions, chain order and length, and the learnt starting points."""

    folds: int = 5
    order: Literal["sorted", "all"] = "sorted"
    max_models: int = 3
    learnt: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SpecDocuments:
    """Parts of the spec as JSON data: what file hashes, the plan's decision and its version are made from."""

    spec: Mapping[str, Any]
    goal: Mapping[str, Any]
    transitions: Mapping[str, Any] | None

    @property
    def data(self) -> Mapping[str, Any]:
        """The section ``data`` as the spec states it: source, columns, group and split."""
        data: Mapping[str, Any] = self.spec["data"]
        return data

    @property
    def features(self) -> Mapping[str, Any]:
        """The feature groups as the spec states them: columns, derived values, price and validity by name."""
        features: Mapping[str, Any] = self.spec["features"]
        return features

    @property
    def targets(self) -> list[Mapping[str, Any]]:
        """The key ``target`` of every stage."""
        return [stage["target"] for stage in self.spec["stages"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TemporalProblem:
    """A spec over time, resolved. ``baselines`` ends with the baseline model that cascades are compared with.

    A server lets the baseline model decide ``audit_share`` of the entities as well. ``durability`` is that of the
    stored states of entities.
    """

    name: str
    source: TableSource
    features: Mapping[str, FeatureSet]
    stages: tuple[StageTask, ...]
    baselines: tuple[ModelTask, ...]
    transitions: Transitions
    alerts: AlertBudget
    drift: DriftRule
    audit_share: float
    durability: Literal["full", "normal"]
    goal: CascadeGoal
    cost: CostOptions
    gates: GateOptions
    split: SplitRule
    seed: int
    documents: SpecDocuments

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages in order."""
        return tuple(stage.name for stage in self.stages)

    @property
    def label_columns(self) -> frozenset[str]:
        """The columns that hold labels and therefore never match a feature pattern."""
        return frozenset(stage.target.column for stage in self.stages if stage.target.column is not None)

    @property
    def models(self) -> tuple[ModelTask, ...]:
        """Every model to fit: stage by stage, then the other baselines, the baseline model last."""
        return (*(model for stage in self.stages for model in stage.models), *self.baselines)
