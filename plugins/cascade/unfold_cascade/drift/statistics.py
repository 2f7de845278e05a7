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
from unfold_cascade.schema.temporal import Drift
from unfold_cascade.temporal.data.table import entity_of_row
from unfold_cascade.temporal.simulation.policy import Policy
from unfold_cascade.temporal.simulation.trajectories import Clock, Walk, Zoo

ROUNDS = 999
CHUNK = 50
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


def changes(before: Sequence[Counts], now: Sequence[Counts], rule: Drift, seed: int) -> list[Change]:
    """Return how each thing changed; the level is shared among all of them."""
    level = rule.level / len(before)
    found = []
    for place, (old, new) in enumerate(zip(before, now, strict=True)):
        distance, p_value = compared(old.table, new.table, np.random.default_rng([seed, 0xD217, place]), level)
        drifted = p_value <= level and distance > rule.margin
        shares = _shares(old.table.sum(axis=0)), _shares(new.table.sum(axis=0))
        found.append(Change(old.name, old.categories, *shares, distance, p_value, drifted))
    return found


def compared(old: FloatArray, new: FloatArray, rng: np.random.Generator, level: float) -> tuple[float, float]:
    """Return the total variation distance of the pooled shares of two (P, K) tables, and its p-value by permutation.

    Entities are dealt anew to two groups of the same sizes; under no change the p-value is valid whatever the counts,
    and however alike the hours of one entity are. As many rounds are dealt as ``level`` needs.
    """
    both, size = np.concatenate([old, new]), len(old)
    distance = float(_distances(old.sum(axis=0)[None], new.sum(axis=0)[None])[0])
    total, rounds, above = both.sum(axis=0), max(ROUNDS, int(np.ceil(4 / level))), 0
    for begin in range(0, rounds, CHUNK):
        chosen = _dealt(rng, len(both), size, min(CHUNK, rounds - begin)) @ both
        above += int((_distances(chosen, total - chosen) >= distance - 1e-12).sum())
    return distance, (above + 1) / (rounds + 1)


def dealt(old: FloatArray, new: FloatArray, rng: np.random.Generator, level: float) -> tuple[float, float]:
    """Return the same for (K,) counts of cases that count once each: then only their numbers are dealt anew."""
    total, rounds = old + new, max(ROUNDS, int(np.ceil(4 / level)))
    distance = float(_distances(old[None], new[None])[0])
    if not total.any():
        return distance, 1.0
    chosen = rng.multivariate_hypergeometric(total.astype(np.int64), int(old.sum()), size=rounds, method="marginals")
    above = int((_distances(chosen.astype(np.float64), total - chosen) >= distance - 1e-12).sum())
    return distance, (above + 1) / (rounds + 1)


def _dealt(rng: np.random.Generator, entities: int, size: int, rounds: int) -> FloatArray:
    rank = rng.random((rounds, entities)).argsort(axis=1)
    chosen: BoolArray = rank < size
    return chosen.astype(np.float64)


def _distances(one: FloatArray, other: FloatArray) -> FloatArray:
    found: FloatArray = 0.5 * np.abs(_shares(one) - _shares(other)).sum(axis=-1)
    return found


def _shares(counts: FloatArray) -> FloatArray:
    total = counts.sum(axis=-1, keepdims=True)
    result: FloatArray = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    return result
