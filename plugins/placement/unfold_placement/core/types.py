"""Vocabulary of policies and backends: nodes, tasks, ephemeral resources, events and operations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from unfoldkit.api import UnfoldError, user_error

MILLI = 1000
"""Capacities and demands are integers in thousandths of a unit."""
ROOM_OF_DEVICE = MILLI + 1
"""Device room of a free device: more than any share of a device in use."""
MANY = 1 << 30
"""Amount of an ephemeral resource without a limit: more than any task requests."""
PODS = "pods"
"""Pod slots of a node (Kubernetes). Scheduled like any resource but excluded from fair-share accounting."""
ATTACHMENTS = "attachable-volumes-csi-"
"""Begins the name of the volumes of a driver that a node may attach (Kubernetes): slots, like those of pods."""
CHECKPOINT_TOLERANCE = 1e-9
ANYWHERE = ""
"""Node of a cluster-scoped ephemeral resource, which is counted once for the whole cluster."""

CLUSTER_RULE = "kube-scheduler: "
"""Prefix of ephemeral resources that stand for rules of the cluster's own scheduler; they are never written to it."""

STATIC, QUEUE, PACK, GANG = range(4)
"""Phases of a decision: standing rules, admission order, node choice, and gang starts."""

BEGAN, SUBMITTED, STARTED, ENDED, PREEMPTED, REFUSED, CREATED, TIMER, JOINED, LEFT, QUIET = (
    "began", "submitted", "started", "ended", "preempted", "refused", "created", "timer", "joined", "left", "quiet",
)  # fmt: skip
"""Kinds of events."""


def is_slot(kind: str) -> bool:
    """Return whether a resource only limits how many tasks a node takes, so that it is no part of a share."""
    return kind == PODS or kind.startswith(ATTACHMENTS)


@dataclass(frozen=True, slots=True)
class Node:
    """A machine.

    Attributes:
        name: Unique name.
        capacity: Amounts by kind (cpu, gpu, memory in MiB, ...), in thousandths.
        labels: Labels by key; ``type`` selects run times, ``rack`` is used by locality.
        data: Blocks of data that the node stores.
        taints: Key, value and effect of each taint (Kubernetes).
        occupants: Labels of each pod of the namespace that no policy manages (Kubernetes).
        repelling: Encoded anti-affinity and host ports of pods that no policy manages (Kubernetes).
    """

    name: str
    capacity: Mapping[str, int]
    labels: Mapping[str, str] = field(default_factory=dict)
    data: frozenset[str] = frozenset()
    taints: tuple[tuple[str, str, str], ...] = ()
    occupants: tuple[Mapping[str, str], ...] = ()
    repelling: tuple[str, ...] = ()

    def __hash__(self) -> int:
        """Return the hash of the name, as mappings have none: policies keep nodes in sets."""
        return hash(self.name)

    def __deepcopy__(self, memo: object) -> Node:
        """Return the node: nothing changes it, and a search copies policies that keep some."""
        return self


DOWN, CORDON, UP = "down", "cordon", "up"
"""Changes of a node: it is lost with all that runs there, takes no new tasks, or takes tasks again."""


@dataclass(frozen=True, slots=True)
class NodeChange:
    """A change of a node at a time (s): ``down``, ``cordon`` or ``up``."""

    at: float
    node: str
    change: str


@dataclass(frozen=True, slots=True)
class Task:
    """A task with its demand and the properties that policies use.

    Attributes:
        name: Unique name.
        demand: Amounts by kind, in thousandths.
        run: Run time in seconds.
        arrival: Arrival time in seconds.
        size: Number of tasks of its job.
        deadline: Absolute time in seconds.
        follows: Job that it must run beside, on a node with a task of that job.
        avoids: Job that it must not join on a node.
        after: Jobs that must have ended before it starts.
        data: Blocks of data that it reads.
        run_on: Run times in seconds by node type, where they differ from ``run``.
        types: Node types on which it can run; empty means any.
        checkpoint_every: Seconds of run time after which a preemption loses nothing before; 0 for no checkpoints.
        node_filter: Encoded fields of a pod that restrict its nodes (Kubernetes); empty for none.
        completes: It replaces a task of a gang that runs, and may use nodes that are kept free for another gang.
        preempts: Others may be preempted for it; not for pods with ``preemptionPolicy: Never`` (Kubernetes).
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
    checkpoint_every: float = 0.0
    node_filter: str = ""
    completes: bool = False
    preempts: bool = True

    def __hash__(self) -> int:
        """Return the hash of the name, as mappings have none: policies keep tasks in sets."""
        return hash(self.name)

    def __deepcopy__(self, memo: object) -> Task:
        """Return the task: nothing changes it, and a search copies policies that keep some."""
        return self

    def kept_seconds(self, elapsed_s: float) -> float:
        """Return the part of an interrupted run that its last checkpoint keeps, in seconds."""
        every = self.checkpoint_every
        return math.floor(elapsed_s / every + CHECKPOINT_TOLERANCE) * every if every else 0.0

    def run_seconds(self, node: Node) -> float:
        """Return the run time on a node, which may depend on the node's type."""
        return self.run_on.get(node.labels.get("type", ""), self.run)

    def key(self, by: str) -> str:
        """Return the task's group under a field such as ``job`` or ``user``; an empty ``by`` puts all in one group."""
        return str(getattr(self, by)) if by else ""


