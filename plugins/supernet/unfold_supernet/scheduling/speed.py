"""How fast subnets run: timed rounds, the machine's present slowdown, and policies that account for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_supernet._types import FloatArray
from unfold_supernet.scheduling.policies import BatchChoice, Policy, SubnetProfile, scale_latencies

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
ENOUGH_S = 0.5
"""Seconds of rounds after which a batch size is measured well enough: slow subnets need few rounds."""
P90_UP, P90_DOWN, MEDIAN_STEP = 1.018, 0.998, 1.006
STEPS_PER_E = 20
"""Resolution of the slowdown: steps for a factor of e. One policy is built for each step."""
PolicyFactory = Callable[[Sequence[SubnetProfile]], Policy]


@dataclass(slots=True)
class Slowdown:
    """Ratio of measured to profiled batch latency, tracked by stochastic quantile steps.

    Attributes:
        p90: The ratio that nine of ten batches stay below.
        median: The ratio that half of them stay below.
    """

    p90: float = 1.0
    median: float = 1.0

    def update(self, profiled_s: float, measured_s: float) -> None:
        """Account for one measured batch; both times in seconds."""
        ratio = measured_s / profiled_s
        self.p90 = min(max(self.p90 * (P90_UP if ratio > self.p90 else P90_DOWN), 0.5), 20.0)
        self.median = min(max(self.median * (MEDIAN_STEP if ratio > self.median else 1 / MEDIAN_STEP), 0.5), 20.0)


def adapt_to_slowdown(make_policy: PolicyFactory, profiles: Sequence[SubnetProfile], slowdown: Slowdown) -> Policy:
    """Wrap a policy so that every decision uses latencies at the present slowdown.

    A backlog takes many batches, and their sum follows the median. The batch that starts next must be in time even if
    it is a slow one; otherwise the decision uses the 90th percentile.
    """
    policies: dict[int, Policy] = {}

    def get_policy(ratio: float) -> Policy:
        step = round(math.log(ratio) * STEPS_PER_E)
        if step not in policies:
            policies[step] = make_policy(scale_latencies(profiles, math.exp(step / STEPS_PER_E)))
        return policies[step]

    def choose(slack: float, queue_length: int) -> BatchChoice | None:
        choice = get_policy(slowdown.median)(slack, queue_length)
        if choice:
            latency_s = profiles[choice.subnet].estimate_latency(min(choice.batch, queue_length))
            if latency_s * slowdown.p90 <= slack:
                return choice
        return get_policy(max(slowdown.p90, slowdown.median))(slack, queue_length)

    return choose


def time_rounds(call: Callable[[], object], rounds: int, enough_s: float = math.inf, min_rounds: int = 5) -> FloatArray:
    """Time repeated calls; stop early once ``min_rounds`` of them have taken ``enough_s`` seconds in all."""
    seconds: list[float] = []
    while len(seconds) < rounds and (len(seconds) < min_rounds or sum(seconds) < enough_s):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return np.array(seconds)
