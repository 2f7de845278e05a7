"""Decisions of the policies next to those of another scheduler: the same node, another node, or a wait."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

SAME_NODE, OTHER_NODE, LATER, EARLIER, BOTH_WAIT = (
    "same node", "other node", "would have waited", "would have started earlier", "both wait",
)  # fmt: skip
"""What became of a task under the policies, next to the other scheduler."""
TOLERANCE_S = 2.0
"""A start that is this much later counts as a wait: both need some time to see a task."""
MAX_PLACEMENTS = 20_000


@dataclass(slots=True, kw_only=True)
class Placement:
    """A task, and where both schedulers placed it first. Times are in seconds, infinity for not yet.

    Attributes:
        task: The task.
        job: Its job.
        submitted_s: When it could be placed.
        decided_node: Node that the policies chose.
        decided_s: When they did.
        bound_node: Node to which the other scheduler bound it.
        bound_s: When that was seen.
    """

    task: str
    job: str
    submitted_s: float
    decided_node: str = ""
    decided_s: float = math.inf
    bound_node: str = ""
    bound_s: float = math.inf

    @property
    def outcome(self) -> str:
        """How the two compare."""
        if not (self.decided_node or self.bound_node):
            return BOTH_WAIT
        if self.decided_s > self.bound_s + TOLERANCE_S or not self.decided_node:
            return LATER
        if self.bound_s > self.decided_s + TOLERANCE_S or not self.bound_node:
            return EARLIER
        return SAME_NODE if self.decided_node == self.bound_node else OTHER_NODE


@dataclass(slots=True)
class Agreement:
    """The latest placements of both schedulers, by task.

    Attributes:
        placements: Placements by task.
        order: Their tasks, oldest first.
        lock: Guards both.
    """

    placements: dict[str, Placement] = field(default_factory=dict)
    order: deque[str] = field(default_factory=deque)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, placement: Placement) -> None:
        """Add a task that can be placed from now on."""
        with self.lock:
            self.placements[placement.task] = placement
            self.order.append(placement.task)
            while len(self.order) > MAX_PLACEMENTS:
                self.placements.pop(self.order.popleft(), None)

    def record_decision(self, task: str, node: str, now: float) -> None:
        """Record the first decision of the policies about a task."""
        with self.lock:
            placement = self.placements.get(task)
            if placement is not None and not placement.decided_node:
                placement.decided_node, placement.decided_s = node, now
                _log(placement)

    def record_binding(self, task: str, node: str, now: float) -> None:
        """Record where the other scheduler bound a task."""
        with self.lock:
            placement = self.placements.get(task)
            if placement is not None and not placement.bound_node:
                placement.bound_node, placement.bound_s = node, now
                _log(placement)

    def list_placements(self) -> list[Placement]:
        """Return the placements, oldest first."""
        with self.lock:
            return [self.placements[task] for task in self.order if task in self.placements]


def count_outcomes(placements: Iterable[Placement]) -> Counter[str]:
    """Count what became of tasks."""
    return Counter(placement.outcome for placement in placements)


def median_waits_s(placements: Iterable[Placement]) -> tuple[float, float]:
    """Return the median waits (s) of the tasks that both have placed: under the policies, and really."""
    both = [item for item in placements if item.decided_node and item.bound_node]
    if not both:
        return 0.0, 0.0
    decided = median(item.decided_s - item.submitted_s for item in both)
    return decided, median(item.bound_s - item.submitted_s for item in both)


def _log(placement: Placement) -> None:
    def text(node: str, time_s: float) -> str:
        return f"{node} after {time_s - placement.submitted_s:.1f} s" if node else "waits"

    logging.getLogger("unfoldkit").info(
        "shadow: %s: policy %s, kube-scheduler %s",
        placement.task,
        text(placement.decided_node, placement.decided_s),
        text(placement.bound_node, placement.bound_s),
    )
