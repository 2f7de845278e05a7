"""Weighted fair queueing by virtual time (WF2Q: Bennett and Zhang, INFOCOM 1996); every task counts as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from unfold_placement.core.view import Unit, View
from unfold_placement.policies.shared.fair_queue import FairQueuePolicy, weight_of

TAG_TOLERANCE = 1e-9


@dataclass(slots=True, kw_only=True)
class Wfq(FairQueuePolicy):
    """Of the users whose next task would have begun under ideal sharing, the one with the first virtual finish.

    Attributes:
        weights: Weights of users.
        virtual_time: The virtual clock.
        finish_tags: Virtual finish of each user's last admitted unit.
        backlogged: Users whose tags are current because they still have pending units.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    virtual_time: float = 0.0
    finish_tags: dict[str, float] = field(default_factory=dict)
    backlogged: set[str] = field(default_factory=set)

    def update(self, view: View) -> None:
        """Forget users without pending units."""
        del view
        self.backlogged &= set(self.queue.waiting_users())

    def rank(self, user: str, unit: Unit, view: View) -> tuple[bool, float, str]:
        """Return eligibility (eligible users first), virtual finish and name."""
        del view
        if user not in self.backlogged:
            self.backlogged.add(user)
            self.finish_tags[user] = max(self.virtual_time, self.finish_tags.get(user, 0.0))
        start_tag = self.finish_tags[user]
        is_ineligible = start_tag > self.virtual_time + TAG_TOLERANCE
        return is_ineligible, start_tag + len(unit) / weight_of(self.weights, user), user

    def record_admission(self, user: str, unit: Unit) -> None:
        """Advance the user's finish tag and the virtual clock."""
        self.finish_tags[user] += len(unit) / weight_of(self.weights, user)
        users = {*self.queue.waiting_users(), user}
        ideal = self.virtual_time + len(unit) / sum(weight_of(self.weights, name) for name in users)
        self.virtual_time = max(ideal, min(self.finish_tags[name] for name in users))
