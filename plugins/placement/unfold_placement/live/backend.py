"""The contract of a live cluster: what a backend does for the control loop.

The backend stores everything that outlives a controller: ephemeral resources with owner, lease and epoch, tasks with
their node and start, and the leader. A controller stores nothing. Hence another controller, or the same one after a
restart, continues from a snapshot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from unfold_placement.core.policy import Policy
from unfold_placement.core.types import ANYWHERE, Ask, EphemeralResource, Node, Task

WAITING, RUNNING, DONE, REFUSED, GONE = "waiting", "running", "done", "refused", "gone"
"""States of a task: gated, started, ended, rejected by a policy, withdrawn by its submitter."""

SUBMITTED, STARTED, ENDED, FAILED, PREEMPTED, WITHDRAWN, DECLINED = (
    "submitted", "started", "ended", "failed", "preempted", "withdrawn", "declined",
)  # fmt: skip
"""Changes of a task. After ``failed`` it waits again: it could not start, or was stopped from outside."""
JOINED, LEFT = "joined", "left"
"""Changes of a node."""
CREATED, RESIZED, DELETED, EXPIRED = "created", "resized", "deleted", "expired"
"""Changes of an ephemeral resource."""


@dataclass(frozen=True, slots=True)
class Start:
    """One task of a unit that starts: its node, and the requests that it holds until its end."""

    task: str
    node: str
    asks: tuple[Ask, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """A task as the backend stores it. Times are seconds of the backend's clock; infinity means not yet.

    Attributes:
        task: The task.
        state: ``waiting``, ``running``, ``done``, ``refused`` or ``gone``.
        node: Node of the last start.
        asks: Requests that the running task holds.
        started: Time of the last start.
        ended: Time of the end.
        attempt: Number of starts.
        outcome: Why it was rejected or how it ended; empty if it succeeded.
    """

    task: Task
    state: str = WAITING
    node: str = ANYWHERE
    asks: tuple[Ask, ...] = ()
    started: float = math.inf
    ended: float = math.inf
    attempt: int = 0
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the cluster, in an order that all observers share.

    Attributes:
        number: Grows by one with each change.
        kind: Kind of change.
        time: Seconds of the backend's clock.
        task: The task, or empty.
        node: The node, or ``ANYWHERE``.
        name: The ephemeral resource, or empty.
        by: The leader or owner that caused it, or empty.
        record: The task's record after the change.
    """

    number: int
    kind: str
    time: float
    task: str = ""
    node: str = ANYWHERE
    name: str = ""
    by: str = ""
    record: Record | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster at one moment; watching continues ``after`` it. Records are in order of submission."""

    after: int
    nodes: tuple[Node, ...]
    names: tuple[EphemeralResource, ...]
    records: tuple[Record, ...]


class Backend(Protocol):
    """A live cluster. Resource amounts are whole units, times seconds of the backend's own clock.

    Writes of a handle that has lost leadership raise, so that only one controller has an effect.
    """

    def now(self) -> float:
        """Return the time in seconds since the backend's records began, equal for all handles."""

    def describe_wait(self) -> str:
        """Return for which answer of the cluster this handle has waited longest; empty for none. Other threads ask."""

    def describe_refusal(self) -> str:
        """Return what the cluster refused within the last seconds, and why; empty for nothing."""

    def constraints(self, tasks: Sequence[Task]) -> Sequence[Policy]:
        """Return policies for the rules of the cluster's own scheduler, as far as some tasks need them."""

    def snapshot(self) -> Snapshot:
        """Return nodes, ephemeral resources, waiting and running tasks, and tasks that ended recently."""

    def has_node(self, name: str) -> bool:
        """Return whether a node is in the cluster now, even if its ``joined`` or ``left`` was not watched yet."""

    def watch(self, after: int, timeout: float) -> Sequence[Change] | None:
        """Wait up to ``timeout`` seconds for changes after a number; None means too old: take a snapshot."""

    def lead(self, holder: str, ttl: float) -> bool:
        """Become or stay leader for ``ttl`` seconds; return whether it succeeded. ``holder`` names a process."""

    def resign(self) -> None:
        """Give up leadership at once; ephemeral resources live on for their lease."""

    def create(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, owner: str = "", ttl: float = math.inf,
        until: str = "",
    ) -> EphemeralResource:  # fmt: skip
        """Create an ephemeral resource.

        It is deleted after ``ttl`` unless renewed, or when the task ``until`` ends or is preempted.

        Raises:
            UnfoldError: It already exists, or the node does not exist.
        """

    def resize(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, epoch: int | None = None
    ) -> EphemeralResource:
        """Set the amount of a resource. Below the held amount, nothing new matches until holders end.

        Raises:
            UnfoldError: It does not exist, or its epoch is not ``epoch`` (compare-and-set).
        """

    def delete(
        self, name: str, node: str = ANYWHERE, *, force: bool = False, epoch: int | None = None
    ) -> tuple[str, ...]:
        """Delete a resource: it no longer matches, and holders keep it until their end.

        Returns:
            With ``force`` the holders, which were preempted; else nothing.

        Raises:
            UnfoldError: It does not exist, or its epoch is not ``epoch``.
        """

    def renew(self, owner: str, ttl: float) -> int:
        """Extend the lease of every resource of an owner to ``ttl`` seconds from now; return their number."""

    def submit(self, task: Task) -> None:
        """Enqueue a task behind a gate. Its arrival becomes now, and its deadline counts from now.

        Raises:
            UnfoldError: A task of that name exists.
        """

    def start(self, unit: Sequence[Start]) -> None:
        """Open the gates of tasks that start together, each on its node: all of them, or none.

        If one cannot be placed, ``failed`` is reported for every task of the unit, and all wait again.
        """

    def preempt(self, task: str) -> None:
        """Stop a running task and gate it again; a task that does not run is left unchanged."""

    def refuse(self, task: str, reason: str) -> None:
        """Reject a waiting task for good."""

    def withdraw(self, task: str) -> None:
        """Withdraw a waiting or running task, as its submitter requests."""
