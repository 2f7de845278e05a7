"""Backends under test. A world is a cluster that some controllers and clients share; each module adds one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from unfold_placement.core.policy import Policy
from unfold_placement.core.types import Node, Task
from unfold_placement.live.backend import Backend
from unfold_placement.live.control_loop import ControlLoop
from unfold_placement.live.local import LocalBackend
from unfold_placement.live.state_store import StateStore, build_state_store


class World(Protocol):
    """A cluster. ``pace`` is how many seconds of its clock a second of a scenario takes.

    ``stepped`` says whether its clock waits for it, so that it shows the same times however quick the machine is.
    ``policies`` are those under which tasks are submitted, for clusters on which a task itself asks for names.
    """

    pace: float
    stepped: bool
    policies: Sequence[Policy]

    def handle(self) -> Backend:
        """Return a handle of its own for a controller or a client."""

    def submit(self, task: Task) -> None:
        """Submit a task that runs for as long as it says."""

    def step(self, live: ControlLoop, until: float) -> None:
        """Let a controller work and time pass, until something happened or the clock shows ``until``."""


Open = Callable[[Sequence[Node]], AbstractContextManager[World]]
"""Opens a world with such nodes: named alike, with the same resources, labels and data."""


@dataclass(slots=True)
class Clock:
    """A clock that shows what it is set to, in seconds."""

    time: float = 0.0

    def __call__(self) -> float:
        return self.time


@dataclass(slots=True)
class LocalWorld:
    """The in-process backend in virtual time."""

    clock: Clock
    register: StateStore
    first: LocalBackend
    pace: float = 1.0
    stepped: bool = True
    policies: Sequence[Policy] = ()
    more: list[LocalBackend] = field(default_factory=list)

    def handle(self) -> LocalBackend:
        """Return a further handle; ends of tasks are shared."""
        return LocalBackend(self.register, self.first.end_times)

    def submit(self, task: Task) -> None:
        """Submit a task."""
        self.register.submit(task)

    def step(self, live: ControlLoop, until: float) -> None:
        """Work until nothing changes any more, then let the clock jump to what comes next."""
        before = -1
        while before != self.register.last_number:
            before = self.register.last_number
            live.step(0.0)
        due = [self.first.end_times[0][0]] if self.first.end_times else []
        due += [live.actuator.controller.next_wakeup_s] if live.actuator is not None else []
        self.clock.time = max(self.clock.time, min([until, *due]))


def local_world(nodes: Sequence[Node]) -> LocalWorld:
    """Return a world in this process."""
    clock = Clock()
    made = build_state_store(clock, nodes)
    return LocalWorld(clock, made, LocalBackend(made))