@dataclass(frozen=True, slots=True)
class EphemeralResource:
    """An ephemeral resource on a node or, with node ``ANYWHERE``, of the cluster.

    Attributes:
        name: Its name, which tasks request.
        node: Its node.
        amount: Amount in whole units.
        owner: Policy or controller that created it.
        epoch: Version, which grows with every change.
        since: Creation time in seconds.
        expires: End of its lease in seconds.
        until: Task that it ends with; empty for none.
    """

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
    """A task's request for an ephemeral resource, in addition to its demand.

    Attributes:
        name: The requested resource.
        amount: Amount in whole units.
        gated: The resource is cluster-scoped or bound to one task. On a live cluster the task's gate and node pin
            represent it, so no resource is created there.
        counted: The amount is a limit for the whole cluster. A cluster that can count enforces it as well.
    """

    name: str
    amount: int = 1
    gated: bool = False
    counted: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """A change of a task, a node or an ephemeral resource.

    ``quiet`` follows after all events of an instant. ``refused`` reports a waiting task that will never run, because
    a policy rejected it or its submitter withdrew it.
    """

    kind: str
    time: float
    task: Task | None = None
    node: str = ANYWHERE
    name: str = ""


@dataclass(frozen=True, slots=True)
class Put:
    """Create an ephemeral resource or set its amount; with ``until`` it is deleted when that task ends."""

    name: str
    node: str = ANYWHERE
    amount: int = 1
    until: str = ""


@dataclass(frozen=True, slots=True)
class Drop:
    """Delete an ephemeral resource. Holders keep it until they end; ``force`` preempts them."""

    name: str
    node: str = ANYWHERE
    force: bool = False


@dataclass(frozen=True, slots=True)
class Wake:
    """Set a timer: a ``timer`` event follows at this time (s)."""

    at: float


@dataclass(frozen=True, slots=True)
class Refuse:
    """Reject a waiting task: remove it from the queue for good and record the reason."""

    task: str
    reason: str


ROOM = "waits for room"
"""The reason of a task that fits nowhere at present."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a policy does not admit a task.

    Attributes:
        reason: What the task waits for, as a predicate: ``waits for its turn``.
        blocker: The task in its way; empty for none.
        relation: How the blocker stands in its way: ``which is ahead and does not fit``.
    """

    reason: str
    blocker: str = ""
    relation: str = ""


def describe_lack(resource: str, lack: str) -> Wait:
    """Describe a wait for an ephemeral resource: what it lacks, or which rule of the cluster's scheduler it is."""
    if not resource.startswith(CLUSTER_RULE):
        return Wait(f"waits for {resource}, {lack}")
    return Wait(f"waits for a node that kube-scheduler accepts: {shorten_rule(resource)}")


def shorten_rule(resource: str) -> str:
    """Return the name of a resource; of a rule, without its prefix and the hash of the complete rule at its end."""
    return resource.removeprefix(CLUSTER_RULE).rsplit(" #", 1)[0] if resource.startswith(CLUSTER_RULE) else resource


Operation = Put | Drop | Wake | Refuse
Transactions = Iterator[Iterable[Operation]]
"""Operations of one transaction take effect together."""


def epoch_conflict(current: EphemeralResource, expected_epoch: int) -> UnfoldError:
    """Build the error of a compare-and-set with an outdated epoch."""
    location = current.node or "the cluster"
    message = f"{current.name} on {location} changed meanwhile: its epoch is {current.epoch}, not {expected_epoch}"
    return user_error(message, hint="read it again")
