"""Cores that local replicas keep to: each has one of its own, until there are more replicas than cores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from unfoldkit.api import fail


# not frozen: it follows replicas that come and go
@dataclass(slots=True)
class Cores:
    """The numbers of some cores, and how many replicas keep to each."""

    numbers: Sequence[int]
    counts: dict[int, int] = field(default_factory=dict)

    def take(self) -> int:
        """Return the core with the fewest replicas, the first of several, and count one more there."""
        core = min(self.numbers, key=lambda number: self.counts.get(number, 0))
        self.counts[core] = self.counts.get(core, 0) + 1
        return core

    def give_back(self, core: int) -> None:
        """Count one replica less on a core."""
        self.counts[core] -= 1


def of_this_machine() -> Cores:
    """Return the cores that this process may use.

    Raises:
        UnfoldError: the system does not let a process keep to a core.
    """
    if not hasattr(os, "sched_setaffinity"):
        hint = "leave pin out: Linux can"
        raise fail("on this system a process cannot keep to a core", key="placement.pin", hint=hint)
    return Cores(sorted(os.sched_getaffinity(0)))


def keep_to(process: int | None, core: int) -> None:
    """Let a process run on one core only; one that is not there, or no longer, is none's concern here."""
    if process is None:
        # 0 would be this process
        return
    with contextlib.suppress(ProcessLookupError):
        os.sched_setaffinity(process, {core})


def dealt(replicas: Sequence[int], cores: int) -> list[tuple[int, ...]]:
    """Return the core, from 0, of each replica of each stage of a plan, as the running pipeline deals them."""
    machine = Cores(range(cores))
    return [tuple(machine.take() for _ in range(count)) for count in replicas]
