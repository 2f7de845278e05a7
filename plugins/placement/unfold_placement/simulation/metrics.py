"""Metrics of a replay: waiting time, fairness, utilisation and fragmentation."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_placement._types import FloatArray, Int64Array
from unfold_placement.core import kernel
from unfold_placement.core.devices import open_ledgers
from unfold_placement.core.types import DOWN, MILLI, UP, Task, is_slot
from unfold_placement.simulation.simulator import SimulationResult

MAX_INSTANTS = 48
"""Instants at which fragmentation is measured."""
MAX_DEMANDS = 64
"""Distinct demands, the commonest ones, by which fragmentation is measured."""
SECONDS_PER_HOUR = 3600.0
START_CHANGE: Mapping[int, int] = {kernel.LOG_STARTED: 1, kernel.LOG_ENDED: -1, kernel.LOG_PREEMPTED: -1}
"""Change of the number of running tasks by logged kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayMetrics:
    """Metrics of one replay.

    Attributes:
        makespan_s: Seconds from the first arrival to the last end.
        wait_mean_s: Mean waiting time in seconds.
        wait_p95_s: 95th percentile of the waiting time in seconds.
        fairness: Jain's index of the users' mean slowdowns.
        utilisation: Used fraction of the bottleneck.
        fragmentation: Fraction of the bottleneck's free capacity that typical tasks cannot use.
        bottleneck: The kind with the highest utilisation.
        preemptions: Number of preemptions by policies.
        restarts: Number of starts beyond each task's first.
        lost_hours: Hours of work that preemptions and lost nodes discarded, times the amount, by kind.
        missed_deadlines: Number of tasks that end after their deadline.
        node_losses: What the loss of nodes did; None where no node changes.
    """

    makespan_s: float
    wait_mean_s: float
    wait_p95_s: float
    fairness: float
    utilisation: float
    fragmentation: float
    bottleneck: str
    preemptions: int
    restarts: int
    lost_hours: Mapping[str, float]
    missed_deadlines: int
    node_losses: NodeLosses | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLosses:
    """What the loss of nodes did to tasks; members of a gang that stop with it count too.

    Attributes:
        count: Nodes that went down before the last task ended.
        stopped: Preemptions that this caused.
        lost_hours: Hours of work that they discarded, times the amount, by kind.
    """

    count: int
    stopped: int
    lost_hours: Mapping[str, float]


