"""Compiled loops of the simulator and the frontier search, each beside its reference implementation in Python."""

from __future__ import annotations

import numpy as np

from unfold_tuning._types import FloatArray, IntArray
from unfoldkit.jit import compiled

TIE = 1e-9
"""Costs in dollars and times in seconds that differ by less are equal."""


def schedule_trials_reference(lengths: FloatArray, slots: int) -> FloatArray:
    """Compute the makespan of each row if every job, in order, takes the slot that is free first.

    Args:
        lengths: Seconds of each job: [samples, jobs].
        slots: Jobs that run at once. A binary heap holds when each slot becomes free.

    Returns:
        The end of the last job: [samples].
    """
    samples, jobs = lengths.shape
    ends = np.zeros(samples)
    free_at = np.zeros(slots)
    for row in range(samples):
        free_at[:] = 0.0
        makespan = 0.0
        for job in range(jobs):
            end = free_at[0] + lengths[row, job]
            makespan = max(makespan, end)
            node = 0
            while True:
                child = 2 * node + 1
                if child >= slots:
                    break
                if child + 1 < slots and free_at[child + 1] < free_at[child]:
                    child += 1
                if free_at[child] >= end:
                    break
                free_at[node] = free_at[child]
                node = child
            free_at[node] = end
        ends[row] = makespan
    return ends


def schedule_slots_reference(lengths: FloatArray, slots: int) -> FloatArray:
    """Compute when each slot is free for good if every job, in order, takes the slot that is free first.

    Args:
        lengths: Seconds of each job: [samples, jobs].
        slots: Jobs that run at once; of those that are free together, the first one is taken.

    Returns:
        The end of the last job of each slot, 0 without any: [samples, slots].
    """
    samples, jobs = lengths.shape
    free_at = np.zeros((samples, slots))
    heap = np.arange(slots)
    for row in range(samples):
        heap[:] = np.arange(slots)
        for job in range(jobs):
            slot = heap[0]
            free_at[row, slot] += lengths[row, job]
            end = free_at[row, slot]
            node = 0
            while True:
                child = 2 * node + 1
                if child >= slots:
                    break
                other = child + 1
                if other < slots:
                    left, right = free_at[row, heap[child]], free_at[row, heap[other]]
                    if right < left or (right == left and heap[other] < heap[child]):
                        child = other
                first = free_at[row, heap[child]]
                if first > end or (first == end and heap[child] > slot):
                    break
                heap[node] = heap[child]
                node = child
            heap[node] = slot
    return free_at


