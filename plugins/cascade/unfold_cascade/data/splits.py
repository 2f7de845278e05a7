"""Splits into training, certifying and test parts: at random, by site, in time order, or as a file says.

Whole units are assigned: rows of a table, or clusters of rows (customers, patients), which never stand in two parts.
External validation needs the last three ways: a part from another site or a later period shows what a random split
hides (Steyerberg and Harrell, J Clin Epidemiol 2016).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.data.table import Rows, frame_of_file, split_rows
from unfold_cascade.schema import cell_values
from unfold_cascade.schema.splits import AnySplit, FileSplit, LeaveOutSplit, SiteSplit, TimeSplit
from unfoldkit.api import Run, did_you_mean, format_count, user_error

PARTS = ("train", "calibrate", "test")
KEY = "data.split"
MIN_UNITS = 2
MORE_ROWS = "each label is split by itself: add cases, or a label has too few for these fractions"
SplitKind = Literal["random", "column", "time", "file", "leave-out"]


@dataclass(frozen=True, slots=True)
class TimeBound:
    """The end of a part: its units are before ``limit`` (or at it, if ``is_inclusive``), as the spec writes it."""

    text: str
    limit: str
    is_inclusive: bool

    def holds(self, times: FloatArray, *, are_dates: bool) -> BoolArray:
        """Mark the (n,) times within the bound.

        Raises:
            UnfoldError: The limit is not a date, or not a number where the column holds numbers.
        """
        limit = cell_values.parse_date(self.limit) if are_dates else _parse_number(self.limit)
        if limit is None:
            kind = "date" if are_dates else "number"
            hint = '"< 2025-01" or "< 2025-01-15 06:00"' if are_dates else '"< 48"'
            raise user_error(f'"{self.text}" does not end with a {kind}', key=KEY, hint=hint)
        compare = operator.le if self.is_inclusive else operator.lt
        within: BoolArray = compare(times, limit)
        return within


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRule:
    """How units are split; ``kind`` says which of the other attributes count.

    Attributes:
        train: Share of the training part, where parts are drawn at random or in time order.
        calibrate: Share of the certifying part.
        column: The column of sites, or of times.
        named: The sites of each part that names some.
        bounds: The ends of the training and of the certifying part in time.
        path: The split file as the spec writes it.
        locate: Finds the split file.
    """

    kind: SplitKind = "random"
    train: float = 0.5
    calibrate: float = 0.25
    column: str = ""
    named: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bounds: Mapping[str, TimeBound] = field(default_factory=dict)
    path: str = ""
    locate: Callable[[], Path] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitTable:
    """The units of a table and the values that a split may read.

    Attributes:
        unit: (n,) number of the unit of each row, from 0 to U-1.
        names: (U,) names of the units, for messages.
        read: Returns the (n,) cells of a column; raises an error that names a missing column.
        noun: What a unit is, in the singular.
        table: Name of the table.
        is_strict: Whether rows of a unit that differ are an error; otherwise the first row decides.
        key: The column that names units, empty where each row is one.
    """

    unit: IntArray
    names: Sequence[str]
    read: Callable[[str], np.ndarray]
    noun: str
    table: str
    is_strict: bool = True
    key: str = ""


def resolve_split(split: AnySplit, run: Run) -> SplitRule:
    """Resolve the split of a spec; a split file is located when it is read."""
    if isinstance(split, SiteSplit):
        sites = {"train": split.train, "calibrate": split.calibrate, "test": split.test}
        named = {part: names for part, names in sites.items() if names is not None}
        return SplitRule(kind="column", column=split.column, named=named)
    if isinstance(split, TimeSplit):
        texts = {part: text for part, text in (("train", split.train), ("calibrate", split.calibrate)) if text}
        parsed = {part: (text, cell_values.parse_bound(text)) for part, text in texts.items()}
        bounds = {part: TimeBound(text, *bound) for part, (text, bound) in parsed.items() if bound is not None}
        return SplitRule(kind="time", column=split.time, bounds=bounds)
    if isinstance(split, FileSplit):
        return SplitRule(kind="file", path=split.file, locate=partial(run.path, split.file, key="data.split.file"))
    kind: SplitKind = "leave-out" if isinstance(split, LeaveOutSplit) else "random"
    column = split.leave_out if isinstance(split, LeaveOutSplit) else ""
    return SplitRule(kind=kind, column=column, train=split.train, calibrate=split.calibrate)


def leave_out(rule: SplitRule, site: str) -> SplitRule:
    """Build the split that tests on one site."""
    return SplitRule(
        kind="column", column=rule.column, named={"test": (site,)}, train=rule.train, calibrate=rule.calibrate
    )


def split_units(rule: SplitRule, strata: np.ndarray, table: UnitTable, seed: int) -> Rows:
    """Split units by a rule.

    Args:
        rule: The rule.
        strata: (U,) what random parts are stratified by, such as the label.
        table: The units.
        seed: Of random parts.

    Returns:
        Numbers of units.

    Raises:
        UnfoldError: A column or file is missing or not as the rule needs it, or a part or a site is too small.
    """
    if rule.kind == "column":
        rows = _split_by_site(rule, strata, table, seed)
    elif rule.kind == "time":
        rows = _split_by_time(rule, table)
    elif rule.kind == "file":
        rows = _split_by_file(rule, table)
    else:
        if rule.kind == "leave-out":
            list_sites(rule.column, table)
        rows = split_rows(strata, rule, seed)
    is_random = rule.kind in ("random", "leave-out")
    _check_parts(rows, table, rule.column if rule.kind == "time" else "", least=1 if is_random else MIN_UNITS)
    return rows


def list_sites(column: str, table: UnitTable) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read the (U,) site of each unit and the sites in order.

    Raises:
        UnfoldError: There is one site only, or a site has one unit, or a unit has no site or several.
    """
    site = _read_unit_words(column, table)
    names, counts = np.unique(site, return_counts=True)
    if len(names) < 2:
        raise user_error(f'{table.table}: the column "{column}" has one value only, "{names[0]}"', key=KEY)
    small = int(counts.argmin())
    if counts[small] < MIN_UNITS:
        message = f'{table.table}: "{names[small]}" in the column "{column}" has one {table.noun}'
        hint = f"each value needs at least {MIN_UNITS} {table.noun}s: join it with another, or remove its rows"
        raise user_error(message, key=KEY, hint=hint)
    return site, tuple(map(str, names))


