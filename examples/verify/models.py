"""Scheduling bugs of public projects as policies of a few lines each, for ``unfold check --verify --allow-code``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.cluster_view import Unit, View
from unfold_placement.core.types import (
    ENDED,
    MILLI,
    PREEMPTED,
    QUEUE,
    QUIET,
    SUBMITTED,
    Ask,
    Drop,
    Event,
    Put,
    Task,
    Transactions,
)
from unfold_placement.policies.shared.fair_queue import FairQueuePolicy


@dataclass(slots=True, kw_only=True)
class HeadReserves(FairQueuePolicy):
    """A pending head reserves what is left of its team's quota, although it does not fit (kueue issue 4809).

    The reservation is min(request, nominal - used), after kueue's pull request 1399.

    Attributes:
        nominal: Quota of each team in cores.
        total: Cores that teams share.
    """

    nominal: Mapping[str, float]
    total: float
    backfill: bool = True

    def rank(self, user: str, unit: Unit, view: View) -> float:
        """Return the team's dominant share."""
        del unit
        return self.queue.dominant_share(user, view)

    def admit_units(self, view: View) -> Transactions:
        """Admit units while used and reserved cores leave room."""
        yield from self.queue.admit(self.rank, view, backfill=True, is_allowed=self.is_allowed)

    def is_allowed(self, user: str, unit: Unit) -> bool:
        """Return whether a team may start a unit beside what the other teams' heads reserve."""
        used = sum(amounts.get("cpu", 0) for amounts in self.queue.used.values()) / MILLI
        others = [name for name in self.queue.waiting_users() if name != user]
        reserved = sum(self.head_reservation(name) for name in others)
        return used + reserved + _cores(unit) <= self.total

    def head_reservation(self, user: str) -> float:
        """Return the cores that a team's first pending unit reserves."""
        used = self.queue.used.get(user, {}).get("cpu", 0) / MILLI
        return min(_cores(self.queue.first_unit(user)), max(0.0, self.nominal.get(user, 0.0) - used))


@dataclass(slots=True, kw_only=True)
class TwoLists:
    """Keeps the waiting and the admitted tasks.

    Attributes:
        waiting: Waiting tasks in order of age.
        admitted: Admitted tasks.
    """

    waiting: dict[str, Task] = field(default_factory=dict)
    admitted: dict[str, Task] = field(default_factory=dict)
    phase: ClassVar[int] = QUEUE
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED, ENDED, QUIET})

    def request(self, task: Task) -> Iterable[Ask]:
        """Request admission."""
        return [Ask(f"turn-{task.name}", gated=True)]

    def react(self, event: Event, view: View) -> Transactions:
        """Record arrivals and ends; admit tasks once all events of an instant are known."""
        if event.task is None:
            yield from self.admit(view)
        elif event.kind == SUBMITTED:
            self.waiting[event.task.name] = event.task
        else:
            self.admitted.pop(event.task.name, None)

    def admit(self, view: View) -> Transactions:
        """Admit waiting tasks."""
        raise NotImplementedError

    def admit_task(self, task: Task) -> Put:
        """Move a task to the admitted ones."""
        self.admitted[task.name] = self.waiting.pop(task.name)
        return Put(f"turn-{task.name}", until=task.name)


@dataclass(slots=True, kw_only=True)
class AgePreempt(TwoLists):
    """Preempts by priority and admits by age, so that the victim comes back at once (kueue issue 2821).

    Attributes:
        by_priority: Admit by priority too; then the model has no bug.
    """

    by_priority: bool = False

    def admit(self, view: View) -> Transactions:
        """Admit what fits; preempt a lower class for a task that does not."""
        while admitted := self._next(view):
            yield [self.admit_task(admitted)]
            if not view.is_running(admitted):
                return
            for task in list(self.waiting.values()):
                victims = [other for other in self.admitted.values() if other.priority < task.priority]
                if view.room([task], QUEUE) is None and victims:
                    self.waiting[victims[0].name] = self.admitted.pop(victims[0].name)
                    self.waiting = dict(sorted(self.waiting.items(), key=lambda item: view.table.task_rows[item[0]]))
                    yield [Drop(f"turn-{victims[0].name}", force=True)]
                    break

    def _next(self, view: View) -> Task | None:
        fitting = [task for task in self.waiting.values() if view.room([task], QUEUE) is not None]
        if self.by_priority:
            fitting.sort(key=lambda task: -task.priority)
        return fitting[0] if fitting else None


@dataclass(slots=True, kw_only=True)
class InqueueAccount(TwoLists):
    """Counts jobs that no node can hold as in the queue, so that later ones never enter it (volcano issue 4471).

    Attributes:
        capability: Cores of the queue.
        counts_inqueue: Count admitted jobs that do not run; without it the model has no bug.
    """

    capability: float
    counts_inqueue: bool = True

    def admit(self, view: View) -> Transactions:
        """Let jobs into the queue while allocated + inqueue + need <= capability."""
        for task in list(self.waiting.values()):
            counted = [other for other in self.admitted.values() if self.counts_inqueue or view.is_running(other)]
            if _cores(counted) + _cores([task]) <= self.capability:
                yield [self.admit_task(task)]


@dataclass(slots=True, kw_only=True)
class CountsAtStart(TwoLists):
    """Counts the members of a gang only when it starts, and serves the job that holds least (volcano issue 5805).

    A member that lost its node then waits behind every job that holds nothing, while the rest of its gang runs.
    """

    watches: ClassVar[frozenset[str]] = TwoLists.watches | {PREEMPTED}
    gathers: ClassVar[str] = "job"

    def react(self, event: Event, view: View) -> Transactions:
        """Let a task that lost its node wait again; the rest as in every queue."""
        if event.task is not None and event.kind == PREEMPTED:
            self.waiting[event.task.name] = self.admitted.pop(event.task.name)
        else:
            yield from TwoLists.react(self, event, view)

    def admit(self, view: View) -> Transactions:
        """Start what waits of a job, as soon as it makes the gang whole."""
        while unit := self._next_unit(view):
            yield [self.admit_task(task) for task in unit]

    def _next_unit(self, view: View) -> list[Task]:
        waiting: dict[str, list[Task]] = {}
        for task in self.waiting.values():
            waiting.setdefault(task.job, []).append(task)
        held = Counter(task.job for task in self.admitted.values())
        for job, unit in sorted(waiting.items(), key=lambda item: held[item[0]]):
            if held[job] + len(unit) == unit[0].size and view.room(unit, QUEUE) is not None:
                return unit
        return []


def _cores(tasks: Iterable[Task]) -> float:
    return sum(task.demand.get("cpu", 0) for task in tasks) / MILLI
