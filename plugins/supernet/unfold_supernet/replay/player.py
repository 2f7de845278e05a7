"""Replay of a trace with a deadline and a minimum accuracy for each request, as the server would serve it.

Requests wait in the server's own queue: earliest deadline first, never served by a subnet below their minimum accuracy.
A request that cannot be in time is served late, when no other request waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from unfold_supernet._types import FloatArray
from unfold_supernet.replay.baselines import NamedPolicy
from unfold_supernet.scheduling.accuracy_levels import build_accuracy_levels, build_resident_levels
from unfold_supernet.scheduling.policies import SubnetProfile
from unfold_supernet.scheduling.requests import RequestTargets
from unfold_supernet.scheduling.residency import Residency
from unfold_supernet.scheduling.simulator import WAKE_EARLY_S, ReplayOutcome
from unfold_supernet.scheduling.speed import Slowdown
from unfoldkit.serving.batching.request_queue import DeadlineQueue, QueuedRequest
from unfoldkit.serving.model import Call

START_DELAY_S = 0.01
"""Seconds until a trace starts."""
RunRequests = Callable[[int, Sequence[int]], None]
"""Run the subnet with an index on the requests with some indices."""


class Server(Protocol):
    """What serves batches: a clock, and subnets by index."""

    def now(self) -> float:
        """Return the seconds since the trace started."""

    def wait_until(self, moment: float) -> None:
        """Wait until a moment of the trace."""

    def run(self, subnet: int, requests: Sequence[int]) -> None:
        """Serve requests by a subnet."""


@dataclass(slots=True)
class SimulatedServer:
    """A server in simulated time; ``switch_s`` is the cost of a model switch in seconds.

    With a residency, members that are not in memory are loaded first.
    """

    profiles: Sequence[SubnetProfile]
    switch_s: float = 0.0
    residency: Residency | None = None
    clock: float = 0.0
    previous: int = -1

    def now(self) -> float:
        """Return the simulated seconds since the trace started."""
        return self.clock

    def wait_until(self, moment: float) -> None:
        """Advance the clock."""
        self.clock = max(self.clock, moment)

    def run(self, subnet: int, requests: Sequence[int]) -> None:
        """Advance the clock by the profiled latency."""
        switch_s = self.switch_s if subnet != self.previous else 0.0
        if self.residency is not None:
            before_s = self.residency.load_s
            self.residency.acquire(subnet)
            switch_s += self.residency.load_s - before_s
        self.clock += self.profiles[subnet].estimate_latency(len(requests)) + switch_s
        self.previous = subnet


@dataclass(slots=True)
class RealServer:
    """This machine in real time; the trace starts shortly after construction."""

    run_requests: RunRequests
    start: float = field(default_factory=lambda: time.perf_counter() + START_DELAY_S)

    def now(self) -> float:
        """Return the seconds since the trace started."""
        return time.perf_counter() - self.start

    def wait_until(self, moment: float) -> None:
        """Sleep, then busy-wait for the last moment."""
        time.sleep(max(0.0, moment - self.now() - WAKE_EARLY_S))
        while self.now() < moment:
            pass

    def run(self, subnet: int, requests: Sequence[int]) -> None:
        """Run the subnet."""
        self.run_requests(subnet, requests)


@dataclass(slots=True)
class _QueueClock:
    """The clock of the queue, set to the arrival of the request that is added."""

    moment: float = 0.0

    def read(self) -> float:
        return self.moment


def replay_with_targets(
    arrivals: FloatArray,
    targets: RequestTargets,
    policy: NamedPolicy,
    profiles: Sequence[SubnetProfile],
    slowdown: Slowdown,
    server: Server,
    residency: Residency | None = None,
) -> ReplayOutcome:
    """Replay a trace under a policy, open loop.

    Args:
        arrivals: Arrival times in seconds.
        targets: Targets of each request.
        policy: The scheduling policy.
        profiles: All subnets.
        slowdown: Scales their profiled latencies.
        server: What serves batches.
        residency: Which members are in memory, where they do not all fit; the server updates it.
    """
    clock, own_profiles = _QueueClock(), policy.select_profiles(profiles)
    if residency is None:
        paths = build_accuracy_levels(own_profiles, policy.make_policy, slowdown)
    else:
        paths = build_resident_levels(own_profiles, policy.indices, residency, policy.make_policy, slowdown)
    queue = DeadlineQueue(paths, 0.0, clock.read)
    max_batch = max(profile.max_batch for profile in own_profiles)
    subnets, batch_sizes = np.zeros(arrivals.size, np.int64), np.zeros(arrivals.size, np.int64)
    ends, times = np.zeros(arrivals.size), arrivals.tolist()
    head, queued, batches, switches, previous = 0, 0, 0, 0, -1
    while head < len(times) or queued:
        if not queued:
            server.wait_until(times[head])
        now = server.now()
        while head < len(times) and times[head] <= now:
            # a request counts from its arrival, whenever the server got to it
            clock.moment = times[head]
            queue.add(_make_request(targets, head))
            head, queued = head + 1, queued + 1
        clock.moment = now
        batch, turn = queue.take(max_batch)
        assert turn is not None  # noqa: S101 - the queue is not empty, and late requests are served too
        subnet, requests = policy.indices[turn.way], [request.call.time or 0 for request in batch]
        server.run(subnet, requests)
        ends[requests], subnets[requests], batch_sizes[requests] = server.now(), subnet, len(requests)
        queued, batches = queued - len(requests), batches + 1
        switches, previous = switches + (subnet != previous), subnet
    accuracies = np.array([profile.accuracy_fraction for profile in profiles])
    return ReplayOutcome(
        subnet=subnets,
        in_time=ends <= arrivals + targets.deadlines_s,
        batches=batches,
        switches=switches,
        batch_size=batch_sizes,
        accurate_enough=accuracies[subnets] >= targets.min_accuracies,
    )


def _make_request(targets: RequestTargets, index: int) -> QueuedRequest:
    deadline_s, min_accuracy = float(targets.deadlines_s[index]), float(targets.min_accuracies[index])
    return QueuedRequest({}, Call(1, time=index, deadline=deadline_s, least_accuracy=min_accuracy), _ignore_response)


def _ignore_response(_response: object) -> None:
    """Drop the response: a replay has no client."""