def _split_by_site(rule: SplitRule, strata: np.ndarray, table: UnitTable, seed: int) -> Rows:
    site, names = list_sites(rule.column, table)
    if not rule.named and set(names) <= set(PARTS):
        return _rows_of_parts(site)
    named = dict(rule.named) or _draw_sites(rule, names, table, seed)
    for part, sites in named.items():
        for name in sites:
            if name not in names:
                message = f'{table.table}: the column "{rule.column}" has no value "{name}"'
                raise user_error(message, key=f"{KEY}.{part}", hint=did_you_mean(name, names))
    _place_remaining(named, names, table, rule.column)
    assigned = np.full(len(site), "train", dtype=object)
    for part, sites in named.items():
        assigned[np.isin(site, sites)] = part
    if "calibrate" not in named:
        units = np.flatnonzero(assigned == "train")
        both = rule.train + rule.calibrate
        drawn = split_rows(strata[units], SplitRule(train=rule.train / both, calibrate=rule.calibrate / both), seed)
        assigned[units[drawn.calibrate]] = "calibrate"
        # rounding may leave a unit over
        assigned[units[drawn.test]] = "calibrate"
    return _rows_of_parts(assigned.astype(str))


def _place_remaining(named: dict[str, tuple[str, ...]], names: Sequence[str], table: UnitTable, column: str) -> None:
    """Place the sites that no part names: in training, or in the test part if training names its own.

    Raises:
        UnfoldError: Neither part is free, or none is named.
    """
    taken = {name for sites in named.values() for name in sites}
    remaining = tuple(name for name in names if name not in taken)
    free = [part for part in ("train", "test") if part not in named]
    if len(free) == 2 or (remaining and not free) or (free and not remaining):
        culprit = f'"{remaining[0]}" is in no part' if remaining and not free else f"no value is left for {free[-1]}"
        hint = "name the values of test, or of train and test"
        raise user_error(f'{table.table}: of the column "{column}", {culprit}', key=KEY, hint=hint)
    if free:
        named[free[0]] = remaining


