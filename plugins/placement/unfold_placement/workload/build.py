"""Nodes and tasks from a spec: written, drawn by chance, or read from a trace."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from unfold_placement.core.types import MILLI, PODS, Node, Task
from unfold_placement.schema.models import ClusterSpec, ManySpec, NodeSpec, TaskSpec, TraceSpec, WorkloadSpec
from unfold_placement.workload.kubectl import kubectl_nodes, kubectl_tasks
from unfold_placement.workload.philly import philly_nodes, philly_tasks
from unfold_placement.workload.ray_state import ray_nodes, ray_tasks
from unfold_placement.workload.swf import swf_nodes, swf_tasks
from unfold_placement.workload.tables import csv_nodes, csv_tasks, openb_nodes, openb_tasks
from unfoldkit.api import Run, fail

MIB = 1 << 20
NODES: Mapping[str, Callable[[Path], Iterable[Node]]] = {
    "openb": openb_nodes, "kubectl": kubectl_nodes, "ray": ray_nodes, "swf": swf_nodes, "philly": philly_nodes,
}  # fmt: skip
"""Readers of nodes by the name of a trace; any other is a table."""
TASKS: Mapping[str, Callable[..., Iterable[Task]]] = {
    "kubectl": kubectl_tasks, "ray": ray_tasks, "swf": swf_tasks, "philly": philly_tasks,
}  # fmt: skip
"""Readers of tasks, likewise, but for openb's, whose file names no job."""


def build_nodes(cluster: ClusterSpec, run: Run) -> list[Node]:
    """Return the nodes of a spec.

    Raises:
        UnfoldError: a file is missing or not what it should be.
    """
    if cluster.trace:
        return _traced(cluster, run)
    counts = Counter[str]()
    return [node for item in cluster.nodes for node in _nodes(item, counts)]


def _traced(cluster: ClusterSpec, run: Run) -> list[Node]:
    path = run.path(cluster.path or "", key="cluster.path")
    read = NODES.get(cluster.trace or "", partial(csv_nodes, columns=cluster.table.read))
    found = list(read(path))
    if not found:
        raise fail("no nodes", file=str(path), key="cluster.path")
    # evenly spread; the small term keeps 3 / 0.1 from being less than 30
    return [found[int(row / cluster.part + 1e-9)] for row in range(max(1, round(cluster.part * len(found))))]


def build_tasks(workload: WorkloadSpec, run: Run) -> list[Task]:
    """Return the tasks of a spec, in the order of the file.

    Raises:
        UnfoldError: there are none, or a file is missing or not what it should be.
    """
    if workload.replay:
        return _replayed(workload.replay, run)
    if workload.made:
        return _made(workload.made, np.random.default_rng(run.seed))
    if not workload.tasks:
        raise fail("a plan needs tasks", key="workload", hint="write tasks: [{job: a, count: 8, cpu: 1, run: 10 min}]")
    return _written(workload.tasks)


def add_pod_slots(nodes: Sequence[Node], tasks: Sequence[Task]) -> list[Task]:
    """Return tasks that take a pod each, where all nodes say how many pods they run; else the tasks as they are."""
    told = bool(nodes) and all(PODS in node.capacity for node in nodes)
    return [replace(task, demand={PODS: MILLI, **task.demand}) for task in tasks] if told else list(tasks)


def _nodes(item: NodeSpec, counts: Counter[str]) -> Iterator[Node]:
    stem = item.name or "node"
    labels = {**item.labels, **({"type": item.type} if item.type else {})}
    for _ in range(item.count):
        name = stem if item.name and item.count == 1 else f"{stem}-{counts[stem]}"
        counts[stem] += 1
        yield Node(name, _amounts(item), labels, frozenset(item.data))


def _amounts(item: NodeSpec | TaskSpec) -> dict[str, int]:
    plain = {"cpu": item.cpu, "gpu": item.gpu, "memory": item.memory / MIB, **item.resources}
    return {kind: math.ceil(amount * MILLI - 1e-6) for kind, amount in plain.items() if amount}


def _written(items: Iterable[TaskSpec]) -> list[Task]:
    listed = list(items)
    sizes = Counter[str]()
    for item in listed:
        sizes[item.job] += item.count
    numbers = Counter[str]()
    found = []
    for item in listed:
        for index in range(item.count):
            found.append(_task(item, item.at + index * item.every, numbers[item.job], sizes[item.job]))
            numbers[item.job] += 1
    return found


def _task(item: TaskSpec, arrival: float, number: int, size: int) -> Task:
    deadline = math.inf if item.deadline is None else arrival + item.deadline
    return Task(
        f"{item.job}-{number}", _amounts(item), item.run, arrival, item.job, item.user, item.role, size, item.priority,
        deadline, item.follows, item.avoids, item.after, item.data, item.run_on, item.types,
    )  # fmt: skip


def _made(item: ManySpec, rng: np.random.Generator) -> list[Task]:
    arrivals = np.cumsum(rng.exponential(1 / item.rate, item.random))
    runs = item.run * np.exp(item.spread * rng.standard_normal(item.random) - item.spread**2 / 2)
    users, demands = rng.integers(item.users, size=item.random), rng.integers(len(item.demands), size=item.random)
    amounts = [{kind: math.ceil(amount * MILLI) for kind, amount in demand.items()} for demand in item.demands]
    return [
        Task(f"t{row}", amounts[demands[row]], float(runs[row]), float(arrivals[row]), f"t{row}", f"u{users[row]}")
        for row in range(item.random)
    ]


def _replayed(item: TraceSpec, run: Run) -> list[Task]:
    path = run.path(item.path, key="workload.replay.path")
    if item.trace == "openb":
        found = list(islice(openb_tasks(path, item.user, item.faster), item.first))
    else:
        read = TASKS.get(item.trace, partial(csv_tasks, columns=item.table.read))
        found = list(read(path, item.faster, item.first, tell=run.log.warning))
    if not found:
        raise fail("no tasks", file=str(path), key="workload.replay.path")
    return found
