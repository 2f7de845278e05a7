"""Machine code of the query scheduler. ``*_reference`` is the plain-Python version of each compiled function.

Under one cached subgraph, a subnet's latency does not depend on the query. The subnet for a target then follows from
how many sorted keys (accuracies or latencies) the target passes, so a window of queries needs only counts.
"""

from __future__ import annotations

import numpy as np

from unfold_supernet._types import FloatArray, IntArray
from unfoldkit.jit import compiled

ACCURACY, LATENCY = 0, 1
FIXED, AVGNET, MEAN_LATENCY = 0, 1, 2
SECONDS, BYTES, QUALITY, MISSED, REFILLED, CHANGES, HIT, TIMELY, ENOUGH, BOTH = range(10)
SUMS = 10
EQUAL = 1e-9
"""Relative difference below which two scores are equal: sums in another order differ by rounding."""


def rank_subnets_reference(
    seconds: FloatArray, accuracy: FloatArray, policy: int, keys: FloatArray, best: IntArray
) -> None:
    """Fill in the subnet for each rank of a target under one cached subgraph.

    Args:
        seconds: Latency by subnet.
        accuracy: Accuracy by subnet.
        policy: ``ACCURACY`` or ``LATENCY``.
        keys: Output: sorted accuracies or latencies. ``ACCURACY`` passes keys below the target, ``LATENCY`` those up
            to the deadline.
        best: Output: subnet by number of passed keys. If no subnet qualifies, it is the nearest one: the most accurate
            or the fastest; ties go to the better one.
    """
    subnets = accuracy.size
    order = np.argsort(accuracy if policy == ACCURACY else seconds)
    keys[:] = (accuracy if policy == ACCURACY else seconds)[order]
    if policy == ACCURACY:
        best[subnets] = best[subnets - 1] = order[subnets - 1]
        for rank in range(subnets - 2, -1, -1):
            best[rank] = order[rank] if seconds[order[rank]] < seconds[best[rank + 1]] else best[rank + 1]
            # among equally accurate subnets the fastest is the nearest
            best[subnets] = best[rank] if accuracy[order[rank]] == accuracy[best[subnets]] else best[subnets]
    else:
        best[0] = best[1] = order[0]
        for rank in range(1, subnets):
            best[rank + 1] = order[rank] if accuracy[order[rank]] > accuracy[best[rank]] else best[rank]
            best[0] = best[rank + 1] if seconds[order[rank]] == seconds[best[0]] else best[0]


rank_subnets = compiled(rank_subnets_reference)
"""Compiled :func:`rank_subnets_reference`."""


def choose_column_reference(
    counts: FloatArray, table: FloatArray, norm: FloatArray, scores: FloatArray, window: int, current: int
) -> int:
    """Choose the cached subgraph with the lowest score; keep the current one on a tie, because a change costs a refill.

    For AvgNet the score is the squared distance less a constant, for the latency rule the mean latency of the window.

    Args:
        counts: Queries in the window by subnet.
        table: Score contribution [subnets, columns].
        norm: Constant term of the score by column.
        scores: Scratch space by column.
        window: Queries in the window.
        current: Present column.
    """
    scores[:] = norm
    for subnet in range(counts.size):
        # subnet by subnet over all columns: the inner loop is vectorized because no sum runs along it
        if counts[subnet]:
            fraction = counts[subnet] / window
            for column in range(norm.size):
                scores[column] += fraction * table[subnet, column]
    lowest = 1
    for column in range(2, norm.size):
        if scores[column] < scores[lowest]:
            lowest = column
    if current > 0 and scores[current] <= scores[lowest] + EQUAL * abs(scores[lowest]):
        return current
    return lowest


choose_column = compiled(choose_column_reference)
"""Compiled :func:`choose_column_reference`."""


def count_by_subnet_reference(
    targets: FloatArray, keys: FloatArray, best: IntArray, policy: int, counts: FloatArray
) -> int:
    """Add to ``counts`` how many targets each subnet serves; return how many targets no subnet meets."""
    above = targets.size
    missed = 0
    for rank in range(keys.size):
        passed = 0
        key = keys[rank]
        if policy == ACCURACY:
            for query in range(targets.size):
                passed += key < targets[query]
        else:
            for query in range(targets.size):
                passed += key <= targets[query]
        # keys ascend, so the targets that pass this key passed the previous one
        counts[best[rank]] += above - passed
        if rank == 0 and policy != ACCURACY:
            missed = above - passed
        above = passed
    counts[best[keys.size]] += above
    return above if policy == ACCURACY else missed


count_by_subnet = compiled(count_by_subnet_reference)
"""Compiled :func:`count_by_subnet_reference`."""


def find_subnet_reference(target: float, keys: FloatArray, best: IntArray, policy: int) -> int:
    """Find the subnet that serves one target."""
    passed = 0
    for rank in range(keys.size):
        passed += keys[rank] < target if policy == ACCURACY else keys[rank] <= target
    return int(best[passed])


