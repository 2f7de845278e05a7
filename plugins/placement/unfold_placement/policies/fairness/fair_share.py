"""Fair shares of users: dominant resource fairness, its hierarchical form, historical use, weighted fair queueing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from unfold_placement.core.cluster_view import Unit, View
from unfold_placement.policies.shared.fair_queue import FairQueuePolicy, weight_of

MAX_LEVELS = 16
"""Levels of a path that count."""


@dataclass(slots=True, kw_only=True)
class Drf(FairQueuePolicy):
    """Dominant resource fairness (Ghodsi et al., NSDI 2011).

    Progressive filling: the user with the smallest weighted dominant share is next.
    """

    weights: Mapping[str, float] = field(default_factory=dict)

    def rank(self, user: str, unit: Unit, view: View) -> float:
        """Return the user's weighted dominant share."""
        del unit
        return self.queue.dominant_share(user, view) / weight_of(self.weights, user)


@dataclass(slots=True, kw_only=True)
class Hierarchy(FairQueuePolicy):
    """Hierarchical fair share: at every level of the tree, the child with the smallest weighted share is next.

    Users are paths such as ``research/vision``; weights are by path.

    A group's share is of the resource that dominates the next unit of its user. Hence no user starves because a
    sibling holds all of another resource, the case for H-DRF (Bhattacharya et al., SoCC 2013).
    """

    weights: Mapping[str, float] = field(default_factory=dict)

    def rank(self, user: str, unit: Unit, view: View) -> tuple[float, ...]:
        """Return the weighted share of each group on the path to a user, then the user's own, repeated."""
        segments = user.split("/")
        paths = ["/".join(segments[: depth + 1]) for depth in range(len(segments))]
        kind = self.queue.dominant_resource(unit, view)
        shares = [*(self.group_share(path, kind, view) for path in paths[:-1]), self.queue.dominant_share(user, view)]
        weighted = [share / weight_of(self.weights, path) for share, path in zip(shares, paths, strict=True)]
        # of two paths with equal shares the shorter one has no advantage
        return (*weighted, *weighted[-1:] * (MAX_LEVELS - len(weighted)))

    def group_share(self, path: str, kind: str, view: View) -> float:
        """Return the fraction of a kind that all users below a path hold."""
        below = (used for user, used in self.queue.used.items() if f"{user}/".startswith(f"{path}/"))
        return sum(used.get(kind, 0) for used in below) / (view.total_capacity(kind) or 1)


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

    def rank(self, user: str, unit: Unit, view: View) -> tuple[float, float]:
        """Return the weighted decayed use, then the weighted current share."""
        del unit
        weight = weight_of(self.weights, user)
        return self.decayed_use.get(user, 0.0) / weight, self.queue.dominant_share(user, view) / weight


TAG_TOLERANCE = 1e-9


@dataclass(slots=True, kw_only=True)
class Wfq(FairQueuePolicy):
    """Weighted fair queueing by virtual time (WF2Q: Bennett and Zhang, INFOCOM 1996); every task counts as one.

    A user is eligible if its next task would have begun under ideal sharing. Of the eligible users, the one with the
    first virtual finish is next.

    Attributes:
        weights: Weights of users.
        virtual_time: The virtual clock.
        finish_tags: Virtual finish of each user's last admitted unit.
        backlogged: Users with current tags, because they still have pending units.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    virtual_time: float = 0.0
    finish_tags: dict[str, float] = field(default_factory=dict)
    backlogged: set[str] = field(default_factory=set)

    def update(self, view: View) -> None:
        """Forget users without pending units."""
        del view
        self.backlogged &= set(self.queue.waiting_users())

    def rank(self, user: str, unit: Unit, view: View) -> tuple[bool, float]:
        """Return eligibility (eligible users first) and virtual finish."""
        del view
        self._join(user)
        start_tag = self.finish_tags[user]
        is_ineligible = start_tag > self.virtual_time + TAG_TOLERANCE
        return is_ineligible, start_tag + len(unit) / weight_of(self.weights, user)

    def record_admission(self, user: str, unit: Unit) -> None:
        """Advance the user's finish tag and the virtual clock."""
        for name in {*self.queue.waiting_users(), user}:
            self._join(name)
        self.finish_tags[user] += len(unit) / weight_of(self.weights, user)
        users = {*self.queue.waiting_users(), user}
        ideal = self.virtual_time + len(unit) / sum(weight_of(self.weights, name) for name in users)
        self.virtual_time = max(ideal, min(self.finish_tags[name] for name in users))

    def state(self) -> tuple[tuple[str, float], ...]:
        """Return what distinguishes two states for a search: finish tags relative to the virtual clock."""
        tags = {user: round(tag - self.virtual_time, 6) for user, tag in self.finish_tags.items()}
        relevant = {user: tag for user, tag in tags.items() if tag > 0 or user in self.backlogged}
        return tuple(sorted(relevant.items()))

    def _join(self, user: str) -> None:
        if user not in self.backlogged:
            self.backlogged.add(user)
            self.finish_tags[user] = max(self.virtual_time, self.finish_tags.get(user, 0.0))
