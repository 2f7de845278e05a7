"""Hierarchical fair share: at every level of the tree, the child with the smallest weighted share is next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from unfold_placement.core.view import Unit, View
from unfold_placement.policies.shared.fair_queue import FairQueuePolicy, weight_of


@dataclass(slots=True, kw_only=True)
class Hierarchy(FairQueuePolicy):
    """Users are paths such as ``research/vision``; weights are by path.

    A group's share is of the resource that dominates the next unit of its user. Hence no user starves because a
    sibling holds all of another resource, the case for H-DRF (Bhattacharya et al., SoCC 2013).
    """

    weights: Mapping[str, float] = field(default_factory=dict)

    def rank(self, user: str, unit: Unit, view: View) -> list[tuple[float, str]]:
        """Return the weighted share of each group on the path to a user, then the user's own."""
        segments = user.split("/")
        paths = ["/".join(segments[: depth + 1]) for depth in range(len(segments))]
        kind = self.queue.dominant_resource(unit, view)
        shares = [*(self.group_share(path, kind, view) for path in paths[:-1]), self.queue.dominant_share(user, view)]
        return [(share / weight_of(self.weights, path), path) for share, path in zip(shares, paths, strict=True)]

    def group_share(self, path: str, kind: str, view: View) -> float:
        """Return the fraction of a kind that all users below a path hold."""
        below = (used for user, used in self.queue.used.items() if f"{user}/".startswith(f"{path}/"))
        return sum(used.get(kind, 0) for used in below) / (view.total_capacity(kind) or 1)