find_subnet = compiled(find_subnet_reference)
"""Compiled :func:`find_subnet_reference`."""


def count_met_targets_reference(
    targets: FloatArray,
    other_targets: FloatArray,
    keys: FloatArray,
    best: IntArray,
    policy: int,
    seconds: FloatArray,
    accuracy: FloatArray,
    delay: float,
    sums: FloatArray,
) -> None:
    """Add how many queries are in time, accurate enough, and both; the first query also waits for ``delay`` seconds."""
    for query in range(targets.size):
        subnet = find_subnet(targets[query], keys, best, policy)
        if policy == ACCURACY:
            min_accuracy, deadline = targets[query], other_targets[query]
        else:
            min_accuracy, deadline = other_targets[query], targets[query]
        timely = seconds[subnet] + (delay if query == 0 else 0.0) <= deadline
        enough = accuracy[subnet] >= min_accuracy
        sums[TIMELY] += timely
        sums[ENOUGH] += enough
        sums[BOTH] += timely and enough


count_met_targets = compiled(count_met_targets_reference)
"""Compiled :func:`count_met_targets_reference`."""


def add_costs_reference(
    sums: FloatArray,
    counts: FloatArray,
    seconds: FloatArray,
    bytes_: FloatArray,
    hit: FloatArray,
    accuracy: FloatArray,
    column: int,
) -> None:
    """Add the costs of ``counts`` queries by subnet under one cached subgraph."""
    for subnet in range(counts.size):
        sums[SECONDS] += counts[subnet] * seconds[subnet, column]
        sums[BYTES] += counts[subnet] * bytes_[subnet, column]
        sums[QUALITY] += counts[subnet] * accuracy[subnet]
        sums[HIT] += counts[subnet] * hit[subnet, column]


add_costs = compiled(add_costs_reference)
"""Compiled :func:`add_costs_reference`."""


def run_stream_reference(
    targets: FloatArray,
    other_targets: FloatArray,
    seconds: FloatArray,
    bytes_: FloatArray,
    hit: FloatArray,
    refill: FloatArray,
    near: FloatArray,
    norm: FloatArray,
    accuracy: FloatArray,
    bandwidth: float,
    policy: int,
    cache: int,
    column: int,
    every: int,
) -> FloatArray:
    """Run a query stream and return its sums, indexed by the module's constants.

    Args:
        targets: Target that the policy enforces, by query.
        other_targets: The other target by query; empty to skip its statistics.
        seconds: Latency [subnets, columns].
        bytes_: Traffic [subnets, columns].
        hit: Fraction of weights found on chip [subnets, columns].
        refill: Bytes of a change, by the subnet that ran last [subnets, columns, columns].
        near: Products of encoded subnets and columns [subnets, columns].
        norm: Squared lengths of encoded columns.
        accuracy: In percent, by subnet.
        bandwidth: Of refills, in bytes per second.
        policy: ``ACCURACY`` or ``LATENCY``.
        cache: ``FIXED``, ``AVGNET`` or ``MEAN_LATENCY``.
        column: Cached subgraph at the start.
        every: Queries between two choices.
    """
    subnets, columns = seconds.shape
    keys, best = np.empty((columns, subnets)), np.empty((columns, subnets + 1), np.int64)
    for index in range(columns):
        rank_subnets(seconds[:, index].copy(), accuracy, policy, keys[index], best[index])
    table = -2.0 * near if cache == AVGNET else seconds
    constant = norm if cache == AVGNET else np.zeros(columns)
    counts, sums, scores = np.zeros(subnets), np.zeros(SUMS), np.empty(columns)
    current, window = column, targets.size if cache == FIXED else every
    delay = 0.0
    for start in range(0, targets.size, window):
        segment = targets[start : start + window]
        counts[:] = 0.0
        sums[MISSED] += count_by_subnet(segment, keys[current], best[current], policy, counts)
        add_costs(sums, counts, seconds, bytes_, hit, accuracy, current)
        if other_targets.size:
            others = other_targets[start : start + window]
            count_met_targets(
                segment, others, keys[current], best[current], policy, seconds[:, current], accuracy, delay, sums
            )
        delay = 0.0
        if cache == FIXED or segment.size < every:
            continue
        choice = choose_column(counts, table, constant, scores, every, current)
        if choice != current:
            transferred = refill[find_subnet(segment[-1], keys[current], best[current], policy), current, choice]
            delay = transferred / bandwidth
            sums[SECONDS] += delay
            sums[REFILLED] += delay
            sums[BYTES] += transferred
            sums[CHANGES] += 1.0
            current = choice
    return sums


run_stream = compiled(run_stream_reference)
"""Compiled :func:`run_stream_reference`."""
