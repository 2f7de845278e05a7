"""The exact curve where a minimum charge may bind: labels that carry the seconds which are paid already.

An instance that is released before its minimum has been paid for nothing; one that is kept runs on what was paid. So a
label is (time, cost, credits): the whole minimum is paid when an instance begins to run, and its credit, the seconds
that are left of it, runs down first. The oldest instances are released first, which is best since a bill is convex in
the life. Label A beats B at the same number of instances if it is no later and ``cost_A + price * sum_j max(0,
credit_B,j - credit_A,j) <= cost_B``, credits sorted (study of our own).
"""

from __future__ import annotations

import numpy as np

from unfold_tuning.planner.frontier import Curve, Grid, curve, expected_startup, new_instances, walk
from unfold_tuning.simulator.execution_model import Model
from unfold_tuning.simulator.kernels import TIE, Floats, Ints
from unfold_tuning.simulator.preemption import replacing
from unfoldkit.jit import compiled


def binds(model: Model, table: Grid) -> bool:
    """Tell whether an instance may be released before its minimum: shorter than a start-up and the shortest stage."""
    billing = model.machine.billing
    ready = expected_startup(model, np.ones((1,), dtype=np.int64)).min()
    return billing.per == "instance" and billing.minimum > ready + table.time.min() + TIE


def prepaid_curve(model: Model, table: Grid) -> Curve:
    """Return every plan that no other beats in both expected time and cost, the minimum charge included."""
    counts = np.array([deal.instances for deal in table.deals[0]], dtype=np.int64)
    new = new_instances(counts, model.held)
    ready = expected_startup(model, new) * (new > 0)
    wait = np.array([model.provision(index).mean() for index in range(len(model.stages))])
    machine = model.machine
    rates = (machine.per_second, machine.head / 3600.0, machine.ingress)
    replaced = table.time * counts * replacing(machine, model.profile)
    time, cost, parent, level, last = credit_labels(
        table.time, replaced, wait, ready, counts, model.held, machine.billing.minimum, *rates
    )
    # of two times that differ by rounding the later one is the cheaper
    last = last[np.append(np.diff(time[last]) > TIE, True)]
    plans = tuple(walk(table.deals, parent, level, int(index)) for index in last)
    return Curve(plans, time[last], cost[last], len(time))


def exact_curve(model: Model, table: Grid) -> Curve:
    """Return the exact curve by the search that the rules of the bill need."""
    return prepaid_curve(model, table) if binds(model, table) else curve(table)


def credit_labels_python(
    time: Floats, replaced: Floats, wait: Floats, ready: Floats, counts: Ints, held: int, minimum: float, each: float,
    head: float, ingress: float,
) -> tuple[Floats, Floats, Ints, Ints, Ints]:  # fmt: skip
    """Return every label that no other beats, and the last front.

    ``time`` is [stages, levels], ``replaced`` the dollars of what replaces lost instances meanwhile, ``wait`` [stages]
    the delay of new instances, ``ready`` [stages, levels + 1, levels] their start-up, row 0 from ``held``; ``each``,
    ``head`` are dollars per second, ``ingress`` per new instance. A label's instances are groups by age: those held at
    the start (group 0), then those of each stage's growth.
    Returns ``(time, cost, parent, level)`` of the labels and the indices of the final front, fastest first.
    """
    stages, levels = time.shape
    groups = stages + 1
    all_t, all_c = np.zeros(1), np.zeros(1)
    all_p, all_l = np.full(1, -1), np.full(1, -1)
    size, credit = np.zeros((1, groups)), np.zeros((1, groups))
    size[0, 0] = held
    begin, end = 0, 1
    for stage in range(stages):
        old = end - begin
        for level in range(levels):
            t, c, p = np.empty(old), np.empty(old), np.empty(old, np.int64)
            n, r = np.empty((old, groups)), np.empty((old, groups))
            for index in range(old):
                source = begin + index
                n[index], r[index] = size[source], credit[source]
                t[index], c[index], p[index] = all_t[source], all_c[source], source
                new = counts[level] - (counts[all_l[source]] if stage else held)
                if new > 0:
                    spent = _run_down(n[index], r[index], wait[stage]) * each
                    n[index, stage + 1], r[index, stage + 1] = new, minimum
                    delay = ready[stage, all_l[source] + 1, level]
                    spent += (_run_down(n[index], r[index], delay) + new * minimum) * each
                    t[index] += wait[stage] + delay
                    c[index] += spent + new * ingress + (wait[stage] + delay) * head
                else:
                    _release(n[index], -new)
                c[index] += _run_down(n[index], r[index], time[stage, level]) * each + time[stage, level] * head
                c[index] += replaced[stage, level]
                t[index] += time[stage, level]
            kept = _unbeaten(t, c, n, r, each)
            all_t, all_c = np.concatenate((all_t, t[kept])), np.concatenate((all_c, c[kept]))
            all_p = np.concatenate((all_p, p[kept]))
            all_l = np.concatenate((all_l, np.full(len(kept), level)))
            size, credit = np.concatenate((size, n[kept])), np.concatenate((credit, r[kept]))
        begin, end = end, len(all_t)
    last = _unbeaten(all_t[begin:], all_c[begin:], size[begin:], credit[begin:], 0.0) + begin
    return all_t, all_c, all_p, all_l, last


def _run_down_python(size: Floats, credit: Floats, seconds: float) -> float:
    """Let instances run for some seconds and return the instance-seconds that no credit covers."""
    beyond = 0.0
    for group in range(size.shape[0]):
        left = credit[group] - seconds
        beyond += size[group] * max(0.0, -left)
        credit[group] = max(0.0, left)
    return beyond


def _release_python(size: Floats, count: float) -> None:
    """Give back the oldest instances."""
    for group in range(size.shape[0]):
        gone = min(count, size[group])
        size[group] -= gone
        count -= gone


def _missing_python(size: Floats, credit: Floats, other: Floats, theirs: Floats) -> float:
    """Return the credit, in instance-seconds, that the other label has over this one, oldest against oldest."""
    total, i, j = 0.0, 0, 0
    mine, yours = size[0], other[0]
    while i < size.shape[0] and j < other.shape[0]:
        step = min(mine, yours)
        total += step * max(0.0, theirs[j] - credit[i])
        mine, yours = mine - step, yours - step
        if mine <= 0:
            i += 1
            mine = size[i] if i < size.shape[0] else 0.0
        if yours <= 0:
            j += 1
            yours = other[j] if j < other.shape[0] else 0.0
    return total


def _unbeaten_python(time: Floats, cost: Floats, size: Floats, credit: Floats, each: float) -> Ints:
    """Return the labels of one level that no other beats, fastest first; a price of 0 leaves credits out."""
    by_cost = np.argsort(cost, kind="mergesort")
    order = by_cost[np.argsort(time[by_cost], kind="mergesort")]
    kept = np.empty(len(order), np.int64)
    count = 0
    for index in order:
        beaten = False
        for place in range(count):
            rival = kept[place]
            if cost[rival] <= cost[index] + TIE:
                more = _missing(size[rival], credit[rival], size[index], credit[index]) if each > 0 else 0.0
                if cost[rival] + each * more <= cost[index] + TIE:
                    beaten = True
                    break
        if not beaten:
            kept[count] = index
            count += 1
    return kept[:count]


_run_down = compiled(_run_down_python)
_release = compiled(_release_python)
_missing = compiled(_missing_python)
_unbeaten = compiled(_unbeaten_python)
credit_labels = compiled(credit_labels_python)
