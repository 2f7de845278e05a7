"""The permutation test keeps its level for correlated hours, and small changes are no drift."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from unfold_cascade._types import FloatArray
from unfold_cascade.drift.statistics import EntityCounts, compare_clusters, measure_changes
from unfold_cascade.planner.problem import DriftRule

LEVEL = 0.05


def draw_counts(rng: np.random.Generator, entities: int, share: float) -> FloatArray:
    """Draw (P, 2) counts of hours that resemble each other within an entity."""
    hours = rng.integers(1, 60, entities)
    rate = rng.beta(20 * share, 20 * (1 - share), entities)
    positive = rng.binomial(hours, rate)
    counts: FloatArray = np.column_stack([hours - positive, positive]).astype(np.float64)
    return counts


def test_unchanged_hours_are_rejected_at_most_at_the_level() -> None:
    """In 400 pairs from one population, p ≤ 5 % occurs no more often than chance allows, despite correlated hours."""
    rejected = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        rejected.append(compare_clusters(draw_counts(rng, 60, 0.3), draw_counts(rng, 40, 0.3), rng, LEVEL)[1] <= LEVEL)
    assert sum(rejected) <= binom.ppf(0.9999, 400, LEVEL)
    assert sum(rejected) > 0


def test_changed_hours_are_detected() -> None:
    """A share that moves from 30 to 40 % is detected in most of 40 pairs."""
    detected = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        detected.append(
            compare_clusters(draw_counts(rng, 150, 0.3), draw_counts(rng, 150, 0.4), rng, LEVEL)[1] <= LEVEL
        )
    assert sum(detected) >= 36


def test_changes_within_the_margin_are_no_drift() -> None:
    """A significant change counts only if it exceeds the margin."""
    rng = np.random.default_rng(0)
    tables = [EntityCounts("exits", ("a", "b"), draw_counts(rng, 4000, share)) for share in (0.3, 0.35)]
    for margin, drifted in ((0.02, True), (0.2, False)):
        change = measure_changes(tables[:1], tables[1:], DriftRule(level=0.01, margin=margin), 0)[0]
        assert change.p_value <= 0.01
        assert change.drifted is drifted
        assert change.distance == pytest.approx(0.5 * np.abs(change.before - change.now).sum())
