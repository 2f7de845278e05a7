"""Kueue's scheduling cycle: the head of every ClusterQueue is nominated, ordered, admitted or preempted for.

The rules are those of Kueue 0.17 without fair sharing (``pkg/scheduler/scheduler.go``, ``pkg/cache/queue``).
"""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from unfold_placement.kueue.flavors import FIT, NO_FIT, Assignment, FlavorAssigner
from unfold_placement.kueue.objects import ANY, STRICT_FIFO, Amounts, ClusterQueue, PodSet
from unfold_placement.kueue.quota_tree import QuotaNode
from unfold_placement.kueue.state import AdmissionState, Entry, add_amounts

WAITS, SKIPPED, PREEMPTS, ADMITTED = range(4)
"""What a cycle did with a head."""


@dataclass(slots=True, eq=False)
class PendingQueue:
    """The pending workloads of a ClusterQueue.

    Attributes:
        queue: The ClusterQueue.
        heap: Workloads that are tried, in order.
        inadmissible: Workloads that were tried in vain, until quota is released in the cohort.
        sticky: The workload for which others are preempted; it stays at the head (BestEffortFIFO).
    """

    queue: ClusterQueue
    heap: list[Entry] = field(default_factory=list)
    inadmissible: list[Entry] = field(default_factory=list)
    sticky: Entry | None = None

    def push(self, entry: Entry) -> None:
        """Add a workload in order of priority and creation."""
        bisect.insort(self.heap, entry, key=lambda other: other.order)

    def pop(self) -> Entry | None:
        """Take the head."""
        if not self.heap:
            return None
        index = self.heap.index(self.sticky) if self.sticky is not None and self.sticky in self.heap else 0
        return self.heap.pop(index)

    def remove(self, entry: Entry) -> None:
        """Take a workload out for good."""
        self.heap = [other for other in self.heap if other is not entry]
        self.inadmissible = [other for other in self.inadmissible if other is not entry]
        self.sticky = None if self.sticky is entry else self.sticky

    def retry(self) -> bool:
        """Try the inadmissible workloads again; return whether there were any."""
        waiting, self.inadmissible = self.inadmissible, []
        for entry in waiting:
            self.push(entry)
        return bool(waiting)


@dataclass(slots=True, eq=False)
class Nomination:
    """A head with its assignment, and the workloads that would be preempted for it."""

    entry: Entry
    assignment: Assignment
    targets: list[Entry]
    outcome: int = WAITS


