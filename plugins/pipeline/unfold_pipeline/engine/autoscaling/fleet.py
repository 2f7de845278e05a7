"""States of engines that are started, drained and stopped: one set of rules for a simulated and for a running fleet."""

from __future__ import annotations

import numpy as np

from unfold_pipeline._types import CountArray

OFF, STARTING, ACTIVE, DRAINING = range(4)
STATE_NAMES = ("off", "starting", "active", "draining")


class Fleet:
    """The engines of a stage, simulated or running, and the state of each.

    Attributes:
        states: (slots,) state of each engine.
        ready_s: (slots,) when each engine that starts will serve.
        start_s: From ordering an engine until it serves; infinite for running engines, which report it themselves.
    """

    def __init__(self, slots: int, first: int, start_s: float) -> None:
        self.states = np.array([ACTIVE] * first + [OFF] * (slots - first))
        self.ready_s = np.zeros(slots)
        self.start_s = start_s

    def count_ordered(self) -> int:
        """Return the engines that take requests or start."""
        return int(((self.states == ACTIVE) | (self.states == STARTING)).sum())

    def update(self, now_s: float, unfinished: CountArray) -> None:
        """Let started engines take requests, and stop drained ones."""
        self.states[(self.states == STARTING) & (self.ready_s <= now_s)] = ACTIVE
        self.states[(self.states == DRAINING) & (unfinished == 0)] = OFF

    def scale(self, wanted: int, now_s: float, unfinished: CountArray) -> None:
        """Order engines or drain some: draining ones return first, starting ones are cancelled first."""
        present = self.count_ordered()
        for engine in np.flatnonzero(self.states == DRAINING)[: max(0, wanted - present)]:
            self.states[engine] = ACTIVE
            present += 1
        for engine in np.flatnonzero(self.states == OFF)[: max(0, wanted - present)]:
            self.states[engine], self.ready_s[engine] = STARTING, now_s + self.start_s
            present += 1
        for engine in np.flatnonzero(self.states == STARTING)[::-1][: max(0, present - wanted)]:
            self.states[engine] = OFF
            present -= 1
        active = np.flatnonzero(self.states == ACTIVE)
        spare = min(max(0, present - wanted), active.size - 1)
        for engine in active[np.argsort(unfinished[active], kind="stable")][:spare]:
            self.states[engine] = DRAINING
