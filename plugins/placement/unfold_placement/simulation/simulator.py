"""The simulator: tasks arrive, run and end in virtual time, matched by the compiled kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfold_placement.core import kernel, kernel_calls, state_arrays
from unfold_placement.core.controller import Controller, controller, requests
from unfold_placement.core.resources import Book, book
from unfold_placement.core.types import Node, Policy, Task


@dataclass(frozen=True, slots=True)
class Log:
    """What happened, line by line: times in s, kinds (see ``core/kernel.py``), rows of tasks and nodes."""

    times: NDArray[np.float64]
    kinds: NDArray[np.int32]
    tasks: NDArray[np.int32]
    nodes: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A replay: start, end (infinite if never) and node (-1) of each task's last run, the log, and what is left."""

    nodes: tuple[Node, ...]
    tasks: tuple[Task, ...]
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    node: NDArray[np.int32]
    log: Log
    decisions: int
    refused: dict[str, str]
    book: Book

    @property
    def stuck(self) -> tuple[Task, ...]:
        """The tasks that wait for ever."""
        waiting = self.book.arena.state[: len(self.tasks)] == kernel.WAITING
        return tuple(self.tasks[row] for row in np.flatnonzero(waiting))


def prepare(nodes: Sequence[Node], tasks: Sequence[Task], policies: Sequence[Policy]) -> Controller:
    """Return the controller of a simulation that has not begun."""
    made = book(nodes)
    loop = controller(made, policies)
    made.add(tasks, [requests(loop.policies, task) for task in tasks])
    made.arena = state_arrays.with_arrivals(made.arena, len(tasks))
    return loop


def play(loop: Controller, until: float = np.inf, on_step: Callable[[int], None] | None = None) -> Controller:
    """Let a simulation run to its end, or to a time. Policies that only begin are not asked again."""
    if not loop.begun:
        loop.begin()
    watched = loop.mask
    while True:
        stop = min(until, loop.due)
        told = kernel_calls.advance(loop.book.arena, stop, watched)
        if told == kernel.FULL:
            loop.book.arena = state_arrays.with_log(loop.book.arena, 2 * loop.book.arena.log_time.size)
        elif told == kernel.WATCHED:
            loop.pump()
            if on_step is not None:
                on_step(int(loop.book.arena.mark[kernel.PLACED]))
        elif loop.due <= loop.book.now:
            loop.tick()
        elif told == kernel.IDLE or loop.book.now >= until:
            return loop


def outcome(loop: Controller) -> Outcome:
    """Return what a simulation did."""
    a, count, logged = loop.book.arena, len(loop.book.tasks), loop.book.arena.mark[kernel.LOGGED]
    log = Log(a.log_time[:logged], a.log_kind[:logged], a.log_task[:logged], a.log_node[:logged])
    ran = np.isin(a.state[:count], (kernel.DONE,))
    start = np.where(ran | (a.state[:count] == kernel.RUNNING), a.began[:count], np.inf)
    end = np.where(ran, a.ends[:count], np.inf)
    node = np.where(np.isfinite(start), a.place[:count], -1).astype(np.int32)
    tasks = tuple(loop.book.tasks)
    decisions = int(a.mark[kernel.DECISIONS])
    return Outcome(loop.book.nodes, tasks, start, end, node, log, decisions, dict(loop.refused), loop.book)


def simulate(nodes: Sequence[Node], tasks: Sequence[Task], policies: Sequence[Policy] = ()) -> Outcome:
    """Replay a workload under some policies; without any, as a plain first-come scheduler does."""
    return outcome(play(prepare(nodes, tasks, policies)))
