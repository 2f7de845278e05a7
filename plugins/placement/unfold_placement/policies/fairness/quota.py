"""Quotas with borrowing and reclaim, and concurrency limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.cluster_view import Unit, View
from unfold_placement.core.types import (
    ENDED,
    MILLI,
    REFUSED,
    STATIC,
    SUBMITTED,
    Ask,
    Drop,
    Event,
    Put,
    Task,
    Transactions,
)
from unfold_placement.policies.shared.admission_queue import AdmissionQueue, admission_resource
from unfold_placement.policies.shared.fair_queue import FairQueuePolicy

QUOTA_TOLERANCE = 1e-9


@dataclass(slots=True, kw_only=True)
class Quota(FairQueuePolicy):
    """Unused quota is lent to other teams until its owner needs it.

    Teams within their quota are admitted first, the smallest dominant share first.

    Attributes:
        quotas: Quota of each team, in whole units of ``resource``.
        resource: The kind that quotas limit.
        borrow: Teams may exceed their quota while no team within its quota waits.
        reclaim: Borrowed capacity is preempted for teams within their quota.
        max_preemptions: Preemptions after which a borrowing task runs to its end, so that no large one is stopped for
            every small one; None for no bound.
        preemptions: Number of preemptions of each task that has not ended; not counted without a bound.
    """

    quotas: Mapping[str, float]
    resource: str = "gpu"
    borrow: bool = True
    reclaim: bool = True
    backfill: bool = True
    max_preemptions: int | None = 3
    preemptions: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.queue = AdmissionQueue(self.by, guard=self.guard, why_never=None if self.borrow else self.why_never)

    def why_never(self, team: str, unit: Unit) -> str:
        """Return why a team can never start a unit; empty if it can."""
        demand = sum(task.demand.get(self.resource, 0) for task in unit) / MILLI
        quota = self.quotas.get(team, 0.0)
        if demand <= quota + QUOTA_TOLERANCE:
            return ""
        return f"it demands {demand:g} {self.resource}, and the quota of {team or 'its team'} is {quota:g}"

    def react(self, event: Event, view: View) -> Transactions:
        """Admit units within quota, reclaim borrowed capacity where one does not fit, then lend what remains."""
        if event.kind in {ENDED, REFUSED} and event.task is not None:
            self.preemptions.pop(event.task.name, None)
        if not self.queue.observe(event, view):
            return
        if view.reserved_unit:
            # also one that borrows: its nodes have drained, and no other task may use them
            view.check_reservation()
            yield from self.queue.admit_reserved(view)
        yield from self.admit_units(view)
        entitled = self.entitled_teams(view)
        if self.reclaim and (victims := self.choose_victims(view)):
            # other entitled teams follow when the ends of these tasks are reported
            if self.max_preemptions is not None:
                self.preemptions.update(task.name for task in victims)
            yield [Drop(admission_resource(task), force=True) for task in victims]
            yield from self.admit_units(view)
        if self.borrow and not entitled:
            yield from self.queue.admit(lambda team, unit, _: self.excess(team, unit), view, backfill=True)

    def rank(self, user: str, unit: Unit, view: View) -> float:
        """Return the team's dominant share."""
        del unit
        return self.queue.dominant_share(user, view)

    def admit_units(self, view: View) -> Transactions:
        """Admit units of teams that stay within their quota."""
        yield from self.queue.admit(
            self.rank, view, backfill=self.backfill, is_allowed=lambda team, unit: self.excess(team, unit) <= 0
        )

    def entitled_teams(self, view: View) -> list[str]:
        """Return the teams that stay within their quota with their first unit, by rank."""
        first_units = [(user, self.queue.first_unit(user)) for user in self.queue.waiting_users()]
        entitled = [(user, unit) for user, unit in first_units if self.excess(user, unit) <= 0]
        ranks = {user: (self.rank(user, unit, view), self.queue.age(unit)) for user, unit in entitled}
        return sorted(ranks, key=ranks.__getitem__)

    def choose_victims(self, view: View) -> list[Task]:
        """Choose borrowed capacity to preempt for the first entitled team that then fits; empty for none."""
        teams = self.entitled_teams(view) if self.backfill else self.entitled_teams(view)[:1]
        choices = (view.victims(self.queue.first_unit(team), self.borrowing_tasks(view)) for team in teams)
        return next((victims for victims in choices if victims), [])

    def borrowing_tasks(self, view: View) -> list[Task]:
        """Return the running tasks above quota, latest start first, until each team is within its quota."""
        excess = {user: self.excess(user) for user in self.queue.used}
        borrowing = []
        for task, _, _ in reversed(view.running()):
            amount = task.demand.get(self.resource, 0) / MILLI
            team = task.key(self.by)
            if amount and excess.get(team, 0.0) > QUOTA_TOLERANCE:
                excess[team] -= amount
                if self.max_preemptions is None or self.preemptions[task.name] < self.max_preemptions:
                    borrowing.append(task)
        return borrowing

    def excess(self, user: str, unit: Unit = ()) -> float:
        """Return by how much a team with an additional unit would exceed its quota, in whole units."""
        demand = sum(task.demand.get(self.resource, 0) for task in unit)
        held = self.queue.used.get(user, {}).get(self.resource, 0)
        return (held + demand) / MILLI - self.quotas.get(user, 0.0)


@dataclass(slots=True)
class Limit:
    """Concurrency limits and licences: a group runs at most ``most`` tasks at a time in the whole cluster.

    Attributes:
        most: Number of licences of each group.
        by: Task field that names the group; empty makes one group of all tasks.
        jobs: Only these jobs need licences; empty means all.
        name: Prefix of the licences' name.
    """

    most: int
    by: str = "job"
    jobs: tuple[str, ...] = ()
    name: str = "limit"
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED})

    def request(self, task: Task) -> Iterable[Ask]:
        """Request one licence."""
        if self.jobs and task.job not in self.jobs:
            return []
        return [Ask(f"{self.name}-{self.by}-{task.key(self.by)}", gated=True, counted=True)]

    def react(self, event: Event, view: View) -> Transactions:
        """Create a group's licences when its first task is submitted."""
        del view
        yield [Put(ask.name, amount=self.most) for ask in self.request(event.task)] if event.task is not None else []
