"""Online features: the features of an entity's current hour from a small history, equal to those of the full table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from unfold_cascade._types import BoolArray, Float32, FloatArray, IntArray
from unfold_cascade.clinical_rules import RULE_CARRY_H, score_rule
from unfold_cascade.temporal.data.features import build_layout, name_feature, name_rule_features
from unfold_cascade.temporal.data.serving_probe import Probe
from unfold_cascade.temporal.data.windows import STATISTICS, TOLERANCE_H, compute_window_statistics
from unfold_cascade.temporal.problem import FeatureSet


@dataclass(frozen=True, slots=True)
class EntityHistory:
    """What a server stores of one entity's past. The field names are part of the stored format.

    Attributes:
        last: (C,) latest measurement of each column, NaN if there is none.
        seen: (C,) hour of that measurement.
        recent: One row per hour within the longest window: the hour and the (W,) raw values of windowed columns.
        most: Maximum points so far of each set that has a rule.
    """

    last: list[float]
    seen: list[float]
    recent: list[list[float]]
    most: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineSet:
    """One feature set: input columns, forms and hours, and where its features stand among all features.

    ``targets`` holds, by column and form in that order, the feature numbers; ``rule_targets`` those of the rule.
    """

    columns: tuple[int, ...]
    forms: tuple[str, ...]
    carry_h: float
    window_h: float
    targets: tuple[tuple[int, ...], ...]
    rule: str | None
    rule_targets: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineFeatures:
    """Turns raw hours into features, one hour per entity.

    Attributes:
        columns: The C columns that a request sends.
        feature_sets: The sets.
        width: Number d of features.
        windowed: (W,) columns with a stored history, for ``window_h`` hours.
        window_h: The longest window.
    """

    columns: tuple[str, ...]
    feature_sets: tuple[OnlineSet, ...]
    width: int
    windowed: IntArray
    window_h: float

    def update(
        self, x: FloatArray, hour: FloatArray, histories: Sequence[EntityHistory | None]
    ) -> tuple[Float32, list[EntityHistory]]:
        """Compute the features of one hour of each of B entities and their new histories.

        Args:
            x: (B, C) raw values, NaN where nothing was measured.
            hour: (B,) hours, each later than those of its history.
            histories: The history of each entity, ``None`` at its first hour.

        Returns:
            (B, d) features and B histories.
        """
        raw = x.astype(np.float32)
        past = [history or self.empty_history() for history in histories]
        measured = ~np.isnan(raw)
        latest = np.where(measured, raw, np.array([history.last for history in past], dtype=np.float32))
        measured_at = np.where(measured, hour[:, None], np.array([history.seen for history in past]))
        recent = [self._extend_recent(history, row, now) for history, row, now in zip(past, raw, hour, strict=True)]
        features = np.full((len(x), self.width), np.nan, dtype=np.float32)
        age = hour[:, None] - measured_at
        for feature_set in self.feature_sets:
            self._fill_set(features, feature_set, latest, age, recent)
        maximum = np.array([history.most for history in past], dtype=np.float64)
        points = self._fill_rules(features, latest, age, maximum)
        rows = zip(latest.tolist(), measured_at.tolist(), recent, points, strict=True)
        return features, [EntityHistory(*row) for row in rows]

    def empty_history(self) -> EntityHistory:
        """Make the history of an entity without past hours."""
        missing = [math.nan] * len(self.columns)
        return EntityHistory(missing, missing, [], [0.0] * sum(group.rule is not None for group in self.feature_sets))

    def _extend_recent(self, history: EntityHistory, row: Float32, now: float) -> list[list[float]]:
        if not len(self.windowed):
            return []
        within = [past for past in history.recent if now - past[0] <= self.window_h + TOLERANCE_H]
        return [*within, [float(now), *row[self.windowed].tolist()]]

    def _fill_rules(self, out: Float32, latest: Float32, age: FloatArray, maximum: FloatArray) -> list[list[float]]:
        """Fill in the rule features; ``maximum`` (B, R) is the history's and is returned updated."""
        ruled = [feature_set for feature_set in self.feature_sets if feature_set.rule is not None]
        updated = maximum.reshape(len(out), len(ruled))
        for number, feature_set in enumerate(ruled):
            carry = RULE_CARRY_H[feature_set.rule or ""]
            values = {
                self.columns[column]: np.where(
                    _is_valid(age[:, column], carry[self.columns[column]]), latest[:, column], np.nan
                )
                for column in feature_set.columns
                if self.columns[column] in carry
            }
            points = score_rule(values, feature_set.rule or "")
            updated[:, number] = np.maximum(updated[:, number], points)
            out[:, feature_set.rule_targets[0]] = points
            out[:, feature_set.rule_targets[1]] = updated[:, number]
        return updated.tolist()

    def _fill_set(
        self,
        out: Float32,
        feature_set: OnlineSet,
        latest: Float32,
        age: FloatArray,
        recent: Sequence[Sequence[Sequence[float]]],
    ) -> None:
        valid = _is_valid(age, feature_set.carry_h)
        needs_window = bool(set(feature_set.forms) & set(STATISTICS))
        statistics = self._compute_statistics(feature_set, recent) if needs_window else {}
        for column, targets in zip(feature_set.columns, feature_set.targets, strict=True):
            forms = {
                "last": np.where(valid[:, column], latest[:, column], np.nan),
                "age": np.where(valid[:, column], age[:, column], np.nan),
                **statistics.get(column, {}),
            }
            for form, target in zip(feature_set.forms, targets, strict=True):
                out[:, target] = forms[form]

    def _compute_statistics(
        self, feature_set: OnlineSet, recent: Sequence[Sequence[Sequence[float]]]
    ) -> dict[int, dict[str, Float32]]:
        flat = np.array([row for rows in recent for row in rows])
        ends = np.cumsum([len(rows) for rows in recent])
        starts = np.concatenate(([0], ends)).astype(np.int64)
        hour = np.ascontiguousarray(flat[:, 0])
        by_column = {}
        for column in feature_set.columns:
            values = flat[:, 1 + int(np.flatnonzero(self.windowed == column)[0])].astype(np.float32)
            statistics = compute_window_statistics(values, hour, starts, feature_set.window_h)
            by_column[column] = {name: series[ends - 1] for name, series in statistics.items()}
        return by_column


