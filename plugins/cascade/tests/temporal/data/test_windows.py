"""Values are carried forward and window statistics computed within one entity and never from the future."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from unfold_cascade.temporal.data.features import build_feature_matrix
from unfold_cascade.temporal.data.table import EntityTable, starts_from_sizes
from unfold_cascade.temporal.data.windows import STATISTICS, carry_forward, compute_window_statistics
from unfold_cascade.temporal.problem import FeatureSet

SEEDS = range(20)


def _draw_column(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    starts = starts_from_sizes(rng.integers(1, 15, 5))
    n = int(starts[-1])
    values = np.where(rng.random(n) < 0.5, np.nan, rng.normal(50, 9, n)).astype(np.float32)
    hour = np.concatenate([np.cumsum(rng.integers(1, 3, b - a)) for a, b in itertools.pairwise(starts)])
    return values, hour.astype(np.float64), starts


def _draw_table(rng: np.random.Generator, entities: int) -> EntityTable:
    starts = starts_from_sizes(np.full(entities, 8))
    hour = np.tile(np.arange(8.0), entities)
    values = rng.normal(80, 9, (8 * entities, 2)).astype(np.float32)
    return EntityTable(tuple(map(str, range(entities))), starts, hour, ("HR", "WBC"), values, "", "t")


@pytest.mark.parametrize("seed", SEEDS)
def test_values_are_carried_within_validity_and_entity(seed: int) -> None:
    """Each hour has the latest value of the entity that is at most v hours old, and its age; otherwise NaN."""
    values, hour, starts = _draw_column(seed)
    valid = float(np.random.default_rng(seed).integers(0, 6))
    found, age = carry_forward(values, hour, starts, valid)
    for begin, end in itertools.pairwise(starts):
        for row in range(begin, end):
            past = [k for k in range(begin, row + 1) if not np.isnan(values[k])]
            good = past and hour[row] - hour[past[-1]] <= valid
            assert np.array_equal(found[row], values[past[-1]] if good else np.nan, equal_nan=True)
            assert np.array_equal(age[row], hour[row] - hour[past[-1]] if good else np.nan, equal_nan=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_window_statistics_equal_numpy(seed: int) -> None:
    """Mean, minimum, maximum, change and spread equal numpy's over the window."""
    values, hour, starts = _draw_column(seed)
    found = compute_window_statistics(values, hour, starts, 4.0)
    for begin, end in itertools.pairwise(starts):
        for row in range(begin, end):
            inside = [k for k in range(begin, row + 1) if hour[row] - hour[k] <= 4.0 and not np.isnan(values[k])]
            seen = values[inside].astype(np.float64)
            wanted = (seen.mean(), seen.min(), seen.max(), seen[-1] - seen[0], seen.std()) if inside else (np.nan,) * 5
            got = [float(found[name][row]) for name in STATISTICS]
            assert got == pytest.approx(wanted, abs=1e-3, nan_ok=True)


def test_features_do_not_depend_on_the_future() -> None:
    """Changing every later value changes no feature of an hour."""
    rng = np.random.default_rng(0)
    table = _draw_table(rng, 6)
    groups = {"all": FeatureSet(columns=("HR", "WBC"), derive=("last", "age", *STATISTICS))}
    before = build_feature_matrix(table, groups)
    later = table.values.copy()
    row = int(table.starts[3]) + 2
    later[row + 1 : table.starts[4]] += 50.0
    after = build_feature_matrix(replace(table, values=later), groups)
    assert np.array_equal(before[: row + 1], after[: row + 1], equal_nan=True)
    assert np.array_equal(before[table.starts[4] :], after[table.starts[4] :], equal_nan=True)
