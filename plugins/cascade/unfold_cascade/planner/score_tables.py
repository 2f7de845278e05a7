"""Score tables, the input of the search for gates: predictions, confidences and prices of the models of each stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.data.dataset import number_label_groups
from unfold_cascade.data.error_costs import EQUAL_COSTS, ErrorCosts, build_error_costs
from unfold_cascade.gates import confidence as confidences
from unfold_cascade.models.zoo import BASELINE, WHOLE, ModelOptions, ModelSlot, PredictedSlot, Predictions
from unfold_cascade.planner.problem import Problem
from unfoldkit.api import user_error

SINGLE_LABEL = "its only label"
"""The name of the model of a group with one label, where nothing is evaluated."""


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """All that gates of one stage (and group) depend on, for n rows and M models.

    Attributes:
        stage: Name of the stage.
        group: Group of labels, or ``all``.
        models: (M) names.
        answer: (n, M) predicted labels, or groups.
        score: (n, M) confidences.
        price: (M,) cost of a call; where it varies by case, the mean over training rows.
        feature_groups: (M) feature groups, and the baseline, that each model needs.
        latency_us: (M,) measured time of a call, NaN if it was not measured.
        call_prices: (n, M) cost of each call, where it varies by case.
    """

    stage: str
    group: str
    models: tuple[str, ...]
    answer: IntArray
    score: FloatArray
    price: FloatArray
    feature_groups: tuple[frozenset[str], ...]
    latency_us: FloatArray
    call_prices: FloatArray | None = None

    @property
    def is_single_label(self) -> bool:
        """Whether the group has one label, so that no model is evaluated."""
        return self.models == (SINGLE_LABEL,)

    @property
    def title(self) -> str:
        """The stage, with its group where the stage has several."""
        return self.stage if self.group == WHOLE else f"{self.stage}/{self.group}"


@dataclass(frozen=True, slots=True)
class ScoreTables:
    """The score tables of a cascade.

    Attributes:
        first_stage: The table of the first stage.
        second_stage: The tables of the second stage, by group number; empty for one stage.
        candidates: The candidates for the baseline.
        shared_prices: What a case pays once, whichever models need it: feature groups (where costs are prices) and
            the call of the baseline.
        shared_times_us: The same in measured time.
        unit: Unit of all costs.
        error_costs: Costs of errors.
        clusters: (n,) cluster of each row, ``None`` for independent rows.
    """

    first_stage: ScoreTable
    second_stage: Mapping[int, ScoreTable]
    candidates: ScoreTable
    shared_prices: Mapping[str, float]
    shared_times_us: Mapping[str, float]
    unit: str
    error_costs: ErrorCosts = EQUAL_COSTS
    clusters: IntArray | None = None

    def sum_prices(self, groups: frozenset[str]) -> float:
        """Add up what a case pays once for some feature groups."""
        return sum(self.shared_prices.get(name, 0.0) for name in groups)

    def sum_times_us(self, groups: frozenset[str]) -> float:
        """Add up the time that a case spends once for some feature groups."""
        return sum(self.shared_times_us.get(name, 0.0) for name in groups)


def build_tables(problem: Problem, models: Sequence[PredictedSlot]) -> ScoreTables:
    """Build the score tables from the predictions of all models, in the order of ``list_slots``."""
    dataset, error_costs = problem.dataset, goal_error_costs(problem)
    predictions = _Predictions(problem, models, error_costs)
    candidates = predictions.build_table(BASELINE, WHOLE, problem.zoo.candidates)
    feature_prices = problem.cost.feature_prices
    best = find_best_candidate(candidates, feature_prices, error_costs, dataset.labels, dataset.rows.train)
    baseline = BaselineModel(
        label_groups=number_label_groups(problem.data.label_groups, dataset.names),
        predictions=models[len(models) - len(candidates.models) + best][1],
        feature_groups=candidates.feature_groups[best] | {BASELINE},
    )
    first, *others = problem.zoo.stages
    return ScoreTables(
        first_stage=predictions.build_table(first.name, WHOLE, first.models, baseline),
        second_stage={
            number: _build_group_table(predictions, others[0].name, others[0].models, baseline, name, number)
            for number, name in enumerate(problem.group_names)
        },
        candidates=candidates,
        shared_prices={**feature_prices, BASELINE: float(candidates.price[best])},
        shared_times_us={BASELINE: float(candidates.latency_us[best])},
        unit=problem.cost.unit,
        error_costs=error_costs,
        clusters=dataset.clusters,
    )


def goal_error_costs(problem: Problem) -> ErrorCosts:
    """Build the cost matrix of ``goal.errors`` for the labels of the data."""
    return build_error_costs(problem.goal.errors, problem.dataset.names, problem.dataset.labels)


def find_best_candidate(
    candidates: ScoreTable,
    feature_prices: Mapping[str, float],
    error_costs: ErrorCosts,
    labels: IntArray,
    rows: IntArray,
) -> int:
    """Find the candidate of least loss on ``rows``; of equal ones the cheapest."""
    loss = error_costs.losses(candidates.answer[rows], labels[rows][:, None]).mean(axis=0)
    features = [sum(feature_prices.get(name, 0.0) for name in groups) for groups in candidates.feature_groups]
    return int(np.lexsort((candidates.price + np.array(features), loss))[0])


def select_confidence(name: str | None, error_costs: ErrorCosts) -> Callable[[FloatArray], FloatArray]:
    """Select the function from (n, C) probabilities to the (n,) confidences that gates read.

    Label-conditional confidences, and models without readable internals, use the largest probability; where errors
    differ in cost, the expected cost of the prediction.
    """
    functions = {"margin": confidences.margin, "entropy": confidences.entropy}
    return functions.get(name or "", error_costs.confidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineModel:
    """The baseline as a model of a stage: its label probabilities, summed over groups or normalized within one.

    ``feature_groups`` include its own call, which a case pays once.
    """

    label_groups: IntArray
    predictions: Predictions
    feature_groups: frozenset[str]

    def restrict(self, group: int | None) -> tuple[FloatArray, IntArray]:
        """Return the (n, A) probabilities within a group, or of the groups if ``None``, and the (A,) answers."""
        probability = self.predictions.probability
        if group is not None:
            labels = np.flatnonzero(self.label_groups == group)
            within = probability[:, labels]
            return within / np.maximum(within.sum(axis=1, keepdims=True), 1e-300), labels
        if self.label_groups.max() == 0:
            return probability, np.arange(probability.shape[1])
        groups = range(int(self.label_groups.max()) + 1)
        sums = [probability[:, self.label_groups == number].sum(axis=1) for number in groups]
        return np.column_stack(sums), np.arange(len(groups))


@dataclass(frozen=True, slots=True)
class _ModelColumn:
    """One model of a table: (n, A) probabilities of the (A,) answers, and the cost of a call."""

    model: str
    probability: FloatArray
    answers: IntArray
    price: float
    feature_groups: frozenset[str]
    latency_us: float
    confidence: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class _Predictions:
    """Predictions of all models, from which tables are built."""

    problem: Problem
    models: Sequence[PredictedSlot]
    error_costs: ErrorCosts

    def build_table(
        self,
        stage: str,
        group: str,
        models: Sequence[ModelOptions],
        baseline: BaselineModel | None = None,
        number: int | None = None,
    ) -> ScoreTable:
        """Build the table of one stage and group (with its ``number``); ``baseline`` may be one of the models."""
        fitted = {
            slot.model: (slot, found) for slot, found in self.models if (slot.stage, slot.group) == (stage, group)
        }
        columns = [self._build_column(model, fitted.get(model.name), baseline, number) for model in models]
        confidence = select_confidence(self.problem.gates.confidence, self.error_costs)
        scores = [confidence(c.probability) if c.confidence is None else c.confidence for c in columns]
        return ScoreTable(
            stage,
            group,
            tuple(column.model for column in columns),
            np.column_stack([column.answers[self.error_costs.decide(column.probability)] for column in columns]),
            np.column_stack(scores),
            np.array([column.price for column in columns]),
            tuple(column.feature_groups for column in columns),
            np.array([column.latency_us for column in columns]),
        )

    def _build_column(
        self,
        model: ModelOptions,
        fitted: PredictedSlot | None,
        baseline: BaselineModel | None,
        group: int | None,
    ) -> _ModelColumn:
        if fitted is None and baseline is not None:
            return _ModelColumn(model.name, *baseline.restrict(group), 0.0, baseline.feature_groups, 0.0)
        if fitted is None:
            raise user_error(f"the model {model.name!r} was not fitted", hint="unfold train fits it")
        slot, predictions = fitted
        return _ModelColumn(
            model.name,
            predictions.probability,
            slot.answers,
            _call_cost(self.problem.cost.by, slot, predictions, model),
            frozenset(self.problem.data.features if model.features is None else model.features),
            predictions.latency_us,
            predictions.confidence,
        )


def _build_group_table(
    predictions: _Predictions,
    stage: str,
    models: Sequence[ModelOptions],
    baseline: BaselineModel,
    group: str,
    number: int,
) -> ScoreTable:
    """Build the table of one group of the second stage; a group with one label has a free, certain answer."""
    labels = np.flatnonzero(baseline.label_groups == number)
    if len(labels) > 1:
        return predictions.build_table(stage, group, models, baseline, number)
    rows = len(baseline.predictions.probability)
    answer, score, zero = np.full((rows, 1), labels[0]), np.ones((rows, 1)), np.zeros(1)
    return ScoreTable(stage, group, (SINGLE_LABEL,), answer, score, zero, (frozenset(),), zero)


def _call_cost(by: str, slot: ModelSlot, predictions: Predictions, model: ModelOptions) -> float:
    if by == "price":
        return model.price
    value = {"flops": predictions.flops, "bytes": predictions.bytes, "latency": predictions.latency_us}[by]
    if np.isnan(value):
        hint = "cost: {by: latency} measures time instead"
        raise user_error(f"the operations of {slot.recipe.estimator} are not known", key=slot.key, hint=hint)
    return value
