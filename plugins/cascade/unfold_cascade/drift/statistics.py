"""Are new hours like those that the cascade was tuned on? Exits, confidences and audits, without any label.

Three tables are compared, each a count by entity: by which model of each stage an hour was decided; how sure that model
was; and, where a stage was decided before its last model, whether the monolith gives the hour the same stage. Entities
are exchanged between old and new, as hours of one entity are alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.planner.problem import DriftRule
from unfold_cascade.temporal.data.table import entity_of_row
from unfold_cascade.temporal.simulation.policy import Policy
from unfold_cascade.temporal.simulation.trajectories import Clock, Walk, Zoo

MIN_ROUNDS = 999
CHUNK = 50
TIE = 1e-12
SEED_STREAM = 0xD217
BINS = np.linspace(0.5, 1.0, 11)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a cascade did on some entities: (n,) stages by the cascade and by the monolith, and the walk."""

    clock: Clock
    zoo: Zoo
    walk: Walk
    base: IntArray


@dataclass(frozen=True, slots=True)
class Counts:
    """One thing to compare: its name, the names of its K categories, and (P, K) counts."""

    name: str
    categories: tuple[str, ...]
    table: FloatArray


@dataclass(frozen=True, slots=True)
class Change:
    """How one thing changed: (K,) shares before and now, half the sum of their differences, and its p-value."""

    name: str
    categories: tuple[str, ...]
    before: FloatArray
    now: FloatArray
    distance: float
    p_value: float
    drifted: bool


def counted(seen: Seen, policy: Policy, stages: Sequence[str], models: Sequence[str]) -> Iterator[Counts]:
    """Yield what is compared, by entity."""
    entity, entities = entity_of_row(seen.clock.starts), len(seen.clock.starts) - 1
    early = np.zeros(len(entity), dtype=np.bool_)
    for s, (stage, step) in enumerate(zip(stages, policy, strict=True)):
        asked = seen.walk.asked[:, s].astype(np.int64)
        names = ("not asked", *(models[model].split("/", 1)[1] for model in step.chain))
        yield Counts(f"exits of {stage}", names, _table(entity, asked, entities, len(names)))
        early |= (asked > 0) & (asked < len(step.chain))
        yield Counts(f"confidence in {stage}", _bands(), _confidence(seen, step.chain, asked, entity, entities))
    here = early if early.any() else np.ones_like(early)
    differs = (seen.walk.answer != seen.base).astype(np.int64)[here]
    yield Counts("audit of early exits", ("as the monolith", "otherwise"), _table(entity[here], differs, entities, 2))


def _confidence(seen: Seen, chain: Sequence[int], asked: IntArray, entity: IntArray, entities: int) -> FloatArray:
    here = asked > 0
    model = np.array(chain)[asked[here] - 1]
    p = seen.zoo.p[model, np.flatnonzero(here)].astype(np.float64)
    band = np.clip(np.digitize(np.maximum(p, 1 - p), BINS) - 1, 0, len(BINS) - 2)
    return _table(entity[here], band, entities, len(BINS) - 1)


def _bands() -> tuple[str, ...]:
    return tuple(f"{low:.2f} to {high:.2f}" for low, high in pairwise(BINS))


def _table(entity: IntArray, category: IntArray, entities: int, width: int) -> FloatArray:
    flat = np.bincount(entity * width + category, minlength=entities * width)
    return flat.reshape(entities, width).astype(np.float64)


def changes(before: Sequence[Counts], now: Sequence[Counts], rule: DriftRule, seed: int) -> list[Change]:
    """Test how each distribution changed; all tests share the significance level."""
    level = rule.level / len(before)
    result = []
    for index, (old, new) in enumerate(zip(before, now, strict=True)):
        generator = np.random.default_rng([seed, SEED_STREAM, index])
        distance, p_value = compare_clusters(old.table, new.table, generator, level)
        has_drifted = p_value <= level and distance > rule.margin
        shares = _shares(old.table.sum(axis=0)), _shares(new.table.sum(axis=0))
        result.append(Change(old.name, old.categories, *shares, distance, p_value, has_drifted))
    return result


def compare_clusters(
    before: FloatArray, now: FloatArray, generator: np.random.Generator, level: float
) -> tuple[float, float]:
    """Compute the total variation distance of the pooled shares of two (P, K) tables, and its p-value.

    The test permutes clusters between both groups. Without a change its p-value is valid for any counts, and for any
    dependence within a cluster. It draws as many permutations as ``level`` needs.
    """
    pooled, size = np.concatenate([before, now]), len(before)
    distance = float(_distances(before.sum(axis=0)[None], now.sum(axis=0)[None])[0])
    total, rounds, extreme = pooled.sum(axis=0), _count_rounds(level), 0
    for start in range(0, rounds, CHUNK):
        drawn_counts = _draw_groups(generator, len(pooled), size, min(CHUNK, rounds - start)) @ pooled
        extreme += int((_distances(drawn_counts, total - drawn_counts) >= distance - TIE).sum())
    return distance, (extreme + 1) / (rounds + 1)


def compare_cases(
    before: FloatArray, now: FloatArray, generator: np.random.Generator, level: float
) -> tuple[float, float]:
    """Compute the same for (K,) counts of independent cases, where permutations change the counts only."""
    total, rounds = before + now, _count_rounds(level)
    distance = float(_distances(before[None], now[None])[0])
    if not total.any():
        return distance, 1.0
    counts = generator.multivariate_hypergeometric(
        total.astype(np.int64), int(before.sum()), size=rounds, method="marginals"
    )
    extreme = int((_distances(counts.astype(np.float64), total - counts) >= distance - TIE).sum())
    return distance, (extreme + 1) / (rounds + 1)


def _count_rounds(level: float) -> int:
    return max(MIN_ROUNDS, int(np.ceil(4 / level)))


def _draw_groups(generator: np.random.Generator, clusters: int, size: int, rounds: int) -> FloatArray:
    rank = generator.random((rounds, clusters)).argsort(axis=1)
    is_selected: BoolArray = rank < size
    return is_selected.astype(np.float64)


def _distances(before: FloatArray, now: FloatArray) -> FloatArray:
    distances: FloatArray = 0.5 * np.abs(_shares(before) - _shares(now)).sum(axis=-1)
    return distances


def _shares(counts: FloatArray) -> FloatArray:
    total = counts.sum(axis=-1, keepdims=True)
    shares: FloatArray = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    return shares
