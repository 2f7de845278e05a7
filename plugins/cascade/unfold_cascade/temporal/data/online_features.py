"""The features of the hour that comes now, from a small memory of the hours before: what ``panel`` makes of a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from unfold_cascade._types import BoolArray, Float32, FloatArray, IntArray
from unfold_cascade.schema.parts import FeatureGroup
from unfold_cascade.schema.temporal_rules import POINTS_OF
from unfold_cascade.temporal.data.features import carry_h, layout, named, rule_names, window_h
from unfold_cascade.temporal.data.holdout import Probe
from unfold_cascade.temporal.data.targets import points
from unfold_cascade.temporal.data.windows import STATISTICS, statistics


@dataclass(frozen=True, slots=True)
class Past:
    """What is kept of one entity.

    ``last`` (C,) is the last value measured of each column and ``seen`` (C,) its hour, both NaN where there is none;
    ``recent`` holds, for each hour within the longest window, the hour and the (W,) raw values of windowed columns;
    ``most`` the most points so far of each group that has a rule.
    """

    last: list[float]
    seen: list[float]
    recent: list[list[float]]
    most: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Group:
    """One feature group: the places of its columns, how many hours a value holds, and the hours of its window.

    ``places`` are, by column and form (in that order), those among all features; ``points`` those of the rule, if any.
    """

    columns: tuple[int, ...]
    forms: tuple[str, ...]
    carry: float
    window: float
    places: tuple[tuple[int, ...], ...]
    rule: str | None
    points: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sight:
    """How raw values become features: ``columns`` (C,) are taken, ``width`` features are given.

    ``windowed`` (W,) are the places of the columns whose past hours are kept, for ``window`` hours.
    """

    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    width: int
    windowed: IntArray
    window: float

    def look(self, x: FloatArray, hour: FloatArray, pasts: Sequence[Past | None]) -> tuple[Float32, list[Past]]:
        """Return the (B, d) features of one hour each of B entities, and what is to be kept of them.

        Args:
            x: (B, C) raw values, NaN where nothing was measured.
            hour: (B,) hours, each after those that the past holds.
            pasts: what is known of each entity, ``None`` at its first hour.
        """
        raw = x.astype(np.float32)
        known = [past or self.nothing() for past in pasts]
        new = ~np.isnan(raw)
        last = np.where(new, raw, np.array([past.last for past in known], dtype=np.float32))
        seen = np.where(new, hour[:, None], np.array([past.seen for past in known]))
        recent = [self._recent(past, row, now) for past, row, now in zip(known, raw, hour, strict=True)]
        features = np.full((len(x), self.width), np.nan, dtype=np.float32)
        for group in self.groups:
            self._fill(features, group, last, hour[:, None] - seen, recent)
        before = np.array([past.most for past in known], dtype=np.float64)
        most = self._points(features, last, hour[:, None] - seen, before)
        kept = [Past(*row) for row in zip(last.tolist(), seen.tolist(), recent, most, strict=True)]
        return features, kept

    def nothing(self) -> Past:
        """Return the past of an entity that was never seen."""
        unknown = [math.nan] * len(self.columns)
        return Past(unknown, unknown, [], [0.0] * sum(group.rule is not None for group in self.groups))

    def _recent(self, past: Past, row: Float32, now: float) -> list[list[float]]:
        kept = [item for item in past.recent if now - item[0] <= self.window]
        return [*kept, [float(now), *row[self.windowed].tolist()]] if len(self.windowed) else []

    def _points(self, out: Float32, last: Float32, age: FloatArray, most: FloatArray) -> list[list[float]]:
        """Fill in what rules give; ``most`` (B, R) was seen before, and what is to be kept is returned."""
        ruled = [group for group in self.groups if group.rule is not None]
        found = most.reshape(len(out), len(ruled))
        for place, group in enumerate(ruled):
            hours = POINTS_OF[group.rule or ""]
            read = {self.columns[at]: at for at in group.columns if self.columns[at] in hours}
            values = {name: np.where(_good(age[:, at], hours[name]), last[:, at], np.nan) for name, at in read.items()}
            now = points(values, group.rule or "")
            found[:, place] = np.maximum(found[:, place], now)
            out[:, group.points[0]], out[:, group.points[1]] = now, found[:, place]
        return found.tolist()

    def _fill(
        self, out: Float32, group: Group, last: Float32, age: FloatArray, recent: Sequence[Sequence[Sequence[float]]]
    ) -> None:
        good = _good(age, group.carry)
        found = self._statistics(group, recent) if set(group.forms) & set(STATISTICS) else {}
        for at, places in zip(group.columns, group.places, strict=True):
            forms = {
                "last": np.where(good[:, at], last[:, at], np.nan),
                "age": np.where(good[:, at], age[:, at], np.nan),
                **found.get(at, {}),
            }
            for form, place in zip(group.forms, places, strict=True):
                out[:, place] = forms[form]

    def _statistics(self, group: Group, recent: Sequence[Sequence[Sequence[float]]]) -> dict[int, dict[str, Float32]]:
        flat = np.array([item for rows in recent for item in rows])
        ends = np.cumsum([len(rows) for rows in recent])
        starts = np.concatenate(([0], ends)).astype(np.int64)
        found = {}
        for at in group.columns:
            values = flat[:, 1 + int(np.flatnonzero(self.windowed == at)[0])].astype(np.float32)
            made = statistics(values, np.ascontiguousarray(flat[:, 0]), starts, group.window)
            found[at] = {name: column[ends - 1] for name, column in made.items()}
        return found


def features_of(view: Sight, probe: Probe) -> Float32:
    """Return the (n, d) features of hours that were set aside, each made from the hours before it."""
    found = []
    for begin, end in zip(probe.starts[:-1], probe.starts[1:], strict=True):
        past = None
        for row in range(begin, end):
            one = slice(row, row + 1)
            features, pasts = view.look(probe.values[one].astype(np.float64), probe.hour[one], [past])
            past = pasts[0]
            found.append(features)
    return np.concatenate(found)


def _good(age: FloatArray, carry: float) -> BoolArray:
    with np.errstate(invalid="ignore"):
        good: BoolArray = age <= carry
    return good


def sight(groups: Mapping[str, FeatureGroup]) -> Sight:
    """Return how the features of ``layout`` are made hour by hour."""
    columns = tuple(dict.fromkeys(column for group in groups.values() for column in group.columns))
    names = {name: place for place, name in enumerate(layout(groups).names)}
    made = tuple(_group(name, group, columns, names) for name, group in groups.items())
    watched = [group for group in made if set(group.forms) & set(STATISTICS)]
    windowed = sorted({at for group in watched for at in group.columns})
    longest = max((group.window for group in watched), default=0.0)
    return Sight(columns, made, len(names), np.array(windowed, dtype=np.int64), longest)


def _group(name: str, group: FeatureGroup, columns: Sequence[str], names: Mapping[str, int]) -> Group:
    return Group(
        tuple(columns.index(column) for column in group.columns),
        tuple(group.derive),
        carry_h(group),
        window_h(group),
        tuple(tuple(names[named(column, how, group)] for how in group.derive) for column in group.columns),
        group.rule,
        tuple(names[one] for one in rule_names(name, group)),
    )
