"""The exact frontier if a minimum charge may bind: labels carry the seconds that are paid already.

An instance released before its minimum was partly paid for nothing; an instance that is kept uses up what was paid. A
label is therefore (time, cost, credits): the whole minimum is paid when an instance begins to run, and its credit, the
rest of that minimum in seconds, runs down first. The oldest instances are released first, which is optimal since a bill
is convex in the lifetime. Label A dominates B at the same number of instances if it is no later and ``cost_A + price *
sum_j max(0, credit_B,j - credit_A,j) <= cost_B``, with sorted credits.
"""

from __future__ import annotations

import numpy as np

from unfold_tuning._types import FloatArray, IntArray
from unfold_tuning.planner.frontier import (
    Frontier,
    StageCosts,
    compute_growth_startup_s,
    count_new_instances,
    search_frontier,
    trace_plan,
)
from unfold_tuning.simulator.execution_model import ExecutionModel
from unfold_tuning.simulator.kernels import TIE
from unfold_tuning.simulator.spot_preemptions import compute_replacement_usd_per_second
from unfoldkit.jit import compiled


def search_exact_frontier(model: ExecutionModel, costs: StageCosts) -> Frontier:
    """Search the exact frontier, with credits only if the minimum charge may bind, as they cost time."""
    if is_minimum_binding(model, costs):
        return search_minimum_charge_frontier(model, costs)
    return search_frontier(costs)


def is_minimum_binding(model: ExecutionModel, costs: StageCosts) -> bool:
    """Return whether an instance may be released before its minimum: after one start-up and the shortest stage."""
    billing = model.machine.billing
    ready_s = compute_growth_startup_s(model, np.ones((1,), dtype=np.int64)).min()
    return billing.per == "instance" and billing.minimum > ready_s + costs.seconds.min() + TIE


def search_minimum_charge_frontier(model: ExecutionModel, costs: StageCosts) -> Frontier:
    """Search every plan that no other beats in both expected time and cost, the minimum charge included."""
    counts, machine = costs.counts, model.machine
    new = count_new_instances(counts, model.running_instances)
    ready_s = compute_growth_startup_s(model, new) * (new > 0)
    wait_s = np.array([model.sample_provision_seconds(index).mean() for index in range(len(model.stages))])
    rates = (machine.usd_per_second, machine.head_usd_per_second, machine.ingress_usd)
    replacement_usd = costs.seconds * counts * compute_replacement_usd_per_second(machine, model.profile)
    time, cost, parent, level, last = search_credit_labels(
        costs.seconds,
        replacement_usd,
        wait_s,
        ready_s,
        counts,
        model.running_instances,
        machine.billing.minimum,
        *rates,
    )
    # of two times that differ by rounding, the later one is cheaper
    last = last[np.append(np.diff(time[last]) > TIE, True)]
    plans = tuple(trace_plan(costs.allocations, parent, level, int(index)) for index in last)
    return Frontier(plans, time[last], cost[last])