def _draw_sites(rule: SplitRule, names: Sequence[str], table: UnitTable, seed: int) -> dict[str, tuple[str, ...]]:
    """Draw whole sites for every part by its share, at least one each."""
    if len(names) < len(PARTS):
        message = f'{table.table}: the column "{rule.column}" has {len(names)} values for three parts'
        raise user_error(message, key=KEY, hint=f"name the test sites: {{column: {rule.column}, test: [{names[-1]}]}}")
    order = np.random.default_rng([seed, 0x517E]).permutation(len(names))
    calibrate = max(round(len(names) * rule.calibrate), 1)
    test = max(len(names) - round(len(names) * (rule.train + rule.calibrate)), 1)
    drawn = np.split(np.array(names)[order], [len(names) - calibrate - test, len(names) - test])
    return {part: tuple(map(str, sites)) for part, sites in zip(PARTS, drawn, strict=True)}


def _split_by_time(rule: SplitRule, table: UnitTable) -> Rows:
    """Split by the first time of each unit: no part is earlier than the one before it."""
    times, are_dates = _read_unit_times(rule.column, table)
    part = np.full(len(times), 2)
    if "calibrate" in rule.bounds:
        part[rule.bounds["calibrate"].holds(times, are_dates=are_dates)] = 1
    if "train" in rule.bounds:
        part[rule.bounds["train"].holds(times, are_dates=are_dates)] = 0
    else:
        earlier = np.flatnonzero(part < 2) if "calibrate" in rule.bounds else np.arange(len(times))
        share = rule.train / (rule.train + rule.calibrate) if "calibrate" in rule.bounds else rule.train
        part[earlier[times[earlier] < _quantile(times[earlier], share)]] = 0
    if "calibrate" not in rule.bounds:
        later = np.flatnonzero(part == 2)
        share = rule.calibrate / (1.0 - rule.train)
        if len(later):
            part[later[times[later] < _quantile(times[later], share)]] = 1
    return Rows(*(np.flatnonzero(part == number) for number in range(3)))


def _quantile(times: FloatArray, share: float) -> float:
    """Find the time at which a part ends that holds ``share`` of the units, without dividing equal times."""
    return float(np.sort(times)[min(round(share * len(times)), len(times) - 1)])


def _split_by_file(rule: SplitRule, table: UnitTable) -> Rows:
    if rule.locate is None:
        raise ValueError("a split file without a path")
    frame = frame_of_file(rule.locate())
    words = np.array([word.lower() for word in frame.text("part", key=KEY)])
    for row, word in enumerate(words):
        if word not in PARTS:
            message = f'{frame.name}: "{word}" in row {row + 1} of column "part" is not a part'
            raise user_error(message, key=KEY, hint=f"one of: {', '.join(PARTS)}")
    keys = [column for column in frame.columns if column not in ("part", "")]
    if not keys:
        if len(words) != len(table.unit):
            message = f"{frame.name} has {len(words)} rows; {table.table} has {len(table.unit)}"
            hint = "add the column that names the cases, or write one row for each case"
            raise user_error(message, key=KEY, hint=hint)
        return _rows_of_parts(_unify(words, table, frame.name))
    if len(keys) > 1:
        message = f"{frame.name} has the columns {', '.join(keys)} beside part; one is needed"
        raise user_error(message, key=KEY, hint="a column of the table that names its cases, and part")
    own = _read_words(keys[0], table)
    given = dict[str, str]()
    for row, (name, part) in enumerate(zip(frame.text(keys[0], key=KEY), words, strict=True)):
        if given.setdefault(str(name), str(part)) != part:
            message = f'{frame.name}: "{name}" in row {row + 1} is in {given[str(name)]} and in {part}'
            raise user_error(message, key=KEY)
    missing = next((name for name in own if name not in given), None)
    if missing is not None:
        raise user_error(f'{frame.name} has no part for "{missing}" in the column "{keys[0]}"', key=KEY)
    return _rows_of_parts(_unify(np.array([given[name] for name in own]), table, frame.name))


def _rows_of_parts(part: np.ndarray) -> Rows:
    return Rows(*(np.flatnonzero(part == name) for name in PARTS))


def _check_parts(rows: Rows, table: UnitTable, times: str, least: int) -> None:
    """Refuse parts of too few units; ``times`` is the column of times that split them, empty for another rule."""
    for name in PARTS:
        count = len(getattr(rows, name))
        if count < least:
            message = f"the part {name} has {format_count(count, table.noun)}; it needs {least}"
            hint = _describe_range(times, table) if times else MORE_ROWS if least == 1 else ""
            raise user_error(message, key=KEY, hint=hint)


