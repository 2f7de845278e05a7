"""The pending units of one user in order, as parallel arrays that compiled code searches."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unfold_placement._types import Int32Array, MaskArray
from unfold_placement.core import kernel
from unfold_placement.core.cluster_view import Unit, View
from unfold_placement.core.state import grow_rows
from unfold_placement.policies.shared.pending import UnitShapes

MIN_SHRINK = 64
"""Removed units before the arrays are compacted."""


def _empty_rows() -> Int32Array:
    return np.zeros(2, np.int32)


@dataclass(slots=True)
class UserQueue:
    """Pending units, sorted by a key; removed ones stay in the arrays, flagged, until the next compaction.

    Attributes:
        units: The units.
        keys: Their keys, ascending.
        rows: [units] row of each unit's first task.
        shapes: [units] shape of each unit.
        flags: [units] ``LEFT_QUEUE`` where a unit was removed, else 0.
        pending: [shapes] number of units of each shape that were not removed.
        first: No unit before this index is pending.
        hopeless_since: Value of ``UnitShapes.revivals`` at which no pending unit fits; -1 if some may.
    """

    units: list[Unit] = field(default_factory=list)
    keys: list[Any] = field(default_factory=list)
    rows: Int32Array = field(default_factory=_empty_rows)
    shapes: Int32Array = field(default_factory=_empty_rows)
    flags: MaskArray = field(default_factory=lambda: np.zeros(2, np.uint8))
    pending: Int32Array = field(default_factory=_empty_rows)
    first: int = 0
    hopeless_since: int = -1

    def __iter__(self) -> Iterator[Unit]:
        """Yield the units that were not removed, in order."""
        return (self.units[index] for index in range(self.first, len(self.units)) if not self.flags[index])

    def insert(self, unit: Unit, key: Any, row: int, shape: int) -> None:
        """Insert a unit behind all units with an equal or smaller key."""
        count = len(self.units)
        if count == self.rows.size:
            for name in ("rows", "shapes", "flags"):
                setattr(self, name, grow_rows(getattr(self, name), count + 1, 0))
        index = count if not count or key >= self.keys[-1] else bisect_right(self.keys, key)
        if index < count:
            for array in (self.rows, self.shapes, self.flags):
                array[index + 1 : count + 1] = array[index:count]
        self.units.insert(index, unit)
        self.keys.insert(index, key)
        self.rows[index], self.shapes[index], self.flags[index] = row, shape, 0
        self.first = min(self.first, index)
        self.pending = grow_rows(self.pending, shape + 1, 0)
        self.pending[shape] += 1
        self.hopeless_since = -1

    def remove(self, index: int) -> None:
        """Remove a unit by index; indices stay valid until the next ``insert`` or ``compact``."""
        self.flags[index] = kernel.LEFT_QUEUE
        self.pending[self.shapes[index]] -= 1

    def compact(self) -> None:
        """Forget the removed units once they are the majority."""
        count = len(self.units)
        if count < MIN_SHRINK or 2 * np.count_nonzero(self.flags[:count]) < count:
            return
        kept = np.flatnonzero(self.flags[:count] == 0)
        self.units = [self.units[index] for index in kept]
        self.keys = [self.keys[index] for index in kept]
        for array in (self.rows, self.shapes, self.flags):
            array[: kept.size] = array[kept]
        self.first = 0

    def index_of(self, unit: Unit, row: int) -> int:
        """Return the index of a pending unit by the row of its first task, or -1."""
        matches = np.flatnonzero((self.rows[: len(self.units)] == row) & (self.flags[: len(self.units)] == 0))
        return next((index for index in matches.tolist() if self.units[index] == unit), -1)

    def next_index(self, view: View, shapes: UnitShapes, low: int) -> int:
        """Return the index from ``low`` on of the next unit that may fit now or waits no longer, or -1."""
        if self.hopeless_since == shapes.revivals:
            return -1
        count = len(self.units)
        index = kernel.call_next_admissible(
            view.table.state, self.rows[:count], self.shapes[:count], self.flags[:count],
            max(low, self.first), shapes.phase, self.pending[: len(shapes.numbers)], shapes.sample_rows,
            shapes.hopeless,
        )  # fmt: skip
        if index < 0 and low <= self.first:
            self.hopeless_since = shapes.revivals
        return int(index)

    def next_live(self, low: int) -> int:
        """Return the index from ``low`` on of the next unit that was not removed, or -1."""
        while self.first < len(self.units) and self.flags[self.first]:
            self.first += 1
        return next((index for index in range(max(low, self.first), len(self.units)) if not self.flags[index]), -1)
