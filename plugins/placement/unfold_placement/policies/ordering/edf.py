"""Earliest deadline first (Liu and Layland, 1973), with a test at admission."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import QUEUE, SUBMITTED, Ask, Event, Refuse, Task, Transactions
from unfold_placement.core.view import Unit, View
from unfold_placement.policies.ordering.barrier import done
from unfold_placement.policies.shared.fair_queue import EVENTS, AdmissionQueue


def _rank(unit: Unit) -> tuple[float, float]:
    return unit[0].deadline, unit[0].arrival


@dataclass(slots=True)
class Edf:
    """The unit whose deadline is nearest is next; with ``admit`` one that cannot be on time is refused as it comes."""

    admit: bool = True
    backfill: bool = False
    queue: AdmissionQueue = field(default_factory=lambda: AdmissionQueue("name", _rank))
    refused: set[str] = field(default_factory=set)
    phase: ClassVar[int] = QUEUE
    watches: ClassVar[frozenset[str]] = EVENTS

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask for a turn."""
        return self.queue.request(task)

    def react(self, event: Event, view: View) -> Transactions:
        """Refuse what comes too late, then give turns by deadline."""
        if self.queue.observe(event, view):
            yield from self.queue.admit(lambda _, unit: _rank(unit), view, backfill=self.backfill)
        unit = view.unit(event.task) if event.task is not None and event.kind == SUBMITTED else None
        if unit and self.admit and (why := self.against(unit, view)):
            self.queue.leave(unit[0].name)
            yield [Refuse(task.name, why) for task in unit]
            yield from self.after(unit[0].job, view)
        elif unit and len(unit) >= unit[0].size:
            # a job that was refused came again
            self.refused.discard(unit[0].job)

    def against(self, unit: Unit, view: View) -> str:
        """Return why a unit is not admitted, the empty text if it is."""
        before = [
            job for task in unit for job in task.after if job in self.refused and done(job) in view.table.name_ids
        ]
        if before:
            return f"it comes after {before[0]}, which was refused"
        late = self.late(unit, view)
        return f"the work due by {late:g} s does not fit before it" if late else ""

    def after(self, job: str, view: View) -> Transactions:
        """Refuse what waits for the end of a job that was refused, and what comes after that."""
        self.refused.add(job)
        waiting = self.queue.iter_waiting() if done(job) in view.table.name_ids else ()
        bound = [task for task in waiting if job in task.after and view.is_waiting(task)]
        yield [Refuse(task.name, f"it comes after {job}, which was refused") for task in bound]
        for later in dict.fromkeys(task.job for task in bound if task.job not in self.refused):
            yield from self.after(later, view)

    def late(self, unit: Unit, view: View) -> float:
        """Return the first deadline before which the work due does not fit, or 0 (the processor demand test)."""
        known: dict[str, float] = {}
        if alone := [
            t.deadline for t in unit if self.opens(t, view, known) + view.shortest_run_s(t) > t.deadline + 1e-9
        ]:
            return min(alone)
        if all(math.isinf(task.deadline) for task in unit):
            return 0.0
        # what was taken back stays in line until its turn
        return view.first_overload_s(
            [t for t in self.queue.iter_waiting() if math.isfinite(t.deadline) and view.is_waiting(t)]
        )

    def opens(self, task: Task, view: View, known: dict[str, float]) -> float:
        """Return the earliest time at which a task can start: now, or as the stages before it can have ended."""
        before = [job for job in task.after if done(job) in view.table.name_ids]
        return max([view.now, *(self.ends(job, view, known) for job in before)])

    def ends(self, job: str, view: View, known: dict[str, float]) -> float:
        """Return the earliest time at which what waits and runs of a job can have ended; ``known`` keeps it."""
        if job not in known:
            known[job] = view.now
            runs = [
                start + task.run_seconds(view.node(node)) for task, node, start in view.running() if task.job == job
            ]
            waits = [task for task in self.queue.iter_waiting() if task.job == job and view.is_waiting(task)]
            ends = [self.opens(task, view, known) + view.shortest_run_s(task) for task in waits]
            known[job] = max([view.now, *runs, *ends])
        return known[job]
