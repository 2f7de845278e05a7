"""The contract of a live cluster: what a backend does for the loop that runs the policies.

All that outlives a controller is kept here: names with owner, lease and epoch; tasks with where and since when they
run; and who leads. A controller keeps nothing, so another one, or the same one started again, goes on from a snapshot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from unfold_placement.core.types import ANYWHERE, Ask, EphemeralResource, Node, Task

WAITING, RUNNING, DONE, REFUSED, GONE = "waiting", "running", "done", "refused", "gone"
"""States of a task: gated, started, ended, refused by a policy, taken back by whoever submitted it."""

SUBMITTED, STARTED, ENDED, FAILED, PREEMPTED, WITHDRAWN, DECLINED = (
    "submitted", "started", "ended", "failed", "preempted", "withdrawn", "declined",
)  # fmt: skip
"""What happens to a task; ``failed``: it could not start or was stopped from outside, and waits again."""
JOINED, LEFT = "joined", "left"
"""What happens to a node."""
CREATED, RESIZED, DELETED, EXPIRED = "created", "resized", "deleted", "expired"
"""What happens to a name."""


@dataclass(frozen=True, slots=True)
class Start:
    """A task of a unit that starts: where, and what it asks for and holds to its end."""

    task: str
    node: str
    asks: tuple[Ask, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """A task as the backend knows it. Times are seconds of the backend's clock; infinite means not yet.

    ``attempt`` counts the starts; ``outcome`` says why it was refused or how it ended, where there is something to say.
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
    """Something that happened, in an order that all see alike: ``number`` grows by one with each.

    ``by`` is the leader that did it, or empty.
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
    """Everything at one moment; watching goes on ``after`` it. Records are in the order of submission."""

    after: int
    nodes: tuple[Node, ...]
    names: tuple[EphemeralResource, ...]
    records: tuple[Record, ...]


class Backend(Protocol):
    """A live cluster. Amounts of names are whole units, times seconds of the backend's own clock.

    Writes of a handle that led and does no longer raise, so that of two controllers one is heard.
    """

    def now(self) -> float:
        """Return the time, the same for all who ask: seconds since the cluster's bookkeeping began."""

    def snapshot(self) -> Snapshot:
        """Return everything: nodes, names, tasks that wait or run, and those that ended not long ago."""

    def watch(self, after: int, timeout: float) -> Sequence[Change] | None:
        """Wait, at most ``timeout`` seconds, for changes after a number; nothing (None): too old, take a snapshot."""

    def lead(self, who: str, ttl: float) -> bool:
        """Become or stay the leader for ``ttl`` seconds; return whether one is. ``who`` is a process, not a spec."""

    def resign(self) -> None:
        """Lead no longer, so that another can at once; names stay for their lease."""

    def create(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, owner: str = "", ttl: float = math.inf,
        until: str = "",
    ) -> EphemeralResource:  # fmt: skip
        """Create a name; it is gone after ``ttl`` unless renewed, or as the task ``until`` ends or is preempted.

        Raises:
            UnfoldError: the name is there already, or there is no such node.
        """

    def resize(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, epoch: int | None = None
    ) -> EphemeralResource:
        """Set the amount of a name: below what is held, nothing new matches until holders end.

        Raises:
            UnfoldError: the name is not there, or its epoch is not ``epoch`` (compare and set).
        """

    def delete(
        self, name: str, node: str = ANYWHERE, *, force: bool = False, epoch: int | None = None
    ) -> tuple[str, ...]:
        """Delete a name: no new match; holders keep it to their end, or with ``force`` are preempted and returned.

        Raises:
            UnfoldError: the name is not there, or its epoch is not ``epoch``.
        """

    def renew(self, owner: str, ttl: float) -> int:
        """Let every name of an owner live ``ttl`` seconds from now; return how many there are."""

    def submit(self, task: Task) -> None:
        """Take a task into the queue, behind a gate. Its arrival becomes now, its deadline counts from now.

        Raises:
            UnfoldError: there is a task of that name.
        """

    def start(self, unit: Sequence[Start]) -> None:
        """Open the gate of tasks that start together, each on its node: all of them, or none.

        What cannot be placed after all is told as ``failed`` of every task of the unit, which then waits again.
        """

    def preempt(self, task: str) -> None:
        """Stop a running task and gate it again; nothing happens to one that does not run."""

    def refuse(self, task: str, reason: str) -> None:
        """Take a waiting task out of the queue for good."""

    def withdraw(self, task: str) -> None:
        """Take a task back, waiting or running, as whoever submitted it wants."""
