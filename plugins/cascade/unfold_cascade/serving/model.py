"""A cascade as a served model: a batch passes through it stage by stage, each row on its own execution path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.data.error_costs import EQUAL_COSTS, ErrorCosts
from unfold_cascade.gates.calibrated import Calibration, encode_contexts
from unfold_cascade.models.onnx_runtime import Engine
from unfoldkit.serving.model import (
    Array,
    Batch,
    Call,
    CategoricalColumn,
    Column,
    Field,
    Predictions,
    Rejection,
    reject_large_values,
)

Confidence = Callable[[FloatArray], FloatArray]


@dataclass(slots=True)
class BatchRows:
    """The rows of one batch, (n, d) in each number type that an engine reads.

    ``baseline_probability`` (n, C) caches the baseline for the rows of ``has_baseline`` (n,).
    """

    x: Mapping[type[Any], Array]
    baseline_probability: FloatArray | None = None
    has_baseline: Array | None = None


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One fitted model: reads ``columns`` (all if ``None``); its (C,) ``answers`` are the labels of its classes."""

    engine: Engine
    columns: IntArray | None
    answers: IntArray

    def predict(self, batch: BatchRows, rows: Sequence[int]) -> FloatArray:
        """Predict the (m, C) probabilities of some rows of a batch."""
        return self.engine.predict(self._select(batch, rows))

    def inspect(self, batch: BatchRows, rows: Sequence[int]) -> FloatArray | None:
        """Compute the (m,) confidence from the internals of the model, if its gate reads that."""
        return None if self.engine.inspect is None else self.engine.inspect(self._select(batch, rows))

    def _select(self, batch: BatchRows, rows: Sequence[int]) -> Array:
        x = batch.x[self.engine.dtype]
        if len(rows) < len(x):
            x = x.take(rows, axis=0)
        return x if self.columns is None else x[:, self.columns]


@dataclass(frozen=True, slots=True)
class ServedBaseline:
    """The baseline as a model of a stage, evaluated once per row.

    ``projection`` (labels, answers) sums its label probabilities; ``is_normalized`` scales the sums to one, for a stage
    within one group.
    """

    model: ServedModel
    projection: FloatArray
    is_normalized: bool
    answers: IntArray

    def inspect(self, _batch: BatchRows, _rows: Sequence[int]) -> None:
        """Return nothing: its gate reads its probabilities."""

    def predict(self, batch: BatchRows, rows: Sequence[int]) -> FloatArray:
        """Predict the (m, A) probabilities of some rows of a batch."""
        if batch.baseline_probability is None or batch.has_baseline is None:
            n = len(batch.x[self.model.engine.dtype])
            batch.baseline_probability = np.zeros((n, len(self.projection)))
            batch.has_baseline = np.zeros(n, dtype=np.bool_)
        missing = [row for row in rows if not batch.has_baseline[row]]
        if missing:
            batch.baseline_probability[missing] = self.model.predict(batch, missing)
            batch.has_baseline[missing] = True
        sums = batch.baseline_probability[list(rows)] @ self.projection
        return sums / np.maximum(sums.sum(axis=1, keepdims=True), 1e-300) if self.is_normalized else sums


@dataclass(frozen=True, slots=True)
class Link:
    """One model of a chain: rows exit where the score reaches ``cut``; all rows exit at the last link.

    Its prediction is the label of least expected cost.
    """

    model: ServedModel | ServedBaseline
    cut: float
    curve: Calibration | None = None
    error_costs: ErrorCosts = EQUAL_COSTS


@dataclass(frozen=True, slots=True)
class ChainResult:
    """Predictions and gate scores of a chain, by row, of the models that were evaluated."""

    answers: list[list[int]]
    scores: list[list[float]]


def run_chain(links: Sequence[Link], confidence: Confidence, batch: BatchRows, rows: Sequence[int]) -> ChainResult:
    """Send some rows of a batch through a chain.

    Rows are routed in Python lists: a batch has tens of rows, and for so few a NumPy call costs more than a loop.
    """
    result, active = ChainResult([[] for _ in rows], [[] for _ in rows]), list(range(len(rows)))
    for link in links:
        selected = rows if len(active) == len(rows) else [rows[i] for i in active]
        answers, scores = _run_link(link, confidence, batch, selected, [result.answers[i] for i in active])
        for i, answer, score in zip(active, answers, scores, strict=True):
            result.answers[i].append(answer)
            result.scores[i].append(score)
        active = [i for i, score in zip(active, scores, strict=True) if not score >= link.cut]
        if not active:
            break
    return result


