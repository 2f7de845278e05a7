"""Scheduling policies: which subnet serves how many of the most urgent requests (SlackFit of SuperServe, NSDI 2025).

Requests wait in the order of their deadlines. A policy sees the slack of the most urgent request and the queue length.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

BUCKETS = 64
MIN_RATE_WINDOW = 0.05
"""Minimum window for a rate estimate, as a fraction of the deadline: a few simultaneous requests are not a rate."""


@dataclass(frozen=True, slots=True)
class SubnetProfile:
    """Accuracy and latency of a subnet, or of an escalation pair.

    Attributes:
        name: Name of the subnet; ``small>large`` for a pair.
        accuracy: In percent.
        seconds: Latency in seconds by batch size, both ascending.
        fallback: Subnet that recomputes unsure results; set for a pair.
        unsure_fraction: Fraction of the rows that the fallback recomputes.
    """

    name: str
    accuracy: float
    seconds: tuple[tuple[int, float], ...]
    fallback: str | None = None
    unsure_fraction: float = 0.0

    def estimate_latency(self, batch: int) -> float:
        """Interpolate the latency of a batch linearly between measured sizes, in seconds."""
        # no numpy: a policy evaluates several subnets per batch, and an array per call costs as much as a small subnet
        index = bisect_left(self.seconds, (batch,))
        if index == 0 or index == len(self.seconds) or self.seconds[index][0] == batch:
            return self.seconds[min(index, len(self.seconds) - 1)][1]
        (size, time), (larger, longer) = self.seconds[index - 1], self.seconds[index]
        return time + (longer - time) * (batch - size) / (larger - size)

    def estimate_split_latency(self, rows: int) -> float:
        """Estimate the latency of any number of rows, computed in parts of the largest measured batch, in seconds."""
        parts, remaining = divmod(rows, self.max_batch)
        return parts * self.seconds[-1][1] + (self.estimate_latency(remaining) if remaining else 0.0)

    @property
    def accuracy_fraction(self) -> float:
        """Accuracy between 0 and 1."""
        return self.accuracy / 100

    @property
    def max_batch(self) -> int:
        """Largest batch that was measured."""
        return self.seconds[-1][0]


@dataclass(frozen=True, slots=True)
class BatchChoice:
    """A scheduling decision: index of the subnet, and requests in the batch."""

    subnet: int
    batch: int


Policy = Callable[[float, int], BatchChoice | None]
"""From the most urgent request's slack in seconds and the queue length to a decision; ``None`` drops the request."""


def build_profile(name: str, accuracy: float, seconds: Mapping[int, float]) -> SubnetProfile:
    """Build a profile from measured latencies; they are made monotone in the batch size.

    Args:
        name: Name of the subnet.
        accuracy: In percent.
        seconds: Latency by batch size.
    """
    times = sorted(seconds.items())
    # a larger batch measured as faster is noise
    monotone = [(batch, max(time for _, time in times[: index + 1])) for index, (batch, _) in enumerate(times)]
    return SubnetProfile(name, accuracy, tuple(monotone))


def scale_latencies(profiles: Sequence[SubnetProfile], factor: float) -> tuple[SubnetProfile, ...]:
    """Multiply all latencies by a factor."""
    return tuple(
        replace(profile, seconds=tuple((size, time * factor) for size, time in profile.seconds)) for profile in profiles
    )


def make_slackfit(profiles: Sequence[SubnetProfile]) -> Policy:
    """Build SlackFit (SuperServe): latency buckets of equal width, the largest batch in each (ties: most accurate).

    The policy takes the highest bucket within the slack; below the lowest, no request can be in time.
    """
    options = [(time, size, index) for index, profile in enumerate(profiles) for size, time in profile.seconds]
    low, high = min(option[0] for option in options), max(option[0] for option in options)
    edges = np.linspace(low, high, BUCKETS).tolist()
    table = [
        max(
            (option for option in options if option[0] <= edge * (1 + 1e-12)),
            key=lambda option: (option[1], profiles[option[2]].accuracy),
        )
        for edge in edges
    ]

    def choose(slack: float, _queue_length: int) -> BatchChoice | None:
        bucket = bisect_right(edges, slack) - 1
        return BatchChoice(table[bucket][2], table[bucket][1]) if bucket >= 0 else None

    return choose


def make_fitted(profiles: Sequence[SubnetProfile]) -> Policy:
    """Build the policy ``fitted``: the most accurate subnet that serves the entire queue within the slack.

    If no subnet can, the fastest one serves as many requests as fit.
    """
    by_accuracy = sorted(range(len(profiles)), key=lambda index: profiles[index].accuracy, reverse=True)
    fastest = _find_fastest(profiles)

    def choose(slack: float, queue_length: int) -> BatchChoice | None:
        for index in by_accuracy:
            profile = profiles[index]
            if queue_length <= profile.max_batch and profile.estimate_latency(queue_length) <= slack:
                return BatchChoice(index, queue_length)
        return _choose_largest_batch(profiles, fastest, slack, queue_length)

    return choose


