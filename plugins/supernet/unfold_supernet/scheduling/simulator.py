"""Replay of a trace under one deadline: simulated from profiled latencies, or measured on running subnets."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_supernet._types import BoolArray, FloatArray, IntArray
from unfold_supernet.scheduling.policies import Policy, SubnetProfile

RunBatch = Callable[[int, int, int], None]
"""Run the subnet with an index on the requests from ``start`` to ``stop``."""
WAKE_EARLY_S = 0.0005
"""Busy-wait this long before an arrival: timers wake up too late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOutcome:
    """What happened to each request of a trace.

    Attributes:
        subnet: Index of the subnet that served the request; -1 if it was dropped.
        in_time: Whether it was served by its deadline.
        batches: Number of batches.
        switches: Number of model switches.
        batch_size: Size of the request's batch; 0 if it was dropped.
        accurate_enough: Whether the subnet reached the request's minimum accuracy; set if requests have one.
    """

    subnet: IntArray
    in_time: BoolArray
    batches: int
    switches: int
    batch_size: IntArray
    accurate_enough: BoolArray | None = None

    @property
    def satisfied_fraction(self) -> float:
        """Fraction of the requests that met all their targets: in time, and by a sufficiently accurate subnet."""
        met = self.in_time if self.accurate_enough is None else self.in_time & self.accurate_enough
        return float(met.mean())

    @property
    def attainment(self) -> float:
        """Fraction of the requests served in time."""
        return float(self.in_time.mean())

    def compute_accuracy(self, profiles: Sequence[SubnetProfile]) -> float:
        """Compute the mean accuracy, in percent, of the subnets over the requests served in time."""
        if not self.in_time.any():
            return 0.0
        return float(np.array([profile.accuracy for profile in profiles])[self.subnet[self.in_time]].mean())

    def count_usage(self, profiles: Sequence[SubnetProfile]) -> dict[str, float]:
        """Compute the fraction of the served requests by subnet, unused subnets left out."""
        counts = np.bincount(self.subnet[self.subnet >= 0], minlength=len(profiles))
        return {
            profile.name: float(count / counts.sum()) for profile, count in zip(profiles, counts, strict=True) if count
        }


def simulate_trace(
    arrivals: FloatArray, slo: float, profiles: Sequence[SubnetProfile], policy: Policy, switch_s: float = 0.0
) -> ReplayOutcome:
    """Simulate a trace on one server.

    All requests have the same deadline, so arrival order is deadline order.

    Args:
        arrivals: Arrival times in seconds, ascending.
        slo: Deadline in seconds from arrival.
        profiles: The subnets.
        policy: The scheduling policy.
        switch_s: Cost of a model switch, in seconds.
    """
    outcome = _Recorder(arrivals, slo)
    now, head, times = 0.0, 0, arrivals.tolist()
    while head < len(times):
        now = max(now, times[head])
        queue_length = bisect_right(times, now, head) - head
        choice = policy(times[head] + slo - now, queue_length)
        if choice is None:
            head += 1
            continue
        count = min(choice.batch, queue_length)
        is_switch = choice.subnet != outcome.previous
        now += profiles[choice.subnet].estimate_latency(count) + (switch_s if is_switch else 0.0)
        outcome.record(head, count, choice.subnet, now)
        head += count
    return outcome.finish()


def measure_trace(
    arrivals: FloatArray,
    slo: float,
    policy: Policy,
    run_batch: RunBatch,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> ReplayOutcome:
    """Replay a trace in real time, open loop: a request counts from its due time even if the server was busy.

    Args:
        arrivals: Arrival times in seconds, ascending.
        slo: Deadline in seconds from arrival.
        policy: The scheduling policy.
        run_batch: Serves the requests of a batch.
        clock: Source of time, in seconds.
        sleep: Waits for a number of seconds.
    """
    outcome = _Recorder(arrivals, slo)
    # a list: bisecting an array for every decision takes longer than the decision
    head, times = 0, arrivals.tolist()
    origin = clock() - times[0] + 0.01
    while head < len(times):
        now = clock() - origin
        if now < times[head]:
            sleep(max(0.0, times[head] - now - WAKE_EARLY_S))
            continue
        queue_length = bisect_right(times, now, head) - head
        choice = policy(times[head] + slo - now, queue_length)
        if choice is None:
            head += 1
            continue
        count = min(choice.batch, queue_length)
        run_batch(choice.subnet, head, head + count)
        outcome.record(head, count, choice.subnet, clock() - origin)
        head += count
    return outcome.finish()


class _Recorder:
    """Collects the fate of each request while a trace runs."""

    def __init__(self, arrivals: FloatArray, slo: float) -> None:
        self.arrivals, self.slo = arrivals, slo
        self.subnet = np.full(arrivals.size, -1)
        self.in_time = np.zeros(arrivals.size, bool)
        self.batch_size = np.zeros(arrivals.size, np.int64)
        self.batches = self.switches = 0
        self.previous = -1

    def record(self, head: int, count: int, subnet: int, end: float) -> None:
        rows = slice(head, head + count)
        self.subnet[rows], self.batch_size[rows] = subnet, count
        self.in_time[rows] = end <= self.arrivals[rows] + self.slo
        self.batches += 1
        self.switches += subnet != self.previous
        self.previous = subnet

    def finish(self) -> ReplayOutcome:
        return ReplayOutcome(
            subnet=self.subnet,
            in_time=self.in_time,
            batches=self.batches,
            switches=self.switches,
            batch_size=self.batch_size,
        )
