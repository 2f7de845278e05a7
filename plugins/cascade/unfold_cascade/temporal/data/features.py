"""Feature groups over time: which columns of the matrix each gives, and how long what was bought is good for."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import Float32, FloatArray, IntArray
from unfold_cascade.schema.parts import FeatureGroup
from unfold_cascade.schema.temporal_rules import POINTS_OF
from unfold_cascade.temporal.data.table import Long, entity_of_row
from unfold_cascade.temporal.data.targets import points
from unfold_cascade.temporal.data.windows import STATISTICS, carried, statistics
from unfoldkit.api import did_you_mean, fail

HOUR = 3600.0
WINDOW_H = 6.0


@dataclass(frozen=True, slots=True)
class Layout:
    """The ``names`` (d,) of all features, and the places of those of each group."""

    names: tuple[str, ...]
    groups: Mapping[str, tuple[int, ...]]

    def places(self, groups: tuple[str, ...] | None) -> IntArray:
        """Return the column numbers of some feature groups, all if ``None``."""
        wanted = self.groups if groups is None else groups
        return np.array(sorted({place for group in wanted for place in self.groups[group]}), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Purchase:
    """The feature groups as things to buy.

    ``price`` (G,) of one purchase; ``valid_h`` (G,) hours that it is good for: a group bought at hour t is free for
    every model until ``t + valid_h``; 0 means for that hour only.
    """

    names: tuple[str, ...]
    price: FloatArray
    valid_h: FloatArray

    def mask(self, groups: tuple[str, ...] | None) -> int:
        """Return a number whose bits are the groups that a model needs, all if ``None``."""
        wanted = self.names if groups is None else groups
        return sum(1 << place for place, name in enumerate(self.names) if name in wanted)


def purchase(groups: Mapping[str, FeatureGroup]) -> Purchase:
    """Return the prices and validities of feature groups."""
    price = np.array([group.price for group in groups.values()])
    valid = np.array([(group.valid_for or 0.0) / HOUR for group in groups.values()])
    return Purchase(tuple(groups), price, valid)


def has_pattern(groups: Mapping[str, FeatureGroup]) -> bool:
    """Whether some columns are not named but matched."""
    return any(set(column) & set("*?[") for group in groups.values() for column in group.columns)


def expanded(groups: Mapping[str, FeatureGroup], columns: Sequence[str]) -> dict[str, FeatureGroup]:
    """Return the groups with the names of ``columns`` in the place of patterns such as ``lab_*``.

    Raises:
        UnfoldError: a pattern matches no column.
    """
    return {name: group.model_copy(update={"columns": _named(name, group, columns)}) for name, group in groups.items()}


def _named(name: str, group: FeatureGroup, columns: Sequence[str]) -> tuple[str, ...]:
    found: list[str] = []
    for pattern in group.columns:
        exact = pattern in columns or not set(pattern) & set("*?[")
        matched = [pattern] if exact else [column for column in columns if fnmatch.fnmatchcase(column, pattern)]
        if not matched:
            hint = did_you_mean(pattern, columns)
            raise fail(f'the table has no column "{pattern}"', key=f"features.{name}.columns", hint=hint)
        found += matched
    return tuple(dict.fromkeys(found))


def layout(groups: Mapping[str, FeatureGroup]) -> Layout:
    """Return which features there are: each column of a group in each form that the group derives."""
    own = {
        name: [named(column, how, group) for column, how in _forms(group)] + rule_names(name, group)
        for name, group in groups.items()
    }
    names = tuple(dict.fromkeys(name for found in own.values() for name in found))
    place = {name: number for number, name in enumerate(names)}
    return Layout(names, {group: tuple(place[name] for name in found) for group, found in own.items()})


def panel(table: Long, groups: Mapping[str, FeatureGroup]) -> Float32:
    """Return the (n, d) features of every hour, in the order of ``layout``.

    Raises:
        UnfoldError: a group names a column that the table does not have.
    """
    names = layout(groups).names
    x = np.empty((len(table), len(names)), dtype=np.float32, order="F")
    for group, wanted in groups.items():
        for name, column in _derived(table, group, wanted):
            x[:, names.index(name)] = column
    return x


def _forms(group: FeatureGroup) -> list[tuple[str, str]]:
    return [(column, how) for column in group.columns for how in group.derive]


def _derived(table: Long, name: str, group: FeatureGroup) -> Iterator[tuple[str, Float32]]:
    for column in group.columns:
        raw = table.values[:, table.place(column, key=f"features.{name}.columns")]
        value, age = carried(raw, table.hour, table.starts, carry_h(group))
        found = {"last": value, "age": age}
        if set(group.derive) & set(STATISTICS):
            found |= statistics(raw, table.hour, table.starts, window_h(group))
        for how in group.derive:
            yield named(column, how, group), found[how]
    yield from zip(rule_names(name, group), _points(table, group), strict=True)


def _points(table: Long, group: FeatureGroup) -> tuple[Float32, ...]:
    """Return the points of the rule of a group at each hour, and the most so far; nothing without a rule."""
    if group.rule is None:
        return ()
    read = {column: hours for column, hours in POINTS_OF[group.rule].items() if column in group.columns}
    values = {
        column: carried(table.values[:, table.columns.index(column)], table.hour, table.starts, hours)[0]
        for column, hours in read.items()
    }
    now = points(values, group.rule)
    # entities are lifted apart, so that the most of one is not carried into the next
    lift = (int(now.max()) + 1) * entity_of_row(table.starts)
    return now.astype(np.float32), (np.maximum.accumulate(now + lift) - lift).astype(np.float32)


def rule_names(name: str, group: FeatureGroup) -> list[str]:
    """Return the names of what the rule of a group gives: its points now, and the most so far."""
    return [f"{name}_{group.rule}", f"{name}_{group.rule}_most"] if group.rule is not None else []


def named(column: str, how: str, group: FeatureGroup) -> str:
    """Return the name of a form of a column; another window or validity than usual makes another feature of it."""
    hours, usual = (window_h(group), WINDOW_H) if how in STATISTICS else (carry_h(group), np.inf)
    plain = column if how == "last" else f"{column}_{how}"
    return plain if hours == usual else f"{plain}_{hours:g}h"


def carry_h(group: FeatureGroup) -> float:
    """Return for how many hours a value of the group is carried forward."""
    return group.valid_for / HOUR if group.valid_for is not None else np.inf


def window_h(group: FeatureGroup) -> float:
    """Return over how many hours the statistics of the group are taken."""
    return group.window / HOUR if group.window is not None else WINDOW_H
