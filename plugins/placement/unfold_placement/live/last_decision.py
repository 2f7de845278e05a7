"""What the last decision left on a cluster, for its status while a policy errs or does not return."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice

from unfold_placement.core.controller import Controller
from unfold_placement.core.types import EphemeralResource, Task
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Snapshot

MAX_WAITING = 20
"""Waiting tasks that are kept; the others are counted."""
MAX_SHARE = 0.05
"""Fraction of a control loop's time that may go into these records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastDecision:
    """What runs and waits on a cluster, and its ephemeral resources.

    Attributes:
        nodes: Names of the nodes that are up.
        running: Task, node and start (s) of every running task.
        waiting: The first waiting tasks.
        waiting_count: Number of waiting tasks.
        resources: The ephemeral resources.
    """

    nodes: tuple[str, ...] = ()
    running: tuple[tuple[str, str, float], ...] = ()
    waiting: tuple[Task, ...] = ()
    waiting_count: int = 0
    resources: tuple[EphemeralResource, ...] = ()


@dataclass(slots=True)
class DecisionRecorder:
    """Keeps what the last decision left, as the controller cannot be read during the next one.

    Attributes:
        last: It, or None before the first snapshot of the cluster.
        decided_s: When the last decision ended, by the monotonic clock; None before the first.
        next_s: When the controller may be read again, by the monotonic clock.
    """

    last: LastDecision | None = None
    decided_s: float | None = None
    next_s: float = 0.0

    def record_snapshot(self, snapshot: Snapshot) -> None:
        """Store what runs and waits in a snapshot, which the status shows until the next decision succeeds."""
        waiting = [record.task for record in snapshot.records if record.state == kinds.WAITING]
        running = [record for record in snapshot.records if record.state == kinds.RUNNING]
        self.last = LastDecision(
            nodes=tuple(node.name for node in snapshot.nodes),
            running=tuple((record.task.name, record.node, record.started) for record in running),
            waiting=tuple(waiting[:MAX_WAITING]),
            waiting_count=len(waiting),
            resources=snapshot.names,
        )

    def record_controller(self, controller: Controller) -> None:
        """Record the state of a controller between two decisions, unless that has just been done."""
        began_s = time.monotonic()
        if began_s < self.next_s:
            return
        view = controller.view
        waiting = view.waiting()
        first = tuple(islice(waiting, MAX_WAITING))
        self.last = LastDecision(
            nodes=tuple(node.name for node in view.nodes),
            running=tuple((task.name, node, start_s) for task, node, start_s in view.running()),
            waiting=first,
            waiting_count=len(first) + sum(1 for _ in waiting),
            resources=controller.table.snapshot(),
        )
        ended_s = time.monotonic()
        self.next_s = ended_s + (ended_s - began_s) / MAX_SHARE
