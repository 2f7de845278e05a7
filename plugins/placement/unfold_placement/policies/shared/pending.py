"""Units that wait for a place, so that of many that are alike one is asked for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from unfold_placement._types import FloatArray, Int32Array, MaskArray
from unfold_placement.core import kernel
from unfold_placement.core.state import grow_rows
from unfold_placement.core.view import Unit, View


@dataclass(slots=True)
class Shapes:
    """Which shapes of units fit nowhere since something was last freed or created.

    Two units have one shape if their tasks have equal demands and ask for the same names of phases before ``phase``.
    """

    phase: int
    known: dict[bytes, int] = field(default_factory=dict)
    of: Int32Array = field(default_factory=lambda: np.zeros(0, np.int32))
    dead: MaskArray = field(default_factory=lambda: np.zeros((64, 8), np.uint8))
    grown: int = -1

    def number(self, rows: Sequence[int], view: View) -> int:
        """Return the number of the shape of a unit, given as rows of tasks."""
        a = view.table.state
        mine = a.request_phase[rows] < self.phase
        names = np.where(mine, a.requested[rows], -1).tobytes() + np.where(mine, a.requested_amount[rows], 0).tobytes()
        found = self.known.setdefault(a.demand[rows].tobytes() + names, len(self.known))
        self.dead = grow_rows(self.dead, len(self.known), 0)
        return found

    def single(self, rows: Int32Array, view: View) -> Int32Array:
        """Return the numbers of the shapes of tasks, each a unit of its own."""
        self.of = grow_rows(self.of, len(view.table.tasks), -1)
        for row in rows[self.of[rows] < 0]:
            self.of[row] = self.number([int(row)], view)
        return self.of[rows]

    def hopeful(
        self, view: View, rows: Int32Array, shape: Int32Array, level: Int32Array, flag: MaskArray
    ) -> Iterator[int]:
        """Yield the places of units that may fit, or hold names; each is asked as things are when it is reached."""
        at = 0
        while at >= 0:
            if self.grown != view.table.state.counters[kernel.FREED]:
                self.dead[:] = 0
                self.grown = int(view.table.state.counters[kernel.FREED])
            at = kernel.call_next_candidate(view.table.state, rows, shape, level, flag, at, self.phase, self.dead)
            if at >= 0:
                yield at
                at += 1


@dataclass(slots=True)
class Waiting:
    """Units in the order in which they came."""

    shapes: Shapes
    units: list[tuple[Unit, float]] = field(default_factory=list)
    index: dict[str, int] = field(default_factory=dict)
    row: Int32Array = field(default_factory=lambda: np.zeros(64, np.int32))
    shape: Int32Array = field(default_factory=lambda: np.zeros(64, np.int32))
    flag: MaskArray = field(default_factory=lambda: np.zeros(64, np.uint8))
    since: FloatArray = field(default_factory=lambda: np.zeros(64))

    def add(self, unit: Unit, view: View) -> None:
        """Let a unit wait: at the end, or where it is if nobody has seen it start."""
        at = self.index.get(unit[0].name, -1)
        if at < 0 or self.flag[at] == kernel.LEFT_QUEUE:
            at = self._new()
        self.index[unit[0].name] = at
        self.units[at] = unit, view.now
        rows = [view.table.task_rows[task.name] for task in unit]
        self.row[at], self.flag[at], self.since[at] = rows[0], 0, view.now
        self.shape[at] = self.shapes.number(rows, view)

    def asked(self, view: View, afters: Sequence[float] = ()) -> Iterator[int]:
        """Yield the places of units to ask; a shape is another one after each of ``afters`` (s) that it waited."""
        count = len(self.units)
        levels = (view.now - self.since[:count, None] >= np.array(afters)).sum(1, dtype=np.int32)
        return self.shapes.hopeful(view, self.row[:count], self.shape, levels, self.flag)

    def told(self, at: int, level: int, *, fits: Sequence[str] | None) -> None:
        """Take in the nodes of a unit; where none fit, its shape is not asked for until something changes."""
        self.flag[at] = kernel.HOLDS_RESOURCE if fits else 0
        if fits is None:
            self.shapes.dead[self.shape[at], level] = 1

    def _new(self) -> int:
        if len(self.units) >= 64 and 2 * np.count_nonzero(self.flag[: len(self.units)] == kernel.LEFT_QUEUE) > len(
            self.units
        ):
            self._shrink()
        self.units.append(((), 0.0))
        for name in ("row", "shape", "flag", "since"):
            setattr(self, name, grow_rows(getattr(self, name), len(self.units), 0))
        return len(self.units) - 1

    def _shrink(self) -> None:
        left = np.flatnonzero(self.flag[: len(self.units)] != kernel.LEFT_QUEUE)
        self.units = [self.units[at] for at in left]
        for name in ("row", "shape", "flag", "since"):
            getattr(self, name)[: left.size] = getattr(self, name)[left]
        self.index = {unit[0].name: at for at, (unit, _) in enumerate(self.units)}
