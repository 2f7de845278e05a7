"""Historical fairness: past use counts, halved after every half-life."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from unfold_placement.core.view import Unit, View
from unfold_placement.policies.shared.fair_queue import FairQueuePolicy, weight_of


@dataclass(slots=True, kw_only=True)
class History(FairQueuePolicy):
    """The user with the least decayed use is next.

    Use ``u`` is in dominant share-seconds and follows u' = share - u ln 2 / half-life, integrated exactly between
    events.

    Attributes:
        half_life: Seconds.
        weights: Weights of users.
        decayed_use: ``u`` of each user at ``updated_s``.
        updated_s: Time of the last update in seconds.
    """

    half_life: float = 86400.0
    weights: Mapping[str, float] = field(default_factory=dict)
    decayed_use: dict[str, float] = field(default_factory=dict)
    updated_s: float = 0.0

    def update(self, view: View) -> None:
        """Decay past use to the current time and add what was held since the last update."""
        decay = 0.5 ** ((view.now - self.updated_s) / self.half_life)
        gain = (1 - decay) * self.half_life / math.log(2)
        for user in {*self.decayed_use, *self.queue.used}:
            share = self.queue.dominant_share(user, view)
            self.decayed_use[user] = self.decayed_use.get(user, 0.0) * decay + share * gain
        self.updated_s = view.now

    def rank(self, user: str, unit: Unit, view: View) -> tuple[float, float, str]:
        """Return the weighted decayed use, then the weighted current share."""
        del unit
        weight = weight_of(self.weights, user)
        return self.decayed_use.get(user, 0.0) / weight, self.queue.dominant_share(user, view) / weight, user