@dataclass(slots=True, eq=False)
class Scheduler:
    """Runs cycles over pending queues.

    Attributes:
        state: Quotas and admitted workloads.
        queues: Pending workloads by ClusterQueue.
        reasons: Why each pending workload was not admitted when it was tried last.
        refusals: What was assigned in vain since the last admission or release, by what the workload requests.
        refused_at: The number of admissions and releases at which ``refusals`` holds.
    """

    state: AdmissionState
    queues: dict[str, PendingQueue]
    reasons: dict[str, str] = field(default_factory=dict)
    refusals: dict[Hashable, Assignment] = field(default_factory=dict)
    refused_at: int = 0

    def signature(self) -> Hashable:
        """Return what the next cycle depends on besides quotas; one that repeats it without effect changes nothing.

        Between admissions and preemptions, a heap only loses workloads: equal lengths mean equal workloads.
        """
        return tuple(
            (
                len(queue.heap),
                queue.sticky.workload.name if queue.sticky is not None else "",
                tuple([_list_tried(entry) for entry in queue.heap[:1]]),
            )
            for queue in self.queues.values()
        )

    def whole_state(self) -> Hashable:
        """Return everything on which the next cycles at this instant depend."""
        pending = tuple(
            (
                queue.sticky.workload.name if queue.sticky is not None else "",
                tuple([(entry.workload.name, _list_tried(entry)) for entry in queue.heap]),
                frozenset([(entry.workload.name, _list_tried(entry)) for entry in queue.inadmissible]),
            )
            for queue in self.queues.values()
        )
        admitted = frozenset(
            (name, entry.reserved_s, frozenset(entry.usage.items()))
            for entries in self.state.admitted.values()
            for name, entry in entries.items()
        )
        return pending, admitted

    def run_cycle(self) -> tuple[list[Entry], list[Entry]]:
        """Run a cycle; return the admitted workloads and the preempted ones."""
        heads = [head for queue in self.queues.values() if not queue.queue.is_stopped and (head := queue.pop())]
        nominations = [self._nominate(head) for head in heads]
        nominations.sort(key=lambda item: (item.assignment.borrowing, *item.entry.order))
        reserved: list[tuple[QuotaNode, Amounts]] = []
        preempted: list[Entry] = []
        for item in nominations:
            self._process(item, reserved, preempted)
        for node, amounts in reserved:
            for key, amount in amounts.items():
                node.remove_usage(key, amount)
        for item in nominations:
            if item.outcome != ADMITTED:
                self._requeue(item)
        return [item.entry for item in nominations if item.outcome == ADMITTED], preempted

    def describe_blocked(self) -> dict[str, str]:
        """Return why workloads wait that are not tried: StrictFIFO never passes the head, or the queue is stopped."""
        reasons: dict[str, str] = {}
        for queue in self.queues.values():
            if queue.queue.is_stopped:
                reason = f"ClusterQueue {queue.queue.name} admits nothing"
                reasons |= {entry.workload.name: reason for entry in [*queue.heap, *queue.inadmissible]}
            elif queue.heap:
                reason = f"waits behind {queue.heap[0].workload.name}, which StrictFIFO never passes"
                reasons |= {entry.workload.name: reason for entry in queue.heap[1:]}
        return reasons

    def _nominate(self, entry: Entry) -> Nomination:
        if self.refused_at != self.state.changes:
            self.refusals, self.refused_at = {}, self.state.changes
        key = _identify_request(entry)
        if key in self.refusals:
            return Nomination(entry, self.refusals[key], [])
        item = self._compute_nomination(entry)
        if item.assignment.fit != FIT and not item.targets:
            self.refusals[key] = item.assignment
        return item

    def _compute_nomination(self, entry: Entry) -> Nomination:
        assigner = FlavorAssigner(self.state, entry)
        assignment = assigner.assign()
        if assignment.fit == FIT:
            return Nomination(entry, assignment, [])
        targets = assigner.find_targets(assignment) if assignment.fit != NO_FIT else []
        if not targets and (partial := _assign_fewer(assigner, entry.workload.pod_sets)):
            return Nomination(entry, *partial)
        return Nomination(entry, assignment, targets)

    def _process(self, item: Nomination, reserved: list[tuple[QuotaNode, Amounts]], preempted: list[Entry]) -> None:
        entry, assignment = item.entry, item.assignment
        entry.tried_flavors = tuple(assignment.tried_flavors)
        self.reasons[entry.workload.name] = assignment.reason
        if assignment.fit == NO_FIT:
            return
        if assignment.fit != FIT and not item.targets:
            if entry.queue.preemption.reclaim != ANY:
                amounts = _amounts_to_reserve(entry, assignment)
                add_amounts(entry.node, amounts)
                reserved.append((entry.node, amounts))
            return
        item.outcome = SKIPPED
        if any(target in preempted for target in item.targets) or not self._fits(item, preempted):
            entry.tried_flavors = ()
            return
        preempted += item.targets
        if item.targets:
            item.outcome, entry.tried_flavors = PREEMPTS, ()
            add_amounts(entry.node, assignment.usage)
            reserved.append((entry.node, assignment.usage))
            return
        item.outcome, entry.usage, entry.scale = ADMITTED, assignment.usage, assignment.scale
        entry.reserved_s, entry.tried_flavors = self.state.now_s, ()
        self.state.admit(entry)
        queue = self.queues[entry.queue.name]
        queue.sticky = None if queue.sticky is entry else queue.sticky

    def _fits(self, item: Nomination, preempted: Sequence[Entry]) -> bool:
        with self.state.without([*preempted, *item.targets]):
            node = item.entry.node
            return all(amount <= max(0, node.available(key)) for key, amount in item.assignment.usage.items())

    def _requeue(self, item: Nomination) -> None:
        queue, entry = self.queues[item.entry.queue.name], item.entry
        is_strict = queue.queue.strategy == STRICT_FIFO
        if not is_strict and item.outcome == PREEMPTS:
            queue.sticky = entry
        elif queue.sticky is entry and item.outcome == WAITS:
            queue.sticky = None
        if is_strict or item.outcome in {SKIPPED, PREEMPTS} or entry.has_pending_flavors():
            queue.push(entry)
        else:
            queue.inadmissible.append(entry)


def _list_tried(entry: Entry) -> Hashable:
    return tuple([tuple(sorted(flavors.items())) for flavors in entry.tried_flavors])


def _identify_request(entry: Entry) -> Hashable:
    """Return what the outcome of a nomination depends on besides the state."""
    order = entry.order[: 2 if entry.queue.preemption.compares_age else 1]
    return entry.queue.name, entry.shape, order, _list_tried(entry)


def _assign_fewer(assigner: FlavorAssigner, pod_sets: Sequence[PodSet]) -> tuple[Assignment, list[Entry]] | None:
    """Assign as many pods as fit, not below the least counts; the search is the bisection of Kueue's reducer."""
    deltas = [pod_set.count - pod_set.min_count for pod_set in pod_sets]
    total = sum(deltas)
    best: tuple[Assignment, list[Entry]] | None = None
    low, high = 0, total + 1 if total else 0
    while low < high:
        middle = (low + high) // 2
        counts = [pod_set.count - delta * middle // total for pod_set, delta in zip(pod_sets, deltas, strict=True)]
        assignment = assigner.assign(tuple(counts))
        targets = assigner.find_targets(assignment) if assignment.fit not in {FIT, NO_FIT} else []
        if assignment.fit == FIT or targets:
            best, high = (assignment, targets), middle
        else:
            low = middle + 1
    return best


def _amounts_to_reserve(entry: Entry, assignment: Assignment) -> Amounts:
    """Return what a workload that cannot preempt yet keeps free for itself, within its quota or borrowing limit."""
    amounts: Amounts = {}
    for key, amount in assignment.usage.items():
        quota, used = entry.node.quota(key), entry.node.used(key)
        if assignment.borrowing == 0:
            amounts[key] = max(0, min(amount, quota.nominal - used))
        elif quota.borrowing_limit is None:
            amounts[key] = amount
        else:
            # below zero where quota was taken away: such a reservation, given back, would fill the cohort for ever
            amounts[key] = max(0, min(amount, quota.nominal + quota.borrowing_limit - used))
    return amounts
