"""Feature sets over time: the columns of the feature matrix that each set provides, and the terms of its purchase."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import Float32, FloatArray, IntArray
from unfold_cascade.clinical_rules import RULE_CARRY_H, score_rule
from unfold_cascade.temporal.data.table import EntityTable, index_entities
from unfold_cascade.temporal.data.windows import STATISTICS, carry_forward, compute_window_statistics
from unfold_cascade.temporal.problem import WINDOW_H, FeatureSet
from unfoldkit.api import did_you_mean, user_error


@dataclass(frozen=True, slots=True)
class FeatureLayout:
    """The ``names`` (d,) of all features, and the feature numbers of each set."""

    names: tuple[str, ...]
    numbers: Mapping[str, tuple[int, ...]]

    def column_numbers(self, feature_sets: tuple[str, ...] | None) -> IntArray:
        """List the features of some sets (all if ``None``), ascending and without repetition."""
        selected = self.numbers if feature_sets is None else feature_sets
        return np.array(sorted({number for name in selected for number in self.numbers[name]}), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class PurchaseTerms:
    """What feature sets cost.

    Attributes:
        names: The G feature sets.
        price: (G,) price of one purchase.
        valid_h: (G,) hours a purchase stays valid. A set bought at hour t is free for every model until
            ``t + valid_h``; 0 means that hour only.
    """

    names: tuple[str, ...]
    price: FloatArray
    valid_h: FloatArray

    def bit_mask(self, feature_sets: tuple[str, ...] | None) -> int:
        """Encode the sets that a model needs (all if ``None``): bit g is set g."""
        needed = self.names if feature_sets is None else feature_sets
        return sum(1 << number for number, name in enumerate(self.names) if name in needed)


def build_purchase_terms(feature_sets: Mapping[str, FeatureSet]) -> PurchaseTerms:
    """Collect prices and validities of all feature sets."""
    price = np.array([features.price for features in feature_sets.values()])
    valid_h = np.array([features.valid_h for features in feature_sets.values()])
    return PurchaseTerms(tuple(feature_sets), price, valid_h)


def has_pattern(feature_sets: Mapping[str, FeatureSet]) -> bool:
    """Check whether any set names its columns by a pattern."""
    return any(_is_pattern(column) for features in feature_sets.values() for column in features.columns)


def expand_patterns(feature_sets: Mapping[str, FeatureSet], columns: Sequence[str]) -> dict[str, FeatureSet]:
    """Replace patterns such as ``lab_*`` by the matching names among ``columns``.

    Raises:
        UnfoldError: A pattern matches no column.
    """
    return {
        name: replace(features, columns=_match_columns(name, features, columns))
        for name, features in feature_sets.items()
    }


def _is_pattern(column: str) -> bool:
    return bool(set(column) & set("*?["))


def _match_columns(name: str, features: FeatureSet, columns: Sequence[str]) -> tuple[str, ...]:
    matches: list[str] = []
    for pattern in features.columns:
        is_exact = pattern in columns or not _is_pattern(pattern)
        matching = [pattern] if is_exact else [column for column in columns if fnmatch.fnmatchcase(column, pattern)]
        if not matching:
            hint = did_you_mean(pattern, columns)
            raise user_error(f'the table has no column "{pattern}"', key=f"features.{name}.columns", hint=hint)
        matches += matching
    return tuple(dict.fromkeys(matches))


def build_layout(feature_sets: Mapping[str, FeatureSet]) -> FeatureLayout:
    """Number the features: every column of a set in every derived form, shared features once."""
    names_by_set = {
        name: [name_feature(column, form, features) for column, form in _list_forms(features)]
        + name_rule_features(name, features)
        for name, features in feature_sets.items()
    }
    names = tuple(dict.fromkeys(name for names in names_by_set.values() for name in names))
    numbers = {name: number for number, name in enumerate(names)}
    return FeatureLayout(names, {name: tuple(map(numbers.__getitem__, names)) for name, names in names_by_set.items()})


def build_feature_matrix(table: EntityTable, feature_sets: Mapping[str, FeatureSet]) -> Float32:
    """Compute the (n, d) features of every hour, in the order of ``build_layout``.

    Raises:
        UnfoldError: A set names a column that the table does not have.
    """
    names = build_layout(feature_sets).names
    x = np.empty((len(table), len(names)), dtype=np.float32, order="F")
    for set_name, features in feature_sets.items():
        for name, column in _derive_columns(table, set_name, features):
            x[:, names.index(name)] = column
    return x


def _list_forms(features: FeatureSet) -> list[tuple[str, str]]:
    return [(column, form) for column in features.columns for form in features.derive]


def _derive_columns(table: EntityTable, set_name: str, features: FeatureSet) -> Iterator[tuple[str, Float32]]:
    for column in features.columns:
        raw = table.values[:, table.column_index(column, key=f"features.{set_name}.columns")]
        value, age = carry_forward(raw, table.hour, table.starts, features.carry_h)
        forms = {"last": value, "age": age}
        if set(features.derive) & set(STATISTICS):
            forms |= compute_window_statistics(raw, table.hour, table.starts, features.window_h)
        for form in features.derive:
            yield name_feature(column, form, features), forms[form]
    yield from zip(name_rule_features(set_name, features), _score_set_rule(table, features), strict=True)


def _score_set_rule(table: EntityTable, features: FeatureSet) -> tuple[Float32, ...]:
    """Score the rule of a set at each hour, and its maximum so far; nothing without a rule."""
    if features.rule is None:
        return ()
    carry = {column: hours for column, hours in RULE_CARRY_H[features.rule].items() if column in features.columns}
    values = {
        column: carry_forward(table.values[:, table.columns.index(column)], table.hour, table.starts, carry_h)[0]
        for column, carry_h in carry.items()
    }
    points = score_rule(values, features.rule)
    # an offset per entity keeps the running maximum of one entity out of the next
    offset = (int(points.max()) + 1) * index_entities(table.starts)
    return points.astype(np.float32), (np.maximum.accumulate(points + offset) - offset).astype(np.float32)


def name_rule_features(set_name: str, features: FeatureSet) -> list[str]:
    """Name the features of a set's rule: its points now, and the maximum so far."""
    if features.rule is None:
        return []
    return [f"{set_name}_{features.rule}", f"{set_name}_{features.rule}_most"]


def name_feature(column: str, form: str, features: FeatureSet) -> str:
    """Name a derived form of a column; a window or validity other than the default is part of the name."""
    hours, default = (features.window_h, WINDOW_H) if form in STATISTICS else (features.carry_h, np.inf)
    plain = column if form == "last" else f"{column}_{form}"
    return plain if hours == default else f"{plain}_{hours:g}h"


def find_longest_span(features: Collection[FeatureSet]) -> float:
    """Find the longest window of a statistic or validity of a purchase, in hours; 0 if there is none."""
    windows = (group.window_h for group in features if set(group.derive) & set(STATISTICS))
    return max((*windows, *(group.valid_h for group in features)), default=0.0)
