"""Queries, one after the other: which net answers each, and what is kept on chip (SUSHI's scheduler).

STRICT_ACCURACY: of the nets that are accurate enough, the one with least latency under the present buffer.
STRICT_LATENCY: of the nets that are in time under the present buffer, the most accurate. Where no net will do, the
nearest: most accurate, or least latency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfold_supernet.accelerator.latency_table import Known
from unfold_supernet.arrays import Floats, Ints
from unfoldkit.jit import compiled

ACCURACY, LATENCY = 0, 1
FIXED, AVGNET, MEAN_LATENCY = 0, 1, 2
POLICIES = {"strict-accuracy": ACCURACY, "strict-latency": LATENCY}
CACHES = {"fixed": FIXED, "avgnet": AVGNET, "least-latency": MEAN_LATENCY}
SECONDS, BYTES, QUALITY, MISSED, REFILLED, CHANGES, HIT, TIMELY, ENOUGH, BOTH = range(10)
SUMS = 10
EQUAL = 1e-9
"""Share by which a score must be less to be another one: sums in another order differ by rounding."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stream came to, each a mean over its queries.

    ``seconds`` and ``bytes`` with refills, ``refill`` seconds of them; ``accuracy`` in percent; ``missed`` the share
    whose target no net met; ``hit`` the share of weights found on chip; ``changes`` of the buffer in all. Where the
    queries name both targets, ``in_time`` is the share that is answered by its deadline, refills included, ``enough``
    the share whose net is accurate enough, and ``both`` the share of which both hold; else they are NaN.
    """

    seconds: float
    bytes: float
    accuracy: float
    missed: float
    refill: float
    hit: float
    changes: int
    in_time: float = math.nan
    enough: float = math.nan
    both: float = math.nan


def targets(levels: Floats, known: Known, policy: str) -> Floats:
    """Return an accuracy or a deadline for each level in [0, 1]; deadlines lie between the latencies without buffer."""
    scale = known.accuracy if POLICIES[policy] == ACCURACY else known.seconds[:, 0]
    low, high = float(scale.min()), float(scale.max())
    # rounding must not ask for more than the best net has
    return np.minimum(low + levels * (high - low), high)


def levels(count: int, pattern: str, seed: int, hold: float = 20.0) -> Floats:
    """Return the levels of a stream: drawn anew for each query, or kept for ``hold`` queries on average."""
    rng = np.random.default_rng([seed, 0xFA57])
    drawn = rng.random(count)
    if pattern == "random":
        return drawn
    fresh = rng.random(count) < 1.0 / hold
    fresh[0] = True
    return _held(drawn, fresh)


def held(drawn: Floats, levels: Floats) -> Floats:
    """Return values that are kept as long as ``levels`` are: of a burst the first of ``drawn``."""
    return _held(drawn, np.diff(levels, prepend=-1.0) != 0)


def _held(drawn: Floats, fresh: NDArray[np.bool_]) -> Floats:
    result: Floats = drawn[fresh][np.cumsum(fresh) - 1]
    return result


def demand(wanted: Floats, known: Known, policy: str) -> Floats:
    """Return how many of the targets each net answers while nothing is kept."""
    nets = known.accuracy.size
    keys, best, counts = np.empty(nets), np.empty(nets + 1, np.int64), np.zeros(nets)
    answers(known.seconds[:, 0].copy(), known.accuracy, POLICIES[policy], keys, best)
    served(wanted, keys, best, POLICIES[policy], counts)
    return counts


def play(
    wanted: Floats,
    known: Known,
    bandwidth: float,
    *,
    policy: str = "strict-accuracy",
    cache: str = "fixed",
    column: int = 0,
    every: int = 16,
    passing: bool = False,
    others: Floats | None = None,
) -> Outcome:
    """Play a stream of targets.

    Args:
        wanted: A target for each query: percent, or seconds.
        known: The scheduler's table.
        bandwidth: Of refills, in bytes a second.
        policy: A key of ``POLICIES``.
        cache: A key of ``CACHES``.
        column: What is kept at the start; for ``fixed`` all the time.
        every: Queries between two choices of what to keep.
        passing: Weights that the last net brought on chip are kept without a second transfer.
        others: The target of each query that the policy does not go by: seconds, or percent.

    Returns:
        Means over the queries.
    """
    refill = known.passing if passing else np.broadcast_to(known.refill, known.passing.shape)
    sums = run(
        wanted, np.zeros(0) if others is None else others, known.seconds, known.bytes, known.hit,
        np.ascontiguousarray(refill), known.near, known.norm, known.accuracy,
        bandwidth, POLICIES[policy], CACHES[cache], column, every,
    )  # fmt: skip
    mean = sums / wanted.size
    return Outcome(
        mean[SECONDS], mean[BYTES], mean[QUALITY], mean[MISSED], mean[REFILLED], mean[HIT], int(sums[CHANGES]),
        *(math.nan if others is None else float(mean[at]) for at in (TIMELY, ENOUGH, BOTH)),
    )  # fmt: skip


def answers_python(seconds: Floats, accuracy: Floats, policy: int, keys: Floats, best: Ints) -> None:
    """Fill in which net answers under one buffer: ``best[r]``, r being how many of the sorted ``keys`` are passed.

    STRICT_ACCURACY passes the accuracies below the target, STRICT_LATENCY the latencies up to the deadline; at the
    end where no net will do, ``best`` holds the nearest: most accurate, or quickest, and of several the better one.
    """
    nets = accuracy.size
    order = np.argsort(accuracy if policy == ACCURACY else seconds)
    keys[:] = (accuracy if policy == ACCURACY else seconds)[order]
    if policy == ACCURACY:
        best[nets] = best[nets - 1] = order[nets - 1]
        for at in range(nets - 2, -1, -1):
            best[at] = order[at] if seconds[order[at]] < seconds[best[at + 1]] else best[at + 1]
            # of nets that are alike most accurate the quickest is the nearest
            best[nets] = best[at] if accuracy[order[at]] == accuracy[best[nets]] else best[nets]
    else:
        best[0] = best[1] = order[0]
        for at in range(1, nets):
            best[at + 1] = order[at] if accuracy[order[at]] > accuracy[best[at]] else best[at]
            best[0] = best[at + 1] if seconds[order[at]] == seconds[best[0]] else best[0]


answers = compiled(answers_python)
"""Compiled :func:`answers_python`."""


def choose_python(counts: Floats, table: Floats, norm: Floats, scores: Floats, every: int, now: int) -> int:
    """Return the column of least score: ``norm`` plus the rows of ``table`` by how often each net was served.

    Where ``now`` is as good up to rounding it stays, as a change costs a refill.

    For AvgNet that is the squared distance less a constant, for the latency rule the mean latency of the last queries.
    """
    scores[:] = norm
    for net in range(counts.size):
        # net by net over all columns: no sum runs along the loop, so that it is done several columns at a time
        if counts[net]:
            share = counts[net] / every
            for one in range(norm.size):
                scores[one] += share * table[net, one]
    chosen = 1
    for one in range(2, norm.size):
        if scores[one] < scores[chosen]:
            chosen = one
    if now > 0 and scores[now] <= scores[chosen] + EQUAL * abs(scores[chosen]):
        return now
    return chosen


choose = compiled(choose_python)
"""Compiled :func:`choose_python`."""


def served_python(wanted: Floats, keys: Floats, best: Ints, policy: int, counts: Floats) -> int:
    """Add to ``counts`` which nets answer the targets under one buffer; return how many targets no net meets."""
    above = wanted.size
    missed = 0
    for at in range(keys.size):
        passed = 0
        key = keys[at]
        if policy == ACCURACY:
            for query in range(wanted.size):
                passed += key < wanted[query]
        else:
            for query in range(wanted.size):
                passed += key <= wanted[query]
        # the keys ascend, so that those who pass this one are among those who passed the last
        counts[best[at]] += above - passed
        if at == 0 and policy != ACCURACY:
            missed = above - passed
        above = passed
    counts[best[keys.size]] += above
    return above if policy == ACCURACY else missed


served = compiled(served_python)
"""Compiled :func:`served_python`."""


def last_python(target: float, keys: Floats, best: Ints, policy: int) -> int:
    """Return the net that answers one target."""
    passed = 0
    for at in range(keys.size):
        passed += keys[at] < target if policy == ACCURACY else keys[at] <= target
    return int(best[passed])


last = compiled(last_python)
"""Compiled :func:`last_python`."""


def judge_python(
    wanted: Floats,
    others: Floats,
    keys: Floats,
    best: Ints,
    policy: int,
    seconds: Floats,
    accuracy: Floats,
    delay: float,
    sums: Floats,
) -> None:
    """Add how many queries are answered in time, accurately enough, and both; the first waits for ``delay`` more."""
    for at in range(wanted.size):
        net = last(wanted[at], keys, best, policy)
        least, deadline = (wanted[at], others[at]) if policy == ACCURACY else (others[at], wanted[at])
        timely = seconds[net] + (delay if at == 0 else 0.0) <= deadline
        enough = accuracy[net] >= least
        sums[TIMELY] += timely
        sums[ENOUGH] += enough
        sums[BOTH] += timely and enough


judge = compiled(judge_python)
"""Compiled :func:`judge_python`."""


def run_python(
    wanted: Floats,
    others: Floats,
    seconds: Floats,
    bytes_: Floats,
    hit: Floats,
    refill: Floats,
    near: Floats,
    norm: Floats,
    accuracy: Floats,
    bandwidth: float,
    policy: int,
    cache: int,
    column: int,
    every: int,
) -> Floats:
    """Return the sums over a stream, in the order of the module's constants."""
    nets, columns = seconds.shape
    keys, best = np.empty((columns, nets)), np.empty((columns, nets + 1), np.int64)
    for one in range(columns):
        answers(seconds[:, one].copy(), accuracy, policy, keys[one], best[one])
    table = -2.0 * near if cache == AVGNET else seconds
    start = norm if cache == AVGNET else np.zeros(columns)
    counts, sums, scores = np.zeros(nets), np.zeros(SUMS), np.empty(columns)
    now, window = column, wanted.size if cache == FIXED else every
    delay = 0.0
    for first in range(0, wanted.size, window):
        part = wanted[first : first + window]
        counts[:] = 0.0
        sums[MISSED] += served(part, keys[now], best[now], policy, counts)
        add(sums, counts, seconds, bytes_, hit, accuracy, now)
        if others.size:
            given = others[first : first + window]
            judge(part, given, keys[now], best[now], policy, seconds[:, now], accuracy, delay, sums)
        delay = 0.0
        if cache == FIXED or part.size < every:
            continue
        chosen = choose(counts, table, start, scores, every, now)
        if chosen != now:
            brought = refill[last(part[-1], keys[now], best[now], policy), now, chosen]
            delay = brought / bandwidth
            sums[SECONDS] += delay
            sums[REFILLED] += delay
            sums[BYTES] += brought
            sums[CHANGES] += 1.0
            now = chosen
    return sums


def add_python(
    sums: Floats, counts: Floats, seconds: Floats, bytes_: Floats, hit: Floats, accuracy: Floats, now: int
) -> None:
    """Add what ``counts`` queries by net come to under one buffer."""
    for net in range(counts.size):
        sums[SECONDS] += counts[net] * seconds[net, now]
        sums[BYTES] += counts[net] * bytes_[net, now]
        sums[QUALITY] += counts[net] * accuracy[net]
        sums[HIT] += counts[net] * hit[net, now]


add = compiled(add_python)
"""Compiled :func:`add_python`."""

run = compiled(run_python)
"""Compiled :func:`run_python`."""
