"""What everything here speaks of: nodes, tasks, what happens, and what a policy may do about it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from unfoldkit.api import UnfoldError, fail

if TYPE_CHECKING:
    from unfold_placement.core.view import View

MILLI = 1000
MANY = 1 << 30
"""More than any task asks for: a name without a limit."""
SEATS = "pods"
"""How many pods a node takes (Kubernetes): room like any other, but nobody's wealth, so no share counts it."""
ANYWHERE = ""
"""The place of a name that is counted once for the whole cluster."""

STATIC, QUEUE, PACK, GANG = range(4)
"""Phases of a decision: what holds by itself, who is next, where, and all together."""

BEGAN, SUBMITTED, STARTED, ENDED, PREEMPTED, REFUSED, CREATED, TIMER, JOINED, LEFT, QUIET = (
    "began", "submitted", "started", "ended", "preempted", "refused", "created", "timer", "joined", "left", "quiet",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Node:
    """A machine: what it has, in thousandths of a unit, and its labels (``rack`` and ``type`` mean something)."""

    name: str
    capacity: Mapping[str, int]
    labels: Mapping[str, str] = field(default_factory=dict)
    data: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Task:
    """A task: its demand in thousandths of a unit, its run time in seconds, and what policies look at.

    ``size`` is the number of tasks of its job; ``run_on`` the run time by node type; ``deadline`` a time;
    ``types`` are the node types on which it can run.
    """

    name: str
    demand: Mapping[str, int]
    run: float
    arrival: float = 0.0
    job: str = ""
    user: str = ""
    role: str = ""
    size: int = 1
    priority: int = 0
    deadline: float = math.inf
    follows: str = ""
    avoids: str = ""
    after: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    run_on: Mapping[str, float] = field(default_factory=dict)
    types: tuple[str, ...] = ()

    def seconds(self, node: Node) -> float:
        """Return the run time on a node."""
        return self.run_on.get(node.labels.get("type", ""), self.run)

    def key(self, by: str) -> str:
        """Return what the task is grouped by: a field such as ``job`` or ``user``; the empty text is one group."""
        return str(getattr(self, by)) if by else ""


@dataclass(frozen=True, slots=True)
class Resource:
    """A name on a node. ``epoch`` grows with every change; it goes at ``expires``, or with task ``until``."""

    name: str
    node: str
    amount: int
    owner: str
    epoch: int
    since: float
    expires: float = math.inf
    until: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """A name that a task needs beside its own demand, and how much of it.

    ``gated``: it is counted for the cluster, or lives for one task, so that on a live cluster the task's gate, and the
    node that it is pinned to, stand for it. ``counted``: there is so much of it in the whole cluster and no more, so
    that a cluster that can count by itself does so too.
    """

    name: str
    amount: int = 1
    gated: bool = False
    counted: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: to a task, on a node, or to a name; ``quiet`` once all of an instant is told.

    ``refused`` tells of a task that waited and never runs: a policy refused it, or it was taken back.
    """

    kind: str
    time: float
    task: Task | None = None
    node: str = ANYWHERE
    name: str = ""


@dataclass(frozen=True, slots=True)
class Put:
    """Create a name on a node, or set its amount. With ``until`` it goes when that task ends."""

    name: str
    node: str = ANYWHERE
    amount: int = 1
    until: str = ""


@dataclass(frozen=True, slots=True)
class Drop:
    """Delete a name: no new match from now on. Holders keep it to their end, or with ``force`` are preempted."""

    name: str
    node: str = ANYWHERE
    force: bool = False


@dataclass(frozen=True, slots=True)
class Wake:
    """Ask for a timer event at a time."""

    at: float


@dataclass(frozen=True, slots=True)
class Refuse:
    """Take a waiting task out of the queue for good, and say why."""

    task: str
    reason: str


Op = Put | Drop | Wake | Refuse
Ops = Iterator[Iterable[Op]]


class Policy(Protocol):
    """A policy: which names a task asks for, and which names are put where, and when.

    ``request`` looks at the task alone. ``react`` yields transactions: the operations of one take effect together, and
    what can run then runs before the next is asked for.
    """

    @property
    def phase(self) -> int:
        """``STATIC``, ``QUEUE``, ``PACK`` or ``GANG``."""

    @property
    def watches(self) -> frozenset[str]:
        """The kinds of events that it wants to be told of."""

    def request(self, task: Task) -> Iterable[Ask]:
        """Return the names that a task asks for."""

    def react(self, event: Event, view: View) -> Ops:
        """Answer an event."""


def stale(found: Resource, epoch: int) -> UnfoldError:
    """Return the error of a compare-and-set that came too late."""
    where = found.node or "the cluster"
    return fail(
        f"{found.name} on {where} was changed by another: epoch {found.epoch}, not {epoch}", hint="read it again"
    )