def search_credit_labels_reference(
    time: FloatArray, replacement: FloatArray, wait: FloatArray, ready: FloatArray, counts: IntArray, running: int,
    minimum: float, price: float, head: float, ingress: float,
) -> tuple[FloatArray, FloatArray, IntArray, IntArray, IntArray]:  # fmt: skip
    """Search every label that no other dominates.

    The instances of a label are groups by age: those that ran at the start (group 0), then those of each growth.

    Args:
        time: Seconds of each stage: [stages, levels].
        replacement: Dollars of replacing preempted instances meanwhile: [stages, levels].
        wait: Seconds until new instances run: [stages].
        ready: Seconds of their start-up: [stages, levels + 1, levels], row 0 from ``running``.
        counts: Instances at each level.
        running: Instances that run at the start.
        minimum: Seconds that are billed at least.
        price: Dollars per second of an instance.
        head: Dollars per second of the head node.
        ingress: Dollars per new instance.

    Returns:
        Arrays ``(time, cost, parent, level)`` of the labels, and the indices of the last front, fastest first.
    """
    stages, levels = time.shape
    groups = stages + 1
    all_t, all_c = np.zeros(1), np.zeros(1)
    all_p, all_l = np.full(1, -1), np.full(1, -1)
    size, credit = np.zeros((1, groups)), np.zeros((1, groups))
    size[0, 0] = running
    begin, end = 0, 1
    for stage in range(stages):
        labels = end - begin
        for level in range(levels):
            t, c, p = np.empty(labels), np.empty(labels), np.empty(labels, np.int64)
            n, r = np.empty((labels, groups)), np.empty((labels, groups))
            for index in range(labels):
                source = begin + index
                n[index], r[index] = size[source], credit[source]
                t[index], c[index], p[index] = all_t[source], all_c[source], source
                new = counts[level] - (counts[all_l[source]] if stage else running)
                if new > 0:
                    spent = _use_credit(n[index], r[index], wait[stage]) * price
                    n[index, stage + 1], r[index, stage + 1] = new, minimum
                    delay = ready[stage, all_l[source] + 1, level]
                    spent += (_use_credit(n[index], r[index], delay) + new * minimum) * price
                    t[index] += wait[stage] + delay
                    c[index] += spent + new * ingress + (wait[stage] + delay) * head
                else:
                    _release_groups(n[index], -new)
                c[index] += _use_credit(n[index], r[index], time[stage, level]) * price + time[stage, level] * head
                c[index] += replacement[stage, level]
                t[index] += time[stage, level]
            front = _select_nondominated(t, c, n, r, price)
            all_t, all_c = np.concatenate((all_t, t[front])), np.concatenate((all_c, c[front]))
            all_p = np.concatenate((all_p, p[front]))
            all_l = np.concatenate((all_l, np.full(len(front), level)))
            size, credit = np.concatenate((size, n[front])), np.concatenate((credit, r[front]))
        begin, end = end, len(all_t)
    final = _select_nondominated(all_t[begin:], all_c[begin:], size[begin:], credit[begin:], 0.0) + begin
    return all_t, all_c, all_p, all_l, final


def _use_credit_reference(size: FloatArray, credit: FloatArray, seconds: float) -> float:
    """Run groups of instances for some seconds and return the instance-seconds that no credit covers."""
    uncovered = 0.0
    for group in range(size.shape[0]):
        left = credit[group] - seconds
        uncovered += size[group] * max(0.0, -left)
        credit[group] = max(0.0, left)
    return uncovered


def _release_groups_reference(size: FloatArray, count: float) -> None:
    """Release the oldest instances."""
    for group in range(size.shape[0]):
        released = min(count, size[group])
        size[group] -= released
        count -= released


def _count_missing_credit_reference(
    size: FloatArray, credit: FloatArray, other_size: FloatArray, other_credit: FloatArray
) -> float:
    """Return the instance-seconds of credit that the second label has over the first, oldest against oldest."""
    total, i, j = 0.0, 0, 0
    left, other_left = size[0], other_size[0]
    while i < size.shape[0] and j < other_size.shape[0]:
        step = min(left, other_left)
        total += step * max(0.0, other_credit[j] - credit[i])
        left, other_left = left - step, other_left - step
        if left <= 0:
            i += 1
            left = size[i] if i < size.shape[0] else 0.0
        if other_left <= 0:
            j += 1
            other_left = other_size[j] if j < other_size.shape[0] else 0.0
    return total


def _select_nondominated_reference(
    time: FloatArray, cost: FloatArray, size: FloatArray, credit: FloatArray, price: float
) -> IntArray:
    """Select the labels of one level that no other dominates, fastest first; a price of 0 ignores credits."""
    by_cost = np.argsort(cost, kind="mergesort")
    order = by_cost[np.argsort(time[by_cost], kind="mergesort")]
    front = np.empty(len(order), np.int64)
    count = 0
    for index in order:
        dominated = False
        for rank in range(count):
            rival = front[rank]
            if cost[rival] <= cost[index] + TIE:
                missing = (
                    _count_missing_credit(size[rival], credit[rival], size[index], credit[index]) if price > 0 else 0.0
                )
                if cost[rival] + price * missing <= cost[index] + TIE:
                    dominated = True
                    break
        if not dominated:
            front[count] = index
            count += 1
    return front[:count]


_use_credit = compiled(_use_credit_reference)
_release_groups = compiled(_release_groups_reference)
_count_missing_credit = compiled(_count_missing_credit_reference)
_select_nondominated = compiled(_select_nondominated_reference)
search_credit_labels = compiled(search_credit_labels_reference)
