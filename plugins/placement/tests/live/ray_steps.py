"""A real Ray cluster as a world with a clock that stops until every started task runs where it should.

On a machine that starts processes slowly a scenario then takes longer, and nothing else about it changes.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.placement.tests.live.holders import WAIT, Holders, holder, holders, wait
from unfold_placement.core.policy import Policy
from unfold_placement.core.types import Node, Task
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Backend, Record, Snapshot
from unfold_placement.live.control_loop import ControlLoop
from unfold_placement.ray.backend import RayBackend, start_coordinator
from unfold_placement.ray.client import get_client

SAME = 1e-9


@dataclass(frozen=True, slots=True)
class SetClock:
    """A clock (s) that shows what was written to a file, to every process that reads it."""

    path: Path

    def __call__(self) -> float:
        return float(self.path.read_text("ascii"))

    def set(self, time: float) -> None:
        """Let it show a time."""
        new = self.path.with_suffix(".new")
        new.write_text(repr(time), "ascii")
        new.replace(self.path)


@dataclass(slots=True)
class SteppedWorld:
    """A coordinator on a real cluster, with a time that jumps from event to event."""

    steward: Any
    clock: SetClock
    holders: Holders
    pace: float = 1.0
    stepped: bool = True
    policies: Sequence[Policy] = ()

    def handle(self) -> RayBackend:
        """Return a further handle."""
        return RayBackend(self.steward, clock=self.clock)

    def submit(self, task: Task) -> None:
        """Submit a task that runs until its time has come."""
        get_client(self.steward).enqueue(task, holder(), str(self.holders.path), task.name)

    def step(self, live: ControlLoop, until: float) -> None:
        """End what is due, work until all is as decided, and let the clock jump to what comes next."""
        self._end(live.backend)
        due = [when for when, _ in ends(self._settled(live))]
        due += [live.actuator.controller.next_wakeup_s] if live.actuator is not None else []
        # a lead is renewed in time, as by a clock that runs
        self.clock.set(max(live.backend.now(), min([until, live.next_election_s, *due])))

    def _end(self, backend: Backend) -> None:
        """End everything that is due, before a controller receives any of it."""
        now = backend.now()
        due = {record.task.name for when, record in ends(backend.snapshot()) if when <= now + SAME}
        self.holders.let_go(due)
        wait(lambda: not due & {record.task.name for record in running(backend.snapshot())}, lambda: f"{due} go on")

    def _settled(self, live: ControlLoop) -> Snapshot:
        """Let the controller work until nothing changes and just what it started runs, on the nodes that it chose."""
        seen = live.backend.snapshot()

        def settled() -> bool:
            nonlocal seen
            before = seen.after
            live.step(0.0)
            seen = live.backend.snapshot()
            expected = sorted((record.task.name, record.node) for record in running(seen))
            return seen.after == before and self.holders.there() == expected

        wait(settled, lambda: f"{self.holders.there()} run instead of {running(seen)}")
        return seen


def running(seen: Snapshot) -> list[Record]:
    """Return the tasks that run."""
    return [record for record in seen.records if record.state == kinds.RUNNING]


def ends(seen: Snapshot) -> list[tuple[float, Record]]:
    """Return when (s) each task that runs is to end."""
    nodes = {node.name: node for node in seen.nodes}
    return [(record.started + record.task.run_seconds(nodes[record.node]), record) for record in running(seen)]


@contextmanager
def stepped_world(nodes: Sequence[Node]) -> Iterator[SteppedWorld]:
    """Open a world on the cluster that this process is connected to."""
    import ray

    with tempfile.TemporaryDirectory() as folder, holders() as made:
        clock = SetClock(Path(folder, "clock"))
        clock.set(0.0)
        steward = start_coordinator(uuid.uuid4().hex, list(nodes), clock=clock, reservation_timeout_s=WAIT)
        try:
            yield SteppedWorld(steward, clock, made)
        finally:
            get_client(steward).close()
            ray.kill(steward)
