"""What a replay of Kueue changes: pending and admitted workloads, and the usage of quotas."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from unfold_placement.kueue.objects import Amounts, ClusterQueue, Flavor, Workload
from unfold_placement.kueue.quota_tree import QuotaNode


@dataclass(slots=True, eq=False)
class Entry:
    """A workload during a replay. Times are seconds from its beginning.

    Attributes:
        workload: The workload.
        queue: Its ClusterQueue.
        node: Its leaf in the tree of quotas.
        usage: What it holds or would hold; empty before it is admitted.
        reserved_s: When it got its quota, None while it has none.
        starts_s: When it started, once for every admission.
        ended_s: When it ended, infinity before.
        preemptions: How often it was preempted.
        attempt: Number of admissions; ends of earlier ones are void.
        tried_flavors: Index of the flavor that was tried last, by pod set and resource; empty starts with the first.
        scale: Part of its pods that was admitted (partial admission).
        shape: Equal for workloads that request the same.
        order: The order within a ClusterQueue: priority, creation, and the identifier.
    """

    workload: Workload
    queue: ClusterQueue
    node: QuotaNode
    usage: Amounts = field(default_factory=dict)
    reserved_s: float | None = None
    starts_s: list[float] = field(default_factory=list)
    ended_s: float = math.inf
    preemptions: int = 0
    attempt: int = 0
    tried_flavors: tuple[Mapping[str, int], ...] = ()
    scale: float = 1.0
    shape: str = field(init=False)
    order: tuple[int, float, str] = field(init=False)

    def __post_init__(self) -> None:
        """Compute shape and order once: a replay compares them often."""
        self.shape = repr(self.workload.pod_sets)
        self.order = -self.workload.priority, self.workload.created_s, self.workload.uid

    def has_pending_flavors(self) -> bool:
        """Return whether flavors remain to be tried."""
        return any(index != -1 for indices in self.tried_flavors for index in indices.values())


@dataclass(slots=True, eq=False)
class AdmissionState:
    """Quotas, flavors and admitted workloads.

    Attributes:
        flavors: Flavors by name.
        nodes: Leaves of the tree of quotas by ClusterQueue.
        admitted: Workloads with quota, by ClusterQueue and name.
        now_s: The time in seconds from the beginning of the replay.
        changes: Number of admissions and releases so far.
    """

    flavors: Mapping[str, Flavor]
    nodes: Mapping[str, QuotaNode]
    admitted: dict[str, dict[str, Entry]] = field(default_factory=dict)
    now_s: float = 0.0
    changes: int = 0

    def admit(self, entry: Entry) -> None:
        """Count an entry's usage and list it as admitted."""
        self.admitted.setdefault(entry.queue.name, {})[entry.workload.name] = entry
        self.add_usage(entry)
        self.changes += 1

    def release(self, entry: Entry) -> None:
        """Give an entry's quota back."""
        del self.admitted[entry.queue.name][entry.workload.name]
        self.remove_usage(entry)
        self.changes += 1

    def add_usage(self, entry: Entry) -> None:
        """Count an entry's usage."""
        add_amounts(entry.node, entry.usage)

    def remove_usage(self, entry: Entry) -> None:
        """Do not count an entry's usage."""
        for key, amount in entry.usage.items():
            entry.node.remove_usage(key, amount)

    @contextmanager
    def without(self, entries: Sequence[Entry]) -> Iterator[None]:
        """Do not count the usage of some entries within the block."""
        for entry in entries:
            self.remove_usage(entry)
        try:
            yield
        finally:
            for entry in entries:
                self.add_usage(entry)


def add_amounts(node: QuotaNode, amounts: Amounts) -> None:
    """Count amounts at a node."""
    for key, amount in amounts.items():
        node.add_usage(key, amount)
