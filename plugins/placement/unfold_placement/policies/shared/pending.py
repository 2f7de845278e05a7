"""Pending units, grouped by shape: if one unit of a shape fits nowhere, no unit of that shape is tried again.

A shape stays hopeless until capacity is freed or created. With long queues of similar tasks this avoids one search
per task and event.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from unfold_placement._types import FloatArray, Int32Array, MaskArray
from unfold_placement.core import kernel
from unfold_placement.core.cluster_view import Unit, View
from unfold_placement.core.state import grow_rows

MIN_SHRINK = 64
"""Units before unused rows are removed."""


@dataclass(slots=True)
class UnitShapes:
    """Shapes of units, and which of them fit nowhere at present.

    Two units have one shape if their tasks have equal demands and equal requests of phases before ``phase``.

    Attributes:
        phase: The policy's own phase.
        numbers: Shape numbers by the bytes of demands and requests.
        by_name: Shape numbers of units by names that a policy gives them.
        task_shapes: [tasks] cached shape of each task as a unit of its own, -1 where unknown.
        hopeless: [shapes, fallback levels] 1 where the shape fits nowhere.
        revivals: How often ``revive`` has reset entries of ``hopeless``.
        freed_count: Value of the kernel's counter of freed capacity to which ``hopeless`` refers.
        sample_rows: [shapes] row of a task of each shape.
        is_single: [shapes] 1 where units are single tasks.
        log_cursor: First log entry that ``revive`` has not read.
        seen_releases: Number of ended reservations that it has read.
        seen_nodes: Number of their nodes that it has read.
        futile: Name of a unit with reserved nodes that did not fit, and the count of freed capacity at that time.
    """

    phase: int
    numbers: dict[tuple[bytes, bytes], int] = field(default_factory=dict)
    by_name: dict[str, int] = field(default_factory=dict)
    task_shapes: Int32Array = field(default_factory=lambda: np.zeros(0, np.int32))
    hopeless: MaskArray = field(default_factory=lambda: np.zeros((64, 8), np.uint8))
    revivals: int = 0
    freed_count: int = -1
    sample_rows: Int32Array = field(default_factory=lambda: np.zeros(64, np.int32))
    is_single: MaskArray = field(default_factory=lambda: np.zeros(64, np.uint8))
    log_cursor: int = 0
    seen_releases: int = 0
    seen_nodes: int = 0
    futile: tuple[str, int] = ("", -1)

    def shape_number(self, rows: Sequence[int], view: View) -> int:
        """Return the shape of a unit, given as task rows; a new shape gets a new number."""
        state = view.table.state
        index = rows[0] if len(rows) == 1 else rows
        # of tasks alike, only these may use reserved nodes
        requests = b"completes" if view.table.tasks[rows[0]].completes else b""
        is_earlier = (state.requested[index] >= 0) & (state.request_phase[index] < self.phase)
        if is_earlier.any():
            requested = np.where(is_earlier, state.requested[index], -1)
            amounts = np.where(is_earlier, state.requested_amount[index], 0)
            requests += requested.tobytes() + amounts.tobytes()
        number = self.numbers.setdefault((state.demand[index].tobytes(), requests), len(self.numbers))
        if len(self.numbers) > self.sample_rows.size or number == len(self.numbers) - 1:
            self.hopeless = grow_rows(self.hopeless, len(self.numbers), 0)
            self.sample_rows = grow_rows(self.sample_rows, len(self.numbers), 0)
            self.is_single = grow_rows(self.is_single, len(self.numbers), 0)
            self.sample_rows[number], self.is_single[number] = rows[0], len(rows) == 1
        return number

    def revive(self, view: View) -> bool:
        """Let the shapes be tried again that may fit since the last call; return whether capacity was freed at all.

        After departures and ended reservations these are the shapes that fit on their nodes; after any other change of
        capacity they are all.
        """
        state = view.table.state
        freed_count, logged = int(state.counters[kernel.FREED]), int(state.counters[kernel.LOGGED])
        has_changed = freed_count != self.freed_count
        if has_changed and self.hopeless.any():
            kinds = state.log_kind[self.log_cursor : logged]
            departures = np.count_nonzero((kinds == kernel.LOG_ENDED) | (kinds == kernel.LOG_PREEMPTED))
            explained = self.freed_count + departures + view.releases - self.seen_releases
            if explained == freed_count and logged >= self.log_cursor:
                count = len(self.numbers)
                nodes = np.array(view.released_nodes[self.seen_nodes :], np.int32)
                self.revivals += kernel.call_revive_shapes(
                    state, self.log_cursor, nodes, self.sample_rows[:count], self.is_single[:count], self.hopeless
                )
            else:
                self.hopeless[:] = 0
                self.revivals += 1
        self.freed_count, self.log_cursor = freed_count, logged
        self.seen_releases, self.seen_nodes = view.releases, len(view.released_nodes)
        return has_changed

    def single_task_shapes(self, rows: Int32Array, view: View) -> Int32Array:
        """Return the [tasks] shapes of task rows, each task taken as a unit."""
        self.task_shapes = grow_rows(self.task_shapes, len(view.table.tasks), -1)
        for row in rows[self.task_shapes[rows] < 0]:
            self.task_shapes[row] = self.shape_number([int(row)], view)
        return self.task_shapes[rows]

    def iter_candidates(
        self, view: View, rows: Int32Array, shapes: Int32Array, levels: Int32Array, flags: MaskArray
    ) -> Iterator[int]:
        """Yield the indices of units that may fit or hold a resource, each judged when the iteration reaches it."""
        index = 0
        while index >= 0:
            freed_count = int(view.table.state.counters[kernel.FREED])
            if self.freed_count != freed_count:
                self.hopeless[:] = 0
                self.freed_count = freed_count
            index = kernel.call_next_candidate(
                view.table.state, rows, shapes, levels, flags, index, self.phase, self.hopeless
            )
            if index >= 0:
                yield index
                index += 1


@dataclass(slots=True)
class PendingUnits:
    """Waiting units in order of arrival, as parallel arrays by index.

    Attributes:
        shapes: Shapes of units.
        units: Each unit with the time (s) since which it waits.
        index_by_name: Index of a unit by the name of its first task.
        rows: Row of each unit's first task.
        shape_numbers: Shape of each unit.
        flags: ``HOLDS_RESOURCE``, ``LEFT_QUEUE`` or 0.
        since_s: Times since which units wait.
    """

    shapes: UnitShapes
    units: list[tuple[Unit, float]] = field(default_factory=list)
    index_by_name: dict[str, int] = field(default_factory=dict)
    rows: Int32Array = field(default_factory=lambda: np.zeros(64, np.int32))
    shape_numbers: Int32Array = field(default_factory=lambda: np.zeros(64, np.int32))
    flags: MaskArray = field(default_factory=lambda: np.zeros(64, np.uint8))
    since_s: FloatArray = field(default_factory=lambda: np.zeros(64))

    def add(self, unit: Unit, view: View) -> None:
        """Add a unit at the end, or keep its index if its last start was not observed."""
        index = self.index_by_name.get(unit[0].name, -1)
        if index < 0 or self.flags[index] == kernel.LEFT_QUEUE:
            index = self._append_row()
        self.index_by_name[unit[0].name] = index
        self.units[index] = unit, view.now
        rows = [view.table.task_rows[task.name] for task in unit]
        self.rows[index], self.flags[index], self.since_s[index] = rows[0], 0, view.now
        self.shape_numbers[index] = self.shapes.shape_number(rows, view)

    def iter_candidates(self, view: View, fallback_after_s: Sequence[float] = ()) -> Iterator[int]:
        """Yield the indices of units to examine; a shape is judged again after each fallback time of its unit."""
        count = len(self.units)
        waited_s = view.now - self.since_s[:count, None]
        levels = (waited_s >= np.array(fallback_after_s)).sum(1, dtype=np.int32)
        return self.shapes.iter_candidates(view, self.rows[:count], self.shape_numbers, levels, self.flags)

    def record_result(self, index: int, level: int, *, nodes: Sequence[str] | None) -> None:
        """Record the nodes chosen for a unit: None marks its shape hopeless, an empty sequence does not."""
        self.flags[index] = kernel.HOLDS_RESOURCE if nodes else 0
        if nodes is None:
            self.shapes.hopeless[self.shape_numbers[index], level] = 1

    def _append_row(self) -> int:
        count = len(self.units)
        if count >= MIN_SHRINK and 2 * np.count_nonzero(self.flags[:count] == kernel.LEFT_QUEUE) > count:
            self._remove_left()
        self.units.append(((), 0.0))
        for name in ("rows", "shape_numbers", "flags", "since_s"):
            setattr(self, name, grow_rows(getattr(self, name), len(self.units), 0))
        return len(self.units) - 1

    def _remove_left(self) -> None:
        indices = np.flatnonzero(self.flags[: len(self.units)] != kernel.LEFT_QUEUE)
        self.units = [self.units[index] for index in indices]
        for name in ("rows", "shape_numbers", "flags", "since_s"):
            getattr(self, name)[: indices.size] = getattr(self, name)[indices]
        self.index_by_name = {unit[0].name: index for index, (unit, _) in enumerate(self.units)}
