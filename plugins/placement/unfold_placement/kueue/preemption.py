"""Which workloads Kueue preempts for one that does not fit: within its queue, and by reclaim within the cohort.

Candidates, their order and the two attempts, with and without borrowing, are those of Kueue 0.17 without fair sharing
(``pkg/scheduler/preemption``, ``classical``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from unfold_placement.kueue.objects import (
    ANY,
    LOWER_OR_NEWER,
    LOWER_PRIORITY,
    NEVER,
    Amounts,
    FlavorResource,
)
from unfold_placement.kueue.quota_tree import QuotaNode
from unfold_placement.kueue.state import AdmissionState, Entry

WITHIN_QUEUE, BY_HIERARCHY, WITHOUT_BORROWING, WHILE_BORROWING = range(4)
"""Why a candidate may be preempted."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A workload that may be preempted.

    Attributes:
        entry: The workload.
        common: The lowest cohort above it and above the preemptor; None within one queue.
        variant: Why it may be preempted.
    """

    entry: Entry
    common: QuotaNode | None
    variant: int


@dataclass(slots=True, eq=False)
class PreemptionSearch:
    """The search for the workloads to preempt for an entry.

    Attributes:
        state: Quotas and admitted workloads.
        entry: The entry that needs quota.
        requests: What it needs, by flavor and resource.
        contested: The keys of ``requests`` that do not fit.
        by_hierarchy: Candidates over which its place in the cohort gives the preemptor precedence.
        by_priority: Candidates of other queues over which only priority does.
        same_queue: Candidates of its own queue.
    """

    state: AdmissionState
    entry: Entry
    requests: Amounts
    contested: frozenset[FlavorResource]
    by_hierarchy: list[Candidate] = field(default_factory=list)
    by_priority: list[Candidate] = field(default_factory=list)
    same_queue: list[Candidate] = field(default_factory=list)

    def find_targets(self) -> list[Entry]:
        """Return a minimal set of workloads that make room for the entry by their end; empty if there is none."""
        self._collect()
        candidates = [*self.by_hierarchy, *self.by_priority, *self.same_queue]
        if not self._may_suffice(candidates):
            return []
        for may_borrow in self._attempts():
            targets = self._try(candidates, may_borrow=may_borrow)
            if targets:
                return targets
        return []

    def _may_suffice(self, candidates: Sequence[Candidate]) -> bool:
        """Return whether all candidates together use enough; what one gives back adds no more than that."""
        node = self.entry.node
        return all(
            amount <= max(0, node.available(key) + sum(item.entry.usage.get(key, 0) for item in candidates))
            for key, amount in self.requests.items()
        )

    def _attempts(self) -> tuple[bool, ...]:
        has_others = bool(self.by_hierarchy or self.by_priority)
        forbidden = not self.entry.queue.preemption.borrows
        if not has_others or (forbidden and not self._is_under_nominal()):
            return (True,)
        return (False, True) if forbidden and not self.by_hierarchy else (True, False)

    def _is_under_nominal(self) -> bool:
        node = self.entry.node
        return all(node.used(key) < node.quota(key).nominal for key in self.contested)

    def _try(self, candidates: Sequence[Candidate], *, may_borrow: bool) -> list[Entry]:
        targets: list[Entry] = []
        fits = False
        for candidate in candidates:
            if self._is_valid(candidate, may_borrow=may_borrow):
                self.state.remove_usage(candidate.entry)
                targets.append(candidate.entry)
                if fits := self._fits(may_borrow=may_borrow):
                    break
        if fits:
            self._put_back(targets, may_borrow=may_borrow)
        for target in targets:
            self.state.add_usage(target)
        return targets if fits else []

    def _put_back(self, targets: list[Entry], *, may_borrow: bool) -> None:
        """Keep only targets without which the entry does not fit, examined from the last but one to the first."""
        for index in range(len(targets) - 2, -1, -1):
            self.state.add_usage(targets[index])
            if self._fits(may_borrow=may_borrow):
                targets[index] = targets[-1]
                targets.pop()
            else:
                self.state.remove_usage(targets[index])

    def _fits(self, *, may_borrow: bool) -> bool:
        node = self.entry.node
        return all(
            (may_borrow or not node.is_borrowing_with(key, amount)) and amount <= max(0, node.available(key))
            for key, amount in self.requests.items()
        )

    def _is_valid(self, candidate: Candidate, *, may_borrow: bool) -> bool:
        node = candidate.entry.node
        if node is self.entry.node:
            return True
        if (may_borrow and candidate.variant == WITHOUT_BORROWING) or node.is_within_quota(self.contested):
            return False
        for cohort in node.ancestors():
            if cohort is candidate.common:
                break
            if cohort.is_within_quota(self.contested):
                return False
        return True

    def _collect(self) -> None:
        rules, node = self.entry.queue.preemption, self.entry.node
        if rules.within_queue != NEVER:
            self.same_queue = list(self._candidates(node, None, has_advantage=False))
        if node.parent is not None and rules.reclaim != NEVER:
            previous: QuotaNode | None = None
            has_advantage, remaining = node.fits_quota(self.requests)
            # a queue that uses its quota and must not borrow takes nothing by priority
            may_take = rules.borrows or self._is_under_nominal()
            for cohort in node.ancestors():
                chosen = self.by_hierarchy if has_advantage else self.by_priority
                if has_advantage or may_take:
                    chosen += self._candidates_below(cohort, cohort, previous, has_advantage=has_advantage)
                fits, remaining = cohort.fits_quota(remaining)
                has_advantage, previous = has_advantage or fits, cohort
        for candidates in (self.same_queue, self.by_hierarchy, self.by_priority):
            candidates.sort(key=self._order)

    def _candidates_below(
        self, cohort: QuotaNode, common: QuotaNode, done: QuotaNode | None, *, has_advantage: bool
    ) -> Iterator[Candidate]:
        for child in cohort.cohorts:
            if child is not done and not child.is_within_quota(self.contested):
                yield from self._candidates_below(child, common, done, has_advantage=has_advantage)
        for leaf in cohort.queues:
            if leaf is not self.entry.node and not leaf.is_within_quota(self.contested):
                yield from self._candidates(leaf, common, has_advantage=has_advantage)

    def _candidates(self, leaf: QuotaNode, common: QuotaNode | None, *, has_advantage: bool) -> Iterator[Candidate]:
        rules = self.entry.queue.preemption
        policy = rules.within_queue if leaf is self.entry.node else rules.reclaim
        for other in self.state.admitted.get(leaf.name, {}).values():
            if not self.contested.isdisjoint(other.usage) and _may_preempt(self.entry, other, policy):
                yield Candidate(other, common, self._variant(other, leaf, has_advantage=has_advantage))

    def _variant(self, other: Entry, leaf: QuotaNode, *, has_advantage: bool) -> int:
        rules = self.entry.queue.preemption
        if leaf is self.entry.node:
            return WITHIN_QUEUE
        if has_advantage:
            return BY_HIERARCHY
        priority = other.workload.priority
        is_above = rules.borrow_threshold is not None and priority > rules.borrow_threshold
        if not rules.borrows or priority >= self.entry.workload.priority or is_above:
            return WITHOUT_BORROWING
        return WHILE_BORROWING

    def _order(self, candidate: Candidate) -> tuple[int, int, str]:
        # conditions have a resolution of one second
        reserved_s = math.floor(candidate.entry.reserved_s or 0.0)
        return candidate.entry.workload.priority, -reserved_s, candidate.entry.workload.uid


def _may_preempt(entry: Entry, other: Entry, policy: str) -> bool:
    mine, theirs = entry.workload, other.workload
    is_lower = mine.priority > theirs.priority
    if policy == LOWER_PRIORITY:
        return is_lower
    if policy == LOWER_OR_NEWER:
        return is_lower or (mine.priority == theirs.priority and mine.created_s < theirs.created_s)
    return policy == ANY
