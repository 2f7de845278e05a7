"""Kueue's objects, as a replay needs them: ClusterQueues, cohorts, flavors and workloads with integer amounts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from unfold_placement.policies.affinity.node_filter import NodeFilter, Toleration

FlavorResource = tuple[str, str]
"""A flavor and a resource, such as ``("a100", "nvidia.com/gpu")``."""
Amounts = dict[FlavorResource, int]
"""Amounts by flavor and resource: thousandths of a core for cpu, units or bytes for everything else, as Kueue's."""

NEVER, ANY, LOWER_PRIORITY, LOWER_OR_NEWER = "Never", "Any", "LowerPriority", "LowerOrNewerEqualPriority"
"""Preemption policies."""
STRICT_FIFO, BEST_EFFORT_FIFO = "StrictFIFO", "BestEffortFIFO"
"""Queueing strategies."""
MAY_STOP_SEARCH, TRY_NEXT_FLAVOR = "MayStopSearch", "TryNextFlavor"
"""What ``flavorFungibility`` does once a flavor fits by borrowing or by preemption."""
PREFER_PREEMPTION = "PreemptionOverBorrowing"


@dataclass(frozen=True, slots=True)
class Quota:
    """The quota of a resource in a flavor; None is no limit."""

    nominal: int
    borrowing_limit: int | None = None
    lending_limit: int | None = None


@dataclass(frozen=True, slots=True)
class ResourceGroup:
    """Resources that get the same flavor, and the flavors in the order in which they are tried."""

    resources: frozenset[str]
    flavors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PreemptionRules:
    """``spec.preemption`` of a ClusterQueue.

    Attributes:
        within_queue: ``withinClusterQueue``.
        reclaim: ``reclaimWithinCohort``.
        borrows: ``borrowWithinCohort.policy`` is not ``Never``.
        borrow_threshold: ``borrowWithinCohort.maxPriorityThreshold``.
    """

    within_queue: str = NEVER
    reclaim: str = NEVER
    borrows: bool = False
    borrow_threshold: int | None = None

    @property
    def compares_age(self) -> bool:
        """Whether a workload may preempt newer ones of its own priority."""
        return LOWER_OR_NEWER in {self.within_queue, self.reclaim}


@dataclass(frozen=True, slots=True)
class Fungibility:
    """``spec.flavorFungibility`` of a ClusterQueue."""

    when_can_borrow: str = MAY_STOP_SEARCH
    when_can_preempt: str = TRY_NEXT_FLAVOR
    preference: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterQueue:
    """A ClusterQueue.

    Attributes:
        name: Its name.
        cohort: Its cohort; empty for none.
        groups: Its resource groups.
        quotas: Its quotas.
        strategy: ``StrictFIFO`` or ``BestEffortFIFO``.
        preemption: What it may preempt.
        fungibility: When it tries the next flavor.
        is_stopped: It admits nothing (``stopPolicy``).
        is_drained: What it admitted is evicted, too (``HoldAndDrain``).
    """

    name: str
    cohort: str = ""
    groups: tuple[ResourceGroup, ...] = ()
    quotas: Mapping[FlavorResource, Quota] = field(default_factory=dict)
    strategy: str = BEST_EFFORT_FIFO
    preemption: PreemptionRules = PreemptionRules()
    fungibility: Fungibility = Fungibility()
    is_stopped: bool = False
    is_drained: bool = False

    def group_of(self, resource: str) -> ResourceGroup | None:
        """Return the resource group that covers a resource."""
        return next((group for group in self.groups if resource in group.resources), None)


@dataclass(frozen=True, slots=True)
class Cohort:
    """A cohort with quotas of its own; its parent is empty at the root."""

    name: str
    parent: str = ""
    quotas: Mapping[FlavorResource, Quota] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Flavor:
    """A ResourceFlavor: labels and taints of its nodes, and tolerations that it adds to pods."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[tuple[str, str, str], ...] = ()
    tolerations: tuple[Toleration, ...] = ()


@dataclass(frozen=True, slots=True)
class PodSet:
    """Equal pods of a workload: their number, the least number (partial admission), and what one of them requests."""

    name: str
    count: int
    min_count: int
    requests: Mapping[str, int]
    node_filter: NodeFilter = field(default_factory=NodeFilter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A workload.

    Attributes:
        name: Namespace and name.
        queue: Its ClusterQueue.
        priority: Its priority.
        created_s: Its creation, or the eviction that moved it back, in seconds of the epoch; it orders the queue.
        uid: What Kueue breaks ties by.
        arrival_s: When it enters the queue, in seconds from the beginning of the replay.
        run_s: How long it runs once admitted.
        pod_sets: Its pods.
        admitted_s: When it was admitted, in seconds from the beginning (hence negative or 0); None if it waits.
        usage: What it holds where it was admitted before the beginning.
    """

    name: str
    queue: str
    priority: int = 0
    created_s: float = 0.0
    uid: str = ""
    arrival_s: float = 0.0
    run_s: float = 0.0
    pod_sets: tuple[PodSet, ...] = ()
    admitted_s: float | None = None
    usage: Mapping[FlavorResource, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSnapshot:
    """The quota system at an instant.

    Attributes:
        queues: ClusterQueues by name.
        cohorts: Cohorts by name.
        flavors: Flavors by name.
        workloads: The workloads that run, wait or arrive.
        began_s: The instant, in seconds of the epoch.
        notes: What the replay assumes or leaves out, for the report.
        is_history: Nothing ran or waited: the workloads that have ended are replayed from the first arrival.
    """

    queues: Mapping[str, ClusterQueue]
    cohorts: Mapping[str, Cohort] = field(default_factory=dict)
    flavors: Mapping[str, Flavor] = field(default_factory=dict)
    workloads: tuple[Workload, ...] = ()
    began_s: float = 0.0
    notes: tuple[str, ...] = ()
    is_history: bool = False
