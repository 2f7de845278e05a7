"""`plan --check` on new data without time: the cascade of a plan predicts cases that it was not tuned on.

Three distributions are compared, none of which needs a label: exits by stage, confidences of the exiting models, and,
where a stage exits before its last model, agreement with the baseline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.data.dataset import read_clusters
from unfold_cascade.data.table import Frame, TableSource, build_matrix, load_frame
from unfold_cascade.drift.report import CheckedData, build_drift_report
from unfold_cascade.drift.statistics import Change, compare_cases, compare_clusters
from unfold_cascade.models.onnx_runtime import Engine, build_native_engine, predict_table
from unfold_cascade.models.zoo import ModelSlot, PredictedSlot, Predictions
from unfold_cascade.planner.policy import Outcome, Policy, StagePolicy, follow
from unfold_cascade.planner.problem import DriftRule
from unfold_cascade.planner.recorded_scores import load_stored_tables
from unfold_cascade.planner.score_tables import ScoreTable, ScoreTables, build_tables
from unfold_cascade.report import sentences
from unfold_cascade.serving.loader import LoadedPlan
from unfoldkit.api import Report, Run

BANDS = 10
SEED_STREAM = 0xD218


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftCase:
    """Score tables with the rows of the plan followed by the new ones.

    Attributes:
        tables: The score tables of all n rows.
        policy: The cascade of the plan.
        baseline_answer: (n,) answers of the baseline.
        before: Rows of the plan that no model was fitted or tuned on.
        now: The new rows.
        clusters: (n,) cluster of each row, ``None`` for independent rows.
    """

    tables: ScoreTables
    policy: Policy
    baseline_answer: IntArray
    before: IntArray
    now: IntArray
    clusters: IntArray | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Counts of K categories before and now: (K,), or (P, K) by cluster."""

    name: str
    categories: tuple[str, ...]
    before: FloatArray
    now: FloatArray


def check_new_cases(loaded: LoadedPlan, source: TableSource, run: Run) -> Report:
    """Compare the cases of ``source`` with those of the plan that no model was fitted or tuned on."""
    return compare_new_cases(loaded, source, extend_tables(loaded, load_frame(source), run), run)


def compare_new_cases(loaded: LoadedPlan, source: TableSource, tables: ScoreTables, run: Run) -> Report:
    """Compare new cases that are already in the score tables with those of the plan."""
    problem, dataset, frame = loaded.problem, loaded.problem.dataset, load_frame(source)
    candidates = tables.candidates
    if not loaded.is_cascade:
        tables = replace(tables, first_stage=candidates, second_stage={})
    case = DriftCase(
        tables=tables,
        policy=loaded.policy,
        baseline_answer=candidates.answer[:, candidates.models.index(loaded.baseline.name)],
        before=np.concatenate([dataset.rows.calibrate, dataset.rows.test]),
        now=len(dataset.labels) + np.arange(len(frame)),
        clusters=_join_clusters(dataset.clusters, read_clusters(source.group, frame), len(frame)),
    )
    changes = list_changes(case, problem.drift, run.seed)
    subtitle = (f"{len(frame):,} new cases",)
    data = CheckedData(problem.name, len(frame), "cases", subtitle, source.path, frame.digest)
    report = build_drift_report(data, changes, problem.drift, run)
    return replace(report, notes=(*report.notes, *sentences.changed_units(dataset.find_changed_units(frame))))


def list_changes(case: DriftCase, rule: DriftRule, seed: int) -> list[Change]:
    """Test how exits, confidences and agreement changed; all tests share the significance level."""
    comparisons = list(_list_comparisons(case))
    level = rule.level / len(comparisons)
    changes = []
    for index, comparison in enumerate(comparisons):
        compare = compare_cases if case.clusters is None else compare_clusters
        generator = np.random.default_rng([seed, SEED_STREAM, index])
        distance, p_value = compare(comparison.before, comparison.now, generator, level)
        pooled = [_pool(counts) for counts in (comparison.before, comparison.now)]
        before, now = (counts / max(counts.sum(), 1) for counts in pooled)
        has_drifted = p_value <= level and distance > rule.margin
        changes.append(Change(comparison.name, comparison.categories, before, now, distance, p_value, has_drifted))
    return changes


def _join_clusters(before: IntArray | None, now: IntArray | None, rows: int) -> IntArray | None:
    """Join the clusters of both tables; a cluster that occurs in both counts as two. New rows may have none."""
    if before is None:
        return None
    return np.concatenate([before, int(before.max()) + 1 + (np.arange(rows) if now is None else now)])


def extend_tables(loaded: LoadedPlan, frame: Frame, run: Run) -> ScoreTables:
    """Extend the score tables of a plan by the predictions for new rows."""
    problem = loaded.problem
    run.log.info("running the plan's models on %d cases", len(frame))
    run.progress("new data", 0, 1)
    if problem.is_recorded:
        return load_stored_tables(problem, run.directory, frame)
    order = problem.dataset.order
    x = build_matrix(frame, order, key="features")

    def extend(slot: ModelSlot, predictions: Predictions) -> Predictions:
        names = [order[number] for number in slot.columns]
        engine = build_native_engine(run, slot, "a whole table")
        columns = np.ascontiguousarray(x[:, slot.columns])
        new = predict_table(engine, columns, columns=names, place=slot.place, source=frame.name)
        return _extend_predictions(predictions, new, engine, columns)

    models: list[PredictedSlot] = [(slot, extend(slot, stored)) for slot, stored in loaded.models.values()]
    return build_tables(problem, models)


