"""The interface of clusters: nodes that grow and shrink between stages, and the trials that run on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from unfold_tuning.trial.worker import TrialJob, WorkerMessage

MAX_START_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class ClusterEvent:
    """A message from a worker, or (``message`` is ``None``) the loss of a node.

    Attributes:
        node: The node.
        trial: The trial, or -1 if a node without trials is lost.
        message: What the worker reports.
        is_own_process: Whether the trial's own process ended; false if it was lost with another's.
        reason: Why, if ``message`` is ``None``.
    """

    node: str
    trial: int
    message: WorkerMessage | None
    is_own_process: bool = True
    reason: str = "its node was lost"


class Cluster(Protocol):
    """Runs trials on the nodes of a provider."""

    def open(self) -> None:
        """Connect, before the clock starts and before anything is rented."""

    def resize(self, count: int, watch: Callable[[], None]) -> None:
        """Grow or shrink towards ``count`` nodes and wait until they are ready; only idle nodes are released.

        Fewer nodes are no error as long as there is one: what was refused is requested again later.

        Args:
            count: Nodes to hold.
            watch: Called several times a second meanwhile; an exception from it ends the wait.
        """

    def release_idle(self, kept: int) -> int:
        """Release nodes without a trial until ``kept`` nodes are held, and return how many were released."""

    def can_grow(self, count: int) -> bool:
        """Return whether fewer than ``count`` nodes are held and more may be had now."""

    def allow_on_demand(self) -> None:
        """Allow on-demand nodes from now on, where only spot instances were to be tried."""

    def find_node(self, workers: int) -> str | None:
        """Find a node with room for a trial of ``workers`` accelerators, by the placement policy."""

    def start(self, node: str, job: TrialJob) -> None:
        """Start a trial on a node."""

    def free(self, trial: int) -> None:
        """Free the accelerators of a trial; one that has not reached its target ends soon after its next checkpoint."""

    def stop(self, trial: int) -> None:
        """End a trial at once, and free its accelerators; no event follows."""

    def kill(self, trial: int) -> None:
        """Kill the process of a trial; :meth:`poll_events` reports it like any process that ends."""

    def poll_events(self, timeout_s: float) -> Iterator[ClusterEvent]:
        """Yield what has happened, waiting at most ``timeout_s`` seconds for something."""

    def close(self) -> None:
        """Release every node, whatever runs on it."""