def compute_metrics(result: SimulationResult) -> ReplayMetrics:
    """Compute the metrics of a replay; tasks that never ran count in none of them."""
    arrival_s = np.array([task.arrival for task in result.tasks])
    has_run = np.isfinite(result.end_s)
    pieces = list_pieces(result)
    waits_s = waited_seconds(result, pieces)[has_run]
    bottleneck, utilisation = compute_utilisation(result, pieces)
    losses = compute_node_losses(result, pieces)
    return ReplayMetrics(
        makespan_s=float(result.end_s[has_run].max() - arrival_s.min()) if has_run.any() else 0.0,
        wait_mean_s=float(waits_s.mean()) if waits_s.size else 0.0,
        wait_p95_s=float(np.quantile(waits_s, 0.95)) if waits_s.size else 0.0,
        fairness=compute_fairness(result, pieces),
        utilisation=utilisation,
        fragmentation=compute_fragmentation(result, bottleneck),
        bottleneck=bottleneck,
        preemptions=int((result.log.kinds == kernel.LOG_PREEMPTED).sum()) - (losses.stopped if losses else 0),
        restarts=len(pieces) - len({piece.row for piece in pieces}),
        lost_hours=_lost_hours(result, pieces),
        missed_deadlines=sum(end > task.deadline for task, end in zip(result.tasks, result.end_s, strict=True)),
        node_losses=losses,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One run of a task: from a start to an end or a preemption.

    Attributes:
        row: The task.
        node_row: The node.
        start_s: Start in seconds.
        end_s: End in seconds.
        useful_s: Seconds that were not discarded.
        has_ended: The task ended; else it was stopped.
    """

    row: int
    node_row: int
    start_s: float
    end_s: float
    useful_s: float
    has_ended: bool


def list_pieces(result: SimulationResult) -> list[Piece]:
    """Return the runs of all tasks that ended or were preempted, in order of their end."""
    started: dict[int, tuple[float, int]] = {}
    pieces, log = [], result.log
    entries = zip(log.times.tolist(), log.kinds.tolist(), log.tasks.tolist(), log.nodes.tolist(), strict=True)
    for time, kind, row, node in entries:
        if kind == kernel.LOG_STARTED:
            started[row] = time, node
        elif kind in {kernel.LOG_ENDED, kernel.LOG_PREEMPTED}:
            start_s, node_row = started[row]
            has_ended = kind == kernel.LOG_ENDED
            useful_s = time - start_s if has_ended else result.tasks[row].kept_seconds(time - start_s)
            piece = Piece(
                row=row, node_row=node_row, start_s=start_s, end_s=time, useful_s=useful_s, has_ended=has_ended
            )
            pieces.append(piece)
    return pieces


def list_longest_waits(result: SimulationResult) -> list[tuple[float, float]]:
    """Return begin and end (s) of the longest wait of each task: for its first start, or for one after a preemption."""
    since_s = {row: task.arrival for row, task in enumerate(result.tasks)}
    longest = [(task.arrival, task.arrival) for task in result.tasks]

    def end_wait(row: int, end_s: float) -> None:
        begin_s = since_s.pop(row)
        if end_s - begin_s > longest[row][1] - longest[row][0]:
            longest[row] = (begin_s, end_s)

    log = result.log
    for time, kind, row in zip(log.times.tolist(), log.kinds.tolist(), log.tasks.tolist(), strict=True):
        if kind == kernel.LOG_STARTED:
            end_wait(row, time)
        elif kind == kernel.LOG_PREEMPTED:
            since_s[row] = time
    for row in list(since_s):
        end_wait(row, float(result.table.now))
    return longest


def compute_node_losses(result: SimulationResult, pieces: Sequence[Piece]) -> NodeLosses | None:
    """Compute what the loss of nodes did; None where no node changes."""
    if not result.node_changes:
        return None
    losses = {(change.at, change.node) for change in result.node_changes if change.change == DOWN}
    log, stopped, gangs = result.log, set[tuple[int, float]](), set[tuple[str, float]]()
    entries = [
        (row, time, result.nodes[node].name)
        for time, kind, row, node in zip(
            log.times.tolist(), log.kinds.tolist(), log.tasks.tolist(), log.nodes.tolist(), strict=True
        )
        if kind == kernel.LOG_PREEMPTED
    ]
    for row, time, node in entries:
        if (time, node) in losses:
            stopped.add((row, time))
            gangs.add((result.tasks[row].job, time))
    stopped |= {(row, time) for row, time, _ in entries if (result.tasks[row].job, time) in gangs}
    caused = [piece for piece in pieces if (piece.row, piece.end_s) in stopped and not piece.has_ended]
    ends = result.end_s[np.isfinite(result.end_s)]
    last_s = np.inf if result.stuck else float(ends.max()) if ends.size else -np.inf
    return NodeLosses(
        count=sum(at < last_s for at, _ in losses), stopped=len(caused), lost_hours=_lost_hours(result, caused)
    )


def list_outages(result: SimulationResult) -> list[tuple[int, float, float]]:
    """Return the node row, begin and end (s) of every time for which a node was down; infinity for no end."""
    rows, began = {node.name: row for row, node in enumerate(result.nodes)}, dict[int, float]()
    outages = []
    for change in result.node_changes:
        row = rows[change.node]
        if change.change == DOWN:
            began.setdefault(row, change.at)
        elif change.change == UP and row in began:
            outages.append((row, began.pop(row), change.at))
    return [*outages, *((row, begin_s, np.inf) for row, begin_s in began.items())]


def waited_seconds(result: SimulationResult, pieces: Sequence[Piece]) -> FloatArray:
    """Return the [tasks] seconds between arrival and last end in which a task did not run."""
    ran_s = np.zeros(len(result.tasks))
    for piece in pieces:
        ran_s[piece.row] += piece.end_s - piece.start_s
    arrival_s = np.array([task.arrival for task in result.tasks])
    # rounding: a task that starts at once has not waited
    has_restarted = np.bincount([piece.row for piece in pieces], minlength=len(result.tasks)) > 1
    return np.asarray(np.where(has_restarted, result.end_s - arrival_s - ran_s, result.start_s - arrival_s))


def _lost_hours(result: SimulationResult, pieces: Sequence[Piece]) -> dict[str, float]:
    lost: dict[str, float] = defaultdict(float)
    for piece in pieces:
        lost_s = piece.end_s - piece.start_s - piece.useful_s
        for kind, amount in result.tasks[piece.row].demand.items() if lost_s else ():
            lost[kind] += lost_s * amount / MILLI / SECONDS_PER_HOUR
    return dict(lost)


def compute_utilisation(result: SimulationResult, pieces: Sequence[Piece]) -> tuple[str, float]:
    """Compute the kind with the highest utilisation and its used fraction, from first arrival to last start.

    Work that a preemption discarded does not count; what a checkpoint kept does. Nodes that are down offer nothing.
    """
    kinds = result.table.resource_kinds
    has_run = np.isfinite(result.end_s)
    if not has_run.any():
        return kinds[0], 0.0
    begin_s, until_s = min(task.arrival for task in result.tasks), float(result.start_s[has_run].max())
    until_s = until_s if until_s > begin_s else float(result.end_s[has_run].max())
    run_s = np.where(has_run, np.minimum(result.end_s, until_s) - np.minimum(result.start_s, until_s), 0.0)
    for piece in pieces:
        if not piece.has_ended:
            run_s[piece.row] += piece.useful_s
    used = (result.table.demand_by_kind[: len(result.tasks)] * run_s[:, None]).sum(axis=0)
    offered = _total_capacity(result) * (until_s - begin_s)
    for row, down_s, up_s in list_outages(result):
        outage_s = max(0.0, min(up_s, until_s) - max(down_s, begin_s))
        offered -= outage_s * np.array([result.nodes[row].capacity.get(kind, 0) for kind in kinds], float)
    fractions = used / np.maximum(offered, 1e-9)
    fractions[[is_slot(kind) for kind in kinds]] = 0.0
    column = int(fractions.argmax())
    return kinds[column], float(fractions[column])


def compute_fairness(result: SimulationResult, pieces: Sequence[Piece]) -> float:
    """Compute Jain's index of the users' mean slowdowns, from 1/users to 1 (Jain, Chiu and Hawe, 1984).

    The slowdown of a task is the time from its arrival to its end by its work, which runs kept by a checkpoint are part
    of. Tasks without a run time, as some traces have, have no slowdown and do not count.
    """
    work_s = defaultdict[int, float](float)
    for piece in pieces:
        work_s[piece.row] += piece.useful_s
    slowdowns: dict[str, list[float]] = defaultdict(list)
    for row, (task, end) in enumerate(zip(result.tasks, result.end_s, strict=True)):
        if np.isfinite(end) and work_s[row] > 0:
            slowdowns[task.user or task.job].append((end - task.arrival) / work_s[row])
    means = np.array([np.mean(values) for values in slowdowns.values()])
    return float(means.sum() ** 2 / (means.size * (means**2).sum())) if means.size else 1.0


def compute_fragmentation(result: SimulationResult, kind: str) -> float:
    """Compute the fraction of a kind's free capacity that a task drawn from the workload cannot use.

    Fragmentation is after Weng et al. (USENIX ATC 2023), per node, over up to ``MAX_INSTANTS`` starts.
    """
    column = result.table.resource_kinds.index(kind)
    demands, weights = _commonest_demands(result.table.state.demand[: len(result.tasks)], column)
    if not len(demands):
        return 0.0
    unusable, free = 0.0, 0.0
    for node_free in _sample_free_capacity(result):
        fits = (demands[:, None, :] <= node_free[None, :, :]).all(axis=2)
        unusable += float(weights @ np.where(fits, 0.0, node_free[None, :, column]).sum(axis=1))
        free += float(node_free[:, column].sum())
    return unusable / free if free else 0.0


def count_running(result: SimulationResult, tasks: Sequence[Task]) -> tuple[list[float], list[float]]:
    """Return times (s) and, from each time on, the number of running tasks among ``tasks``."""
    names = {task.name for task in tasks}
    times, counts, level = [0.0], [0.0], 0
    log = result.log
    for time, kind, row in zip(log.times.tolist(), log.kinds.tolist(), log.tasks.tolist(), strict=True):
        change = START_CHANGE.get(kind, 0)
        if change and result.tasks[row].name in names:
            level += change
            if times[-1] == time:
                counts[-1] = float(level)
            else:
                times.append(time)
                counts.append(float(level))
    return times, counts


def count_waiting(result: SimulationResult) -> tuple[list[float], list[float]]:
    """Return times (s) and, from each time on, the number of tasks that have arrived and do not run.

    A preempted task waits again; one that a policy rejects does not wait.
    """
    changes = {0.0: 0}
    for task in result.tasks:
        if task.name not in result.rejections:
            changes[task.arrival] = changes.get(task.arrival, 0) + 1
    log = result.log
    for time, kind in zip(log.times.tolist(), log.kinds.tolist(), strict=True):
        # what ends does not wait
        change = 0 if kind == kernel.LOG_ENDED else -START_CHANGE.get(kind, 0)
        if change:
            changes[time] = changes.get(time, 0) + change
    times = sorted(changes)
    return times, [float(level) for level in itertools.accumulate(changes[time] for time in times)]


def _total_capacity(result: SimulationResult) -> FloatArray:
    kinds = result.table.resource_kinds
    return np.array([sum(node.capacity.get(kind, 0) for node in result.nodes) for kind in kinds], float)


def _commonest_demands(demand: Int64Array, column: int) -> tuple[Int64Array, FloatArray]:
    """Return the commonest demands of tasks that need a kind, and their frequencies."""
    positive = demand[demand[:, column] > 0]
    if not len(positive):
        return positive, np.zeros(0)
    demands, counts = np.unique(positive, axis=0, return_counts=True)
    top = np.argsort(-counts)[:MAX_DEMANDS]
    return demands[top], counts[top] / counts[top].sum()


def _sample_free_capacity(result: SimulationResult) -> Sequence[Int64Array]:
    """Return the [nodes, columns] free capacity after evenly spaced starts; the columns are those of the demand."""
    kinds, device_columns = result.table.resource_kinds, result.table.state.device_kinds.tolist()
    devices = [kinds[column] for column in device_columns]
    ledgers = list(open_ledgers(result.nodes).values()) if devices else []
    free = np.array([[node.capacity.get(kind, 0) for kind in kinds] for node in result.nodes], np.int64)
    demand, log = result.table.demand_by_kind, result.log
    starts = np.flatnonzero(log.kinds == kernel.LOG_STARTED)
    sampled = set(starts[np.linspace(0, starts.size - 1, min(MAX_INSTANTS, starts.size)).astype(int)].tolist())
    outages = list_outages(result)
    samples = []
    for entry in range(log.times.size):
        change = START_CHANGE.get(int(log.kinds[entry]), 0)
        if change:
            row, task = log.nodes[entry], result.tasks[log.tasks[entry]]
            free[row] -= change * demand[log.tasks[entry]]
            if ledgers and change > 0:
                ledgers[row].take(task)
            elif ledgers:
                ledgers[row].give_back(task)
        if entry in sampled:
            rooms = [ledger.room(devices) for ledger in ledgers] if ledgers else np.empty((len(free), 0), np.int64)
            sample = np.column_stack([free, rooms])
            sample[[row for row, down_s, up_s in outages if down_s <= log.times[entry] < up_s]] = 0
            samples.append(sample)
    return samples