def make_steady(profiles: Sequence[SubnetProfile], slo: float) -> Policy:
    """Build the policy ``steady``: the most accurate subnet that serves the queue and sustains the arrival rate.

    A subnet that just serves the present queue leaves a backlog that only the smallest can clear. Accuracy is concave
    in capacity, so a medium subnet throughout serves more of it than turns of largest and smallest. The rate is that
    of the arrivals behind the most urgent request, less one standard deviation. A subnet's rate is that of its best
    batch that is in time twice in a row. Spare slack admits a higher rate for a while, because the queue absorbs it.

    Args:
        profiles: Subnets to choose from.
        slo: Deadline of a request, in seconds from its arrival.
    """
    by_accuracy = sorted(range(len(profiles)), key=lambda index: profiles[index].accuracy, reverse=True)
    shed = make_shedding(profiles, _find_fastest(profiles), slo)
    capacity = [compute_capacity(profile, slo) for profile in profiles]

    def choose(slack: float, queue_length: int) -> BatchChoice | None:
        elapsed, arrivals = slo - slack, queue_length - 1
        has_rate = elapsed > 0 and arrivals > 0
        rate = (arrivals - math.sqrt(arrivals)) / max(elapsed, slo * MIN_RATE_WINDOW) if has_rate else 0.0
        for index in by_accuracy:
            batch = min(queue_length, profiles[index].max_batch)
            # requests of a second batch must be in time as well
            spare = slack - profiles[index].estimate_latency(batch) * queue_length / batch
            if spare >= 0 and rate <= capacity[index] * (1 + spare / slo):
                return BatchChoice(index, batch)
        return shed(slack, queue_length)

    return choose


def compute_capacity(profile: SubnetProfile, slo: float) -> float:
    """Compute the requests per second of the best batch that is in time twice in a row; 0 if there is none."""
    return max((size / time for size, time in profile.seconds if 2 * time <= slo), default=0.0)


def make_shedding(profiles: Sequence[SubnetProfile], index: int, slo: float) -> Policy:
    """Build a fixed-subnet policy that drops the most urgent requests of a long queue instead of shrinking batches.

    Under overload the most urgent request has little slack; batches that fit it are small and deepen the overload.
    """
    fitting = [pair for pair in profiles[index].seconds if 2 * pair[1] <= slo]
    size, time = max(fitting, key=lambda pair: pair[0] / pair[1], default=(1, 0.0))

    def choose(slack: float, queue_length: int) -> BatchChoice | None:
        if queue_length >= size and slack < time:
            return None
        return _choose_largest_batch(profiles, index, slack, queue_length)

    return choose


def make_lookahead(policy: Policy, max_batch: int) -> Policy:
    """Extend a policy beyond one batch: with a longer queue, each full batch gets its proportion of the slack.

    If no subnet serves a full batch within that, ``policy`` decides as before.
    """

    def choose(slack: float, queue_length: int) -> BatchChoice | None:
        if queue_length > max_batch:
            choice = policy(slack * max_batch / queue_length, max_batch)
            if choice is not None and choice.batch == max_batch:
                return choice
        return policy(slack, queue_length)

    return choose


def make_fixed(profiles: Sequence[SubnetProfile], index: int) -> Policy:
    """Build a fixed-subnet policy with the largest batch that is in time (Clipper with deadlines)."""
    return lambda slack, queue_length: _choose_largest_batch(profiles, index, slack, queue_length)


def make_cheapest(profiles: Sequence[SubnetProfile]) -> Policy:
    """Build a policy that always uses the fastest subnet (INFaaS without an accuracy requirement)."""
    return make_fixed(profiles, _find_fastest(profiles))


def _find_fastest(profiles: Sequence[SubnetProfile]) -> int:
    # by the largest batch, which some compute in parts: the latency of one request is mostly overhead and its noise
    rows = max(profile.max_batch for profile in profiles)
    return min(
        range(len(profiles)),
        key=lambda index: (profiles[index].estimate_split_latency(rows), -profiles[index].accuracy),
    )


def _choose_largest_batch(
    profiles: Sequence[SubnetProfile], index: int, slack: float, queue_length: int
) -> BatchChoice | None:
    fitting = [size for size, time in profiles[index].seconds if time <= slack]
    return BatchChoice(index, min(queue_length, max(fitting))) if fitting else None
