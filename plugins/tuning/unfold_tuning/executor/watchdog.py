"""Trials of which nothing is heard: a function that hangs would hold its node for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

LEAST = 60.0
TIMES = 10.0
"""So many times as long as expected, and ``LEAST`` seconds, must a trial be quiet before that is told."""
STRANGE = "trial %d has come to no checkpoint for %s (expected: %s); trainable.timeout ends such trials"


@dataclass(slots=True)
class Quiet:
    """When each running trial was heard of last, by a clock that nobody sets; ``ended`` says why one was ended."""

    clock: Callable[[], float] = time.monotonic
    since: dict[int, float] = field(default_factory=dict)
    told: set[int] = field(default_factory=set)
    ended: dict[int, str] = field(default_factory=dict)

    def heard(self, trial: int) -> None:
        """Note that a trial has started or come to a checkpoint."""
        self.since[trial] = self.clock()
        self.told.discard(trial)

    def waited(self, trial: int) -> float:
        """Return the seconds since a trial was heard of; of one that does not run, or is being ended, none."""
        running = trial in self.since and trial not in self.ended
        return self.clock() - self.since[trial] if running else 0.0

    def left(self, trial: int) -> str:
        """Forget a trial that runs no longer, and return why it was ended, if it was."""
        self.since.pop(trial, None)
        self.told.discard(trial)
        return self.ended.pop(trial, "")

    def strange(self, trial: int, expected: float) -> bool:
        """Whether to tell, once, that a trial is quiet for much longer than the ``expected`` seconds."""
        found = trial not in self.told and self.waited(trial) > max(LEAST, TIMES * expected)
        self.told |= {trial} if found else set()
        return found
