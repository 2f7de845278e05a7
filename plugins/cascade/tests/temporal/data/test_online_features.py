"""Features made hour by hour from a small history equal those of the full table."""

from __future__ import annotations

import numpy as np
import pytest

from unfold_cascade.temporal.data.features import build_feature_matrix
from unfold_cascade.temporal.data.online_features import EntityHistory, build_online_features
from unfold_cascade.temporal.data.table import EntityTable, starts_from_sizes
from unfold_cascade.temporal.problem import FeatureSet

SEEDS = range(20)


@pytest.mark.parametrize("seed", SEEDS)
def test_online_features_equal_the_table(seed: int) -> None:
    """Every feature of every hour equals the one computed from the full table, bit for bit."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 15, 9)
    starts = starts_from_sizes(sizes)
    n = int(sizes.sum())
    hour = np.concatenate([np.cumsum(rng.choice([0.25, 1.0, 2.0, 5.0], size)) for size in sizes])
    signs = rng.normal((95, 37.5, 19, 11), (15, 1, 4, 4), (n, 4))
    every = np.column_stack((rng.normal(50, 20, (n, 4)), signs))
    values = np.where(rng.random((n, 8)) < 0.6, every, np.nan).astype(np.float32)
    names = ("a", "b", "c", "d", "HR", "Temp", "Resp", "WBC")
    table = EntityTable(tuple(map(str, range(9))), starts, hour, names, values, "", "t")
    groups = {
        "now": FeatureSet(columns=("a", "d")),
        "short": FeatureSet(columns=("b", "a"), derive=("mean", "min", "age", "change"), window_h=3.0, carry_h=2.0),
        "long": FeatureSet(columns=("b", "c"), derive=("last", "age", "max", "spread"), window_h=7.0, carry_h=6.0),
        "vital": FeatureSet(columns=("HR", "Temp", "Resp"), derive=(), rule="sirs"),
        "blood": FeatureSet(columns=("WBC", "HR", "a"), derive=("last",), rule="sirs"),
    }
    view, whole = build_online_features(groups), build_feature_matrix(table, groups)
    x = values[:, [table.columns.index(name) for name in view.columns]].astype(np.float64)
    pasts: list[EntityHistory | None] = [None] * 9
    for late in range(int(sizes.max())):
        here = np.flatnonzero(starts[:-1] + late < starts[1:])
        rows = starts[here] + late
        found, kept = view.update(x[rows], hour[rows], [pasts[case] for case in here])
        for case, past in zip(here, kept, strict=True):
            pasts[case] = past
        np.testing.assert_array_equal(found, whole[rows])
