"""Replica schedules: the counts that a scaling rule orders over time, what serves, and what is billed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfoldkit.queueing.stage import Schedule

TICK_S = 1.0
Number = TypeVar("Number", CountArray, FloatArray)


@dataclass(frozen=True, slots=True)
class ScalingState:
    """Replicas and maximum batch size of each stage at one instant, as ordered or as observed."""

    replicas: tuple[int, ...]
    batches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ScalingTargets:
    """What a scaling rule asks for, per stage and second: replicas, and batch sizes unless they stay as planned."""

    replicas: tuple[CountArray, ...]
    batches: tuple[CountArray, ...] = ()


class ScheduleChange(NamedTuple):
    """A change of a stage: time in seconds, replicas added, and the maximum batch from then on (0: unchanged)."""

    time_s: float
    added: int
    max_batch: int


@dataclass(slots=True)
class ReplicaSchedule:
    """The replicas of one stage over time.

    A replica is billed from its order on. A removed replica is billed until its batch completes. Starting replicas are
    cancelled first, the youngest first.

    Attributes:
        serving: Replicas that serve.
        delay_s: From ordering a replica until it serves.
        starting: Time from which on ordered replicas will serve, and their number.
        changes: Time and change of the serving replicas.
        billed_s: Replica seconds billed so far.
        settled_s: Time up to which the schedule is settled.
        orders: Number of orders.
        history: Time of each order, and the replicas ordered in total from then on.
        batch_sizes: Maximum batch sizes from times on; they change at once.
    """

    serving: int
    delay_s: float
    starting: list[tuple[float, int]] = field(default_factory=list)
    changes: list[tuple[float, int]] = field(default_factory=list)
    billed_s: float = 0.0
    settled_s: float = 0.0
    orders: int = 0
    history: list[tuple[float, int]] = field(default_factory=list)
    batch_sizes: list[tuple[float, int]] = field(default_factory=list)

    @property
    def ordered(self) -> int:
        """Replicas that serve or are starting."""
        return self.serving + sum(count for _, count in self.starting)

    def settle_until(self, now_s: float) -> None:
        """Bill until ``now_s`` and count replicas that serve by then."""
        self.billed_s += self.ordered * (now_s - self.settled_s)
        self.settled_s = now_s
        while self.starting and self.starting[0][0] <= now_s:
            self.serving += self.starting.pop(0)[1]

    def set_target(self, now_s: float, count: int) -> None:
        """Order or remove replicas, so that there will be ``count``, at least one."""
        self.settle_until(now_s)
        missing = max(1, count) - self.ordered
        if missing:
            self.orders += 1
        if missing > 0:
            self.starting.append((now_s + self.delay_s, missing))
            self.changes.append((now_s + self.delay_s, missing))
        elif missing < 0:
            self._remove_replicas(now_s, -missing)
        if missing:
            self.history.append((now_s, self.ordered))

    def list_changes(self) -> list[ScheduleChange]:
        """Return the changes of replicas and batch sizes in order of time."""
        changes = [ScheduleChange(time_s, change, 0) for time_s, change in self.changes]
        changes += [ScheduleChange(time_s, 0, size) for time_s, size in self.batch_sizes]
        return sorted(changes, key=lambda change: change.time_s)

    def to_queue_schedule(self) -> Schedule:
        """Return the changes as the queueing model takes them."""
        changes = self.list_changes()
        return Schedule(
            np.array([change.time_s for change in changes]),
            np.array([change.added for change in changes], dtype=np.int64),
            np.array([change.max_batch for change in changes], dtype=np.int64),
        )

    def max_batch(self, planned: int) -> int:
        """Return the largest batch size over the whole time, which begins with ``planned``."""
        return max([planned, *(size for _, size in self.batch_sizes)])

    def _remove_replicas(self, now_s: float, count: int) -> None:
        while count and self.starting:
            time_s, coming = self.starting.pop()
            cancelled = min(count, coming)
            position = len(self.changes) - 1 - self.changes[::-1].index((time_s, coming))
            self.changes.pop(position)
            if coming > cancelled:
                self.starting.append((time_s, coming - cancelled))
                self.changes.insert(position, (time_s, coming - cancelled))
            count -= cancelled
        if count:
            self.serving -= count
            position = sum(1 for time_s, _ in self.changes if time_s <= now_s)
            self.changes.insert(position, (now_s, -count))


def build_target_schedule(
    start: int, targets: CountArray, delay_s: float, end_s: float, batch_sizes: CountArray | None = None
) -> ReplicaSchedule:
    """Return the schedule of a stage under the targets of a rule, billed until ``end_s``.

    Args:
        start: Replicas before the first second.
        targets: Replicas that the rule asks for at each second, shape (seconds,).
        delay_s: From ordering a replica until it serves.
        end_s: End of the trace in seconds.
        batch_sizes: Maximum batch size from each second on, shape (seconds,).
    """
    schedule = ReplicaSchedule(start, delay_s)
    for tick in np.flatnonzero(np.diff(targets, prepend=start)):
        if tick * TICK_S < end_s:
            schedule.set_target(tick * TICK_S, int(targets[tick]))
    if batch_sizes is not None:
        ticks = np.flatnonzero(np.diff(batch_sizes, prepend=0))
        schedule.batch_sizes = [(tick * TICK_S, int(batch_sizes[tick])) for tick in ticks]
    schedule.settle_until(end_s)
    return schedule


def build_observed_schedule(
    start: int, observed: Sequence[tuple[float, ScalingState]], stage: int, end_s: float
) -> ReplicaSchedule:
    """Return the schedule of a stage that served with the replicas and batch sizes ``observed`` from each time on."""
    schedule = ReplicaSchedule(start, 0.0)
    for time_s, state in observed:
        if 0.0 <= time_s < end_s:
            schedule.set_target(time_s, state.replicas[stage])
            schedule.batch_sizes.append((time_s, state.batches[stage]))
    schedule.settle_until(end_s)
    return schedule


def compute_instance_seconds(
    starts: Sequence[int], schedules: Sequence[ReplicaSchedule], replicas_per_instance: int, end_s: float
) -> float:
    """Return the seconds of whole instances that stages on one hardware rent together until ``end_s``."""
    histories = [
        (
            np.array([0.0, *(time_s for time_s, _ in schedule.history)]),
            np.array([start, *(count for _, count in schedule.history)]),
        )
        for start, schedule in zip(starts, schedules, strict=True)
    ]
    moments = np.unique(np.concatenate([times for times, _ in histories]))
    moments = moments[moments < end_s]
    used = np.sum([counts[np.searchsorted(times, moments, "right") - 1] for times, counts in histories], axis=0)
    return float(np.sum(-(-used // replicas_per_instance) * np.diff(moments, append=end_s)))


def hold_maximum(targets: Number, hold_s: float, initial: float) -> Number:
    """Return the maximum of the targets of the last ``hold_s`` seconds, at each second: removal only after a lull.

    ``initial`` is the target before the trace, when the rule has observed nothing.
    """
    width = max(1, round(hold_s / TICK_S))
    padded = np.concatenate([np.full(width - 1, initial, dtype=targets.dtype), targets])
    result: Number = np.lib.stride_tricks.sliding_window_view(padded, width).max(axis=1)
    return result


def list_serving_counts(start: int, schedule: ReplicaSchedule, end_s: float) -> tuple[Sequence[float], Sequence[float]]:
    """Return the times and the counts of the replicas that serve, for a step plot."""
    times, counts = [0.0], [float(start)]
    for time_s, change in schedule.changes:
        if time_s <= end_s:
            times.append(time_s)
            counts.append(counts[-1] + change)
    return [*times, end_s], [*counts, counts[-1]]
