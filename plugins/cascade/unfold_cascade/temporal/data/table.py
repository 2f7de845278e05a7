"""Tables over time: the rows of each entity together, in the order of their hours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from unfold_cascade._types import BoolArray, Float32, FloatArray, IntArray
from unfoldkit.api import Diagnostic, UnfoldError, did_you_mean, fail


@dataclass(frozen=True, slots=True)
class Long:
    """The hours of P entities, one after the other.

    ``starts`` (P+1,) are the first rows of the entities and the number of rows; ``hour`` (n,) is the time of each row
    in hours, ascending within an entity; ``values`` (n, C) are float32 with NaN where nothing was measured. ``words``
    says of each column that is left out why it cannot be read as numbers.
    """

    ids: tuple[str, ...]
    starts: IntArray
    hour: FloatArray
    columns: tuple[str, ...]
    values: Float32
    digest: str
    name: str
    words: Mapping[str, Diagnostic] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.hour)

    def place(self, column: str, *, key: str) -> int:
        """Return the number of a column.

        Raises:
            UnfoldError: there is no such column, or it is none of numbers.
        """
        if column in self.words:
            raise UnfoldError(replace(self.words[column], key=key))
        if column not in self.columns:
            raise fail(f'{self.name} has no column "{column}"', key=key, hint=did_you_mean(column, self.columns))
        return self.columns.index(column)


def entity_of_row(starts: IntArray) -> IntArray:
    """Return (n,) the number of the entity of each row."""
    return np.repeat(np.arange(len(starts) - 1), np.diff(starts))


def rows_of(starts: IntArray, entities: IntArray) -> IntArray:
    """Return the rows of some entities, in the order of the entities given."""
    sizes = starts[entities + 1] - starts[entities]
    first = np.cumsum(sizes) - sizes
    result: IntArray = np.repeat(starts[entities] - first, sizes) + np.arange(int(sizes.sum()))
    return result


def starts_of(sizes: IntArray) -> IntArray:
    """Return (P+1,) starts of entities that have so many rows."""
    return np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)


def first_true(flag: BoolArray, starts: IntArray) -> IntArray:
    """Return (P,) the first row of each entity where ``flag`` (n,) is set; the row after its last where it never is."""
    n = len(flag)
    place = np.where(flag, np.arange(n), n)
    if not n:
        return starts[1:].copy()
    found: IntArray = np.minimum(np.minimum.reduceat(place, starts[:-1]), starts[1:])
    return found


def hours_since(on: BoolArray, hour: FloatArray, starts: IntArray) -> FloatArray:
    """Return (n,) hours since a flag was first set in the entity, negative before; minus infinity where it never is."""
    first = first_true(on, starts)
    moment = np.where(first < starts[1:], hour[np.minimum(first, len(hour) - 1)], np.inf)
    since: FloatArray = hour - np.repeat(moment, np.diff(starts))
    return since


def checked_order(hour: FloatArray, starts: IntArray, ids: Sequence[str], name: str, key: str) -> None:
    """Raise when the hours of an entity do not ascend, or one is missing."""
    bad = ~np.isfinite(hour)
    bad[1:] |= np.diff(hour) <= 0
    bad[starts[:-1][np.diff(starts) > 0]] = ~np.isfinite(hour[starts[:-1][np.diff(starts) > 0]])
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        who = ids[int(np.searchsorted(starts, row, side="right")) - 1]
        raise fail(f"{name}: the hours of {who} do not ascend at hour {hour[row]:g}", key=key)
