"""Feature sets become the columns that they name: shared features once, other windows as other features."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from plugins.cascade.tests.runs import CONFIGS, run_in, spec_of
from unfold_cascade.temporal.build import build_temporal_problem
from unfold_cascade.temporal.data.features import build_feature_matrix, build_layout, expand_patterns
from unfold_cascade.temporal.data.labels import LabelledHours
from unfold_cascade.temporal.data.online_features import build_online_features
from unfold_cascade.temporal.data.readers import read_long
from unfold_cascade.temporal.data.table import EntityTable, starts_from_sizes
from unfold_cascade.temporal.data.targets import evaluate_rule
from unfold_cascade.temporal.problem import FeatureSet, LongSource
from unfoldkit.errors import UnfoldError


def _draw_table(rng: np.random.Generator, entities: int) -> EntityTable:
    starts = starts_from_sizes(np.full(entities, 8))
    hour = np.tile(np.arange(8.0), entities)
    values = rng.normal(80, 9, (8 * entities, 2)).astype(np.float32)
    return EntityTable(tuple(map(str, range(entities))), starts, hour, ("HR", "WBC"), values, "", "t")


def test_shared_features_are_one_column() -> None:
    """A feature of two sets occurs once in the matrix and belongs to both sets."""
    found = build_layout({"a": FeatureSet(columns=("HR",)), "b": FeatureSet(columns=("HR", "WBC"))})
    assert found.names == ("HR", "WBC")
    assert found.column_numbers(("b",)).tolist() == [0, 1]
    assert found.column_numbers(None).tolist() == [0, 1]


def test_another_window_is_another_feature() -> None:
    """Sets with another window or validity give features of their own, equal to those of the set alone."""
    table = _draw_table(np.random.default_rng(1), 6)
    groups = {
        "six": FeatureSet(columns=("HR",), derive=("last", "mean", "max")),
        "day": FeatureSet(columns=("HR",), derive=("mean", "max"), window_h=24.0),
        "short": FeatureSet(columns=("HR",), derive=("last", "age"), carry_h=2.0),
    }
    names = ("HR", "HR_mean", "HR_max", "HR_mean_24h", "HR_max_24h", "HR_2h", "HR_age_2h")
    assert build_layout(groups).names == names
    x = build_feature_matrix(table, groups)
    for name, group in groups.items():
        alone = build_feature_matrix(table, {name: group})
        np.testing.assert_array_equal(x[:, build_layout(groups).column_numbers((name,))], alone)


RULE_COLUMNS = ("HR", "Temp", "Resp", "PaCO2", "WBC")


def test_rule_features_equal_the_rule() -> None:
    """With all columns of a rule, its points equal the rule; the maximum restarts with each entity."""
    rng = np.random.default_rng(5)
    starts = starts_from_sizes(rng.integers(1, 12, 30))
    n = int(starts[-1])
    hour = np.concatenate([np.arange(float(b - a)) for a, b in itertools.pairwise(starts)])
    signs = rng.normal((90, 37.5, 19, 36, 11), (15, 1, 4, 6, 4), (n, 5))
    values = np.where(rng.random((n, 5)) < 0.4, signs, np.nan).astype(np.float32)
    table = EntityTable(tuple(map(str, range(30))), starts, hour, RULE_COLUMNS, values, "", "t")
    groups = {"all": FeatureSet(columns=table.columns, derive=(), rule="sirs")}
    now, most = build_feature_matrix(table, groups).T
    assert build_layout(groups).names == ("all_sirs", "all_sirs_most")
    assert np.array_equal(now >= 2, evaluate_rule(table, "sirs", key=""))
    for begin, end in itertools.pairwise(starts):
        assert np.array_equal(most[begin:end], np.maximum.accumulate(now[begin:end]))


def test_patterns_match_all_columns_but_labels() -> None:
    """A pattern stands for every column it matches, once and without labels; features equal those of the names."""
    spec = spec_of(CONFIGS / "wards.yaml")
    table = read_long(CONFIGS / "wards.csv", LongSource("wards.csv", spec.data.entity, spec.data.time))  # type: ignore[union-attr]
    empty = np.zeros((0, 0))
    hours = LabelledHours(table.timeline, empty.astype(np.bool_), empty, table.starts, "", table.columns)
    problem = build_temporal_problem(spec, run_in(CONFIGS))
    with_pattern = replace(problem, features={"all": FeatureSet(columns=("HR", "?R", "*"))})
    columns = hours.expand_features(with_pattern)["all"].columns
    labels = {stage.target.column for stage in spec.stages}
    assert columns == ("HR", *(name for name in table.columns if name not in {"HR", *labels}))
    by_name = {"all": FeatureSet(columns=columns)}
    expanded = hours.expand_features(with_pattern)
    assert np.array_equal(build_feature_matrix(table, expanded), build_feature_matrix(table, by_name), equal_nan=True)
    assert build_online_features(expanded).columns == build_online_features(by_name).columns


def test_patterns_without_a_match_are_reported() -> None:
    """The error names the pattern and the key of its set."""
    with pytest.raises(UnfoldError, match=r'no column "lob_\*"') as error:
        expand_patterns({"labs": FeatureSet(columns=("lob_*",))}, ("lab_a", "lab_b"))
    assert error.value.diagnostics[0].key == "features.labs.columns"
