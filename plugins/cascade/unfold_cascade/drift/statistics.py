"""Label-free drift statistics: compare exits, confidences and audits of new hours with those of the plan.

Three tables of counts per entity are compared: the model of each stage that decided an hour, the confidence of that
model, and the audit. The audit covers hours decided before the last model of a stage: does the baseline give them the
same stage? The permutation test exchanges whole entities, because the hours of one entity resemble each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.planner.problem import DriftRule
from unfold_cascade.temporal.data.table import Timeline
from unfold_cascade.temporal.simulation.policy import Policy
from unfold_cascade.temporal.simulation.trajectories import ModelScores, Trajectories

MIN_ROUNDS = 999
ROUNDS_PER_CHUNK = 50
CONFIDENCE_EDGES = np.linspace(0.5, 1.0, 11)


@dataclass(frozen=True, slots=True)
class DriftSample:
    """What a cascade did on some entities: scores and trajectories, and the (n,) stages of the baseline."""

    timeline: Timeline
    scores: ModelScores
    trajectories: Trajectories
    baseline_stage: IntArray


@dataclass(frozen=True, slots=True)
class EntityCounts:
    """One comparison: its name, its K categories, and their (P, K) counts by entity."""

    name: str
    categories: tuple[str, ...]
    table: FloatArray


@dataclass(frozen=True, slots=True)
class Change:
    """How one comparison changed.

    Attributes:
        name: What is compared.
        categories: Its K categories.
        before: (K,) shares in the data of the plan.
        now: (K,) shares in the new data.
        distance: Total variation distance of the two.
        p_value: Of the permutation test.
        drifted: Whether it counts as drift.
    """

    name: str
    categories: tuple[str, ...]
    before: FloatArray
    now: FloatArray
    distance: float
    p_value: float
    drifted: bool


def count_by_entity(
    sample: DriftSample, policy: Policy, stages: Sequence[str], models: Sequence[str]
) -> Iterator[EntityCounts]:
    """Count exits and confidences of every stage, and the audit of early exits, by entity.

    Args:
        sample: What the cascade did.
        policy: The cascade.
        stages: Names of its stages.
        models: Names ``stage/model`` by model number.
    """
    entity, entities = sample.timeline.row_cluster, sample.timeline.clusters
    early = np.zeros(len(entity), dtype=np.bool_)
    for s, (name, stage) in enumerate(zip(stages, policy, strict=True)):
        evaluated = sample.trajectories.evaluated[:, s].astype(np.int64)
        exits = ("not evaluated", *(models[model].split("/", 1)[1] for model in stage.chain))
        yield EntityCounts(f"exits of {name}", exits, _count_table(entity, evaluated, entities, len(exits)))
        early |= (evaluated > 0) & (evaluated < len(stage.chain))
        confidences = _count_confidences(sample, stage.chain, evaluated)
        yield EntityCounts(f"confidence in {name}", _name_confidence_bands(), confidences)
    audited = early if early.any() else np.ones_like(early)
    differs = (sample.trajectories.stage != sample.baseline_stage).astype(np.int64)[audited]
    agreement = _count_table(entity[audited], differs, entities, 2)
    yield EntityCounts("audit of early exits", ("same as baseline", "different"), agreement)


def _count_confidences(sample: DriftSample, chain: Sequence[int], evaluated: IntArray) -> FloatArray:
    entity, entities = sample.timeline.row_cluster, sample.timeline.clusters
    reached = evaluated > 0
    model = np.array(chain)[evaluated[reached] - 1]
    p = sample.scores.p[model, np.flatnonzero(reached)].astype(np.float64)
    bands = len(CONFIDENCE_EDGES) - 1
    band = np.clip(np.digitize(np.maximum(p, 1 - p), CONFIDENCE_EDGES) - 1, 0, bands - 1)
    return _count_table(entity[reached], band, entities, bands)


def _name_confidence_bands() -> tuple[str, ...]:
    return tuple(f"{low:.2f} to {high:.2f}" for low, high in pairwise(CONFIDENCE_EDGES))


def _count_table(entity: IntArray, category: IntArray, entities: int, width: int) -> FloatArray:
    flat = np.bincount(entity * width + category, minlength=entities * width)
    return flat.reshape(entities, width).astype(np.float64)


def measure_changes(
    planned: Sequence[EntityCounts], new: Sequence[EntityCounts], rule: DriftRule, seed: int
) -> list[Change]:
    """Test every comparison for drift; the significance level is divided among them (Bonferroni)."""
    level = rule.level / len(planned)
    changes = []
    for number, (reference, current) in enumerate(zip(planned, new, strict=True)):
        rng = np.random.default_rng([seed, 0xD217, number])
        distance, p_value = compare_clusters(reference.table, current.table, rng, level)
        drifted = p_value <= level and distance > rule.margin
        shares = _to_shares(reference.table.sum(axis=0)), _to_shares(current.table.sum(axis=0))
        changes.append(Change(reference.name, reference.categories, *shares, distance, p_value, drifted))
    return changes


def compare_clusters(old: FloatArray, new: FloatArray, rng: np.random.Generator, level: float) -> tuple[float, float]:
    """Test whether the pooled shares of two (P, K) tables differ, by permuting entities between them.

    The p-value is valid for any counts, however much the hours of one entity resemble each other.

    Args:
        old: Counts by entity.
        new: The same of other entities.
        rng: Source of the permutations; their number depends on ``level``.
        level: The significance level that the p-value must be able to reach.

    Returns:
        The total variation distance of the shares, and its p-value.
    """
    pooled, size = np.concatenate([old, new]), len(old)
    distance = float(_total_variation(old.sum(axis=0)[None], new.sum(axis=0)[None])[0])
    total, rounds, exceeding = pooled.sum(axis=0), _count_rounds(level), 0
    for begin in range(0, rounds, ROUNDS_PER_CHUNK):
        permuted = _draw_groups(rng, len(pooled), size, min(ROUNDS_PER_CHUNK, rounds - begin)) @ pooled
        exceeding += int((_total_variation(permuted, total - permuted) >= distance - 1e-12).sum())
    return distance, (exceeding + 1) / (rounds + 1)


def compare_cases(old: FloatArray, new: FloatArray, rng: np.random.Generator, level: float) -> tuple[float, float]:
    """Test two (K,) counts of independent cases for a difference; return their distance and the p-value.

    Cases are exchangeable, so permuting the counts suffices.
    """
    total, rounds = old + new, _count_rounds(level)
    distance = float(_total_variation(old[None], new[None])[0])
    if not total.any():
        return distance, 1.0
    permuted = rng.multivariate_hypergeometric(total.astype(np.int64), int(old.sum()), size=rounds, method="marginals")
    exceeding = int((_total_variation(permuted.astype(np.float64), total - permuted) >= distance - 1e-12).sum())
    return distance, (exceeding + 1) / (rounds + 1)


def _count_rounds(level: float) -> int:
    return max(MIN_ROUNDS, int(np.ceil(4 / level)))


def _draw_groups(rng: np.random.Generator, entities: int, size: int, rounds: int) -> FloatArray:
    """Draw (R, P) masks of ``size`` random entities each."""
    rank = rng.random((rounds, entities)).argsort(axis=1)
    mask: BoolArray = rank < size
    return mask.astype(np.float64)


def _total_variation(counts: FloatArray, reference: FloatArray) -> FloatArray:
    distance: FloatArray = 0.5 * np.abs(_to_shares(counts) - _to_shares(reference)).sum(axis=-1)
    return distance


def _to_shares(counts: FloatArray) -> FloatArray:
    total = counts.sum(axis=-1, keepdims=True)
    shares: FloatArray = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    return shares
