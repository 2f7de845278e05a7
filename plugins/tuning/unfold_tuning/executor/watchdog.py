"""Watches for trials without progress: a function that hangs would hold its node for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

MIN_SILENCE_S = 60.0
SILENCE_FACTOR = 10.0
"""A trial is suspicious after this many times its expected time to a checkpoint, and ``MIN_SILENCE_S`` seconds."""


@dataclass(slots=True)
class Watchdog:
    """The last progress of each running trial.

    Attributes:
        clock: A monotonic clock.
        last_progress: When each running trial started or reached its last checkpoint.
        warned: Suspicious trials since their last checkpoint.
        kill_reasons: Why trials were killed, until they are stopped.
    """

    clock: Callable[[], float] = time.monotonic
    last_progress: dict[int, float] = field(default_factory=dict)
    warned: set[int] = field(default_factory=set)
    kill_reasons: dict[int, str] = field(default_factory=dict)

    def record_progress(self, trial: int) -> None:
        """Record that a trial has started or reached a checkpoint."""
        self.last_progress[trial] = self.clock()
        self.warned.discard(trial)

    def measure_silence_s(self, trial: int) -> float:
        """Return the seconds since a trial's last progress; 0 if it does not run or is being killed."""
        is_running = trial in self.last_progress and trial not in self.kill_reasons
        return self.clock() - self.last_progress[trial] if is_running else 0.0

    def forget(self, trial: int) -> str:
        """Forget a trial that no longer runs, and return why it was killed, if it was."""
        self.last_progress.pop(trial, None)
        self.warned.discard(trial)
        return self.kill_reasons.pop(trial, "")

    def is_newly_suspicious(self, trial: int, expected_s: float) -> bool:
        """Return, once per checkpoint, whether a trial takes much longer than the expected seconds."""
        is_silent = self.measure_silence_s(trial) > max(MIN_SILENCE_S, SILENCE_FACTOR * expected_s)
        if not is_silent or trial in self.warned:
            return False
        self.warned.add(trial)
        return True
