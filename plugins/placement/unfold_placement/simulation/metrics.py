"""Figures of a replay: waiting, fairness, utilisation, fragmentation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfold_placement.core import kernel
from unfold_placement.core.types import SEATS, Task
from unfold_placement.simulation.simulator import Outcome

INSTANTS = 48
DEMANDS = 64


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds and shares. ``makespan`` is from the first arrival to the last end; ``scarce`` the busiest resource."""

    makespan: float
    wait_mean: float
    wait_p95: float
    fairness: float
    utilisation: float
    fragmentation: float
    scarce: str
    preemptions: int
    late: int


def figures(found: Outcome) -> Figures:
    """Return the figures of a replay; of tasks that never ran only that they did not."""
    arrival = np.array([task.arrival for task in found.tasks])
    ran = np.isfinite(found.end)
    waits = (found.start - arrival)[ran]
    span = float(found.end[ran].max() - arrival.min()) if ran.any() else 0.0
    scarce, share = utilisation(found)
    return Figures(
        makespan=span,
        wait_mean=float(waits.mean()) if waits.size else 0.0,
        wait_p95=float(np.quantile(waits, 0.95)) if waits.size else 0.0,
        fairness=fairness(found),
        utilisation=share,
        fragmentation=fragmentation(found, scarce),
        scarce=scarce,
        preemptions=int((found.log.kinds == kernel.K_PREEMPTED).sum()),
        late=sum(end > task.deadline for task, end in zip(found.tasks, found.end, strict=True)),
    )


def utilisation(found: Outcome) -> tuple[str, float]:
    """Return the resource of which most was in use, and that part of it, from the first arrival to the last start.

    Work that a preemption lost does not count.
    """
    kinds, total = found.book.kinds, _total(found)
    ran = np.isfinite(found.end)
    if not ran.any():
        return kinds[0], 0.0
    first, last = min(task.arrival for task in found.tasks), float(found.start[ran].max())
    last = last if last > first else float(found.end[ran].max())
    seconds = np.where(ran, np.minimum(found.end, last) - np.minimum(found.start, last), 0.0)
    used = (found.book.arena.need[: len(found.tasks)] * seconds[:, None]).sum(axis=0)
    shares = used / np.maximum(total * (last - first), 1e-9)
    shares[[kind == SEATS for kind in kinds]] = 0.0
    place = int(shares.argmax())
    return kinds[place], float(shares[place])


def fairness(found: Outcome) -> float:
    """Return Jain's index of the users' mean slowdowns, from 1/users to 1 (Jain, Chiu and Hawe, 1984).

    What takes no time, as some jobs of logs do, cannot be slowed down and does not count.
    """
    slow: dict[str, list[float]] = defaultdict(list)
    for task, start, end in zip(found.tasks, found.start, found.end, strict=True):
        if np.isfinite(end) and end > start:
            slow[task.user or task.job].append((end - task.arrival) / (end - start))
    means = np.array([np.mean(values) for values in slow.values()])
    return float(means.sum() ** 2 / (means.size * (means**2).sum())) if means.size else 1.0


def fragmentation(found: Outcome, kind: str) -> float:
    """Return the share of what is free of a resource that a task drawn from the workload could not use, over time.

    After Weng et al. (USENIX ATC 2023), at the level of nodes, at up to 48 instants while tasks wait or run.
    """
    demands, weights = _popular(found.book.arena.need[: len(found.tasks)], found.book.kinds.index(kind))
    if not len(demands):
        return 0.0
    place = found.book.kinds.index(kind)
    lost, free = 0.0, 0.0
    for state in _instants(found):
        fits = (demands[:, None, :] <= state[None, :, :]).all(axis=2)
        lost += float(weights @ np.where(fits, 0.0, state[None, :, place]).sum(axis=1))
        free += float(state[:, place].sum())
    return lost / free if free else 0.0


def fairness_error(found: Outcome, weights: Mapping[str, float], *, dominant: bool) -> float:
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
        waiting[user] += {kernel.K_SUBMITTED: 1, kernel.K_PREEMPTED: 1, kernel.K_STARTED: -1}.get(kind, 0)
        held[user] += share[row] * (1 if kind == kernel.K_STARTED else -1 if kind == kernel.K_ENDED and dominant else 0)
        whole = at + 1 == log.times.size or log.times[at + 1] > log.times[at]
        if whole and (waiting > 0).all():
            worst = max(worst, _apart(held, scale, share.max(), dominant=dominant))
    return worst


def _apart(held: NDArray[np.float64], scale: NDArray[np.float64], one: float, *, dominant: bool) -> float:
    if dominant:
        level = held / scale
        return float((level.max() - level.min()) / (one / scale.min()))
    return float(np.abs(held - held.sum() * scale / scale.sum()).max())


def _shares(found: Outcome) -> NDArray[np.float64]:
    need = found.book.arena.need[: len(found.tasks)]
    return np.asarray((need / np.maximum(_total(found), 1)).max(axis=1))


def _total(found: Outcome) -> NDArray[np.float64]:
    return np.array([sum(n.capacity.get(kind, 0) for n in found.nodes) for kind in found.book.kinds], float)


def _popular(need: NDArray[np.int64], place: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    asked = need[need[:, place] > 0]
    if not len(asked):
        return asked, np.zeros(0)
    demands, counts = np.unique(asked, axis=0, return_counts=True)
    top = np.argsort(-counts)[:DEMANDS]
    return demands[top], counts[top] / counts[top].sum()


def _instants(found: Outcome) -> Sequence[NDArray[np.int64]]:
    free = np.array([[n.capacity.get(kind, 0) for kind in found.book.kinds] for n in found.nodes], np.int64)
    need, log = found.book.arena.need, found.log
    starts = np.flatnonzero(log.kinds == kernel.K_STARTED)
    wanted = set(starts[np.linspace(0, starts.size - 1, min(INSTANTS, starts.size)).astype(int)].tolist())
    states = []
    for at in range(log.times.size):
        if log.kinds[at] == kernel.K_STARTED:
            free[log.nodes[at]] -= need[log.tasks[at]]
        elif log.kinds[at] in {kernel.K_ENDED, kernel.K_PREEMPTED}:
            free[log.nodes[at]] += need[log.tasks[at]]
        if at in wanted:
            states.append(free.copy())
    return states


def busy(found: Outcome, of: Sequence[Task]) -> tuple[list[float], list[float]]:
    """Return times and how many of some tasks run from then on."""
    mine = {task.name for task in of}
    times, counts, level = [0.0], [0.0], 0
    log = found.log
    for time, kind, row in zip(log.times.tolist(), log.kinds.tolist(), log.tasks.tolist(), strict=True):
        change = {kernel.K_STARTED: 1, kernel.K_ENDED: -1, kernel.K_PREEMPTED: -1}.get(kind, 0)
        if change and found.tasks[row].name in mine:
            level += change
            if times[-1] == time:
                counts[-1] = float(level)
            else:
                times.append(time)
                counts.append(float(level))
    return times, counts
