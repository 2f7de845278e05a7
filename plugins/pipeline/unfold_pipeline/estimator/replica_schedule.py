"""Replica counts in time: what a rule asks for, what it makes of the stages, and what is paid for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from unfoldkit.queueing.stage import Schedule

Counts = NDArray[np.int64]
TICK = 1.0
Number = TypeVar("Number", Counts, NDArray[np.float64])


@dataclass(frozen=True, slots=True)
class Step:
    """Replicas and largest batch of each stage at one instant, as asked for or as seen."""

    counts: tuple[int, ...]
    batches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Targets:
    """What a rule asks for: replicas of each stage, second by second, and its largest batch (none: as planned)."""

    counts: tuple[Counts, ...]
    batches: tuple[Counts, ...] = ()


@dataclass(slots=True)
class Ledger:
    """The orders of one stage: replicas that serve, replicas on their way, and the seconds that are paid.

    ``history`` is how many were ordered, from when on, after the first order; ``sizes`` the largest batch from times
    on, which changes at once.
    A replica is paid from its order on; one that is taken away stops being paid when its batch has ended. Replicas on
    their way are taken back first, the youngest first.
    """

    active: int
    delay: float
    pending: list[tuple[float, int]] = field(default_factory=list)
    changes: list[tuple[float, int]] = field(default_factory=list)
    paid: float = 0.0
    since: float = 0.0
    orders: int = 0
    history: list[tuple[float, int]] = field(default_factory=list)
    sizes: list[tuple[float, int]] = field(default_factory=list)

    @property
    def ordered(self) -> int:
        """Replicas that serve or are on their way."""
        return self.active + sum(count for _, count in self.pending)

    def settle(self, now: float) -> None:
        """Take in what has come to serve until ``now``, and pay until then."""
        self.paid += self.ordered * (now - self.since)
        self.since = now
        while self.pending and self.pending[0][0] <= now:
            self.active += self.pending.pop(0)[1]

    def want(self, now: float, count: int) -> None:
        """Order replicas, or take some away, so that there will be ``count``, at least one."""
        self.settle(now)
        missing = max(1, count) - self.ordered
        if missing:
            self.orders += 1
        if missing > 0:
            self.pending.append((now + self.delay, missing))
            self.changes.append((now + self.delay, missing))
        elif missing < 0:
            self._remove(now, -missing)
        if missing:
            self.history.append((now, self.ordered))

    def rows(self) -> list[tuple[float, int, int]]:
        """Return the changes: time, replicas more, largest batch from then on (0: as before)."""
        changes = [(time, change, 0) for time, change in self.changes] + [(time, 0, size) for time, size in self.sizes]
        return sorted(changes, key=lambda row: row[0])

    def schedule(self) -> Schedule:
        """Return the changes as the queueing model takes them."""
        rows = self.rows()
        more, largest = (np.array([row[place] for row in rows], dtype=np.int64) for place in (1, 2))
        return Schedule(np.array([time for time, *_ in rows]), more, largest)

    def largest(self, first: int) -> int:
        """Return the largest batch that there ever is, of ``first`` and those that came later."""
        return max([first, *(size for _, size in self.sizes)])

    def _remove(self, now: float, count: int) -> None:
        while count and self.pending:
            time, coming = self.pending.pop()
            taken = min(count, coming)
            place = len(self.changes) - 1 - self.changes[::-1].index((time, coming))
            self.changes.pop(place)
            if coming > taken:
                self.pending.append((time, coming - taken))
                self.changes.insert(place, (time, coming - taken))
            count -= taken
        if count:
            self.active -= count
            place = sum(1 for time, _ in self.changes if time <= now)
            self.changes.insert(place, (now, -count))


def carried_out(start: int, targets: Counts, delay: float, end: float, sizes: Counts | None = None) -> Ledger:
    """Return the ledger of a stage whose rule asks for ``targets[i]`` replicas at second ``i``, paid until ``end``.

    ``sizes[i]`` is its largest batch from then on.
    """
    ledger = Ledger(start, delay)
    steps = np.flatnonzero(np.diff(targets, prepend=start))
    for step in steps:
        if step * TICK < end:
            ledger.want(step * TICK, int(targets[step]))
    if sizes is not None:
        ledger.sizes = [(step * TICK, int(sizes[step])) for step in np.flatnonzero(np.diff(sizes, prepend=0))]
    ledger.settle(end)
    return ledger


def as_seen(start: int, seen: Sequence[tuple[float, Step]], stage: int, end: float) -> Ledger:
    """Return the ledger of a stage that served with the replicas and batches ``seen`` from each time on."""
    ledger = Ledger(start, 0.0)
    for time, step in seen:
        if 0.0 <= time < end:
            ledger.want(time, step.counts[stage])
            ledger.sizes.append((time, step.batches[stage]))
    ledger.settle(end)
    return ledger


def rented(starts: Sequence[int], ledgers: Sequence[Ledger], shared: int, end: float) -> float:
    """Return the seconds of whole instances, ``shared`` replicas on each, that stages rent together until ``end``."""
    known = [
        (np.array([0.0, *(time for time, _ in item.history)]), np.array([count, *(n for _, n in item.history)]))
        for count, item in zip(starts, ledgers, strict=True)
    ]
    moments = np.unique(np.concatenate([times for times, _ in known]))
    moments = moments[moments < end]
    used = np.sum([counts[np.searchsorted(times, moments, "right") - 1] for times, counts in known], axis=0)
    return float(np.sum(-(-used // shared) * np.diff(moments, append=end)))


def held(targets: Number, hold: float, before: float) -> Number:
    """Return the largest of the targets of the last ``hold`` seconds, at each second: removal only after a lull.

    ``before`` is the target of the time before the trace, of which the rule has seen nothing.
    """
    width = max(1, round(hold / TICK))
    padded = np.concatenate([np.full(width - 1, before, dtype=targets.dtype), targets])
    result: Number = np.lib.stride_tricks.sliding_window_view(padded, width).max(axis=1)
    return result


def timeline(start: int, ledger: Ledger, end: float) -> tuple[Sequence[float], Sequence[float]]:
    """Return times and counts of the replicas that serve."""
    times, counts = [0.0], [float(start)]
    for time, change in ledger.changes:
        if time <= end:
            times.append(time)
            counts.append(counts[-1] + change)
    return [*times, end], [*counts, counts[-1]]
