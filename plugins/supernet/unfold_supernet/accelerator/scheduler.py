"""SUSHI's scheduler: which subnet serves each query, and which subgraph is cached.

STRICT_ACCURACY: among the subnets that are accurate enough, the one with the lowest latency under the present cache.
STRICT_LATENCY: among the subnets that are in time under the present cache, the most accurate. If no subnet qualifies,
the nearest: the most accurate, or the one with the lowest latency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from unfold_supernet._types import FloatArray
from unfold_supernet.accelerator import query_scheduler_kernel as kernel
from unfold_supernet.accelerator.latency_table import LatencyTable

POLICIES = {"strict-accuracy": kernel.ACCURACY, "strict-latency": kernel.LATENCY}
CACHES = {"fixed": kernel.FIXED, "avgnet": kernel.AVGNET, "least-latency": kernel.MEAN_LATENCY}


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOutcome:
    """Means over the queries of a stream.

    Attributes:
        seconds: Latency, refills included.
        bytes: Off-chip traffic, refills included.
        accuracy: In percent.
        missed: Fraction of the queries with an enforced target that no subnet meets.
        refill: Seconds of refills.
        hit: Fraction of weights found on chip.
        changes: Changes of the cached subgraph, in total.
        in_time: Fraction served by their deadline; NaN if queries have one target only.
        accurate_enough: Fraction with a sufficiently accurate subnet; NaN likewise.
        both: Fraction that meets both targets; NaN likewise.
    """

    seconds: float
    bytes: float
    accuracy: float
    missed: float
    refill: float
    hit: float
    changes: int
    in_time: float = math.nan
    accurate_enough: float = math.nan
    both: float = math.nan


def count_usage(targets: FloatArray, table: LatencyTable, policy: str) -> FloatArray:
    """Count how many targets each subnet serves with an empty cache."""
    subnets = table.accuracy.size
    keys, best, counts = np.empty(subnets), np.empty(subnets + 1, np.int64), np.zeros(subnets)
    kernel.rank_subnets(table.seconds[:, 0].copy(), table.accuracy, POLICIES[policy], keys, best)
    kernel.count_by_subnet(targets, keys, best, POLICIES[policy], counts)
    return counts


def run_queries(
    targets: FloatArray,
    table: LatencyTable,
    bandwidth: float,
    *,
    policy: str = "strict-accuracy",
    cache: str = "fixed",
    column: int = 0,
    every: int = 16,
    passing: bool = False,
    other_targets: FloatArray | None = None,
) -> StreamOutcome:
    """Run a query stream through the scheduler.

    Args:
        targets: Target that the policy enforces, by query: percent, or seconds.
        table: The scheduler's table.
        bandwidth: Of refills, in bytes per second.
        policy: A key of ``POLICIES``.
        cache: A key of ``CACHES``.
        column: Cached subgraph at the start; under ``fixed`` throughout.
        every: Queries between two choices of the cached subgraph.
        passing: Whether weights that the last subnet transferred can stay on chip without a second transfer.
        other_targets: Target that the policy does not enforce, by query: seconds, or percent.
    """
    refill = table.passing if passing else np.broadcast_to(table.refill, table.passing.shape)
    sums = kernel.run_stream(
        targets, np.zeros(0) if other_targets is None else other_targets, table.seconds, table.bytes, table.hit,
        np.ascontiguousarray(refill), table.near, table.norm, table.accuracy,
        bandwidth, POLICIES[policy], CACHES[cache], column, every,
    )  # fmt: skip
    mean = sums / targets.size
    in_time, enough, both = (
        math.nan if other_targets is None else float(mean[index])
        for index in (kernel.TIMELY, kernel.ENOUGH, kernel.BOTH)
    )
    return StreamOutcome(
        seconds=mean[kernel.SECONDS],
        bytes=mean[kernel.BYTES],
        accuracy=mean[kernel.QUALITY],
        missed=mean[kernel.MISSED],
        refill=mean[kernel.REFILLED],
        hit=mean[kernel.HIT],
        changes=int(sums[kernel.CHANGES]),
        in_time=in_time,
        accurate_enough=enough,
        both=both,
    )