def compute_probe_features(online: OnlineFeatures, probe: Probe) -> Float32:
    """Compute the (n, d) features of the probe hour by hour, as a server does."""
    rows = []
    for begin, end in zip(probe.starts[:-1], probe.starts[1:], strict=True):
        history = None
        for row in range(begin, end):
            hour = slice(row, row + 1)
            features, histories = online.update(probe.values[hour].astype(np.float64), probe.hour[hour], [history])
            history = histories[0]
            rows.append(features)
    return np.concatenate(rows)


def build_online_features(feature_sets: Mapping[str, FeatureSet]) -> OnlineFeatures:
    """Prepare the hour-by-hour computation of the features of ``build_layout``."""
    columns = tuple(dict.fromkeys(column for features in feature_sets.values() for column in features.columns))
    numbers = {name: number for number, name in enumerate(build_layout(feature_sets).names)}
    online = tuple(_build_set(name, features, columns, numbers) for name, features in feature_sets.items())
    windowed_sets = [feature_set for feature_set in online if set(feature_set.forms) & set(STATISTICS)]
    windowed = sorted({column for feature_set in windowed_sets for column in feature_set.columns})
    return OnlineFeatures(
        columns=columns,
        feature_sets=online,
        width=len(numbers),
        windowed=np.array(windowed, dtype=np.int64),
        window_h=max((feature_set.window_h for feature_set in windowed_sets), default=0.0),
    )


def _build_set(name: str, features: FeatureSet, columns: Sequence[str], numbers: Mapping[str, int]) -> OnlineSet:
    return OnlineSet(
        columns=tuple(columns.index(column) for column in features.columns),
        forms=features.derive,
        carry_h=features.carry_h,
        window_h=features.window_h,
        targets=tuple(
            tuple(numbers[name_feature(column, form, features)] for form in features.derive)
            for column in features.columns
        ),
        rule=features.rule,
        rule_targets=tuple(numbers[feature] for feature in name_rule_features(name, features)),
    )


def _is_valid(age: FloatArray, carry_h: float) -> BoolArray:
    with np.errstate(invalid="ignore"):
        valid: BoolArray = age <= carry_h + TOLERANCE_H
    return valid
