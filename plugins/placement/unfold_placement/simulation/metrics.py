"""Figures of a replay: waiting, fairness, utilisation, fragmentation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfold_placement.core import kernel
from unfold_placement.core.types import PODS, Task
from unfold_placement.simulation.simulator import SimulationResult

INSTANTS = 48
DEMANDS = 64


@dataclass(frozen=True, slots=True)
class ReplayMetrics:
    """Seconds and shares. ``makespan`` is from the first arrival to the last end; ``scarce`` the busiest resource."""

    makespan_s: float
    wait_mean_s: float
    wait_p95_s: float
    fairness: float
    utilisation: float
    fragmentation: float
    bottleneck: str
    preemptions: int
    missed_deadlines: int


def compute_metrics(found: SimulationResult) -> ReplayMetrics:
    """Return the figures of a replay; of tasks that never ran only that they did not."""
    arrival = np.array([task.arrival for task in found.tasks])
    ran = np.isfinite(found.end_s)
    waits = (found.start_s - arrival)[ran]
    span = float(found.end_s[ran].max() - arrival.min()) if ran.any() else 0.0
    scarce, share = compute_utilisation(found)
    return ReplayMetrics(
        makespan_s=span,
        wait_mean_s=float(waits.mean()) if waits.size else 0.0,
        wait_p95_s=float(np.quantile(waits, 0.95)) if waits.size else 0.0,
        fairness=compute_fairness(found),
        utilisation=share,
        fragmentation=compute_fragmentation(found, scarce),
        bottleneck=scarce,
        preemptions=int((found.log.kinds == kernel.LOG_PREEMPTED).sum()),
        missed_deadlines=sum(end > task.deadline for task, end in zip(found.tasks, found.end_s, strict=True)),
    )


def compute_utilisation(found: SimulationResult) -> tuple[str, float]:
    """Return the resource of which most was in use, and that part of it, from the first arrival to the last start.

    Work that a preemption lost does not count.
    """
    kinds, total = found.table.resource_kinds, _total(found)
    ran = np.isfinite(found.end_s)
    if not ran.any():
        return kinds[0], 0.0
    first, last = min(task.arrival for task in found.tasks), float(found.start_s[ran].max())
    last = last if last > first else float(found.end_s[ran].max())
    seconds = np.where(ran, np.minimum(found.end_s, last) - np.minimum(found.start_s, last), 0.0)
    used = (found.table.state.demand[: len(found.tasks)] * seconds[:, None]).sum(axis=0)
    shares = used / np.maximum(total * (last - first), 1e-9)
    shares[[kind == PODS for kind in kinds]] = 0.0
    place = int(shares.argmax())
    return kinds[place], float(shares[place])


def compute_fairness(found: SimulationResult) -> float:
    """Return Jain's index of the users' mean slowdowns, from 1/users to 1 (Jain, Chiu and Hawe, 1984).

    What takes no time, as some jobs of logs do, cannot be slowed down and does not count.
    """
    slow: dict[str, list[float]] = defaultdict(list)
    for task, start, end in zip(found.tasks, found.start_s, found.end_s, strict=True):
        if np.isfinite(end) and end > start:
            slow[task.user or task.job].append((end - task.arrival) / (end - start))
    means = np.array([np.mean(values) for values in slow.values()])
    return float(means.sum() ** 2 / (means.size * (means**2).sum())) if means.size else 1.0


def compute_fragmentation(found: SimulationResult, kind: str) -> float:
    """Return the share of what is free of a resource that a task drawn from the workload could not use, over time.

    After Weng et al. (USENIX ATC 2023), at the level of nodes, at up to 48 instants while tasks wait or run.
    """
    demands, weights = _popular(found.table.state.demand[: len(found.tasks)], found.table.resource_kinds.index(kind))
    if not len(demands):
        return 0.0
    place = found.table.resource_kinds.index(kind)
    lost, free = 0.0, 0.0
    for state in _instants(found):
        fits = (demands[:, None, :] <= state[None, :, :]).all(axis=2)
        lost += float(weights @ np.where(fits, 0.0, state[None, :, place]).sum(axis=1))
        free += float(state[:, place].sum())
    return lost / free if free else 0.0


def compute_fairness_error(found: SimulationResult, weights: Mapping[str, float], *, dominant: bool) -> float:
    """Return how many tasks the users' weighted shares are apart at most, while all of them have tasks waiting.

    ``dominant``: of dominant shares held, in units of the largest share of one task; else of starts so far against
    the ideal of weighted fair queueing.
    """
    users = sorted({task.user for task in found.tasks})
    scale = np.array([weights.get(user, 1.0) for user in users])
    share = _shares(found) if dominant else np.ones(len(found.tasks))
    held, waiting, worst = np.zeros(len(users)), np.zeros(len(users)), 0.0
    log = found.log
    for at in range(log.times.size):
        row, kind = log.tasks[at], log.kinds[at]
        user = users.index(found.tasks[row].user)
        waiting[user] += {kernel.LOG_SUBMITTED: 1, kernel.LOG_PREEMPTED: 1, kernel.LOG_STARTED: -1}.get(kind, 0)
        held[user] += share[row] * (
            1 if kind == kernel.LOG_STARTED else -1 if kind == kernel.LOG_ENDED and dominant else 0
        )
        whole = at + 1 == log.times.size or log.times[at + 1] > log.times[at]
        if whole and (waiting > 0).all():
            worst = max(worst, _apart(held, scale, share.max(), dominant=dominant))
    return worst


def _apart(held: NDArray[np.float64], scale: NDArray[np.float64], one: float, *, dominant: bool) -> float:
    if dominant:
        level = held / scale
        return float((level.max() - level.min()) / (one / scale.min()))
    return float(np.abs(held - held.sum() * scale / scale.sum()).max())


def _shares(found: SimulationResult) -> NDArray[np.float64]:
    need = found.table.state.demand[: len(found.tasks)]
    return np.asarray((need / np.maximum(_total(found), 1)).max(axis=1))


def _total(found: SimulationResult) -> NDArray[np.float64]:
    return np.array([sum(n.capacity.get(kind, 0) for n in found.nodes) for kind in found.table.resource_kinds], float)


def _popular(need: NDArray[np.int64], place: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    asked = need[need[:, place] > 0]
    if not len(asked):
        return asked, np.zeros(0)
    demands, counts = np.unique(asked, axis=0, return_counts=True)
    top = np.argsort(-counts)[:DEMANDS]
    return demands[top], counts[top] / counts[top].sum()


def _instants(found: SimulationResult) -> Sequence[NDArray[np.int64]]:
    free = np.array([[n.capacity.get(kind, 0) for kind in found.table.resource_kinds] for n in found.nodes], np.int64)
    need, log = found.table.state.demand, found.log
    starts = np.flatnonzero(log.kinds == kernel.LOG_STARTED)
    wanted = set(starts[np.linspace(0, starts.size - 1, min(INSTANTS, starts.size)).astype(int)].tolist())
    states = []
    for at in range(log.times.size):
        if log.kinds[at] == kernel.LOG_STARTED:
            free[log.nodes[at]] -= need[log.tasks[at]]
        elif log.kinds[at] in {kernel.LOG_ENDED, kernel.LOG_PREEMPTED}:
            free[log.nodes[at]] += need[log.tasks[at]]
        if at in wanted:
            states.append(free.copy())
    return states


def count_running(found: SimulationResult, of: Sequence[Task]) -> tuple[list[float], list[float]]:
    """Return times and how many of some tasks run from then on."""
    mine = {task.name for task in of}
    times, counts, level = [0.0], [0.0], 0
    log = found.log
    for time, kind, row in zip(log.times.tolist(), log.kinds.tolist(), log.tasks.tolist(), strict=True):
        change = {kernel.LOG_STARTED: 1, kernel.LOG_ENDED: -1, kernel.LOG_PREEMPTED: -1}.get(kind, 0)
        if change and found.tasks[row].name in mine:
            level += change
            if times[-1] == time:
                counts[-1] = float(level)
            else:
                times.append(time)
                counts.append(float(level))
    return times, counts