def _extend_predictions(predictions: Predictions, new: FloatArray, engine: Engine, columns: FloatArray) -> Predictions:
    probability = np.concatenate([predictions.probability, new])
    if engine.inspect is None or predictions.confidence is None:
        return replace(predictions, probability=probability)
    confidence = np.concatenate([predictions.confidence, engine.inspect(columns)])
    return replace(predictions, probability=probability, confidence=confidence)


def _list_comparisons(case: DriftCase) -> Iterator[Comparison]:
    rows = (case.before, case.now)
    outcomes = [follow(case.tables, case.policy, part) for part in rows]
    clusters = [None if case.clusters is None else case.clusters[part] for part in rows]
    for table, stage, exits in _list_stage_exits(case, outcomes):
        names = ("not evaluated", *(table.models[m] for m in stage.chain))
        counts = [_count(exit_ + 1, len(names), part) for exit_, part in zip(exits, clusters, strict=True)]
        yield Comparison(f"exits of {table.title}", names, counts[0], counts[1])
        confidence = [_exit_confidence(table, stage, *part) for part in zip(rows, exits, strict=True)]
        visited = [_select(part, exit_ >= 0) for part, exit_ in zip(clusters, exits, strict=True)]
        yield _compare_confidence(f"confidence in {table.title}", confidence, visited)
    early = [_is_early_exit(case, outcome) for outcome in outcomes]
    differs = [
        (outcome.answer != case.baseline_answer[part]).astype(np.int64)[is_early]
        for outcome, part, is_early in zip(outcomes, rows, early, strict=True)
    ]
    selected = [_select(part, is_early) for part, is_early in zip(clusters, early, strict=True)]
    before, now = (_count(values, 2, part) for values, part in zip(differs, selected, strict=True))
    yield Comparison("audit of early exits", ("same as baseline", "different"), before, now)


def _list_stage_exits(
    case: DriftCase, outcomes: Sequence[Outcome]
) -> Iterator[tuple[ScoreTable, StagePolicy, list[IntArray]]]:
    """Yield each stage and, for both parts, the (n,) position of the exit, -1 where it was not evaluated."""
    tables, policy = case.tables, case.policy
    yield tables.first_stage, policy.first_stage, [outcome.exit_first for outcome in outcomes]
    for group, stage in policy.second_stage.items():
        exits = [np.where(outcome.group == group, outcome.exit_second, -1) for outcome in outcomes]
        yield tables.second_stage[group], stage, exits


def _select(clusters: IntArray | None, selected: BoolArray) -> IntArray | None:
    return None if clusters is None else clusters[selected]


def _pool(counts: FloatArray) -> FloatArray:
    pooled: FloatArray = counts.sum(axis=0) if counts.ndim > 1 else counts
    return pooled


def _count(category: IntArray, width: int, clusters: IntArray | None) -> FloatArray:
    """Count categories: (K,), or (P, K) by cluster."""
    if clusters is None:
        return np.bincount(category, minlength=width).astype(np.float64)
    names, cluster = np.unique(clusters, return_inverse=True)
    flat = np.bincount(cluster * width + category, minlength=len(names) * width)
    return flat.reshape(len(names), width).astype(np.float64)


def _exit_confidence(table: ScoreTable, stage: StagePolicy, rows: IntArray, exits: IntArray) -> FloatArray:
    visited = exits >= 0
    confidence: FloatArray = table.score[rows[visited], np.array(stage.chain)[exits[visited]]]
    return confidence


def _compare_confidence(name: str, confidence: Sequence[FloatArray], clusters: Sequence[IntArray | None]) -> Comparison:
    """Count confidences in bands that hold equally many cases of both parts together."""
    pooled = np.concatenate(confidence)
    pooled = pooled[np.isfinite(pooled)]
    quantiles = np.linspace(0, 1, BANDS + 1)[1:-1]
    edges = np.unique(np.quantile(pooled, quantiles)) if pooled.size else np.empty(0)
    ends = ["", *(f"{edge:.3g}" for edge in edges), ""]
    names = tuple(_name_band(low, high) for low, high in pairwise(ends))
    bands = (np.searchsorted(edges, part, side="right") for part in confidence)
    before, now = (_count(band, len(names), part) for band, part in zip(bands, clusters, strict=True))
    return Comparison(name, names, before, now)


def _name_band(low: str, high: str) -> str:
    if low and high:
        return f"{low} to {high}"
    return f"from {low}" if low else f"below {high}" if high else "all"


def _is_early_exit(case: DriftCase, outcome: Outcome) -> BoolArray:
    """Mark the (n,) rows that exit a stage before its last model; all rows where that never happens."""
    early: BoolArray = outcome.exit_first < len(case.policy.first_stage.chain) - 1
    for group, stage in case.policy.second_stage.items():
        early |= (outcome.group == group) & (outcome.exit_second < len(stage.chain) - 1)
    return early if early.any() else np.ones_like(early)