def merge_fronts_reference(
    t1: FloatArray, c1: FloatArray, p1: IntArray, t2: FloatArray, c2: FloatArray, p2: IntArray, dt: float, dc: float
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Merge two Pareto fronts, the second shifted by ``(dt, dc)``; times ascend, costs descend.

    Args:
        t1: Times of the first front, ascending.
        c1: Its costs.
        p1: Its parent labels.
        t2: Times of the second front.
        c2: Its costs.
        p2: Its parent labels.
        dt: Seconds added to the second front.
        dc: Dollars added to the second front.
    """
    size = t1.shape[0] + t2.shape[0]
    time, cost, parent = np.empty(size), np.empty(size), np.empty(size, np.int64)
    i = j = count = 0
    min_cost = np.inf
    while i < t1.shape[0] or j < t2.shape[0]:
        from_first = j >= t2.shape[0]
        if i < t1.shape[0] and j < t2.shape[0]:
            second_time = t2[j] + dt
            from_first = t1[i] < second_time or (t1[i] == second_time and c1[i] <= c2[j] + dc)
        if from_first:
            t, c, p = t1[i], c1[i], p1[i]
            i += 1
        else:
            t, c, p = t2[j] + dt, c2[j] + dc, p2[j]
            j += 1
        if c < min_cost - TIE:
            # times that differ by rounding are equal: the cheaper label replaces the other
            count -= count > 0 and t - time[count - 1] <= TIE
            time[count], cost[count], parent[count] = t, c, p
            min_cost = c
            count += 1
    return time[:count], cost[:count], parent[:count]


def count_preemptions_reference(
    uniform: FloatArray, risk: FloatArray, intervals: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Invert the negative binomial distribution of preemptions at each uniform; all arrays are [samples, trials].

    Args:
        uniform: The uniforms.
        risk: Expected preemptions per attempt at an interval.
        intervals: Intervals that must each complete without a preemption.

    Returns:
        Counts, and where each uniform lies within its step.
    """
    count, residual = np.zeros(uniform.shape), np.zeros(uniform.shape)
    for row in range(uniform.shape[0]):
        for col in range(uniform.shape[1]):
            size = intervals[row, col]
            loss, mean = -np.expm1(-risk[row, col]), size * np.expm1(risk[row, col])
            cumulative, mass, n = 0.0, np.exp(-risk[row, col] * size), 0.0
            # the second condition stops where rounding keeps the sum of all masses below the uniform
            while uniform[row, col] > cumulative + mass and (n < mean or mass > 1e-16):
                cumulative += mass
                mass *= loss * (size + n) / (n + 1)
                n += 1
            count[row, col] = n
            residual[row, col] = min(1.0, (uniform[row, col] - cumulative) / mass) if mass > 0 else 0.5
    return count, residual


schedule_trials = compiled(schedule_trials_reference)
schedule_slots = compiled(schedule_slots_reference)
count_preemptions = compiled(count_preemptions_reference)
merge_fronts = compiled(merge_fronts_reference)


def search_labels_reference(
    time: FloatArray, cost: FloatArray, grow_time: FloatArray, grow_cost: FloatArray, limit: float
) -> tuple[FloatArray, FloatArray, IntArray, IntArray, IntArray]:
    """Search every Pareto-optimal label over (stage, level).

    A label is dropped if its time plus the shortest remaining time exceeds ``limit``.

    Args:
        time: Seconds of each stage at each level: [stages, levels].
        cost: Dollars of the same: [stages, levels].
        grow_time: Seconds of growing from a level up to a level: [stages, levels + 1, levels], row 0 from no instance.
        grow_cost: Dollars of the same.
        limit: Seconds that a plan may take.

    Returns:
        Arrays ``(time, cost, parent, level)`` of the labels, and the indices of the last front, fastest first.
    """
    stages, count = time.shape
    remaining = np.zeros(stages + 1)
    for stage in range(stages - 1, -1, -1):
        remaining[stage] = remaining[stage + 1] + time[stage].min()
    capacity = 4096
    all_t, all_c = np.empty(capacity), np.empty(capacity)
    all_p, all_l = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
    used = 0
    begin = np.zeros((stages, count + 1), np.int64)
    zero, no_parent = np.zeros(1), np.full(1, -1)
    empty_f, empty_i = np.empty(0), np.empty(0, np.int64)
    for stage in range(stages):
        suffix_t, suffix_c, suffix_p = empty_f, empty_f, empty_i
        fronts_t = [empty_f for _ in range(count)]
        fronts_c = [empty_f for _ in range(count)]
        fronts_p = [empty_i for _ in range(count)]
        for level in range(count - 1, -1, -1):
            if stage == 0:
                t, c, p = merge_fronts(
                    empty_f, empty_f, empty_i, zero, zero, no_parent, grow_time[0, 0, level], grow_cost[0, 0, level]
                )
            else:
                lo, hi = begin[stage - 1, level], begin[stage - 1, level + 1]
                suffix_t, suffix_c, suffix_p = merge_fronts(
                    suffix_t, suffix_c, suffix_p, all_t[lo:hi], all_c[lo:hi], np.arange(lo, hi), 0.0, 0.0
                )
                t, c, p = suffix_t, suffix_c, suffix_p
                for lower in range(level):
                    lo, hi = begin[stage - 1, lower], begin[stage - 1, lower + 1]
                    t, c, p = merge_fronts(
                        t,
                        c,
                        p,
                        all_t[lo:hi],
                        all_c[lo:hi],
                        np.arange(lo, hi),
                        grow_time[stage, lower + 1, level],
                        grow_cost[stage, lower + 1, level],
                    )
            in_time = t + time[stage, level] + remaining[stage + 1] <= limit
            fronts_t[level] = t[in_time] + time[stage, level]
            fronts_c[level] = c[in_time] + cost[stage, level]
            fronts_p[level] = p[in_time]
        for level in range(count):
            size = fronts_t[level].shape[0]
            while used + size > capacity:
                capacity *= 2
                all_t, all_c = np.concatenate((all_t, all_t)), np.concatenate((all_c, all_c))
                all_p, all_l = np.concatenate((all_p, all_p)), np.concatenate((all_l, all_l))
            begin[stage, level] = used
            all_t[used : used + size] = fronts_t[level]
            all_c[used : used + size] = fronts_c[level]
            all_p[used : used + size] = fronts_p[level]
            all_l[used : used + size] = level
            used += size
        begin[stage, count] = used
    front_t, front_c, front = empty_f, empty_f, empty_i
    for level in range(count):
        lo, hi = begin[stages - 1, level], begin[stages - 1, level + 1]
        front_t, front_c, front = merge_fronts(
            front_t, front_c, front, all_t[lo:hi], all_c[lo:hi], np.arange(lo, hi), 0.0, 0.0
        )
    return all_t[:used], all_c[:used], all_p[:used], all_l[:used], front


search_labels = compiled(search_labels_reference)