def _describe_range(column: str, table: UnitTable) -> str:
    """Say from when to when a column of times runs."""
    words = [str(word) for word in _read_words(column, table) if not cell_values.is_missing(str(word))]
    are_dates = _parse_number(words[0]) is None
    ordered = sorted(
        words, key=lambda word: (cell_values.parse_date(word) if are_dates else _parse_number(word)) or 0.0
    )
    return f'the column "{column}" runs from {ordered[0]} to {ordered[-1]}'


def _read_words(column: str, table: UnitTable) -> np.ndarray:
    """Read a column as text, one word a row."""
    return np.array([cell_values.label_text(cell) for cell in table.read(column)], dtype=np.str_)


def _read_unit_words(column: str, table: UnitTable) -> np.ndarray:
    """Read the (U,) value of each unit; rows without one take that of the unit's other rows."""
    words = _read_words(column, table)
    has_value = np.array([not cell_values.is_missing(str(word)) for word in words], dtype=np.bool_)
    units = np.unique(table.unit[has_value])
    if len(units) < len(table.names):
        missing = int(np.setdiff1d(np.arange(len(table.names)), units)[0])
        message = f'{table.table}: {table.noun} {table.names[missing]} has no value in the column "{column}"'
        raise user_error(message, key=KEY, hint="write a word such as unknown")
    return _unify(words[has_value], table, f'{table.table}, column "{column}"', table.unit[has_value])


def _unify(words: np.ndarray, table: UnitTable, place: str, unit: IntArray | None = None) -> np.ndarray:
    """Reduce (n,) words to one of each unit.

    Raises:
        UnfoldError: The rows of a unit differ.
    """
    unit = table.unit if unit is None else unit
    first = np.unique(unit, return_index=True)[1]
    by_unit: np.ndarray = words[first]
    different = np.flatnonzero(words != by_unit[unit])
    if len(different) and table.is_strict:
        row = int(different[0])
        message = f'{place}: {table.noun} {table.names[unit[row]]} has both "{by_unit[unit[row]]}" and "{words[row]}"'
        raise user_error(message, key=KEY, hint=f"a {table.noun} belongs to one part as a whole")
    return by_unit


def _read_unit_times(column: str, table: UnitTable) -> tuple[FloatArray, bool]:
    """Read the (U,) first time of each unit, and whether times are dates (in seconds) instead of numbers."""
    words = _read_words(column, table)
    present = [str(word) for word in words if not cell_values.is_missing(str(word))]
    are_dates = not present or _parse_number(present[0]) is None
    if are_dates:
        _check_zones(column, words, table)
    times = np.full(len(table.names), np.inf)
    for row, word in enumerate(map(str, words)):
        if cell_values.is_missing(word):
            continue
        value = cell_values.parse_date(word) if are_dates else _parse_number(word)
        if value is None:
            kind = "date" if are_dates else "number"
            message = f'{table.table}: "{word[:40]}" in row {row + 1} of column "{column}" is not a {kind}'
            raise user_error(message, key=KEY, hint="dates such as 2025-01-31 or 2025-01-31T06:00" if are_dates else "")
        times[table.unit[row]] = min(times[table.unit[row]], value)
    if not np.isfinite(times).all():
        missing = table.names[int(np.flatnonzero(~np.isfinite(times))[0])]
        raise user_error(f'{table.table}: {table.noun} {missing} has no time in the column "{column}"', key=KEY)
    return times, are_dates


def _check_zones(column: str, words: np.ndarray, table: UnitTable) -> None:
    """Refuse dates if only some have a time zone: their order would be wrong by hours.

    Raises:
        UnfoldError: It names the first such row.
    """
    rows = [row for row, word in enumerate(words) if not cell_values.is_missing(str(word))]
    mixed = cell_values.find_mixed_zone([str(words[row]) for row in rows])
    if mixed is not None:
        row, word = rows[mixed], str(words[rows[mixed]])
        problem = cell_values.describe_mixed_zone(word)
        message = f'{table.table}: "{word[:40]}" in row {row + 1} of column "{column}" {problem}'
        raise user_error(message, key=KEY, hint=cell_values.ZONE_HINT)


def _parse_number(text: Any) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None
