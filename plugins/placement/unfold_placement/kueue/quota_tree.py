"""The tree of quotas: ClusterQueues as leaves, cohorts above them; what is available, borrowed and lent.

The arithmetic is that of Kueue 0.17 (``pkg/cache/scheduler/resource_node.go``): a node keeps the part of its quota that
its lending limit reserves, and offers the rest to its parent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from unfold_placement.kueue.objects import Amounts, ClusterQueue, Cohort, FlavorResource, Quota

NO_QUOTA = Quota(0)


@dataclass(slots=True, eq=False)
class QuotaNode:
    """A ClusterQueue or cohort in the tree.

    Attributes:
        name: Its name.
        quotas: Its own quotas.
        parent: The cohort above it.
        cohorts: Cohorts below it.
        queues: ClusterQueues below it.
        subtree: Its quota with what its children offer.
        usage: What counts against ``subtree``.
    """

    name: str
    quotas: Mapping[FlavorResource, Quota]
    parent: QuotaNode | None = None
    cohorts: list[QuotaNode] = field(default_factory=list)
    queues: list[QuotaNode] = field(default_factory=list)
    subtree: Amounts = field(default_factory=dict)
    usage: Amounts = field(default_factory=dict)

    @property
    def root(self) -> QuotaNode:
        """The topmost node above it, or itself."""
        return self if self.parent is None else self.parent.root

    @property
    def height(self) -> int:
        """The number of levels below it."""
        return max([min(len(self.cohorts) + len(self.queues), 1), *(child.height + 1 for child in self.cohorts)])

    def ancestors(self) -> Iterator[QuotaNode]:
        """Yield the nodes above it, up to the root."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    def quota(self, key: FlavorResource) -> Quota:
        """Return its own quota."""
        return self.quotas.get(key, NO_QUOTA)

    def used(self, key: FlavorResource) -> int:
        """Return what counts against its quota."""
        return self.usage.get(key, 0)

    def local_quota(self, key: FlavorResource) -> int:
        """Return the quota that it never lends."""
        limit = self.quota(key).lending_limit
        return 0 if limit is None else max(0, self.subtree.get(key, 0) - limit)

    def local_available(self, key: FlavorResource) -> int:
        """Return the unused part of what it never lends."""
        return max(0, self.local_quota(key) - self.used(key))

    def available(self, key: FlavorResource) -> int:
        """Return what remains for it, borrowing included; below zero where quota was taken away."""
        if self.parent is None:
            return self.subtree.get(key, 0) - self.used(key)
        remaining = self.parent.available(key)
        limit = self.quota(key).borrowing_limit
        if limit is not None:
            stored = self.subtree.get(key, 0) - self.local_quota(key)
            used = max(0, self.used(key) - self.local_quota(key))
            remaining = min(stored - used + limit, remaining)
        return self.local_available(key) + remaining

    def potential(self, key: FlavorResource) -> int:
        """Return the most that it could ever get, if nothing were used."""
        if self.parent is None:
            return self.subtree.get(key, 0)
        amount = self.local_quota(key) + self.parent.potential(key)
        limit = self.quota(key).borrowing_limit
        return amount if limit is None else min(self.subtree.get(key, 0) + limit, amount)

    def add_usage(self, key: FlavorResource, amount: int) -> None:
        """Count usage here, and above what is kept locally also in the parent."""
        local = self.local_available(key)
        self.usage[key] = self.used(key) + amount
        if self.parent is not None and amount > local:
            self.parent.add_usage(key, amount - local)

    def remove_usage(self, key: FlavorResource, amount: int) -> None:
        """Undo ``add_usage``."""
        stored = self.used(key) - self.local_quota(key)
        self.usage[key] = self.used(key) - amount
        if stored > 0 and self.parent is not None:
            self.parent.remove_usage(key, min(amount, stored))

    def is_borrowing_with(self, key: FlavorResource, amount: int = 0) -> bool:
        """Return whether usage with an additional amount exceeds its quota, with its subtree for a cohort."""
        quota = self.subtree.get(key, 0) if self.cohorts or self.queues else self.quota(key).nominal
        return self.used(key) + amount > quota

    def is_within_quota(self, keys: Iterable[FlavorResource]) -> bool:
        """Return whether its usage exceeds its quota in none of some resources."""
        return all(self.used(key) <= self.subtree.get(key, 0) for key in keys)

    def fits_quota(self, requests: Amounts) -> tuple[bool, Amounts]:
        """Return whether requests fit in its quota, and the part of them that its parent must provide."""
        fits = all(self.used(key) + amount <= self.subtree.get(key, 0) for key, amount in requests.items())
        return fits, {key: max(0, amount - self.local_available(key)) for key, amount in requests.items()}

    def borrowing_height(self, key: FlavorResource, amount: int) -> tuple[int, bool]:
        """Return the height of the smallest subtree with quota for an amount, and whether that has a parent."""
        if not self.is_borrowing_with(key, amount) or self.parent is None:
            return 0, self.parent is not None
        remaining = amount - self.local_available(key)
        for node in self.ancestors():
            if not node.is_borrowing_with(key, remaining):
                return node.height, node.parent is not None
            remaining -= node.local_available(key)
        return self.root.height, False


def build_quota_tree(queues: Mapping[str, ClusterQueue], cohorts: Mapping[str, Cohort]) -> dict[str, QuotaNode]:
    """Build the tree, and return the nodes of the ClusterQueues by name. A cohort without a definition has no quota.

    The cohorts form no cycle.
    """
    nodes: dict[str, QuotaNode] = {}
    for name in [*cohorts, *(queue.cohort for queue in queues.values() if queue.cohort)]:
        _add_cohort(name, cohorts, nodes)
    leaves = {}
    for queue in queues.values():
        node = QuotaNode(queue.name, queue.quotas, nodes.get(queue.cohort))
        leaves[queue.name] = node
        if node.parent is not None:
            node.parent.queues.append(node)
    for node in [*nodes.values(), *leaves.values()]:
        if node.parent is None:
            _sum_quotas(node)
    return leaves


def _add_cohort(name: str, cohorts: Mapping[str, Cohort], nodes: dict[str, QuotaNode]) -> None:
    path: list[str] = []
    while name and name not in nodes:
        path.append(name)
        name = cohorts[name].parent if name in cohorts else ""
    for child in reversed(path):
        cohort = cohorts.get(child, Cohort(child))
        node = QuotaNode(child, cohort.quotas, nodes.get(cohort.parent))
        nodes[child] = node
        if node.parent is not None:
            node.parent.cohorts.append(node)


def _sum_quotas(node: QuotaNode) -> None:
    node.subtree = {key: quota.nominal for key, quota in node.quotas.items()}
    for child in (*node.cohorts, *node.queues):
        _sum_quotas(child)
        for key, amount in child.subtree.items():
            node.subtree[key] = node.subtree.get(key, 0) + amount - child.local_quota(key)
