"""Which flavor each resource of a workload gets, and whether that needs borrowing or preemption.

Flavors are tried in the order of the resource group, as in Kueue 0.17 (``pkg/scheduler/flavorassigner``).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from unfold_placement.core.types import Node
from unfold_placement.kueue.objects import (
    MAY_STOP_SEARCH,
    PREFER_PREEMPTION,
    TRY_NEXT_FLAVOR,
    Amounts,
    Flavor,
    FlavorResource,
    PodSet,
    ResourceGroup,
)
from unfold_placement.kueue.preemption import PreemptionSearch
from unfold_placement.kueue.state import AdmissionState, Entry
from unfold_placement.policies.affinity.node_filter import NodeFilter

NO_FIT, NO_CANDIDATES, PREEMPT, RECLAIM, FIT = range(5)
"""How an amount fits a quota, worst first; from ``NO_CANDIDATES`` to ``RECLAIM`` it needs preemption."""
PODS = "pods"


@dataclass(frozen=True, slots=True)
class Mode:
    """How an amount fits, and the height of the subtree from which it borrows."""

    fit: int
    borrowing: int = 0


@dataclass(slots=True)
class Assignment:
    """Flavors for a workload.

    Attributes:
        usage: What it would use.
        fit: The worst fit of its resources.
        borrowing: The largest height from which it borrows; 0 for none.
        contested: What needs preemption.
        tried_flavors: Index of the flavor that was tried last, by pod set and resource; -1 after the last one.
        reason: Why it does not fit; empty if it does.
        scale: Part of its pods that is assigned.
    """

    usage: Amounts = field(default_factory=dict)
    fit: int = FIT
    borrowing: int = 0
    contested: set[FlavorResource] = field(default_factory=set)
    tried_flavors: list[Mapping[str, int]] = field(default_factory=list)
    reason: str = ""
    scale: float = 1.0


@dataclass(slots=True)
class GroupChoice:
    """The flavor of a resource group, and how each of its resources fits."""

    flavor: str
    mode: Mode
    modes: dict[str, Mode]
    tried: int = -1


@dataclass(slots=True, eq=False)
class FlavorAssigner:
    """Assigns flavors to a workload.

    Attributes:
        state: Quotas and admitted workloads.
        entry: The workload.
        targets: The workloads to preempt, by what is needed and what of it does not fit.
    """

    state: AdmissionState
    entry: Entry
    targets: dict[Hashable, list[Entry]] = field(default_factory=dict)

    def assign(self, counts: tuple[int, ...] = ()) -> Assignment:
        """Assign flavors to all pods, or to ``counts`` of them by pod set."""
        assignment = Assignment()
        pod_sets = self.entry.workload.pod_sets
        for index, pod_set in enumerate(pod_sets):
            count = counts[index] if counts else pod_set.count
            if not self._assign_pod_set(index, pod_set, count, assignment):
                assignment.fit = NO_FIT
                break
        total = sum(pod_set.count for pod_set in pod_sets)
        assignment.scale = sum(counts) / total if counts and total else 1.0
        return assignment

    def find_targets(self, assignment: Assignment) -> list[Entry]:
        """Return the workloads to preempt for an assignment."""
        return self._find_targets(assignment.usage, frozenset(assignment.contested))

    def _find_targets(self, requests: Amounts, contested: frozenset[FlavorResource]) -> list[Entry]:
        key = frozenset(requests.items()), contested
        if key not in self.targets:
            self.targets[key] = PreemptionSearch(self.state, self.entry, requests, contested).find_targets()
        return self.targets[key]

    def _assign_pod_set(self, index: int, pod_set: PodSet, count: int, assignment: Assignment) -> bool:
        requests = {resource: amount * count for resource, amount in pod_set.requests.items()}
        if self.entry.queue.group_of(PODS) is not None:
            requests[PODS] = count
        tried: dict[str, int] = {}
        usage: Amounts = {}
        for resource, amount in requests.items():
            group = self.entry.queue.group_of(resource)
            if resource in tried or (amount == 0 and group is None):
                continue
            if group is None:
                assignment.reason = f"{self.entry.queue.name} has no quota of {resource}"
                return False
            grouped = {name: value for name, value in requests.items() if name in group.resources}
            choice, reason = self._choose_flavor(index, pod_set, group, grouped, assignment.usage, resource)
            assignment.reason = assignment.reason or reason
            if choice is None:
                return False
            for name, mode in choice.modes.items():
                tried[name] = choice.tried
                key = choice.flavor, name
                usage[key] = grouped[name]
                assignment.fit = min(assignment.fit, mode.fit)
                assignment.borrowing = max(assignment.borrowing, mode.borrowing)
                if mode.fit != FIT:
                    assignment.contested.add(key)
        for key, amount in usage.items():
            if amount:
                assignment.usage[key] = assignment.usage.get(key, 0) + amount
        assignment.tried_flavors.append(tried)
        return True

    def _choose_flavor(
        self,
        index: int,
        pod_set: PodSet,
        group: ResourceGroup,
        requests: Mapping[str, int],
        assumed: Amounts,
        resource: str,
    ) -> tuple[GroupChoice | None, str]:
        rules = self.entry.queue.fungibility
        best: GroupChoice | None = None
        reason, attempted = "", -1
        for number in range(self._first_flavor(index, resource), len(group.flavors)):
            attempted = number
            name = group.flavors[number]
            refusal = self._refuse_flavor(name, pod_set, group)
            if refusal:
                reason = reason or refusal
                continue
            choice, why = self._fit_flavor(name, requests, assumed)
            reason = reason or why
            if choice.mode.fit != NO_FIT and not self._should_try_next(choice.mode):
                best = choice
                break
            if choice.mode.fit != NO_FIT and (best is None or is_preferred(choice.mode, best.mode, rules.preference)):
                best = choice
        if best is not None:
            best.tried = -1 if attempted == len(group.flavors) - 1 else attempted
        return best, "" if best is not None and best.mode.fit == FIT else reason

    def _first_flavor(self, index: int, resource: str) -> int:
        tried = self.entry.tried_flavors
        return tried[index].get(resource, -1) + 1 if index < len(tried) else 0

    def _refuse_flavor(self, name: str, pod_set: PodSet, group: ResourceGroup) -> str:
        flavor = self.state.flavors.get(name)
        if flavor is None:
            return f"flavor {name} does not exist"
        keys = {key for other in group.flavors for key in self.state.flavors.get(other, Flavor(other)).labels}
        if not _accepts_flavor(pod_set, flavor, keys):
            return f"flavor {name} does not match selector, affinity or tolerations"
        return ""

    def _fit_flavor(self, flavor: str, requests: Mapping[str, int], assumed: Amounts) -> tuple[GroupChoice, str]:
        worst, modes, reason = Mode(FIT), {}, ""
        for resource, amount in requests.items():
            key = flavor, resource
            mode, why = self._fit_quota(key, assumed.get(key, 0) + amount)
            reason = reason or why
            if is_preferred(worst, mode, self.entry.queue.fungibility.preference):
                worst = mode
            modes[resource] = mode
            if mode.fit == NO_FIT:
                worst = mode
                break
        return GroupChoice(flavor, worst, modes), reason

    def _fit_quota(self, key: FlavorResource, amount: int) -> tuple[Mode, str]:
        node, rules = self.entry.node, self.entry.queue.preemption
        flavor, resource = key
        if amount > (potential := node.potential(key)):
            return Mode(NO_FIT), f"it needs more {resource} than {flavor} can ever offer ({amount} > {potential})"
        height, may_reclaim = node.borrowing_height(key, amount)
        if amount <= max(0, node.available(key)):
            return Mode(FIT, height), ""
        reason = f"waits for quota of {resource} in {flavor}"
        if amount > node.quota(key).nominal and not may_reclaim and not rules.borrows:
            return Mode(NO_FIT, height), reason
        targets = self._find_targets({key: amount}, frozenset({key}))
        if not targets:
            return Mode(NO_CANDIDATES, node.borrowing_height(key, amount)[0]), reason
        with self.state.without(targets):
            height = node.borrowing_height(key, amount)[0]
        is_own = any(target.node is node for target in targets)
        return Mode(PREEMPT if is_own else RECLAIM, height), reason

    def _should_try_next(self, mode: Mode) -> bool:
        rules = self.entry.queue.fungibility
        if mode.fit in {NO_FIT, NO_CANDIDATES}:
            return True
        if mode.fit in {PREEMPT, RECLAIM} and rules.when_can_preempt != MAY_STOP_SEARCH:
            return True
        return mode.borrowing > 0 and rules.when_can_borrow == TRY_NEXT_FLAVOR


def is_preferred(mode: Mode, other: Mode, preference: str) -> bool:
    """Return whether a mode is better than another one under ``flavorFungibility.preference``."""
    if NO_FIT in {mode.fit, other.fit}:
        return mode.fit != NO_FIT
    if preference == PREFER_PREEMPTION:
        return (-mode.borrowing, mode.fit) > (-other.borrowing, other.fit)
    return (mode.fit, -mode.borrowing) > (other.fit, -other.borrowing)


def _accepts_flavor(pod_set: PodSet, flavor: Flavor, keys: set[str]) -> bool:
    """Return whether pods tolerate the taints of a flavor, and their selector and affinity match its labels.

    Only keys that label some flavor of the resource group count; an affinity term without such keys accepts all.
    """
    own = pod_set.node_filter
    terms = tuple(tuple(item for item in term if not item.is_field and item.key in keys) for term in own.terms)
    selector = {key: value for key, value in own.selector.items() if key in keys}
    pods = NodeFilter(
        selector=selector, terms=terms if all(terms) else (), tolerations=(*own.tolerations, *flavor.tolerations)
    )
    node = Node(flavor.name, {}, flavor.labels, taints=flavor.taints)
    return pods.tolerates(node) and pods.selects(node)
