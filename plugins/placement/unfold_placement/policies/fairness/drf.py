"""Dominant resource fairness (Ghodsi et al., NSDI 2011)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from unfold_placement.core.view import Unit, View
from unfold_placement.policies.shared.fair_queue import FairQueuePolicy, weight_of


@dataclass(slots=True, kw_only=True)
class Drf(FairQueuePolicy):
    """Progressive filling: the user with the smallest weighted dominant share is next."""

    weights: Mapping[str, float] = field(default_factory=dict)

    def rank(self, user: str, unit: Unit, view: View) -> tuple[float, str]:
        """Return the user's weighted dominant share."""
        del unit
        return self.queue.dominant_share(user, view) / weight_of(self.weights, user), user
