"""Data locality with timed fallback (delay scheduling: Zaharia et al., EuroSys 2010): node, then rack, then any."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.types import (
    JOINED,
    PREEMPTED,
    STATIC,
    SUBMITTED,
    TIMER,
    Ask,
    Event,
    Put,
    Task,
    Transactions,
    Wake,
)
from unfold_placement.core.view import View


@dataclass(slots=True)
class Locality:
    """After ``rack_after`` seconds a node of the same rack will do, after ``any_after`` any; infinite means never."""

    rack_after: float = 10.0
    any_after: float = 30.0
    since: dict[str, tuple[Task, float]] = field(default_factory=dict)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({SUBMITTED, PREEMPTED, TIMER, JOINED})

    def request(self, task: Task) -> Iterable[Ask]:
        """Ask to be where the data is."""
        return [Ask(f"local-{task.name}", gated=True)] if task.data else []

    def react(self, event: Event, view: View) -> Transactions:
        """Put the name where the data is, and copies of it further away as time passes."""
        task = event.task
        if task is not None and task.data:
            self.since[task.name] = task, view.now
            finite = [delay for delay in (self.rack_after, self.any_after) if delay < float("inf")]
            yield [*self.near(task, 0.0, view), *(Wake(view.now + delay) for delay in finite)]
        for name, (waiting, since) in list(self.since.items()):
            if not view.is_waiting(waiting):
                del self.since[name]
            elif event.kind in {TIMER, JOINED}:
                yield self.near(waiting, view.now - since, view)

    def near(self, task: Task, waited: float, view: View) -> list[Put]:
        """Return the name on every node that is near enough by now."""
        own = [node for node in view.nodes if node.data.intersection(task.data)]
        racks = {node.labels.get("rack") for node in own} if waited >= self.rack_after else set()
        nodes = [n for n in view.nodes if waited >= self.any_after or n in own or n.labels.get("rack") in racks]
        return [Put(f"local-{task.name}", node.name, 1, until=task.name) for node in nodes]