def _run_link(
    link: Link, confidence: Confidence, batch: BatchRows, rows: Sequence[int], earlier: Sequence[Sequence[int]]
) -> tuple[list[int], list[float]]:
    """Evaluate one model: its predictions, and the scores of its gate. ``earlier`` are the predictions before it."""
    probability = link.model.predict(batch, rows)
    answer = link.model.answers[link.error_costs.decide(probability)]
    inspected = link.model.inspect(batch, rows)
    score = confidence(probability) if inspected is None else inspected
    if link.curve is not None:
        answers = np.column_stack([np.array(earlier, dtype=np.int64).reshape(len(rows), -1), answer])
        score = link.curve(score, encode_contexts(answers, tuple(range(answers.shape[1]))))
    return answer.tolist(), score.tolist()


@dataclass(frozen=True, slots=True, kw_only=True)
class PathTable:
    """All execution paths of a cascade, by path number.

    Path ``(e1 * groups + g) * second_exits + e2`` exits the first stage at e1, is routed to group g, and exits the
    second stage at e2.

    Attributes:
        labels: Label of each answer.
        groups: Number of groups, at least 1.
        second_exits: Exits of the longest second stage, at least 1.
        cost: Cost of each path.
        length: Models on each path.
        stages: Stage of each model of each path, padded to equal length; the same for the three that follow.
        models: Name of each model.
        cuts: Cut of each gate.
        call_costs: Cost that each model adds.
    """

    labels: tuple[str, ...]
    groups: int
    second_exits: int
    cost: FloatArray
    length: tuple[int, ...]
    stages: tuple[tuple[str, ...], ...]
    models: tuple[tuple[str, ...], ...]
    cuts: tuple[tuple[float, ...], ...]
    call_costs: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The results of n rows: answers, path numbers, confidences of the answers, and all scores on the path.

    Each list has n entries; those of ``score`` have the length of the longest path, padded with zeros.
    """

    answer: list[int]
    path: list[int]
    confidence: list[float]
    score: list[list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade:
    """A cascade (or a baseline, as a chain of one model) that answers batches.

    ``single_labels`` are the labels of groups with one label. ``encoded`` holds, for each output that depends on the
    path only, its JSON by path number. ``count`` receives the paths of answered rows.
    """

    name: str
    version: str
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    facts: Mapping[str, Any]
    first_stage: tuple[Link, ...]
    second_stage: Mapping[int, tuple[Link, ...]]
    single_labels: Mapping[int, int]
    confidence: Confidence
    paths: PathTable
    encoded: Mapping[str, Sequence[Any]]
    dtypes: tuple[type[Any], ...]
    count: Callable[[Sequence[int]], None]

    def predict(self, batch: Batch) -> Predictions:
        """Answer a batch; calls with a value outside single precision are rejected."""
        item = self.inputs[0]
        x, refusals = reject_large_values(batch.inputs[item.name], batch.calls, item)
        result = self.follow(x)
        if not batch.trial:
            self.count(select_answered(result.path, batch.calls, refusals))
        by_path = {name: CategoricalColumn(result.path, values) for name, values in self.encoded.items()}
        label = CategoricalColumn(result.answer, self.paths.labels)
        by_row: dict[str, Column] = {"confidence": result.confidence, "route_confidence": result.score}
        return Predictions({"label": label, **by_row, **by_path}, refusals)

    def follow(self, x: FloatArray) -> BatchResult:
        """Send (n, d) rows through the cascade."""
        batch = BatchRows({dtype: x.astype(dtype, copy=False) for dtype in self.dtypes})
        second_exits, group_paths = self.paths.second_exits, self.paths.groups * self.paths.second_exits
        first = run_chain(self.first_stage, self.confidence, batch, range(len(x)))
        answer, scores = [answers[-1] for answers in first.answers], first.scores
        path = [(len(answers) - 1) * group_paths for answers in first.answers]
        for group, links in self.second_stage.items():
            rows = [row for row, answers in enumerate(first.answers) if answers[-1] == group]
            second = run_chain(links, self.confidence, batch, rows) if rows else ChainResult([], [])
            for row, answers, row_scores in zip(rows, second.answers, second.scores, strict=True):
                answer[row] = answers[-1]
                path[row] += group * second_exits + len(answers) - 1
                scores[row] += row_scores
        for row, answers in enumerate(first.answers if self.single_labels else ()):
            if answers[-1] in self.single_labels:
                answer[row] = self.single_labels[answers[-1]]
                path[row] += answers[-1] * second_exits
        confidence = [row_scores[-1] for row_scores in scores]
        padding = [0.0] * len(self.paths.stages[0])
        return BatchResult(answer, path, confidence, [row_scores + padding[len(row_scores) :] for row_scores in scores])


def select_answered(paths: Sequence[int], calls: Sequence[Call], refusals: Mapping[int, Rejection]) -> Sequence[int]:
    """Select the paths of the rows that are answered."""
    if not refusals:
        return paths
    is_answered = np.repeat([index not in refusals for index in range(len(calls))], [call.rows for call in calls])
    return [path for path, answered in zip(paths, is_answered.tolist(), strict=True) if answered]
