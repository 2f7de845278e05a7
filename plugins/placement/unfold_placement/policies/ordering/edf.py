"""Earliest deadline first (Liu and Layland, 1973), with an admission test."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.cluster_view import Unit, View
from unfold_placement.core.types import QUEUE, SUBMITTED, Ask, Event, Refuse, Task, Transactions, Wait
from unfold_placement.policies.ordering.barrier import completion_resource
from unfold_placement.policies.shared.admission_queue import QUEUE_EVENTS, RESERVE, AdmissionQueue

TIME_TOLERANCE_S = 1e-9


def _deadline_rank(unit: Unit) -> tuple[float, float]:
    return unit[0].deadline, unit[0].arrival


def _rank_deadline(_user: str, unit: Unit, _view: View) -> tuple[float, float]:
    return _deadline_rank(unit)


@dataclass(slots=True)
class Edf:
    """The unit with the nearest deadline is next.

    Attributes:
        admit: Reject units on submission that cannot be on time.
        backfill: Later deadlines may pass a unit that does not fit.
        guard: Where they may, nodes are reserved for the nearest deadline (``reserve``), or not (``none``).
        queue: The pending units, by deadline.
        rejected_jobs: Jobs with a rejected unit.
    """

    admit: bool = True
    backfill: bool = False
    guard: str = RESERVE
    queue: AdmissionQueue = field(default_factory=lambda: AdmissionQueue("name", _deadline_rank))
    rejected_jobs: set[str] = field(default_factory=set)
    phase: ClassVar[int] = QUEUE
    watches: ClassVar[frozenset[str]] = QUEUE_EVENTS

    def __post_init__(self) -> None:
        self.queue.guard = self.guard

    def request(self, task: Task) -> Iterable[Ask]:
        """Request the task's admission."""
        return self.queue.request(task)

    def react(self, event: Event, view: View) -> Transactions:
        """Admit units by deadline, and reject a submitted unit that cannot be on time."""
        if self.queue.observe(event, view):
            yield from self.queue.admit(_rank_deadline, view, backfill=self.backfill, guard_rank=_rank_deadline)
        unit = view.unit(event.task) if event.task is not None and event.kind == SUBMITTED else None
        if unit and self.admit and (reason := self.rejection_reason(unit, view)):
            self.queue.discard(unit, view)
            yield [Refuse(task.name, reason) for task in unit]
            yield from self.reject_dependents(unit[0].job, view)
        elif unit and len(unit) >= unit[0].size:
            # a rejected job was submitted again
            self.rejected_jobs.discard(unit[0].job)

    def describe_wait(self, task: Task, view: View) -> Wait | None:
        """Return why a task is not admitted; None if it is."""
        return self.queue.describe_wait(task, view)

    def rejection_reason(self, unit: Unit, view: View) -> str:
        """Return why a unit is rejected; empty if it is admitted."""
        rejected = [job for task in unit for job in task.after if job in self.rejected_jobs and _has_barrier(job, view)]
        if rejected:
            return f"it comes after {rejected[0]}, which was rejected"
        deadline_s = self.missed_deadline(unit, view)
        return f"the work due by {deadline_s:g} s does not fit before it" if deadline_s else ""

    def reject_dependents(self, job: str, view: View) -> Transactions:
        """Reject the waiting tasks that depend on a rejected job, and those that depend on them."""
        self.rejected_jobs.add(job)
        waiting = self.queue.iter_waiting() if _has_barrier(job, view) else ()
        dependents = [task for task in waiting if job in task.after and view.is_waiting(task)]
        yield [Refuse(task.name, f"it comes after {job}, which was rejected") for task in dependents]
        for later in dict.fromkeys(task.job for task in dependents if task.job not in self.rejected_jobs):
            yield from self.reject_dependents(later, view)

    def missed_deadline(self, unit: Unit, view: View) -> float:
        """Return the first deadline (s) that cannot be met with this unit, or 0.

        Each task is tested alone against its dependencies, then all work due by the processor demand test.
        """
        job_ends: dict[str, float] = {}
        missed = [
            task.deadline
            for task in unit
            if self.earliest_start(task, view, job_ends) + view.shortest_run_s(task) > task.deadline + TIME_TOLERANCE_S
        ]
        if missed:
            return min(missed)
        if all(math.isinf(task.deadline) for task in unit):
            return 0.0
        # withdrawn tasks stay in the queue until they are next
        waiting = [task for task in self.queue.iter_waiting() if math.isfinite(task.deadline) and view.is_waiting(task)]
        return view.first_overload_s(waiting)

    def earliest_start(self, task: Task, view: View, job_ends: dict[str, float]) -> float:
        """Return the earliest start (s) of a task: now, or when the jobs that it depends on can have ended."""
        dependencies = [job for job in task.after if _has_barrier(job, view)]
        return max([view.now, *(self.earliest_end(job, view, job_ends) for job in dependencies)])

    def earliest_end(self, job: str, view: View, job_ends: dict[str, float]) -> float:
        """Return the earliest time (s) at which a job can have ended; ``job_ends`` caches it."""
        if job not in job_ends:
            job_ends[job] = view.now
            running_ends = [
                start + task.run_seconds(view.node(node)) for task, node, start in view.running() if task.job == job
            ]
            waiting = [task for task in self.queue.iter_waiting() if task.job == job and view.is_waiting(task)]
            waiting_ends = [self.earliest_start(task, view, job_ends) + view.shortest_run_s(task) for task in waiting]
            job_ends[job] = max([view.now, *running_ends, *waiting_ends])
        return job_ends[job]


def _has_barrier(job: str, view: View) -> bool:
    """Return whether some task requests the end of a job, so that dependencies are enforced."""
    return completion_resource(job) in view.table.name_ids
