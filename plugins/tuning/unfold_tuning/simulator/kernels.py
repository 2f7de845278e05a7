"""Compiled loops, each beside the plain Python that it is compiled from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from unfoldkit.jit import compiled

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
TIE = 1e-9


def schedule_python(lengths: Floats, places: int) -> Floats:
    """Return the end of the last job per row when each goes, in order, to the place that is free first.

    ``lengths`` is [samples, jobs]; the result [samples]. A binary heap of ``places`` holds when each becomes free.
    """
    samples, jobs = lengths.shape
    ends = np.zeros(samples)
    free = np.zeros(places)
    for row in range(samples):
        free[:] = 0.0
        last = 0.0
        for job in range(jobs):
            end = free[0] + lengths[row, job]
            last = max(last, end)
            at = 0
            while True:
                child = 2 * at + 1
                if child >= places:
                    break
                if child + 1 < places and free[child + 1] < free[child]:
                    child += 1
                if free[child] >= end:
                    break
                free[at] = free[child]
                at = child
            free[at] = end
        ends[row] = last
    return ends


def merge_python(
    t1: Floats, c1: Floats, p1: Ints, t2: Floats, c2: Floats, p2: Ints, dt: float, dc: float
) -> tuple[Floats, Floats, Ints]:
    """Return the Pareto front of two fronts, the second shifted by ``(dt, dc)``; times rise, costs fall."""
    size = t1.shape[0] + t2.shape[0]
    time, cost, parent = np.empty(size), np.empty(size), np.empty(size, np.int64)
    i = j = kept = 0
    best = np.inf
    while i < t1.shape[0] or j < t2.shape[0]:
        first = j >= t2.shape[0]
        if i < t1.shape[0] and j < t2.shape[0]:
            other = t2[j] + dt
            first = t1[i] < other or (t1[i] == other and c1[i] <= c2[j] + dc)
        if first:
            t, c, p = t1[i], c1[i], p1[i]
            i += 1
        else:
            t, c, p = t2[j] + dt, c2[j] + dc, p2[j]
            j += 1
        if c < best - TIE:
            # two times that differ by rounding are one: the cheaper label takes the place
            kept -= kept > 0 and t - time[kept - 1] <= TIE
            time[kept], cost[kept], parent[kept] = t, c, p
            best = c
            kept += 1
    return time[:kept], cost[:kept], parent[:kept]


def hits_python(uniform: Floats, risk: Floats, pieces: Floats) -> tuple[Floats, Floats]:
    """Return the negative binomial number of losses at each uniform, and where in its step the uniform lies.

    All are [samples, trials]: ``pieces`` must each be got through without a loss, at ``risk`` expected losses a try.
    """
    count, within = np.zeros(uniform.shape), np.zeros(uniform.shape)
    for row in range(uniform.shape[0]):
        for col in range(uniform.shape[1]):
            size = pieces[row, col]
            lost, mean = -np.expm1(-risk[row, col]), size * np.expm1(risk[row, col])
            below, mass, found = 0.0, np.exp(-risk[row, col] * size), 0.0
            # the second condition ends where rounding keeps the sum of all masses below the uniform
            while uniform[row, col] > below + mass and (found < mean or mass > 1e-16):
                below += mass
                mass *= lost * (size + found) / (found + 1)
                found += 1
            count[row, col] = found
            within[row, col] = min(1.0, (uniform[row, col] - below) / mass) if mass > 0 else 0.5
    return count, within


schedule = compiled(schedule_python)
hits = compiled(hits_python)
merge = compiled(merge_python)


def labels_python(
    time: Floats, cost: Floats, grow_time: Floats, grow_cost: Floats, limit: float
) -> tuple[Floats, Floats, Ints, Ints, Ints]:
    """Return every Pareto label over (stage, level), and the last front first.

    ``time``, ``cost`` are [stages, levels]; ``grow_time``, ``grow_cost`` [stages, levels + 1, levels]: from a level
    (row 0: from no instance) up to a level. Labels whose time plus the shortest rest exceeds ``limit`` are dropped.
    Returns label arrays ``(time, cost, parent, level)`` and the indices of the final front, fastest first.
    """
    stages, count = time.shape
    rest = np.zeros(stages + 1)
    for stage in range(stages - 1, -1, -1):
        rest[stage] = rest[stage + 1] + time[stage].min()
    room = 4096
    all_t, all_c = np.empty(room), np.empty(room)
    all_p, all_l = np.empty(room, np.int64), np.empty(room, np.int64)
    used = 0
    begin = np.zeros((stages, count + 1), np.int64)
    zero, none = np.zeros(1), np.full(1, -1)
    empty_f, empty_i = np.empty(0), np.empty(0, np.int64)
    for stage in range(stages):
        suffix_t, suffix_c, suffix_p = empty_f, empty_f, empty_i
        fronts_t = [empty_f for _ in range(count)]
        fronts_c = [empty_f for _ in range(count)]
        fronts_p = [empty_i for _ in range(count)]
        for level in range(count - 1, -1, -1):
            if stage == 0:
                t, c, p = merge(
                    empty_f, empty_f, empty_i, zero, zero, none, grow_time[0, 0, level], grow_cost[0, 0, level]
                )
            else:
                lo, hi = begin[stage - 1, level], begin[stage - 1, level + 1]
                suffix_t, suffix_c, suffix_p = merge(
                    suffix_t, suffix_c, suffix_p, all_t[lo:hi], all_c[lo:hi], np.arange(lo, hi), 0.0, 0.0
                )
                t, c, p = suffix_t, suffix_c, suffix_p
                for lower in range(level):
                    lo, hi = begin[stage - 1, lower], begin[stage - 1, lower + 1]
                    t, c, p = merge(
                        t,
                        c,
                        p,
                        all_t[lo:hi],
                        all_c[lo:hi],
                        np.arange(lo, hi),
                        grow_time[stage, lower + 1, level],
                        grow_cost[stage, lower + 1, level],
                    )
            keep = t + time[stage, level] + rest[stage + 1] <= limit
            fronts_t[level] = t[keep] + time[stage, level]
            fronts_c[level] = c[keep] + cost[stage, level]
            fronts_p[level] = p[keep]
        for level in range(count):
            size = fronts_t[level].shape[0]
            while used + size > room:
                room *= 2
                all_t, all_c = np.concatenate((all_t, all_t)), np.concatenate((all_c, all_c))
                all_p, all_l = np.concatenate((all_p, all_p)), np.concatenate((all_l, all_l))
            begin[stage, level] = used
            all_t[used : used + size] = fronts_t[level]
            all_c[used : used + size] = fronts_c[level]
            all_p[used : used + size] = fronts_p[level]
            all_l[used : used + size] = level
            used += size
        begin[stage, count] = used
    last_t, last_c, last = empty_f, empty_f, empty_i
    for level in range(count):
        lo, hi = begin[stages - 1, level], begin[stages - 1, level + 1]
        last_t, last_c, last = merge(last_t, last_c, last, all_t[lo:hi], all_c[lo:hi], np.arange(lo, hi), 0.0, 0.0)
    return all_t[:used], all_c[:used], all_p[:used], all_l[:used], last


labels = compiled(labels_python)
