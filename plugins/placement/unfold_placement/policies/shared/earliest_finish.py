"""When nodes will have room for tasks that wait, if each in its turn takes the node where it would end first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unfold_placement._types import FloatArray, Int32Array, MaskArray
from unfold_placement.core import kernel
from unfold_placement.core.kernel import LOGGED, RUNNING, WAITING
from unfold_placement.core.state import StateArrays
from unfold_placement.core.view import Unit, View
from unfold_placement.policies.shared.pending import Shapes
from unfoldkit.jit import compiled

Marks = NDArray[np.bool_]


@compiled
def forecast(a: StateArrays, task: int, now: float, running: Int32Array, out: FloatArray) -> None:
    """Write when a task would fit on each node by the ends of ``running``, which is in their order; or infinity."""
    free = a.free.copy()
    out[:] = np.inf
    for at in range(-free.shape[0], running.size):
        node = at + free.shape[0] if at < 0 else a.task_node[running[at]]
        roomy = out[node] == np.inf
        for kind in range(free.shape[1]):
            free[node, kind] += a.demand[running[at], kind] if at >= 0 else 0
            roomy = roomy and a.demand[task, kind] <= free[node, kind]
        if roomy:
            out[node] = a.end_s[running[at]] if at >= 0 else now


@compiled
def ready(a: StateArrays, task: int, phase: int) -> bool:
    """Return whether the cluster's names that a task asks for are there, as ``kernel.wide_fits`` does."""
    for index in range(a.requested.shape[1]):
        name = a.requested[task, index]
        if name < 0:
            break
        short = a.pool[name] < a.requested_amount[task, index] if a.scope[name] > 0 else a.column[name] < 0
        if short and a.request_phase[task, index] < phase:
            return False
    return True


@compiled
def latest(a: StateArrays, task: int, free: FloatArray, promised: FloatArray) -> int:
    """Return the node on which a task would end first, given when each has room and to when it is promised; or -1."""
    best, found = np.inf, -1
    for node in range(free.size):
        end = max(free[node], promised[node]) + a.run_s[task, a.node_type[node]]
        if a.is_up[node] == 1 and (found < 0 or end < best):
            best, found = end, node
    return found


@compiled
def sweep(
    a: StateArrays, rows: Int32Array, group: Int32Array, phase: int, free: FloatArray, promised: FloatArray
) -> None:
    """Promise each task whose turn it is the node on which it would end first; none of them fits anywhere now."""
    for at in range(rows.size):
        if a.status[rows[at]] == WAITING and ready(a, rows[at], phase):
            node = latest(a, rows[at], free[group[at]], promised)
            if node >= 0:
                promised[node] = max(free[group[at], node], promised[node]) + a.run_s[rows[at], a.node_type[node]]


@dataclass(slots=True)
class Outlook:
    """What waiting tasks are promised, in the order of ``rows``; ``shape`` tells which have equal demands.

    ``runs`` [tasks, types] are their run times in s; who is ``choosy`` has not the same one everywhere.
    """

    view: View
    rows: Int32Array
    shape: Int32Array
    runs: FloatArray
    choosy: Marks
    promised: FloatArray
    swept: int = 0
    logged: int = -1
    known: dict[int, FloatArray] = field(default_factory=dict)

    def asked(self, shapes: Shapes) -> Iterator[tuple[int, MaskArray]]:
        """Yield the place of each task that fits somewhere now, and the nodes; those before it have their promises."""
        none = np.zeros(self.rows.size, np.int32)
        for at in shapes.hopeful(self.view, self.rows, self.shape, none, none.astype(np.uint8)):
            fits = self.view.fit_mask(self.view.table.tasks[self.rows[at]], shapes.phase)
            if not fits.any():
                shapes.dead[self.shape[at], 0] = 1
                continue
            # who ends everywhere alike never waits, so that nobody's promises matter until another comes
            if self.choosy[at:].any():
                self.reach(at, shapes.phase)
            yield at, fits

    def soonest(self, at: int, fits: MaskArray) -> tuple[str, float]:
        """Return the node on which a task that starts now would end first, and when."""
        ends = np.where(fits, self.view.now + self.runs[at, self.view.table.state.node_type], np.inf)
        return self.view.table.nodes[int(ends.argmin())].name, float(ends.min())

    def together(self, unit: Unit, phase: int) -> list[str]:
        """Return the nodes on which the tasks of a gang, each in its turn, would end first; none if not all fit."""
        a, taken = self.view.table.state, list[tuple[int, int]]()
        try:
            for task in unit:
                row, fits = self.view.table.task_rows[task.name], self.view.fit_mask(task, phase)
                if not fits.any():
                    return []
                node = int(np.where(fits, a.run_s[row, a.node_type], np.inf).argmin())
                kernel.call_allocate(a, row, node, phase)
                taken.append((row, node))
            return [self.view.table.nodes[node].name for _, node in taken]
        finally:
            for row, node in taken:
                kernel.call_release(a, row, node, phase)

    def reach(self, at: int, phase: int) -> None:
        """Promise nodes to all tasks before a place; nothing has started since the last of them was passed."""
        rows, shape = self.rows[self.swept : at], self.shape[self.swept : at]
        self.swept = at + 1
        if rows.size:
            _, where, group = np.unique(shape, return_index=True, return_inverse=True)
            free = np.array([self.free(int(rows[place]), int(shape[place])) for place in where])
            sweep(self.view.table.state, rows, group.astype(np.int32), phase, free, self.promised)

    def better(self, at: int, fits: MaskArray, end: float, ahead: float) -> bool:
        """Return whether a task ends before ``end`` on a node that it waits for up to ``ahead``, and promise it."""
        if not self.choosy[at]:
            return False
        a, row = self.view.table.state, int(self.rows[at])
        free = np.where(fits, np.inf, self.free(row, int(self.shape[at])))
        node = latest(a, row, free, self.promised)
        seconds = float(a.run_s[row, a.node_type[node]])
        found = max(float(free[node]), float(self.promised[node])) + seconds
        if found - seconds - self.view.now > ahead or found >= end:
            return False
        self.promised[node] = found
        return True

    def free(self, row: int, shape: int) -> FloatArray:
        """Return when each node has room for a task."""
        a = self.view.table.state
        if self.logged != a.counters[LOGGED]:
            self.logged, self.known = int(a.counters[LOGGED]), {}
        if shape not in self.known:
            running = np.flatnonzero(a.status == RUNNING).astype(np.int32)
            running = running[np.argsort(a.end_s[running], kind="stable")]
            self.known[shape] = np.empty(len(a.is_up))
            forecast(a, row, self.view.now, running, self.known[shape])
        return self.known[shape]


def outlook_of(view: View, shapes: Shapes) -> Outlook:
    """Return the outlook of all that wait now, with nothing promised."""
    rows = view.queue_rows()
    runs = view.table.state.run_s[rows]
    promised = np.zeros(len(view.table.nodes))
    return Outlook(view, rows, shapes.single(rows, view), runs, runs.min(1) < runs.max(1), promised)
