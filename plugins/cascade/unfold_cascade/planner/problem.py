"""The problem of a cascade without time: a spec, resolved once. ``build.py`` is the only place that creates it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unfold_cascade.data.dataset import Dataset, DatasetOptions
from unfold_cascade.data.error_costs import ErrorWeights
from unfold_cascade.gates.chains import Order
from unfold_cascade.gates.soft import LearntGates
from unfold_cascade.models.zoo import ZooOptions

COPIES = "copies"
"""The name of the clusters of rows that repeat one another."""
MEASURED_LATENCY = "latency"
"""The kind of cost that is measured, so that figures differ from run to run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """The loss or the budget that a cascade must meet.

    Attributes:
        max_loss: Accuracy that may be lost against the baseline, in [0, 1).
        max_loss_of: The same among the cases of one label, guaranteed together with ``max_loss``.
        budget: Mean cost of a case that may be spent, instead of ``max_loss``.
        min_saving: How many times cheaper than the baseline a cascade must be; ``None`` requires no saving.
        confidence: Of one certificate, 1 - delta; where several ``attempts`` share an error rate, higher than written.
        attempts: How many certificates on the same data hold together with the confidence that the spec names.
        errors: Costs of errors, ``None`` where each costs 1.
        document: The goal as plain data, for the plan.
    """

    max_loss: float | None = None
    max_loss_of: Mapping[str, float] = field(default_factory=dict)
    budget: float | None = None
    min_saving: float | None = None
    confidence: float = 0.95
    attempts: int = 1
    errors: ErrorWeights | None = None
    document: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostOptions:
    """How the cost of a call is measured.

    ``feature_prices`` are paid once per case, by feature group; empty unless costs are prices. ``batch`` is the number
    of rows per call when latency is measured.
    """

    by: str
    unit: str
    batch: int
    feature_prices: Mapping[str, float]

    @property
    def is_measured(self) -> bool:
        """Whether costs are measured times."""
        return self.by == MEASURED_LATENCY


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOptions:
    """How gates are searched.

    Attributes:
        confidence: The confidence that gates read, ``None`` for the default.
        order: The orders of models to search, as for ``list_chains``.
        conditional: The scores to search on: raw confidences (False), label-conditional ones (True), or both.
        max_models: The longest chain.
        bins: Thresholds per gate, ``None`` for all or many.
        learnt: Gates that are learnt and tried beside the exact search.
        identity: Plain data of all these, for fingerprints.
    """

    confidence: str | None = None
    order: Order = "sorted"
    conditional: tuple[bool, ...] = (False,)
    max_models: int = 3
    bins: int | None = None
    learnt: tuple[LearntGates, ...] = ()
    identity: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedModel:
    """A model with recorded predictions, and the columns that hold them.

    Either ``prediction`` or ``score`` names a column; a score counts as correct from ``correct_from``, or from one half
    of a scale from 0 to 1. ``price`` is that of one call, unless ``price_column`` holds the price of each. ``identity``
    is plain data for fingerprints.
    """

    name: str
    key: str
    prediction: str | None
    score: str
    correct_from: float | None
    confidence: str
    price: float
    price_column: str | None
    identity: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftRule:
    """When a check of new data reports drift: significance ``level`` (of all tests together) and minimum ``margin``."""

    level: float
    margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A cascade without time, ready to be solved.

    ``recorded`` are the recorded models; without them, models are fitted. ``identity`` is the spec as plain data.
    """

    name: str
    data: DatasetOptions
    dataset: Dataset
    zoo: ZooOptions
    recorded: tuple[RecordedModel, ...]
    cost: CostOptions
    gates: GateOptions
    goal: Goal
    drift: DriftRule
    identity: Any

    @property
    def is_recorded(self) -> bool:
        """Whether predictions are recorded and no model is fitted."""
        return self.data.is_recorded

    @property
    def cluster_column(self) -> str | None:
        """The column of clusters, ``COPIES`` for copied rows without such a column, ``None`` for independent cases."""
        column = self.data.source.group or self.dataset.patients
        return column or (None if self.dataset.clusters is None else COPIES)

    @property
    def group_names(self) -> tuple[str, ...]:
        """The groups that the first stage decides between; empty for one stage."""
        return tuple(self.data.label_groups or ())
