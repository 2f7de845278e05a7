"""Nodes and tasks from a spec: written, drawn by chance, or read from a trace."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unfold_placement.facts import MILLI, SEATS, Node, Task
from unfold_placement.spec import ClusterSpec, ManySpec, NodeSpec, TaskSpec, TraceSpec, WorkloadSpec
from unfoldkit.api import Run, fail

MIB = 1 << 20
RACK = 32
"""Nodes of a rack, for traces that do not say."""


def nodes_of(cluster: ClusterSpec, run: Run) -> list[Node]:
    """Return the nodes of a spec.

    Raises:
        UnfoldError: a file is missing or not what it should be.
    """
    if cluster.trace:
        found = list(openb_nodes(run.path(cluster.path or "", key="cluster.path")))
        return found[:: max(1, round(1 / cluster.part))]
    counts = Counter[str]()
    return [node for item in cluster.nodes for node in _nodes(item, counts)]


def tasks_of(workload: WorkloadSpec, run: Run) -> list[Task]:
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


def seated(nodes: Sequence[Node], tasks: Sequence[Task]) -> list[Task]:
    """Return tasks that take a pod each, where all nodes say how many pods they run; else the tasks as they are."""
    told = bool(nodes) and all(SEATS in node.capacity for node in nodes)
    return [replace(task, demand={SEATS: MILLI, **task.demand}) for task in tasks] if told else list(tasks)


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
        deadline, item.follows, item.avoids, item.after, item.data, item.run_on,
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


def openb_nodes(path: Path) -> Iterator[Node]:
    """Yield the nodes of an openb file (sn, cpu_milli, memory_mib, gpu, model); racks are made of 32 in a row."""
    for row, line in enumerate(_rows(path, ("sn", "cpu_milli", "memory_mib", "gpu", "model"))):
        capacity = {"cpu": int(line["cpu_milli"]), "memory": int(line["memory_mib"]) * MILLI}
        if int(line["gpu"]):
            capacity["gpu"] = int(line["gpu"]) * MILLI
        yield Node(line["sn"], capacity, {"type": line["model"], "rack": f"rack-{row // RACK}"})


def openb_tasks(path: Path, user: str = "qos", faster: float = 1.0) -> Iterator[Task]:
    """Yield the pods of an openb file as tasks; those never scheduled run from creation to deletion.

    A part of a GPU counts as such; the GPUs of one node are one pool. ``faster`` squeezes arrivals, not run times.
    """
    for line in _rows(path, ("name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "creation_time", user)):
        demand = {"cpu": int(line["cpu_milli"]), "memory": int(line["memory_mib"]) * MILLI}
        if int(line["num_gpu"]):
            demand["gpu"] = int(line["num_gpu"]) * int(line["gpu_milli"])
        arrival = float(line["creation_time"])
        run = float(line["deletion_time"]) - float(line["scheduled_time"] or arrival)
        yield Task(line["name"], demand, max(run, 1.0), arrival / faster, line["name"], line[user])


def csv_tasks(path: Path, faster: float = 1.0) -> Iterator[Task]:
    """Yield the tasks of a CSV file with the columns task, arrival and run (s), cpu, gpu, memory (MiB), job, user.

    All but ``task``, ``arrival`` and ``run`` may be missing; ``priority`` and ``deadline`` (s after arrival) too.
    """
    rows = list(_rows(path, ("task", "arrival", "run")))
    sizes = Counter(line.get("job") or line["task"] for line in rows)
    for number, line in enumerate(rows, 2):
        try:
            yield _csv_task(line, sizes, faster)
        except ValueError as error:
            raise fail(f"line {number}: {error}", file=str(path)) from error


def _csv_task(line: Mapping[str, str], sizes: Mapping[str, int], faster: float) -> Task:
    demand = {kind: round(float(line[kind]) * MILLI) for kind in ("cpu", "gpu", "memory") if line.get(kind)}
    job, arrival = line.get("job") or line["task"], float(line["arrival"]) / faster
    deadline = arrival + float(line["deadline"]) if line.get("deadline") else math.inf
    return Task(
        line["task"], {kind: amount for kind, amount in demand.items() if amount}, float(line["run"]), arrival, job,
        line.get("user") or "", line.get("role") or "", sizes[job], int(line.get("priority") or 0), deadline,
    )  # fmt: skip


def _replayed(item: TraceSpec, run: Run) -> list[Task]:
    path = run.path(item.path, key="workload.replay.path")
    found = list(openb_tasks(path, item.user, item.faster) if item.trace == "openb" else csv_tasks(path, item.faster))
    if not found:
        raise fail("no tasks", file=str(path), key="workload.replay.path")
    return found[: item.first]


def _rows(path: Path, columns: Iterable[str]) -> Iterator[dict[str, Any]]:
    with path.open("rb") as raw, io.TextIOWrapper(gzip.open(raw) if path.suffix == ".gz" else raw, "utf-8") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            there = ", ".join(reader.fieldnames or ()) or "nothing"
            raise fail(f"no column {', '.join(missing)}", file=str(path), hint=f"it has {there}")
        yield from reader
