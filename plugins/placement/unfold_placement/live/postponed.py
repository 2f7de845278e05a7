"""Tasks that the cluster could not start, as it had no node or refused them: each is kept back longer each time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from unfold_placement.core.cluster_view import View
from unfold_placement.core.types import ANYWHERE, BEGAN, STATIC, TIMER, Ask, Event, Put, Task, Transactions, Wait, Wake

MAX_DELAY_S = 120.0


@dataclass(frozen=True, slots=True)
class Postponement:
    """A task that is tried again later.

    Attributes:
        reason: What the cluster said.
        until_s: When it is tried again.
        tries: How often it was tried before.
    """

    reason: str
    until_s: float
    tries: int = 1


def postpone(previous: Postponement | None, reason: str, now_s: float, delay_s: float) -> Postponement:
    """Postpone a task: not at all at first, since others may have taken its room, then twice as long each time.

    Args:
        previous: How it was postponed before.
        reason: What the cluster said.
        now_s: The current time in seconds.
        delay_s: Half of the first delay in seconds.
    """
    tries = previous.tries if previous is not None else 0
    delay_s = min(MAX_DELAY_S, delay_s * 2 ** min(tries, 30)) if tries else 0.0
    return Postponement(reason, now_s + delay_s, tries + 1)


@dataclass(slots=True)
class Postponed:
    """A task that the cluster could not start leaves its room to others until it is tried again.

    No other is preempted for it: it would be stopped in vain at every try.

    Attributes:
        tasks: The tasks that are or were postponed, by name.
        released: Those that may be tried again.
    """

    tasks: Mapping[str, Postponement]
    released: set[str] = field(default_factory=set)
    phase: ClassVar[int] = STATIC
    watches: ClassVar[frozenset[str]] = frozenset({BEGAN, TIMER})

    @property
    def never_preempt(self) -> Iterable[str]:
        """The tasks for which no other is preempted."""
        return self.tasks

    def request(self, task: Task) -> Iterable[Ask]:
        """Request the next try."""
        return [Ask(_retry_name(task.name), gated=True)] if task.name in self.tasks else []

    def react(self, event: Event, view: View) -> Transactions:
        """Release the tasks that are due."""
        if event.kind == BEGAN:
            yield [Wake(item.until_s) for item in self.tasks.values() if item.until_s > view.now]
        due = [name for name, item in self.tasks.items() if item.until_s <= view.now and name not in self.released]
        self.released.update(due)
        yield [Put(_retry_name(name), ANYWHERE, 1) for name in due]

    def describe_wait(self, task: Task, view: View) -> Wait | None:
        """Repeat what the cluster said."""
        item = self.tasks.get(task.name)
        if item is None or task.name in self.released:
            return None
        return Wait(f"is tried again in {item.until_s - view.now:.0f} s: {item.reason}")


def _retry_name(task: str) -> str:
    return f"kube-scheduler: next try of {task}"
